"""How fast a stream goes: never above its limit, and below it as fast as most of its clients can follow.

Pure: the time is told, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Final

CATCH_UP: Final = 0.005  # seconds that sending may be behind its time and make up for; a longer pause is no credit
BURST: Final = 0.001  # seconds' worth of data that may be sent at once, so that no switch's queue overflows
LEAST_RATE: Final = 1 << 20  # bytes per second, below which no report slows a stream
_SLOWER: Final = 0.95  # of what most clients took, when they let chunks go by
_FASTER: Final = 1.25  # times the rate, when they do not, and never did near such a rate
_NEAR: Final = 0.8  # of the rate that was too much
_CAREFULLY: Final = 1.03  # times the rate from there on
START: Final = 256 << 20  # bytes per second at first, if the limit is higher: no network of 1 Gbit/s is held up
_FULL: Final = 0.5  # of a client's memory: what comes is more than what goes, and soon it has to let chunks go by
_IN_USE: Final = 0.7  # of the rate: a stream that is slower for reasons of its own says nothing about its clients
_MUCH: Final = 0.05  # of what was sent, let go by


class Pace:
    """When to send.

    Attributes:
        rate: bytes per second, headers included; None as fast as it goes.
    """

    def __init__(self, rate: int | None) -> None:
        """Send so many bytes per second."""
        self.rate = rate
        self._due: float | None = None

    def wait(self, now: float, size: int) -> float:
        """Seconds to wait before sending so many bytes, which then count as sent."""
        if self.rate is None:
            return 0.0
        due = now if self._due is None else max(self._due, now - CATCH_UP)
        self._due = due + size / self.rate
        return max(due - now, 0.0)

    def burst(self, datagram: int, most: int) -> int:
        """How many datagrams of so many bytes to send at once, at most `most`."""
        if self.rate is None:
            return most
        return max(1, min(most, int(self.rate * BURST / datagram)))


class Regulator:
    """Finds the rate that most clients can follow; one that cannot does not hold the others back."""

    def __init__(self, limit: int | None, least: int = LEAST_RATE) -> None:
        """Between `least`, which is for the slowest client worth waiting for, and `limit`, both in bytes per second."""
        self._limit = limit
        self._least = least if limit is None else min(least, limit)
        self._too_much: float | None = None
        self.rate = START if limit is None else min(START, limit)

    def regulate(
        self, passed_over: Sequence[float], filled: Sequence[float], sent: float, *, may_rise: bool = True
    ) -> int:
        """The rate from now on.

        Args:
            passed_over: of each client, which part of what was sent lately it lacked and had to let go by, 0 to 1.
            filled: of each client, which part of its memory for what has come is taken, 0 to 1.
            sent: bytes per second that were sent lately.
            may_rise: the clients have seen enough of the rate that there is.
        """
        if not passed_over:
            return self.rate
        much = median_low(passed_over)
        if much > _MUCH or median_low(filled) > _FULL:
            self._too_much = min(sent, self.rate)
            self.rate = max(int(self._too_much * (1 - much) * _SLOWER), self._least)
        elif may_rise and sent > _IN_USE * self.rate:
            near = self._too_much is not None and self.rate > _NEAR * self._too_much
            faster = int(self.rate * (_CAREFULLY if near else _FASTER))
            self.rate = faster if self._limit is None else min(faster, self._limit)
        return self.rate
