"""What people may see of a text: no password, no query of a URL, nothing that steers a terminal or breaks a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from restore.report import Members, Report
from targetmode.disks.text import escaped

_URL: Final = re.compile(
    r"""
    (?P<scheme> \b[A-Za-z][A-Za-z0-9+.-]*:// | \b(?:https?|s3|sftp|smb|file):/ )  # pathlib leaves one slash
    (?: [^\s/?\#]*@                                          # who logs in
      | [^\s/?\#:@\[]+:(?![0-9]+(?:[/?\#:\s]|$))\S*@ )?      # and with a password that had to be percent-encoded
    (?P<path> [^\s?]*)
    (?P<query> \?\S*?(?=[:;,.)'"]*(?:\s|$)))?
    """,
    re.VERBOSE,
)


def without_secrets(text: str) -> str:
    """The same without user names, passwords and queries of the URLs in it; what an NBD URI has for a query stays."""

    def shown(found: re.Match[str]) -> str:
        query = (found["query"] or "") if found["scheme"].startswith("nbd") else ""
        return f"{found['scheme']}{found['path']}{query}"

    return _URL.sub(shown, text)


def shown(text: str) -> str:
    """The same in one line for people, without secrets."""
    return escaped(without_secrets(text))


class ShownReport:
    """A report that is told only what people may see."""

    def __init__(self, report: Report, show: Callable[[str], str]) -> None:
        """Tell `report` what `show` makes of all that is told."""
        self._report = report
        self._show = show

    def begin(self, phase: str) -> None:
        self._report.begin(self._show(phase))

    def done(self) -> None:
        self._report.done()

    def progress(self, phase: str, done: int, total: int) -> None:
        self._report.progress(phase, done, total)

    def missed(self) -> None:
        self._report.missed()

    def note(self, text: str) -> None:
        self._report.note(self._show(text))

    def failed(self, message: str, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self._report.failed(self._show(message), ranges)

    def finished(self, summary: str, **facts: Any) -> None:
        self._report.finished(self._show(summary), **facts)


class ShownMembers:
    """The same for several targets."""

    def __init__(self, members: Members, show: Callable[[str], str]) -> None:
        """Tell `members` what `show` makes of all that is told."""
        self._members = members
        self._show = show

    def member(self, name: str) -> Report:
        return ShownReport(self._members.member(self._show(name)), self._show)

    def summary(self, ends: Sequence[tuple[str, int]]) -> None:
        self._members.summary([(self._show(name), status) for name, status in ends])
