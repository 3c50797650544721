"""Lines for another program: tab-separated, what kind of line it is first, as asr's `--puppetstrings` has them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, TextIO

from restore.report import put, range_lines

HELP: Final = """\
What `--puppetstrings` prints: one line for each thing that happens, its fields separated by tabs. The first field
says what kind of line it is; others than these may be added. With several targets, the target is the last field.

  XSTA  PHASE begin|done          a phase begins or has ended: Validating target, Erasing target device DISK, ...
  PINF  PERCENT  PHASE  DONE TOTAL   progress of Restoring, Verifying or another phase that takes time, and the same in
                                  bytes; at most 101 lines each
  NOTE  TEXT                      something worth a line
  FAIL  TEXT                      the end, badly; DIFF lines may follow
  DIFF  TEXT                      a range that differs
  DONE  TEXT                      the end, well

Lines of FAIL and DIFF go to standard output too, but wrong usage is told on standard error. The exit
status is the same as without.
"""


class PuppetReport:
    """One line for each thing that happens."""

    def __init__(self, out: TextIO = sys.stdout, target: str | None = None) -> None:
        self._out = out
        self._last = () if target is None else (target,)
        self._phase = ""
        self._percent: dict[str, int] = {}

    def begin(self, phase: str) -> None:
        self._phase = phase
        self._line("XSTA", phase, "begin")

    def done(self) -> None:
        self._line("XSTA", self._phase, "done")

    def progress(self, phase: str, done: int, total: int) -> None:
        percent = 100 if total == 0 else done * 100 // total
        if percent > self._percent.get(phase, -1):
            self._percent[phase] = percent
            self._line("PINF", str(percent), phase, str(done), str(total))

    def missed(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._line("NOTE", text)

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._line("FAIL", message)
        for line in range_lines(ranges):
            self._line("DIFF", line)

    def finished(self, summary: str, **facts: Any) -> None:
        self._line("DONE", summary)

    def _line(self, *fields: str) -> None:
        put(self._out, "\t".join(" ".join(field.split()) for field in (*fields, *self._last)) + "\n")
