"""Runs of bytes in order, of which there may be millions."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import Final

Run = tuple[int, int]
"""Start and end, in bytes."""

MOST: Final = 2_000_000  # runs that are kept, of 16 bytes each
_PAGE: Final = 4096


class Runs:
    """Runs that are in order and do not touch; where there are too many, the shortest are forgotten.

    Attributes:
        total: bytes of all runs that were ever added.
    """

    def __init__(self, runs: Iterable[Run] = (), *, most: int = MOST) -> None:
        """Begin with some; keep `most` of them at most."""
        self.total = 0
        self._most = most
        self._least = 1
        self._starts, self._ends = array("Q"), array("Q")
        for start, end in runs:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add one behind all others.

        Raises:
            ValueError: it is not behind them, or is empty.
        """
        if not (self._ends[-1] if self._ends else 0) <= start < end:
            raise ValueError(f"the run from {start} to {end} is out of order")
        self.total += end - start
        if self._ends and self._ends[-1] == start:
            self._ends[-1] = end
        elif end - start >= self._least:
            self._starts.append(start)
            self._ends.append(end)
            if len(self._starts) > self._most:
                self._forget()

    def __iter__(self) -> Iterator[Run]:
        """In order."""
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._starts)

    def without(self, reserved: Iterable[Run]) -> Iterator[Run]:
        """What is left of them when other runs are taken away."""
        taken = iter(sorted(reserved))
        low, high = next(taken, (0, 0))
        for start, end in self:
            while start < end:
                while high <= start and (following := next(taken, None)) is not None:
                    low, high = following
                if high <= start or end <= low:
                    yield start, end
                    break
                if start < low:
                    yield start, low
                start = high

    def _forget(self) -> None:
        while len(self._starts) > self._most // 2:
            self._least = max(2 * self._least, _PAGE)
            kept = [(start, end) for start, end in self if end - start >= self._least]
            self._starts = array("Q", (start for start, _ in kept))
            self._ends = array("Q", (end for _, end in kept))
