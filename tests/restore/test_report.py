from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.report import RESTORING, VERIFYING, make_report, range_lines
from restore.report.events import JSONReport
from restore.report.shown import ShownReport
from restore.report.terminal import TerminalReport
from restore.report.text import TextReport
from tests.support import examples

BAR = "....10....20....30....40....50....60....70....80....90....100"

steps = st.lists(st.tuples(st.sampled_from(["Restoring", "Verifying"]), st.integers(0, 1000)), max_size=60)


@given(steps, st.integers(0, 1000))
@examples(300)
def test_any_progress_draws_each_bar_once(steps: list[tuple[str, int]], total: int) -> None:
    """However the calls come, forwards, backwards, side by side: four dots between tens, each exactly once."""
    out = io.StringIO()
    report = TextReport(out, io.StringIO())
    report.progress("Restoring", 0, total)
    for phase, done in steps:
        report.progress(phase, min(done, total), total)
    report.progress("Restoring", total, total)
    report.progress("Verifying", total, total)
    report.finished("Restored")
    assert out.getvalue() == f"  Restoring  {BAR}\n  Verifying  {BAR}\n  Restored\n"


@given(st.lists(st.integers(0, 1000), max_size=30))
@examples(200)
def test_a_bar_is_at_any_time_the_beginning_of_the_whole(steps: list[int]) -> None:
    out = io.StringIO()
    report = TextReport(out, io.StringIO())
    highest = 0
    for done in steps:
        highest = max(highest, done)
        report.progress("Restoring", done, 1000)
        drawn = out.getvalue().removeprefix("  Restoring  ").removesuffix("\n")
        assert BAR.startswith(drawn)
        assert len(re.findall(r"\.|\d+", drawn)) == highest // 20


def test_what_was_missed_is_an_x() -> None:
    """In the line of the restore, once for each time, and never in place of a number."""
    out = io.StringIO()
    report = TextReport(out, out)
    for percent in range(101):
        if percent in (3, 9, 50, 51, 77):
            report.missed()
        report.progress(RESTORING, percent, 100)
    assert out.getvalue() == "  Restoring  .x..10x...20....30....40....50x...60....70...x80....90....100\n"
    report.missed()
    report.progress(VERIFYING, 100, 100)
    assert out.getvalue().endswith("  Verifying  ....10....20....30....40....50....60....70....80....90....100\n")


def test_a_note_has_a_line_of_its_own_and_the_bar_begins_anew() -> None:
    out = io.StringIO()
    report = TextReport(out, io.StringIO())
    report.progress("Restoring", 45, 100)
    report.note("connecting again")
    report.progress("Restoring", 50, 100)
    report.progress("Restoring", 100, 100)
    first, note, second, rest = out.getvalue().split("\n")
    assert first == "  Restoring  ....10....20....30....40.."
    assert note == "  connecting again"
    assert second == f"  Restoring  {BAR}"
    assert rest == ""


def test_failure_goes_to_standard_error() -> None:
    out, errors = io.StringIO(), io.StringIO()
    report = TextReport(out, errors)
    report.begin("Validating target")
    report.failed("it broke", [(MIB, 5), (3 * MIB - 1, 2)])
    assert out.getvalue() == "  Validating target...\n"
    assert errors.getvalue().splitlines() == [
        "asr: it broke",
        f"asr:   bytes {MIB} to {MIB + 4} (MiB 1)",
        f"asr:   bytes {3 * MIB - 1} to {3 * MIB} (MiB 2 to 3)",
    ]


MIB = 1 << 20


@given(st.lists(st.tuples(st.integers(0, 1 << 50), st.integers(1, 1 << 40)), max_size=50), st.integers(1, 30))
@examples(100)
def test_range_lines(ranges: list[tuple[int, int]], most: int) -> None:
    lines = range_lines(ranges, most)
    assert len(lines) == min(len(ranges), most) + (len(ranges) > most)
    for (offset, length), line in zip(ranges, lines[:most], strict=False):
        numbers = [int(word) for word in re.findall(r"\d+", line)]
        assert numbers[:2] == [offset, offset + length - 1]
        assert numbers[2:] == sorted({offset // MIB, (offset + length - 1) // MIB})
    if len(ranges) > most:
        assert lines[-1] == f"and {len(ranges) - most} more ranges"


def test_json() -> None:
    out = io.StringIO()
    report = JSONReport(out)
    report.begin("Validating target")
    report.done()
    for done in (0, 1, 2, 100, 100):
        report.progress("Restoring", done, 100)
    report.progress("Verifying", 0, 0)
    report.note("a \"quoted\" 'note' ü\n")
    report.failed("it broke", [(1, 2)])
    report.finished("done", bytes=5)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event.pop("event") for event in events] == [
        "phase",
        "phase",
        "progress",
        "progress",
        "progress",
        "note",
        "error",
        "done",
    ]
    assert events[2] == {"phase": "Restoring", "bytes": 0, "total": 100, "percent": 0.0}
    assert events[3] == {"phase": "Restoring", "bytes": 100, "total": 100, "percent": 100.0}
    assert events[4]["percent"] == 100.0
    assert events[6] == {"message": "it broke", "ranges": [[1, 2]]}
    assert events[7] == {"message": "done", "bytes": 5}


def test_make_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*, as_json: bool) -> type[object]:
        report = make_report(as_json=as_json)
        assert isinstance(report, ShownReport)
        return type(report._report)

    assert made(as_json=True) is JSONReport
    assert made(as_json=False) is TextReport
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert made(as_json=False) is TerminalReport
