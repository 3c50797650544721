"""Work that mounts file systems, in a process of its own that nothing outlives and nobody sees.

`in_private` starts that process in a mount namespace and a process namespace of its own. What it mounts is seen by
nobody else, and goes with it; so do all programs that it started, however it ends. It ends when its standard input
does, which is when the process that started it does: an interruption unmounts, then flushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Never

from restore import tools
from restore.errors import Refused, RestoreError, say
from restore.report import Report

_ERRORS: Final = {"Refused": Refused, "RestoreError": RestoreError}
_LINE: Final = 64 << 20  # bytes of the longest event
_STATUS_BUG: Final = 70


async def in_private(function: str, arguments: Mapping[str, Any], report: Report) -> Any:
    """Run a function of ours in private.

    Args:
        function: `module:name`. It is given a Report, a new empty directory, which nobody else sees, and the arguments
            by name.
        arguments: as JSON can hold them.
        report: is told what the function tells.

    Returns:
        What it returns, as JSON can hold it.

    Raises:
        Refused, RestoreError: as the function did; also when namespaces may not be made.
    """
    if os.geteuid() != 0:
        raise Refused("mounting file systems needs root")
    with tempfile.TemporaryDirectory(prefix="asr-", ignore_cleanup_errors=True) as directory:
        process = await asyncio.create_subprocess_exec(
            tools.find("unshare"),
            *("--mount", "--propagation=slave", "--pid", "--fork", "--kill-child"),
            *(sys.executable, "-m", "restore.private.process", function, directory),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C on the terminal is for us to pass on
            limit=_LINE,
        )
        try:
            return await _converse(process, arguments, report)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await _ended(process)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


async def _converse(process: asyncio.subprocess.Process, arguments: Mapping[str, Any], report: Report) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    process.stdin.write(json.dumps(arguments).encode() + b"\n")
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    while line := await process.stdout.readline():
        event = json.loads(line)
        match event.pop("event"):
            case "result":
                return event["value"]
            case "error":
                raise _ERRORS[event["kind"]](event["message"])
            case "begin":
                report.begin(event["phase"])
            case "done":
                report.done()
            case "progress":
                report.progress(event["phase"], event["done"], event["total"])
            case "note":
                report.note(event["text"])
    said = (await errors).decode("utf-8", "replace")
    status = await process.wait()
    if status == _STATUS_BUG:
        raise RuntimeError(f"a bug in what ran in private:\n{said}")
    raise RestoreError(f"the process that mounts file systems: {tools.complaint(said, '', status)}")


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for its end, also while we are being cancelled; cancelled twice, wait no more."""
    waiting = asyncio.ensure_future(process.wait())
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        await waiting
        raise


class _Interrupted(BaseException):
    """Whoever started us has gone, or wants us to."""


class _Interruption:
    """Interrupts the main thread, once, and not while it must not be."""

    def __init__(self) -> None:
        self.held = 0
        self.wanted = False
        self._raised = False

    def want(self, *_: object) -> None:
        self.wanted = True
        self.check()

    def check(self) -> None:
        if self.wanted and not self.held and not self._raised:
            self._raised = True
            raise _Interrupted


_interruption: Final = _Interruption()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What must not be left half done: an interruption waits for the end of the block."""
    _interruption.held += 1
    try:
        yield
    finally:
        _interruption.held -= 1
    _interruption.check()


class _PipeReport:
    """A report to whoever started us."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[str, int] | None = None

    def begin(self, phase: str) -> None:
        self.event("begin", phase=phase)

    def done(self) -> None:
        self.event("done")

    def progress(self, phase: str, done: int, total: int) -> None:
        step = done * 1000 // max(total, 1)
        if self._last != (phase, step):
            self._last = (phase, step)
            self.event("progress", phase=phase, done=done, total=total)

    def note(self, text: str) -> None:
        self.event("note", text=text)

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> Never:
        raise RestoreError(message)

    def finished(self, summary: str, **facts: Any) -> None:
        self.note(summary)

    def event(self, event: str, **values: Any) -> None:
        with self._lock:
            line = json.dumps({"event": event, **values}) + "\n"
            view = memoryview(line.encode())
            while view:
                view = view[os.write(1, view) :]


def _watch() -> None:
    """Interrupt the main thread when standard input ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(words: Sequence[str]) -> int:
    """The private process: run the function that is named, with arguments from standard input."""
    name, directory = words
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interruption.want)
    report = _PipeReport()
    try:
        arguments = json.loads(_first_line())
        threading.Thread(target=_watch, daemon=True).start()
        tools.run(["mount", "-t", "tmpfs", "-o", "mode=700", "asr", directory])
        tempfile.tempdir = directory
        module, _, function = name.partition(":")
        value = getattr(importlib.import_module(module), function)(report, Path(directory), **arguments)
        report.event("result", value=value)
    except (RestoreError, OSError) as error:
        kind = "Refused" if isinstance(error, Refused) else "RestoreError"
        report.event("error", kind=kind, message=_line(error))
    except _Interrupted:
        return 1
    except Exception:
        traceback.print_exc()
        return _STATUS_BUG
    return 0


def _line(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f"{name}: {say(error)}" if name else say(error)


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 1)
        if not piece:
            raise _Interrupted
        line += piece
    return line


if __name__ == "__main__":
    # Not this module's copy that is named __main__: there is one interruption, and others import it.
    from restore.private import process

    sys.exit(process.main(sys.argv[1:]))
