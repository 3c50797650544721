"""What `--debug` adds to a report: how long each phase took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from restore.report import Members, Report


class TimedReport:
    """A report that also notes how long each phase took, when it has ended.

    Phases with progress run side by side and draw on one line: what they took is noted at the end of all.
    """

    def __init__(self, report: Report) -> None:
        """Tell `report` all that is told."""
        self._report = report
        self._phase: tuple[str, float] | None = None
        self._progress: dict[str, tuple[float, float]] = {}

    def begin(self, phase: str) -> None:
        self._phase = (phase, time.monotonic())
        self._report.begin(phase)

    def done(self) -> None:
        self._report.done()
        self._tell_phase("took")

    def progress(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, end = self._progress.get(phase, (now, 0.0))
        self._progress[phase] = (start, now if done < total or not end else end)
        self._report.progress(phase, done, total)

    def missed(self) -> None:
        self._report.missed()

    def note(self, text: str) -> None:
        self._report.note(text)

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._tell_phase("failed after")
        self._tell_progress()
        self._report.failed(message, ranges)

    def finished(self, summary: str, **facts: Any) -> None:
        self._tell_progress()
        self._report.finished(summary, **facts)

    def _tell_phase(self, verb: str) -> None:
        if self._phase is not None:
            phase, start = self._phase
            self._phase = None
            self._report.note(f"{phase} {verb} {time.monotonic() - start:.3f} s")

    def _tell_progress(self) -> None:
        for phase, (start, end) in self._progress.items():
            self._report.note(f"{phase} took {end - start:.3f} s")
        self._progress = {}


class TimedMembers:
    """The same for several targets."""

    def __init__(self, members: Members) -> None:
        """Have each tell how long its phases took."""
        self._members = members

    def member(self, name: str) -> Report:
        return TimedReport(self._members.member(name))

    def summary(self, ends: Sequence[tuple[str, int]]) -> None:
        self._members.summary(ends)
