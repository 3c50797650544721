"""What `asr` tells: its phase lines, bars on a terminal, one JSON object a line, or lines for another program."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol, TextIO

RESTORING: Final = "Restoring"
VERIFYING: Final = "Verifying"


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

    def missed(self) -> None:
        """Data of a stream got lost since the last progress, and will come again; from any thread."""
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


class Members(Protocol):
    """What is told of several targets."""

    def member(self, name: str) -> Report:
        """The report of one of them."""
        ...

    def summary(self, ends: Sequence[tuple[str, int]]) -> None:
        """How each has ended: (name, exit status)."""
        ...


def make_report(*, as_json: bool = False, puppetstrings: bool = False, timed: bool = False) -> Report:
    """The report that fits what was asked for and where standard output goes; `timed` notes what each phase took."""
    from restore.report.shown import ShownReport, shown, without_secrets

    report: Report = ShownReport(_make_report(as_json, puppetstrings), without_secrets if as_json else shown)
    if timed:
        from restore.report.timed import TimedReport

        report = TimedReport(report)
    return report


def _make_report(as_json: bool, puppetstrings: bool) -> Report:
    if as_json:
        from restore.report.events import JSONReport

        return JSONReport(sys.stdout)
    if puppetstrings:
        from restore.report.puppet import PuppetReport

        return PuppetReport(sys.stdout)
    if sys.stdout.isatty():
        from restore.report.terminal import TerminalReport

        return TerminalReport(sys.stdout, sys.stderr)
    from restore.report.text import TextReport

    return TextReport(sys.stdout, sys.stderr)


def put(out: TextIO, text: str) -> None:
    """Write at once; a restore does not end because nobody listens any more."""
    try:
        out.write(text)
        out.flush()
    except OSError:
        _abandon(out)


def answer(text: str, program: str) -> int:
    """Print what was asked for; the exit status, which is 1 when it could not be printed to its end."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough
        _abandon(sys.stdout)
        return 1
    except OSError as error:
        _abandon(sys.stdout)
        put(sys.stderr, f"{program}: standard output: {error.strerror}\n")
        return 1
    return 0


def _abandon(out: TextIO) -> None:
    """What is in its buffer goes nowhere, rather than failing once more."""
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
