"""A pytest plugin: a skipped test is a failure. `.ci/run` asks for it with `-p scripts.no_skips`.

Tests skip themselves where a tool or a privilege is missing. On the machine that decides whether a change is good both
are there, so a skip means that something which used to be tested no longer is. Expected failures (xfail) are not skips.
"""

import pytest

_skipped: list[str] = []


def _note_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a test that was skipped."""
    _note_skip(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a whole module that was skipped."""
    _note_skip(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn a green run with skips red."""
    if _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests they were."""
    if _skipped:
        terminalreporter.section("skipped, which counts as failed here (scripts/no_skips.py)", red=True)
        for nodeid in _skipped:
            terminalreporter.line(nodeid)
