"""A real `targetmode serve` in a process of its own, for the tests that look at it from outside."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from tests.support import wait_until

Event = dict[str, Any]

ENGINES: Final = ("builtin", "nbdkit")
TARGETMODE: Final = (sys.executable, "-m", "targetmode.cli")
SHAPES: Final = {
    "ready": {"session", "name", "control", "exports"},
    "connect": {"export", "peer"},
    "disconnect": {"export", "peer", "reason", "read", "written"},
    "flush": {"export", "peer"},
    "error": {"export", "peer", "command", "offset", "length", "message"},
    "rejected": {"export", "peer", "reason"},
    "stopped": {"export", "safe"},
}
ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(
    *command: str | Path, check: bool = True, stdin: str | None = None, timeout: float = 60, cwd: str | Path = "/"
) -> Result:
    """Run a command to its end, by default one that has to succeed; it runs where our package `nbd` is not in sight."""
    words = [str(word) for word in command]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment, check=False
    )
    assert not check or done.returncode == 0, f"{words}: status {done.returncode}: {done.stdout}{done.stderr}"
    return Result(done.returncode, done.stdout, done.stderr)


def targetmode(*arguments: str | Path, timeout: float = 20) -> Result:
    """Run `targetmode` to its end."""
    return run(*TARGETMODE, *arguments, check=False, timeout=timeout, cwd=ROOT)


class Serving:
    """A `targetmode serve --json` that runs.

    Attributes:
        process: its main process.
        ready: the `ready` event.
        events: every event so far, in order.
        stopped: `stop` was called.
    """

    def __init__(self, process: subprocess.Popen[bytes], errors: Path) -> None:
        """Wait until it is ready."""
        self.process = process
        self.events: list[Event] = []
        self.stopped = False
        self._errors = errors
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self._thread.start()
        self.ready = self.next("ready")

    def next(self, kind: str, seconds: float = 10, **values: Any) -> Event:
        """The next event of that kind with those values, among those that were not yet looked at."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind} event in {seconds} s: {self.events} {self.errors}") from None
            assert event is not None, f"ended before {kind}: {self.events} {self.errors}"
            if event["event"] == kind and values.items() <= event.items():
                return event

    def check(self) -> None:
        """Every event has what one of its kind has to have, and nothing else."""
        for event in self.events:
            kind, keys = event["event"], event.keys() - {"event", "time"}
            assert keys == SHAPES[kind] or (kind == "stopped" and keys == {*SHAPES[kind], "message"}), event
            assert datetime.fromisoformat(event["time"]).tzinfo is not None
            for counter in ("read", "written", "offset", "length"):
                assert type(event.get(counter, 0)) is int, event
                assert event.get(counter, 0) >= 0, event

    @property
    def errors(self) -> str:
        """What it has printed on standard error so far."""
        return self._errors.read_text()

    @property
    def exports(self) -> list[str]:
        """The names of the exports when it began."""
        return [export["name"] for export in self.ready["exports"]]

    def uri(self, export: str | None = None, kind: str = "127.0.0.1") -> str:
        """The URI of an export, of the first disk without a name, over the first way that has `kind` in it."""
        uris: list[str] = self.ready["exports"][0]["uris"]
        uri = next(uri for uri in uris if kind in uri)
        if export is None:
            return uri
        head, _, query = uri.partition("?")
        return head.rpartition("/")[0] + f"/{export}" + (f"?{query}" if query else "")

    @property
    def port(self) -> int:
        """The TCP port of its first IPv4 address."""
        return int(self.uri("").removeprefix("nbd://").rstrip("/").partition(":")[2] or 10809)

    @property
    def control(self) -> str:
        """The control API's beginning of every URL."""
        return f"http://127.0.0.1:{self.ready['control']}"

    def stop(self, number: int | None = signal.SIGTERM, seconds: float = 15) -> int:
        """End it by a signal, or wait until it ends by itself; its exit status. Every event is in `events` then."""
        self.stopped = True
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(seconds)
        self._thread.join(seconds)
        return status

    def descendants(self) -> list[int]:
        """The ids of all its processes but the main one: the engine's and the connections'."""
        return _descendants(self.process.pid)

    def engine(self) -> int:
        """The id of the process that listens."""
        (pid,) = _children(self.process.pid)
        return pid

    def connection(self) -> int:
        """The id of the only connection's process, of the built-in engine."""
        (pid,) = _children(self.engine())
        return pid

    def _pump(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            self._queue.put(event)
        self._queue.put(None)


@contextmanager
def serving(
    *disks: str | Path,
    options: Sequence[str | Path] = ("--listen", "127.0.0.1:0", "--control", "off"),
    engine: str = "builtin",
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str | Path] = (),
    program: Sequence[str | Path] = TARGETMODE,
    errors: Path,
    clean: bool = True,
) -> Iterator[Serving]:
    """Run `targetmode serve` until the block is left.

    Args:
        disks: what to serve.
        options: the rest of the command line.
        engine: `builtin` or `nbdkit`.
        environment: what to add to the environment.
        prefix: a command that runs it.
        program: what is run as `targetmode`.
        errors: a file for its standard error.
        clean: it has to live until it is told to stop, to exit with 0, to have said of every disk that it is safe to
            disconnect, and nothing on standard error.
    """
    command = [*prefix, *program, "serve", "--json", "--engine", engine, *options, "--", *disks]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(errors.parent), **(environment or {})},  # what is killed leaves files
            cwd=ROOT,
            start_new_session=True,
        )
    started: list[int] = []
    try:
        server = Serving(process, errors)
        yield server
        started = server.descendants()
        if clean:
            if not server.stopped:
                assert process.poll() is None, f"ended by itself: {process.returncode} {server.events} {server.errors}"
                server.stop()
            assert process.returncode == 0, server.errors
            assert server.errors == ""
            server.check()
            stopped = [event for event in server.events if event["event"] == "stopped"]
            assert [event["safe"] for event in stopped] == [True] * len(disks)
    finally:
        if process.poll() is None:
            started = _descendants(process.pid)
            process.terminate()
            try:
                process.wait(12)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        wait_until(lambda: not any(map(alive, started)), "the end of every process")
        process.stdout.close()


def kill_all(server: Serving) -> None:
    """As when the machine is switched off."""
    pids = [server.process.pid, *server.descendants()]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not any(map(alive, pids)), "the end of the server")


def alive(pid: int) -> bool:
    """Whether a process is there, zombies excepted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(pid: int) -> list[int]:
    return [found for child in _children(pid) for found in (child, *_descendants(child))]


def nbdsh(code: str, *arguments: str, check: bool = True, timeout: float = 60) -> Result:
    """Run Python code with libnbd's own `nbd` module, in the system's interpreter; `h` is an unconnected handle."""
    begin = "import nbd, sys, errno, os\nh = nbd.NBD()\nargs = sys.argv[1:]\n"
    return run("/usr/bin/python3", "-I", "-c", begin + code, *arguments, check=check, timeout=timeout)


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes without any repetition that could hide a misplaced block."""
    return random.Random(seed).randbytes(size)


class RawClient:
    """A client that sends what the test says when it says so: simple replies, an export by EXPORT_NAME.

    Attributes:
        sock: its connection.
        size: of the export, in bytes.
    """

    def __init__(self, server: Serving, export: str = "", timeout: float = 10) -> None:
        """Connect to the server's IPv4 address, and open an export."""
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout)
        try:
            self.take(18)
            name = export.encode()
            self.sock.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
            self.size = int.from_bytes(self.take(10)[:8], "big")
        except BaseException:
            self.sock.close()
            raise

    def send(self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"", cookie: int = 1) -> None:
        """Send a request with as much of its payload as is given."""
        self.sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, cookie, offset, length) + payload)

    def reply(self) -> int:
        """The error number of the next simple reply."""
        magic, error, _ = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698
        return int(error)

    def write(self, offset: int, data: bytes) -> int:
        """Write; the reply's error number."""
        self.send(1, offset, len(data), data)
        return self.reply()

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        self.send(0, offset, length)
        assert self.reply() == 0
        return self.take(length)

    def take(self, length: int) -> bytes:
        """Exactly so many bytes from the server."""
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise ConnectionError("the server hung up")
            data += piece
        return data

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.sock.close()
