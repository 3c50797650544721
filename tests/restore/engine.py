"""The `asr` command in a process of its own, and images for it; what it writes to are `Disk`s with old data on them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.serving import ROOT, Result, alive, run
from tests.support import free_port, listens, loop_device, running, wait_until

ASR: Final = (sys.executable, "-m", "restore.cli")
MIB: Final = 1 << 20


def asr(*arguments: str | Path, timeout: float = 60) -> Result:
    """Run `asr` to its end, whatever that is; never with a traceback."""
    result = run(*ASR, *arguments, check=False, timeout=timeout, cwd=ROOT)
    assert "Traceback" not in result.err, result.err
    return result


def restore(source: str | Path, target: str | Path, *options: str, timeout: float = 60) -> Result:
    """`asr restore` without a question; its result, whatever that is."""
    words = ("restore", "--source", source, "--target", target, "--erase", "--noprompt", *options)
    return asr(*words, timeout=timeout)


def verify(source: str | Path, target: str | Path, *options: str, timeout: float = 60) -> Result:
    """`asr verify`; its result, whatever that is."""
    return asr("verify", "--source", source, "--target", target, *options, timeout=timeout)


def succeeded(result: Result) -> str:
    """What a command printed that has to have ended well, and to have complained of nothing."""
    assert (result.status, result.err) == (0, ""), result
    return result.out


def failed(result: Result, status: int = 1) -> str:
    """The one line that a command that has to have failed printed of that, without its beginning."""
    assert result.status == status, result
    first, *others = result.err.splitlines()
    assert first.startswith("asr: "), result.err
    assert all(line.startswith("asr:   ") for line in others), result.err
    return first.removeprefix("asr: ")


def named_ranges(result: Result) -> list[str]:
    """The lines that name the ranges that differ."""
    return [line.removeprefix("asr:   ") for line in result.err.splitlines()[1:]]


def json_events(text: str) -> list[dict[str, Any]]:
    """What `--json` printed."""
    return [json.loads(line) for line in text.splitlines()]


class Running:
    """An `asr` that runs."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    def end(self, seconds: float = 30) -> Result:
        """How it ends by itself, which has to be within so many seconds and without a traceback."""
        status = self.process.wait(seconds)
        result = Result(status, self.out, self._err.read_text())
        assert "Traceback" not in result.err, result.err
        return result


@contextmanager
def started(
    *arguments: str | Path, directory: Path, command: Sequence[str | Path] = ASR, prefix: Sequence[str] = ()
) -> Iterator[Running]:
    """Start `asr`; whatever is left of it when the block ends is killed."""
    with tempfile.TemporaryDirectory(dir=directory) as here:
        out, err = Path(here) / "out", Path(here) / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [str(word) for word in (*prefix, *command, *arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        try:
            yield Running(process, out, err)
        finally:
            process.kill()
            process.wait()


@contextmanager
def restoring(source: str | Path, target: str | Path, *options: str, prefix: Sequence[str] = ()) -> Iterator[Running]:
    """Start `asr restore` without a question."""
    words = ("--source", source, "--target", target, "--erase", "--noprompt", *options)
    with (
        tempfile.TemporaryDirectory(dir=source.parent if isinstance(source, Path) else None) as here,
        started("restore", *words, directory=Path(here), prefix=prefix) as run,
    ):
        yield run


def wait_for(run: Running, text: str) -> None:
    """Wait until it has printed that."""
    wait_until(lambda: text in run.out or run.process.poll() is not None, repr(text))
    assert run.process.poll() is None, run.out


WRITING: Final = "Restoring  ."  # printed when some blocks are on their way


# --- Images ---

_ISLANDS: Final = (  # (offset, length) of data in an image with holes; the last hole reaches to its end
    (20 << 10, 4096),  # alone, after a hole at the start
    (100 << 10, 1),
    (400 << 10, 8192),
    (428 << 10, 4096),  # a hole of 20 KiB before it, which is not worth a request
    (MIB - 4096, 8192),  # across the end of the first MiB
    (2 * MIB + (200 << 10), 4096),
    (2 * MIB + (268 << 10), 4096),  # a hole of exactly 64 KiB before it
    (3 * MIB - 1, 2),
    (4 * MIB + 5, 300_000),
)


def _islands(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for seed, (offset, length) in enumerate(_ISLANDS):
            file.seek(offset)
            file.write(bytes(byte | 1 for byte in random.Random(seed).randbytes(length)))


def _random(path: Path, size: int) -> None:
    path.write_bytes(random.Random(size).randbytes(size))


def _empty(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


IMAGES: Final[dict[str, tuple[Callable[[Path, int], None], int]]] = {
    "random": (_random, 5 * MIB),
    "random, odd size": (_random, 4 * MIB + 777),
    "sectors": (_random, MIB + 512),
    "one MiB": (_random, MIB),
    "less than a MiB": (_random, 700_001),
    "one byte": (_random, 1),
    "holes": (_islands, 6 * MIB),
    "holes, odd size": (_islands, 5 * MIB + 12_345),
    "empty": (_empty, 7 * MIB),
    "empty, odd size": (_empty, 2 * MIB + 1),
    "device": (_islands, 6 * MIB),
}


@contextmanager
def image(kind: str, directory: Path) -> Iterator[tuple[Path, bytes]]:
    """An image of that kind, and what is in it."""
    make, size = IMAGES[kind]
    path = directory / "source.img"
    make(path, size)
    with ExitStack() as stack:
        source = stack.enter_context(loop_device(path)) if kind == "device" else path
        yield source, path.read_bytes()


# --- Targets ---


@dataclass(frozen=True, slots=True)
class Disk:
    """Something to restore onto.

    Attributes:
        target: what `asr` is told.
        path: what holds the bytes, a file or a loop device; None where only the server can get at them.
        size: bytes.
        note: what has to be said of it when it cannot verify itself, if anything.
    """

    target: str
    path: Path | None
    size: int
    note: str = ""

    def fill(self, data: bytes) -> None:
        """Overwrite it from the beginning."""
        if self.path is None:
            with tempfile.NamedTemporaryFile() as file:
                Path(file.name).write_bytes(data)
                run("nbdcopy", "--flush", "--", file.name, self.target)
            return
        with self.path.open("r+b") as file:
            file.write(data)

    def read(self) -> bytes:
        """All that is on it."""
        if self.path is None:
            with tempfile.NamedTemporaryFile() as file:
                run("nbdcopy", "--", self.target, file.name)
                return Path(file.name).read_bytes()
        with self.path.open("rb") as file:
            return file.read()


GO_ON: Final = " (the same command with --delta goes on from here)"  # said when something was written already
READ_BACK: Final = "so every block is read back over a new connection"


@contextmanager
def nbdkit(*arguments: str | Path, directory: Path, name: str = "") -> Iterator[str]:
    """Debian's nbdkit on a Unix socket; the URI of its export."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="k") as here:
        path = f"{here}/s"
        errors = Path(here) / "errors"
        command = ["nbdkit", "--foreground", "--exit-with-parent", "--threads=4", f"--unix={path}", *arguments]
        with errors.open("wb") as stderr, running(command, ready=lambda: listens(path), stderr=stderr):
            yield f"nbd+unix:///{name}?socket={path}"


@contextmanager
def qemu_nbd(image: Path, *, directory: Path) -> Iterator[str]:
    """qemu-nbd over a raw image; the URI of its export."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="q") as here:
        path = f"{here}/s"
        options = ("--format=raw", "--persistent", "--shared=8", "--discard=unmap", f"--socket={path}")
        command: list[str | Path] = ["qemu-nbd", *options, image]
        with running(command, ready=lambda: listens(path)):
            yield f"nbd+unix:///?socket={path}"


@contextmanager
def nbd_server(image: Path, *, directory: Path) -> Iterator[str]:
    """The reference server; the URI of its export."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="n") as here:
        port, config = free_port(), Path(here) / "config"
        general = f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n"
        config.write_text(f"{general}[disk]\nexportname = {image}\nfilesize = {image.stat().st_size}\n")
        pid_file = Path(here) / "pid"
        run("nbd-server", "-C", config, "-p", pid_file)  # goes into the background
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), "nbd-server's pid")
        pid = int(pid_file.read_text())
        try:
            uri = f"nbd://127.0.0.1:{port}/disk"
            # A client that leaves without a word would end it.
            wait_until(lambda: not run("nbdinfo", "--size", uri, check=False).status, "nbd-server")
            yield uri
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not alive(pid), "the end of nbd-server")
