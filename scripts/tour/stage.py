"""Where the tour takes place: command lines are shown and run, disks attached, machines put into target mode."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

MIB: Final = 1 << 20
MARK: Final = "TARGETMODE_TOUR"  # in the environment of every process of the tour
_LONGEST: Final = 120.0  # seconds that a command line may take
_READY: Final = 20.0  # seconds that a server may take to be ready, and to end
_INDENT: Final = "      "
_MACHINES: Final = range(11, 200)  # last bytes of loopback addresses that stand for machines
_PORTS: Final = (10809, 10810)  # NBD and the control API


class TourError(Exception):
    """Something did not go as it should; the message says what."""


class LeftOut(Exception):
    """A stop cannot be made here; the message says why."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop of the tour.

    Attributes:
        name: for the command line.
        title: for who looks on.
        make: makes it.
        root: what it needs root for; empty if it does not.
    """

    name: str
    title: str
    make: Callable[[Stage], None]
    root: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of the tour.

    Attributes:
        name: as it is typed: a loop device's path, or a file's name.
        path: the file that holds what is on it.
    """

    name: str
    path: Path

    @property
    def export(self) -> str:
        """What it is called where it is exported."""
        return Path(self.name).name


class Stage:
    """Where the tour takes place.

    Attributes:
        work: the working directory of all command lines; gone at the end.
        root: whether it is root who looks on.
        stack: ends with the stop that is being made.
        lines: how many command lines were shown.
    """

    def __init__(self, stack: ExitStack) -> None:
        """Make the working directory; `stack` takes it away again."""
        self.work = Path(tempfile.mkdtemp(prefix="tm-tour."))
        stack.callback(shutil.rmtree, self.work, ignore_errors=True)
        self.root = os.geteuid() == 0
        self.stack = ExitStack()
        self.lines = 0
        self._disks = 0
        self._mounts = 0
        self._prompt = "#" if self.root else "$"
        (self.work / "tmp").mkdir()
        (self.work / "home").mkdir(mode=0o700)
        names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NETRC", "SSH_AUTH_SOCK", "SMB_CREDENTIALS")
        for name in (*names, *map(str.upper, names)):
            os.environ.pop(name, None)
        os.environ |= {
            MARK: self.work.name,
            "HOME": str(self.work / "home"),
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(self.work / "tmp"),
        }

    # ---- talking ----

    def say(self, text: str) -> None:
        """Say what is about to be done, or how something was made."""
        print(f"    {text}", flush=True)

    def show(
        self,
        line: str,
        *,
        status: int = 0,
        says: str | Sequence[str] = (),
        last: int | None = None,
        most: int | None = None,
    ) -> str:
        """Show a command line, run it, and show what it prints.

        Args:
            line: as it is typed to a shell.
            status: it has to exit with.
            says: it has to print.
            last: only so many of its last lines are shown.
            most: only so many of its first lines are shown.

        Returns:
            What it printed, standard output and error.

        Raises:
            TourError: it did not end like that.
        """
        self.lines += 1
        print(f"    {self._prompt} {line}", flush=True)
        printed: list[str] = []
        with self._started(line) as process:
            assert process.stdout is not None
            for text in process.stdout:
                printed.append(text.rstrip("\n"))
                if last is None and (most is None or len(printed) <= most):
                    print(f"{_INDENT}{printed[-1]}", flush=True)
            done = process.wait()
        if last is not None:
            for text in [*(["  ..."] if len(printed) > last else []), *printed[-last:]]:
                print(f"{_INDENT}{text}", flush=True)
        if most is not None and len(printed) > most:
            print(f"{_INDENT}  ... ({len(printed) - most} more lines)", flush=True)
        out = "\n".join(printed)
        if done != status:
            raise TourError(f"this ended with status {done}, not {status}: {line}")
        for text in [says] if isinstance(says, str) else says:
            if text not in out:
                raise TourError(f"this did not print {text!r}: {line}")
        if status:
            print(f"{_INDENT}[exit status {status}]", flush=True)
        return out

    def check(self, line: str, result: str = "", *, says: str = "") -> None:
        """Have a program of others check what was done; its whole output is shown only if it fails.

        Args:
            line: as it is typed to a shell; it has to exit with 0.
            result: what that means. If empty, the line of its output with `says` is shown.
            says: it has to print.

        Raises:
            TourError: it found something.
        """
        print(f"    {self._prompt} {line}", flush=True)
        with self._started(line) as process:
            out = process.communicate()[0]
        found = next((text.strip() for text in out.splitlines() if says in text and text.strip()), "")
        if process.returncode or (says and not found):
            print("".join(f"{_INDENT}{text}\n" for text in out.splitlines()), end="", flush=True)
            raise TourError(f"the check failed (status {process.returncode}): {line}")
        print(f"{_INDENT}=> {result or found}", flush=True)

    def quiet(self, *command: str | Path, stdin: str | None = None) -> str:
        """Run a command that prepares something, without showing it; its standard output.

        Raises:
            TourError: it failed.
            LeftOut: there is no such program.
        """
        words = [str(word) for word in command]
        try:
            done = subprocess.run(words, input=stdin, capture_output=True, text=True, cwd=self.work, check=False)
        except FileNotFoundError:
            raise LeftOut(f"there is no {words[0]}") from None
        if done.returncode:
            raise TourError(f"{shlex.join(words)}: status {done.returncode}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def need(self, *programs: str) -> None:
        """Leave the stop out where a program is missing.

        Raises:
            LeftOut: one is.
        """
        missing = [name for name in programs if shutil.which(name) is None]
        if missing:
            raise LeftOut(f"there is no {' and no '.join(missing)}")

    # ---- disks ----

    def file(self, name: str, mib: int) -> Path:
        """An empty file of that size, gone with the stop."""
        path = self.work / name
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(mib * MIB)
        self.stack.callback(path.unlink, missing_ok=True)
        return path

    def disk(self, mib: int, *, old: bool = True) -> Disk:
        """A disk with something on it, gone with the stop: a loop device, or without root a file."""
        self._disks += 1
        path = self.file(f"disk{self._disks}.img", mib)
        if old:
            with path.open("r+b") as file:
                for at in (0, mib // 2):
                    file.seek(at * MIB)
                    file.write(b"what was on this disk before\n" * 36_000)
        return self.attach(path)

    def attach(self, path: Path, *options: str) -> Disk:
        """A file as a disk for as long as the stop takes: a loop device, or without root the file itself."""
        if not self.root:
            return Disk(path.name, path)
        return Disk(self.stack.enter_context(loop(path, *options)), path)

    @contextmanager
    def mounted(self, what: str, where: str, *options: str) -> Iterator[Path]:
        """Mount something on a new directory of the working directory."""
        path = self.work / where
        path.mkdir()
        try:
            self.quiet("mount", *(("-o", ",".join(options)) if options else ()), what, path)
            try:
                yield path
            finally:
                while os.path.ismount(path):
                    subprocess.run(["umount", "--lazy", path], check=True)
        finally:
            path.rmdir()

    @contextmanager
    def tree(self, disk: Disk, start: int = 0, length: int | None = None) -> Iterator[str]:
        """The files of an ext4 in a disk, in a directory: mounted, or without root read with debugfs.

        Args:
            disk: it.
            start: where the file system begins, in bytes.
            length: its bytes; None for all there are.

        Yields:
            The directory's name.
        """
        self._mounts += 1
        name = f"restored{self._mounts}"
        if self.root:
            size = () if length is None else (f"--sizelimit={length}",)
            with (
                loop(disk.path, f"--offset={start}", *size, "--read-only") as device,
                self.mounted(device, name, "ro", "noload"),
            ):
                yield name
            return
        (self.work / name).mkdir()
        try:
            self.quiet("debugfs", "-R", f"rdump / {name}", f"{disk.path}?offset={start}")
            yield name
        finally:
            shutil.rmtree(self.work / name, ignore_errors=True)

    # ---- machines in target mode ----

    @contextmanager
    def serving(self, disk: Disk, *options: str, brief: bool = False) -> Iterator[str]:
        """A machine in target mode, which here is an address of its own; told to end when the context does.

        Args:
            disk: what it offers.
            options: the rest of its command line.
            brief: only its first lines are shown.

        Yields:
            The URI of its disk.
        """
        address = _machine()
        words = ["targetmode", "serve", disk.name, "--listen", address, *options]
        self.lines += 1
        print(f"    {self._prompt} {shlex.join(words)}", flush=True)
        with tempfile.TemporaryFile("w+b") as log:
            process = self._background(words, log)
            try:
                _wait(lambda: b"Ready." in _said(log), process, "targetmode serve", log)
                ready = _said(log)
                self._indent(ready.decode(), 3 if brief else None)
                yield f"nbd://{address}/{disk.export}"
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_READY)
                self._indent("^C\n" + _said(log)[len(ready) :].decode(), None)
                if process.returncode != 0 or b"safe to disconnect" not in _said(log):
                    raise TourError(f"targetmode serve did not end well (status {process.returncode})")
            finally:
                _end(process)

    def daemon(self, pid_file: str, *files: str) -> None:
        """End a program with the stop that goes into the background and writes its id to a file; its files go too."""
        path = self.work / pid_file

        def end() -> None:
            with suppress(OSError, ValueError):
                pid = int(path.read_text())
                os.kill(pid, signal.SIGTERM)
                deadline = time.monotonic() + _READY
                while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
            for name in (pid_file, *files):
                (self.work / name).unlink(missing_ok=True)

        self.stack.callback(end)

    @contextmanager
    def cut(self, line: str, says: str) -> Iterator[None]:
        """Show a command line and run it until it has printed something; then kill it and all that it has started."""
        self.lines += 1
        print(f"    {self._prompt} {line} &", flush=True)
        with tempfile.TemporaryFile("w+b") as log:
            process = self._background(["bash", "-c", f"exec {line}"], log)
            try:
                _wait(lambda: says.encode() in _said(log), process, line, log)
                yield
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self._indent(_said(log).decode(), None)
                print(f"    {self._prompt} kill -9 {process.pid}", flush=True)
            finally:
                _end(process)

    # ---- the end ----

    def left_behind(self) -> list[str]:
        """What there still is that the tour has made, one a line."""
        found = [f"a file: {path}" for path in sorted((self.work / "tmp").rglob("*"))]
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if str(self.work) in line:
                found.append(f"a mount: {line}")
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):
                if str(self.work) in backing.read_text():
                    found.append(f"a loop device: /dev/{backing.parts[3]} over {backing.read_text().strip()}")
        found += [f"a process: {pid}: {command}" for pid, command in self._processes()]
        return found

    def kill_what_is_left(self) -> None:
        """End every process of the tour that still runs."""
        for pid, _ in self._processes():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self) -> Iterator[tuple[int, str]]:
        """Ids and commands of all processes with our mark, but for this one."""
        mark = f"{MARK}={self.work.name}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            pid = int(path.parts[2])
            with suppress(OSError):
                if pid != os.getpid() and mark in path.read_bytes().split(b"\0"):
                    yield pid, path.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")

    # ---- processes ----

    @contextmanager
    def _started(self, line: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            ["bash", "-c", line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=self.work,
        )
        timer = threading.Timer(_LONGEST, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            _end(process)
            assert process.stdout is not None
            process.stdout.close()

    def _background(self, words: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.work,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def _indent(self, text: str, most: int | None) -> None:
        lines = [line for line in text.splitlines() if most is None or line.strip()]
        for line in lines[:most]:
            print(f"{_INDENT}{line}".rstrip(), flush=True)
        if most is not None and len(lines) > most:
            print(f"{_INDENT}  ...", flush=True)


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _READY
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise TourError(f"{what} did not get ready: {_said(log).decode('utf-8', 'replace').strip()}")
        time.sleep(0.01)


def _said(log: IO[bytes]) -> bytes:
    return os.pread(log.fileno(), 1 << 20, 0)


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """End a process that should have ended: with a word first, so that it can clean up."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_READY)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _machine() -> str:
    """A loopback address on whose ports nobody listens."""
    for last in _MACHINES:
        address = f"127.0.0.{last}"
        with suppress(OSError), ExitStack() as stack:
            for port in _PORTS:
                stack.enter_context(socket.create_server((address, port)))
            return address
    raise LeftOut(f"ports {_PORTS[0]} and {_PORTS[1]} are in use on every loopback address")


@contextmanager
def loop(path: Path, *options: str) -> Iterator[str]:
    """A loop device over a file. A container's /dev may lack the node of the next free one: then it is made."""
    device = ""
    for _ in range(20):  # others may take the free one first
        done = subprocess.run(["losetup", "--find", "--show", *options, path], capture_output=True, text=True)
        if done.returncode == 0:
            device = done.stdout.strip()
            break
        free = subprocess.run(["losetup", "--find"], capture_output=True, text=True).stdout.strip()
        number = re.fullmatch(r"/dev/loop(\d+)", free)
        if number and not Path(free).exists():
            with suppress(FileExistsError):
                os.mknod(free, 0o60660, os.makedev(7, int(number[1])))
    if not device:
        raise LeftOut(f"there is no loop device to be had: {done.stderr.strip()}")
    try:
        if "--read-only" not in options:  # a flag that outlives an earlier attachment
            subprocess.run(["blockdev", "--setrw", device], check=True)
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=False)
