"""What `asr` prints: its phase lines, a progress bar on a terminal, or one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol, TextIO

RESTORING: Final = "Restoring"
VERIFYING: Final = "Verifying"
_DOTS: Final = 4  # between two tens of a percentage
_INTERVAL: Final = 0.25  # seconds between two progress events of one phase


class Report(Protocol):
    """What a job tells as it goes."""

    def begin(self, phase: str) -> None:
        """A phase without progress of its own begins."""
        ...

    def done(self) -> None:
        """It has ended well."""
        ...

    def progress(self, phase: str, done: int, total: int) -> None:
        """Bytes done of a phase with progress; two such phases may run side by side."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """The end, badly; `ranges` are (offset, length) in bytes that differ."""
        ...

    def finished(self, summary: str, **facts: Any) -> None:
        """The end, well."""
        ...


class TextReport:
    """asr's own lines, for a log or a pipe."""

    def __init__(self, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
        self._out = out
        self._errors = errors
        self._open = False  # a line has been begun
        self._current: str | None = None
        self._waiting: dict[str, tuple[int, int]] = {}
        self._full: set[str] = set()
        self._drawn = 0

    def begin(self, phase: str) -> None:
        self._end_line()
        self._write(f"  {phase}...")

    def done(self) -> None:
        self._write("done\n")

    def progress(self, phase: str, done: int, total: int) -> None:
        if phase in self._full:
            return
        if self._current not in (None, phase):
            self._waiting[phase] = (done, total)  # its line comes when the current one is full
            return
        if self._current is None:
            self._end_line()
            self._write(f"  {phase}  ")
            self._current, self._drawn = phase, 0
        step = 100 if total == 0 else done * 100 // total
        ticks = step * (_DOTS + 1) // 10
        while self._drawn < ticks:
            self._drawn += 1
            tens, within = divmod(self._drawn, _DOTS + 1)
            self._write(str(tens * 10) if within == 0 else ".")
        if done >= total:
            self._write("\n")
            self._current = None
            self._full.add(phase)
            for other, (other_done, other_total) in list(self._waiting.items()):
                del self._waiting[other]
                self.progress(other, other_done, other_total)

    def note(self, text: str) -> None:
        self._end_line()
        self._write(f"  {text}\n")

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._end_line()
        _put(self._errors, "".join(f"asr: {line}\n" for line in (message, *(f"  {x}" for x in range_lines(ranges)))))

    def finished(self, summary: str, **facts: Any) -> None:
        self._end_line()
        self._write(f"  {summary}\n")

    def _write(self, text: str) -> None:
        _put(self._out, text)
        self._open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._open:
            self._write("\n")
        self._current = None


class TerminalReport(TextReport):
    """The same, with bars that show rate and time left."""

    def __init__(self, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
        super().__init__(out, errors)
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def progress(self, phase: str, done: int, total: int) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            self._end_line()
            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            console = Console(file=self._out)
            self._bars = Progress(
                *columns, DownloadColumn(binary_units=True), Speed(), TimeRemainingColumn(), console=console
            )
            self._bars.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total)
        self._bars.update(self._tasks[phase], completed=done, total=total)

    def _end_line(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks = {}
        super()._end_line()

    def note(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(f"  {text}", markup=False, highlight=False)
        else:
            super().note(text)


class JSONReport:
    """One object a line: `phase`, `progress`, `note`, `error`, `done`."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._phase = ""
        self._last: dict[str, tuple[float, int]] = {}

    def begin(self, phase: str) -> None:
        self._phase = phase
        self._event("phase", phase=phase, state="begin")

    def done(self) -> None:
        self._event("phase", phase=self._phase, state="done")

    def progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        last, before = self._last.get(phase, (0.0, -1))
        if done != before and (now - last >= _INTERVAL or done >= total):
            self._last[phase] = (now, done)
            percent = 100.0 if total == 0 else round(done * 100 / total, 1)
            self._event("progress", phase=phase, bytes=done, total=total, percent=percent)

    def note(self, text: str) -> None:
        self._event("note", message=text)

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._event("error", message=message, ranges=[list(pair) for pair in ranges])

    def finished(self, summary: str, **facts: Any) -> None:
        self._event("done", message=summary, **facts)

    def _event(self, event: str, **values: Any) -> None:
        _put(self._out, json.dumps({"event": event, **values}) + "\n")


def _put(out: TextIO, text: str) -> None:
    """Write at once; a restore does not end because nobody listens any more."""
    try:
        out.write(text)
        out.flush()
    except OSError:
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, out.fileno())
            os.close(nowhere)


def range_lines(ranges: Sequence[tuple[int, int]], most: int = 20) -> list[str]:
    """Ranges for people: bytes, and which MiB they lie in."""
    lines = []
    for offset, length in ranges[:most]:
        first, last = offset >> 20, (offset + length - 1) >> 20
        where = f"MiB {first}" if first == last else f"MiB {first} to {last}"
        lines.append(f"bytes {offset} to {offset + length - 1} ({where})")
    if len(ranges) > most:
        lines.append(f"and {len(ranges) - most} more ranges")
    return lines


def make_report(*, as_json: bool) -> Report:
    """The report that fits where standard output goes."""
    if as_json:
        return JSONReport(sys.stdout)
    kind = TerminalReport if sys.stdout.isatty() else TextReport
    return kind(sys.stdout, sys.stderr)
