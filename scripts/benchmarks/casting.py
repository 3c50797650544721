"""Programs that send an image to a room of machines, each in a network namespace: ours, udpcast, UFTP.

Debian packages: udpcast uftp iproute2 nftables ethtool.

Whoever sends has its image in the page cache, and whoever receives writes to a new file on tmpfs. All that was received
is compared with the image afterwards, with no clock running. Ours has the image's scan beforehand, checks every chunk
that arrives by its BLAKE3 and reads back what it wrote; udpcast has no checksum but that of UDP, nor has UFTP while it
does not encrypt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from scripts.benchmarks.measuring import Failed
from scripts.benchmarks.running import BIN
from tests.restore.multicast.rooms import SERVER, Machine, Room, room

READY: Final = 20.0  # seconds that a program may take until it listens
_LOOK: Final = 0.002  # seconds between looks whether a program has ended


class Program:
    """A program that runs in a namespace.

    Attributes:
        name: of its file.
        started, ended: when; seconds of the monotonic clock.
        status: that it ended with, None while it runs.
        cpu: seconds of a core that it took, when it has ended. A veth has the sender's core do the work of the
            receiving kernel, up to the socket.
    """

    def __init__(self, machine: Machine, *words: str | Path) -> None:
        """Start it."""
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the program
        self.name = Path(words[0]).name
        self.started = time.monotonic()
        self.ended = 0.0
        self.cpu = 0.0
        self.status: int | None = None
        self._process = subprocess.Popen(
            [*machine.inside, *words], stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
        )

    @property
    def pid(self) -> int:
        """Its process; `ip netns exec` becomes it."""
        return self._process.pid

    @property
    def text(self) -> str:
        """All that it has printed so far."""
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What it told in JSON, of one kind."""
        lines = (line for line in self.text.splitlines(keepends=True) if line.startswith("{") and line.endswith("\n"))
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.ended = time.monotonic()
                self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu = usage.ru_utime + usage.ru_stime
        return self.status is not None

    def used(self) -> float:
        """Seconds of a core that it has taken so far."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def listens(self, port: int) -> bool:
        """Whether its machine has a socket for UDP on a port."""
        try:
            return f":{port:04X} " in Path(f"/proc/{self.pid}/net/udp").read_text()
        except OSError:
            return False

    def datagrams(self) -> int:
        """How many datagrams over UDP its machine has sent; a batch is one."""
        lines = Path(f"/proc/{self.pid}/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        return int(values[names.index("OutDatagrams")])

    def wait(self, condition: Callable[[], object], what: str, seconds: float = READY) -> None:
        """Until something holds.

        Raises:
            Failed: that took too long, or it ended.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if self.poll():
                raise Failed(f"{self.name} ended with {self.status} before {what}: {self.last_line}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: {what} took more than {seconds:.0f} s")
            time.sleep(_LOOK)

    @property
    def last_line(self) -> str:
        """The last line that it printed, at most 200 characters."""
        return next((line for line in reversed(self.text.splitlines()) if line.strip()), "it printed nothing")[:200]

    def succeeded(self) -> None:
        """It has ended, and well.

        Raises:
            Failed: not so.
        """
        if self.status != 0:
            raise Failed(f"{self.name} ended with {self.status}: {self.last_line}")

    def end(self, how: signal.Signals) -> None:
        """Send it a signal, and wait for its end."""
        if not self.poll():
            self._process.send_signal(how)
            while not self.poll():
                time.sleep(_LOOK)

    def close(self) -> None:
        """Kill it, if it still runs, and forget what it printed."""
        self.end(signal.SIGKILL)
        self._output.close()


@dataclass(slots=True)
class Stage:
    """A room, and what runs in it."""

    room: Room
    programs: list[Program] = field(default_factory=list)

    def start(self, machine: Machine, *words: str | Path) -> Program:
        """Run a program; it is killed with the room."""
        self.programs.append(Program(machine, *words))
        return self.programs[-1]


@contextmanager
def staged(clients: int) -> Iterator[Stage]:
    """A server's machine and those of so many clients."""
    with room(clients) as here:
        stage = Stage(here)
        try:
            yield stage
        finally:
            for program in stage.programs:
                program.close()


def finish(programs: Sequence[Program], seconds: float) -> None:
    """Until all of them have ended well.

    Raises:
        Failed: one has not, or that took too long.
    """
    deadline = time.monotonic() + seconds
    running = list(programs)
    while running := [program for program in running if not program.poll()]:
        if time.monotonic() > deadline:
            raise Failed(f"{running[0].name}: not done after {seconds:.0f} s: {running[0].last_line}")
        time.sleep(_LOOK)
    for program in programs:
        program.succeeded()


def check(image: Path, *copies: Path) -> None:
    """Copies are what they should be; they are deleted then, for their memory.

    Raises:
        Failed: one is not.
    """
    for copy in copies:
        if subprocess.run(["cmp", "-s", image, copy]).returncode:
            raise Failed(f"{copy} is not what {image} is")
        copy.unlink()


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that one stream took for all of its clients.

    Attributes:
        copying: by the programs' own account, from the first byte to the last, without start-up and finding each other.
        whole: from when one side is ready and the other one starts, until all clients have it.
    """

    copying: float
    whole: float


# --- Ours ---


@dataclass(slots=True)
class Stream:
    """An `asr server` that runs."""

    stage: Stage
    image: Path
    server: Program
    before: float  # seconds of a core that it took to start

    def restore(self, number: int, *options: str) -> Program:
        """Start a client: a verified restore to a new file."""
        target = self.target(number)
        target.unlink(missing_ok=True)
        with target.open("wb") as file:
            file.truncate(self.image.stat().st_size)
        words: tuple[str | Path, ...] = (
            "--source",
            f"asr://{SERVER}",
            "--target",
            target,
            "--erase",
            "--noprompt",
            "--json",
            *options,
        )
        return self.stage.start(self.stage.room.clients[number], BIN / "asr", "restore", *words)

    def target(self, number: int) -> Path:
        """What a client writes to."""
        return self.image.with_name(f"client{number}.img")

    def check(self, *numbers: int) -> None:
        """What these clients have is right; raises as `check`."""
        check(self.image, *(self.target(number) for number in numbers))

    def stop(self) -> dict[str, Any]:
        """End it; what it tells then.

        Raises:
            Failed: it does not end well.
        """
        self.server.end(signal.SIGTERM)
        self.server.succeeded()
        return self.server.events("stopped")[0]


@contextmanager
def streaming(clients: int, image: Path, *options: str) -> Iterator[Stream]:
    """A room, with `asr server` ready in it.

    Raises:
        Failed: it does not get ready.
    """
    if not Path(f"{image}.bmap").exists():
        subprocess.run([BIN / "asr", "imagescan", image], check=True, stdout=subprocess.DEVNULL)
    with staged(clients) as stage:
        words: tuple[str | Path, ...] = ("--source", image, "--json", "--no-discovery", "--interface", "eth0", *options)
        server = stage.start(stage.room.server, BIN / "asr", "server", *words)
        server.wait(lambda: server.events("ready"), "it was ready")
        yield Stream(stage, image, server, server.used())


def seconds(restore: Program) -> float:
    """How long a restore took by its own account: from the first erased byte to the end of verification.

    Raises:
        Failed: it has not ended well.
    """
    restore.succeeded()
    return float(restore.events("done")[0]["seconds"])


def cast(image: Path, clients: int, limit: float, *options: str) -> Times:
    """A stream to clients that start together.

    Raises:
        Failed: it was not done within `limit` seconds, or not done right.
    """
    with streaming(clients, image, "--start-when", str(clients), *options) as stream:
        restores = [stream.restore(number) for number in range(clients)]
        finish(restores, limit)
        stream.check(*range(clients))
        whole = max(each.ended for each in restores) - restores[0].started
        return Times(max(map(seconds, restores)), whole)


# --- Peers ---


def udpcast(image: Path, clients: int, limit: float) -> Times:
    """The same by udpcast; raises as `cast`.

    Its rendezvous is a broadcast: without a broadcast address on the interface nobody finds anybody. Full duplex is
    what it chooses itself, and as fast as half duplex; the largest receive buffer spares it the most repetitions. No
    slice size was faster than its own. Forward error correction without a return channel does not get through at a
    rate that is worth it.
    """
    copies = [image.with_name(f"client{number}.img") for number in range(clients)]
    with staged(clients) as stage:
        receivers = [
            stage.start(
                machine, "udp-receiver", "--nokbd", "--nosync", "--interface", "eth0", "--no-progress",
                "--rcvbuf", "8m", "--exit-wait", "10", "--file", copy,
            )
            for machine, copy in zip(stage.room.clients, copies, strict=True)
        ]  # fmt: skip
        for receiver in receivers:
            receiver.wait(lambda receiver=receiver: receiver.listens(9000), "it listened")  # type: ignore[misc]
        sender = stage.start(
            stage.room.server, "udp-sender", "--nokbd", "--interface", "eth0", "--no-progress", "--full-duplex",
            "--min-receivers", str(clients), "--file", image,
        )  # fmt: skip
        finish([sender, *receivers], limit)
        check(image, *copies)
        # It says nothing of how long it took; finding each other takes it some milliseconds.
        took = max(each.ended for each in (sender, *receivers)) - sender.started
        return Times(took, took)


def uftp(image: Path, clients: int, limit: float) -> Times:
    """The same by UFTP; raises as `cast`.

    Without congestion control it is fastest, and with datagrams of the largest size that it knows, that IP has to
    fragment; with those of one packet, at any rate, it takes half as long again. Two seconds of announcement are not
    counted as copying.
    """
    directories = [image.with_name(f"client{number}") for number in range(clients)]
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
    with staged(clients) as stage:
        receivers = [
            stage.start(machine, "uftpd", "-d", "-I", "eth0", "-B", "4194304", "-D", directory)
            for machine, directory in zip(stage.room.clients, directories, strict=True)
        ]
        for receiver in receivers:
            receiver.wait(lambda receiver=receiver: receiver.listens(1044), "it listened")  # type: ignore[misc]
        sender = stage.start(
            stage.room.server, "uftp", "-I", "eth0", "-B", "4194304", "-R", "-1", "-b", "8800", image
        )  # fmt: skip
        finish([sender], limit)
        check(image, *(directory / image.name for directory in directories))
        elapsed = re.search(r"Total elapsed time: +([0-9.]+) seconds", sender.text)
        if elapsed is None:
            raise Failed(f"uftp does not say how long it took: {sender.last_line}")
        return Times(float(elapsed[1]), sender.ended - sender.started)
