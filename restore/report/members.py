"""What is told of several targets at once: each line says which one it is about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TextIO

from restore.report import Members, Report, put, range_lines
from restore.report.events import JSONReport
from restore.report.puppet import PuppetReport

_STEP: Final = 10  # percent between two lines of progress
_ENDS: Final = {0: "done", 3: "DIFFERS"}


class Lines:
    """Whole lines for a log, since several targets cannot draw on one."""

    def __init__(self, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
        self._out = out
        self._errors = errors

    def member(self, name: str) -> Report:
        return _LinesOfOne(name, self._out, self._errors)

    def summary(self, ends: Sequence[tuple[str, int]]) -> None:
        put(self._out, "".join(f"  {line}\n" for line in summary_lines(ends)))


class _LinesOfOne:
    def __init__(self, name: str, out: TextIO, errors: TextIO) -> None:
        self._name = name
        self._out = out
        self._errors = errors
        self._phase = ""
        self._percent: dict[str, int] = {}

    def begin(self, phase: str) -> None:
        self._phase = phase

    def done(self) -> None:
        self.note(f"{self._phase.removesuffix(f' {self._name}')}...done")  # it is named already

    def progress(self, phase: str, done: int, total: int) -> None:
        percent = 100 if total == 0 else done * 100 // total // _STEP * _STEP
        if percent > self._percent.get(phase, 0):
            self._percent[phase] = percent
            self.note(f"{phase}  {percent} %")

    def missed(self) -> None:
        pass

    def note(self, text: str) -> None:
        put(self._out, f"  {self._name}: {text}\n")

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        put(self._errors, "".join(f"{line}\n" for line in self._failure(message, ranges)))

    def finished(self, summary: str, **facts: Any) -> None:
        self.note(summary)

    def _failure(self, message: str, ranges: Sequence[tuple[int, int]]) -> list[str]:
        named = message if message.startswith(self._name) else f"{self._name}: {message}"
        return [f"asr: {named}", *(f"asr: {self._name}:   {line}" for line in range_lines(ranges))]


class Bars(Lines):
    """The same on a terminal, with the bars of all targets below each other."""

    def __init__(self, out: TextIO = sys.stdout, errors: TextIO = sys.stderr) -> None:
        super().__init__(out, errors)
        self._bars: Any = None

    def member(self, name: str) -> Report:
        return _BarsOfOne(name, self)

    def summary(self, ends: Sequence[tuple[str, int]]) -> None:
        if self._bars is not None:
            self._bars.stop()
        super().summary(ends)

    def line(self, text: str) -> None:
        """A line above the bars."""
        if self._bars is None:
            put(self._out, text + "\n")
        else:
            self._bars.console.print(text, markup=False, highlight=False)

    def bars(self) -> Any:
        """The bars, drawn from the first time on that they are asked for."""
        if self._bars is None:
            from restore.report.terminal import make_bars

            self._bars = make_bars(self._out)
            self._bars.start()
        return self._bars


class _BarsOfOne(_LinesOfOne):
    def __init__(self, name: str, bars: Bars) -> None:
        self._name = name
        self._all = bars
        self._tasks: dict[str, Any] = {}

    def progress(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._all.bars().add_task(f"{self._name}: {phase}", total=total)
        self._all.bars().update(self._tasks[phase], completed=done, total=total)

    def missed(self) -> None:
        pass

    def note(self, text: str) -> None:
        self._all.line(f"  {self._name}: {text}")

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        for line in self._failure(message, ranges):
            self._all.line(line)


class Separate:
    """Reports that name their target by themselves."""

    def __init__(self, make: Callable[[str | None], JSONReport | PuppetReport]) -> None:
        self._make = make

    def member(self, name: str) -> Report:
        return self._make(name)

    def summary(self, ends: Sequence[tuple[str, int]]) -> None:
        for name, status in ends:
            self._make(name).note(f"exit status {status}")


def summary_lines(ends: Sequence[tuple[str, int]]) -> list[str]:
    """How many targets are done, then each with its exit status."""
    done = sum(status == 0 for _, status in ends)
    return [
        f"{done} of {len(ends)} targets done",
        *(f"{name}: {_ENDS.get(status, 'FAILED')} (exit status {status})" for name, status in ends),
    ]


def make_members(*, as_json: bool = False, puppetstrings: bool = False, timed: bool = False) -> Members:
    """What fits what was asked for and where standard output goes; `timed` notes what each phase took."""
    from restore.report.shown import ShownMembers, shown, without_secrets

    members: Members = ShownMembers(_make_members(as_json, puppetstrings), without_secrets if as_json else shown)
    if timed:
        from restore.report.timed import TimedMembers

        members = TimedMembers(members)
    return members


def _make_members(as_json: bool, puppetstrings: bool) -> Members:
    if as_json:
        return Separate(lambda name: JSONReport(sys.stdout, name))
    if puppetstrings:
        return Separate(lambda name: PuppetReport(sys.stdout, name))
    kind = Bars if sys.stdout.isatty() else Lines
    return kind(sys.stdout, sys.stderr)
