"""`scripts/demo --multicast`: one stream restores a room of machines, all of which are on this one.

As root the room is made of network namespaces on a bridge, which lies in a namespace of its own, so that this machine's
own network is not touched; each client loses some datagrams, and its disk is a loop device. As anyone else the server
and the clients share the loopback interface, which loses nothing, and the disks are files.

Debian packages: iproute2 nftables ethtool util-linux diffutils hostname.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.tour.stage import LeftOut, loop

_ASR: Final = (sys.executable, "-m", "restore.cli")
_CHECKOUT: Final = Path(__file__).parents[1]
_PORT: Final = 7800
_NETWORK: Final = "10.78.0"
_READY: Final = 60.0  # seconds that the server may take to scan its image and listen
_LONGEST: Final = 300.0  # seconds that all restores together, or one comparison, may take
_ENDING: Final = 10.0  # seconds that a process may take to clean up when it is told to end
_LOOK: Final = 0.1  # seconds between two looks at what runs
_LAST: Final = 3  # lines of a client that are shown
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoError(Exception):
    """Something did not go as it should; the message says what."""


class Interrupted(Exception):
    """Somebody wants it to end."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the room.

    Attributes:
        name: its host name.
        address: its IPv4 address.
        namespace: its network namespace; empty where it has none of its own.
    """

    name: str
    address: str
    namespace: str = ""

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a program there."""
        return ("ip", "netns", "exec", self.namespace) if self.namespace else ()

    def asr(self, *words: str | Path) -> list[str]:
        """The command that runs `asr` there, under the machine's host name if it has a namespace."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', self.name) if self.namespace else ()
        return [*self.inside, *named, *_ASR, *map(str, words)]


@dataclass(slots=True)
class Client:
    """A machine that takes part.

    Attributes:
        machine: it.
        disk: what it restores onto.
        output: what it has printed.
        process: its `asr restore`, once it was started.
        started, ended: seconds since the server was ready.
    """

    machine: Machine
    disk: str
    output: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ended: float | None = None

    def look(self, now: float) -> None:
        """Note when it has ended."""
        if self.process is not None and self.ended is None and self.process.poll() is not None:
            self.ended = now

    @property
    def failed(self) -> bool:
        """Whether it did not end well, or not at all."""
        return self.process is None or self.process.returncode != 0


@dataclass(slots=True)
class Demo:
    """All that was made, and the end of it.

    Attributes:
        options: of the command line.
        stack: takes everything away again.
        work: a directory for what is made.
        signals: those that came; looked at where nothing is half done.
    """

    options: argparse.Namespace
    stack: ExitStack
    work: Path
    signals: list[int]

    def run(self) -> None:
        """All of it.

        Raises:
            DemoError, Interrupted: it did not come to its end.
        """
        server, machines, port, network = self._room()
        clients = [
            Client(machine, self._disk(number), self.work / f"{machine.name}.txt")
            for number, machine in enumerate(machines, 1)
        ]
        words: list[str | Path] = ["server", "--source", self.options.image, "--data-rate", self.options.data_rate]
        words += ["--once", "--no-discovery", *network]
        if port != _PORT:
            words += ["--port", str(port)]
        print(f"==> {server.name}: {_shown(words)}", flush=True)
        process = self._start(server.asr(*words), own_terminal=True)
        self._wait_for(process, server, port)
        source = f"asr://{server.address}" if port == _PORT else f"asr://{server.address}:{port}"
        self._restore(process, clients, ["restore", "--source", source, "--erase", "--noprompt", *network])
        for client in clients:
            self._show(client)
        late = [client.machine.name for client in clients if client.failed]
        if late:
            raise DemoError(f"not restored: {', '.join(late)}")
        if process.returncode:
            raise DemoError(f"asr server ended with status {process.returncode}")
        for client in clients:
            self._verify(client.disk)

    # ---- what is needed ----

    def _room(self) -> tuple[Machine, list[Machine], int, list[str]]:
        """The server, the clients, the server's port, and the options that tell both which interface to use."""
        reason = "" if os.geteuid() == 0 else "not root"
        if not reason:
            try:
                server, *clients = self._namespaces()
            except DemoError as error:
                reason = str(error)
            else:
                return server, clients, _PORT, []
        _note(
            f"{reason}, so there are no network namespaces: server and clients share the loopback interface, "
            "where no datagram is lost, and the disks are image files"
        )
        machines = [Machine(name, "127.0.0.1") for name in self._names()]
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port: int = sock.getsockname()[1]
        return machines[0], machines[1:], port, ["--interface", "lo"]

    def _names(self) -> list[str]:
        return ["server", *(f"client{number + 1}" for number in range(self.options.clients))]

    def _namespaces(self) -> list[Machine]:
        """A namespace for each machine and one for the bridge between them; the server is the first."""
        prefix = f"tm-demo-{os.getpid()}-"
        hub = f"{prefix}bridge"
        machines = [
            Machine(name, f"{_NETWORK}.{number}", prefix + name) for number, name in enumerate(self._names(), 1)
        ]
        for name in (hub, *(machine.namespace for machine in machines)):
            self.stack.callback(_delete_namespace, name)
            self._do("ip", "netns", "add", name)
        self._do("ip", "-n", hub, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self._do("ip", "-n", hub, "link", "set", "br0", "up")
        for machine in machines:
            in_it = ("ip", "-n", machine.namespace)
            self._do(*in_it, "link", "set", "lo", "up")
            self._do(*in_it, "link", "add", "eth0", "type", "veth", "peer", "name", machine.name, "netns", hub)
            self._do(*in_it, "address", "add", f"{machine.address}/24", "dev", "eth0")
            self._do("ip", "-n", hub, "link", "set", machine.name, "master", "br0", "up")
            self._do(*in_it, "link", "set", "eth0", "up")
        print(
            f"==> a room of {len(machines)} machines on one bridge: server {machines[0].address}, clients "
            f"{machines[1].address} to {machines[-1].address}",
            flush=True,
        )
        self._lose(machines)
        return machines

    def _lose(self, machines: list[Machine]) -> None:
        """Have each client lose its share of the datagrams, one by one and not by the batches that the kernel sends."""
        share = round(self.options.loss * 1000)
        if not share:
            return
        try:
            self._do(*machines[0].inside, "ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
            for machine in machines[1:]:
                nft = (*machine.inside, "nft")
                self._do(*nft, "add table inet loss")
                self._do(*nft, "add chain inet loss in { type filter hook input priority 0; }")
                drop = f"numgen random mod 100000 < {share} drop"
                self._do(*nft, f"add rule inet loss in meta l4proto udp {drop}")
        except DemoError as error:
            _note(f"nothing is lost on the way, since that cannot be had here: {error}")
        else:
            print(f"==> each client loses {self.options.loss:g} % of the datagrams, each another part", flush=True)

    def _disk(self, number: int) -> str:
        """A blank disk of the image's size: a loop device, or a file where there is none to be had."""
        path = self.work / f"disk{number}.img"
        with path.open("wb") as file:
            file.truncate(self.options.image.stat().st_size)
        if os.geteuid() == 0:
            try:
                return self.stack.enter_context(loop(path))
            except LeftOut as reason:
                _note(f"{reason}; the disk is a file")
        return str(path)

    # ---- what is done ----

    def _restore(self, server: subprocess.Popen[bytes], clients: list[Client], words: list[str]) -> None:
        """Start the clients one after the other, and wait for all, and for the server, which ends after the last."""
        begin = time.monotonic()
        while any(client.ended is None for client in clients) or server.poll() is None:
            now = time.monotonic() - begin
            for number, client in enumerate(clients):
                client.look(now)
                if client.process is None and now >= number * self.options.stagger:
                    client.started = now
                    command = client.machine.asr(*words, "--target", client.disk)
                    with client.output.open("wb") as file:
                        client.process = self._start(command, output=file.fileno())
            if now > _LONGEST or (server.poll() and all(client.ended is not None for client in clients)):
                break
            self._sleep()

    def _wait_for(self, process: subprocess.Popen[bytes], server: Machine, port: int) -> None:
        deadline = time.monotonic() + _READY
        while not self._do(*server.inside, "ss", "-Hltn", f"sport = :{port}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError("asr server did not get ready")
            self._sleep()

    def _show(self, client: Client) -> None:
        lines = client.output.read_text(errors="replace").splitlines() if client.output.exists() else []
        how = "did not end" if client.ended is None else f"ended at {client.ended:.1f} s"
        print(f"==> {client.machine.name}, {client.disk}: started at {client.started:.1f} s, {how}", flush=True)
        for line in lines[-_LAST:]:
            print(f"    {line}", flush=True)

    def _verify(self, disk: str) -> None:
        """Prove a disk right by our own means, and by another's.

        Raises:
            DemoError: it is not.
        """
        image = self.options.image
        words: list[str | Path] = ["verify", "--source", image, "--target", disk]
        print(f"==> {_shown(words)}", flush=True)
        self._finish([*_ASR, *map(str, words)], "asr verify has found differences", last=1)
        self._finish(["cmp", f"--bytes={image.stat().st_size}", str(image), disk], f"{disk} differs from the image")
        print("    cmp: not a byte differs", flush=True)

    # ---- processes ----

    def _sleep(self) -> None:
        """Wait a little.

        Raises:
            Interrupted: a signal has come.
        """
        if self.signals:
            raise Interrupted
        time.sleep(_LOOK)

    def _do(self, *words: str) -> str:
        """Run a command that takes no time; what it printed.

        Raises:
            DemoError: it failed.
            Interrupted: a signal has come.
        """
        if self.signals:
            raise Interrupted
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False, start_new_session=True)
        except FileNotFoundError:
            raise DemoError(f"there is no {words[0]}") from None
        if done.returncode:
            raise DemoError(f"{shlex.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def _start(
        self, command: list[str], *, output: int | None = None, own_terminal: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start what runs for a while: on our own terminal, whose Ctrl-C it gets, or away from it."""
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=_CHECKOUT,
            start_new_session=not own_terminal,
        )
        self.stack.callback(_end, process)
        return process

    def _finish(self, command: list[str], wrong: str, last: int = 0) -> None:
        """Run a command to its end, and show so many of its last lines, or all if it fails.

        Raises:
            DemoError: it failed; `wrong` says what that means.
            Interrupted: a signal has come.
        """
        path = self.work / "output.txt"
        with path.open("wb") as file:
            process = self._start(command, output=file.fileno())
        deadline = time.monotonic() + _LONGEST
        while process.poll() is None and time.monotonic() < deadline:
            self._sleep()
        lines = path.read_text(errors="replace").splitlines()
        for line in lines[len(lines) - last :] if process.returncode == 0 else lines:
            print(f"    {line}", flush=True)
        if process.returncode != 0:
            raise DemoError(f"{wrong} (exit status {process.returncode})")


def _shown(words: list[str | Path]) -> str:
    return shlex.join(["asr", *(word.name if isinstance(word, Path) else word for word in words)])


def _note(text: str) -> None:
    print(f"==> note: {text}", file=sys.stderr, flush=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that should have ended: with a word first, so that it can clean up."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _delete_namespace(name: str) -> None:
    """Take a namespace away, with what still runs in it; nothing if there is none of that name."""
    if not Path("/run/netns", name).exists():
        return
    for pid in subprocess.run(
        ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
    ).stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], check=False)


def _detach(work: Path) -> None:
    """Detach every loop device over a file in a directory, such as one that a signal has come between."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text().startswith(f"{work}/"):
                subprocess.run(["losetup", "--detach", f"/dev/{backing.parts[3]}"], check=False)


def main() -> int:
    """The program; its exit status."""
    options = _arguments()
    started = time.monotonic()
    signals: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: signals.append(number))
    with ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="tm-multicast."))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        stack.callback(_detach, work)
        demo = Demo(options, stack, work, signals)
        try:
            demo.run()
        except Interrupted:
            pass
        except (DemoError, OSError) as error:
            if not signals:
                print(f"==> FAILED: {error}", file=sys.stderr, flush=True)
                return 1
    if signals:
        print(f"==> interrupted by {signal.Signals(signals[0]).name}; all is taken away again", file=sys.stderr)
        return 128 + signals[0]
    print(f"==> OK: {options.clients} disks restored by one stream and compared, {time.monotonic() - started:.0f} s")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo --multicast", description="One stream restores a room.")
    parser.add_argument("--image", type=Path, metavar="FILE", help="what is restored; by default a Debian")
    parser.add_argument("--clients", type=int, choices=range(1, 101), default=4, metavar="N", help="4 by default")
    parser.add_argument("--loss", type=float, default=2.0, metavar="PERCENT", help="of datagrams at each client; 2")
    parser.add_argument("--data-rate", default="20M", metavar="BYTES", help="per second; 20M by default")
    parser.add_argument("--stagger", type=float, default=2.5, metavar="S", help="seconds between two clients; 2.5")
    options = parser.parse_args()
    if not 0 <= options.loss < 100:
        parser.error(f"--loss {options.loss:g}: it has to be 0 or more, and less than 100")
    if options.image is None or not options.image.is_file():
        parser.error(f"--image {options.image}: there is no such file")
    options.image = options.image.resolve()
    return options


if __name__ == "__main__":
    sys.exit(main())
