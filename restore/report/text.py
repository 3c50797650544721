"""asr's own lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

from restore.report import RESTORING, put, range_lines

_DOTS: Final = 4  # between two tens of a percentage


class TextReport:
    """asr's own lines, for a log or a pipe."""

    def __init__(self, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
        self._out = out
        self._errors = errors
        self._open = False  # a line has been begun
        self._phase = ""
        self._current: str | None = None
        self._waiting: dict[str, tuple[int, int]] = {}
        self._full: set[str] = set()
        self._drawn = 0
        self._missed = False  # since the last mark, data of a stream

    def begin(self, phase: str) -> None:
        self._end_line()
        self._phase = phase
        self._write(f"  {phase}...")
        self._phase = phase

    def done(self) -> None:
        self._write("done\n" if self._open else f"  {self._phase}...done\n")  # a note may have ended its line

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
            mark = "x" if self._missed and phase == RESTORING else "."
            self._write(str(tens * 10) if within == 0 else mark)
            self._missed = self._missed and (within == 0 or mark == ".")
        if done >= total:
            self._write("\n")
            self._current = None
            self._full.add(phase)
            for other, (other_done, other_total) in list(self._waiting.items()):
                del self._waiting[other]
                self.progress(other, other_done, other_total)

    def missed(self) -> None:
        self._missed = True

    def note(self, text: str) -> None:
        self._end_line()
        self._write(f"  {text}\n")

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._end_line()
        put(self._errors, "".join(f"asr: {line}\n" for line in (message, *(f"  {x}" for x in range_lines(ranges)))))

    def finished(self, summary: str, **facts: Any) -> None:
        self._end_line()
        self._write(f"  {summary}\n")

    def _write(self, text: str) -> None:
        put(self._out, text)
        self._open = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._open:
            self._write("\n")
        self._current = None
