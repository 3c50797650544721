"""What ends a restore, each with the exit status that the command then has."""

from __future__ import annotations

from collections.abc import Sequence


class RestoreError(Exception):
    """A restore or verification that cannot go on; `str()` is one line that says why and what to do."""

    status = 1


class Refused(RestoreError):
    """It was not begun: nothing was touched."""


class Differences(RestoreError):
    """Verification found ranges that are not what they should be.

    Attributes:
        ranges: (offset, length) in bytes, in order, neighbours joined.
    """

    status = 3

    def __init__(self, message: str, ranges: Sequence[tuple[int, int]]) -> None:
        super().__init__(message)
        self.ranges = join(ranges)


def say(error: BaseException) -> str:
    """What an error says, without the number that `str()` puts before an OSError's words."""
    return str((isinstance(error, OSError) and error.strerror) or error)


def join(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as as few ranges as can be, in order."""
    joined: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if joined and joined[-1][0] + joined[-1][1] >= offset:
            start, before = joined[-1]
            joined[-1] = (start, max(before, offset + length - start))
        else:
            joined.append((offset, length))
    return joined
