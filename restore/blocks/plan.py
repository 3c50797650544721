"""What there is to write and to verify: an image cut into pieces."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby, islice
from typing import Final

from nbd.backend import Extent
from nbd.client import Operation
from nbd.wire import Command
from restore.source import Payload, Unmapped

UNIT: Final = 1 << 20  # data are written and hashed by ranges cut at multiples of this
HEAD: Final = 1 << 20  # zeroed first and written last, so that a disk never looks bootable until it is right
GRAIN: Final = 64 << 10  # a hole smaller than this is written as data
ZERO_UNIT: Final = 64 << 20  # longest run of zeroes handled as one piece; a digest of that length may be asked for
_MOST_KNOWN: Final = 50_000  # zero ranges of the target that are remembered; the others are zeroed once more


class Kind(Enum):
    """What has to be done for a piece."""

    DATA = auto()
    ZERO = auto()
    ALREADY_ZERO = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of the image, in bytes, that is written by one request and verified as one."""

    offset: int
    length: int
    kind: Kind


def cut(extents: Iterable[Extent], start: int, end: int | None = None) -> Iterator[Piece]:
    """Cut `[start, end)` of an image into pieces, in order, without gaps but for what is `Unmapped`.

    No more extents are taken than needed.

    Args:
        extents: the image's runs from its first byte on.
        start: where to begin, a multiple of `UNIT`.
        end: at most the image's size, which None stands for.
    """
    position = 0
    for unmapped, runs in groupby(extents, key=lambda extent: isinstance(extent, Unmapped)):
        if unmapped:
            position += sum(extent.length for extent in runs)
        else:
            position = yield from _cut(runs, position, start, end)
        if end is not None and position >= end:
            return


def _cut(extents: Iterable[Extent], first: int, start: int, end: int | None) -> Generator[Piece, None, int]:
    """The same for runs that are all mapped, of which the first begins at `first`; where they end."""
    position, last = max(first, start), first
    for data_start, data_end in _data(extents, first, end):
        last = data_end
        if end is not None:
            data_start, data_end = min(data_start, end), min(data_end, end)
        data_start, data_end = max(data_start, start), max(data_end, start)
        yield from split(position, data_start, ZERO_UNIT, Kind.ZERO)
        yield from split(data_start, data_end, UNIT, Kind.DATA)
        position = max(position, data_end)
    return last


def _data(extents: Iterable[Extent], base: int, end: int | None) -> Iterator[tuple[int, int]]:
    """The runs of data as (start, end), widened to whole grains and joined where they then touch.

    Whole units are told at once, even if their run goes on. The last run is an empty one where the extents end.
    """
    position, pending = base, (base, base)
    for extent in extents:
        first, position = max(position // GRAIN * GRAIN, base), position + extent.length
        if not extent.zero:
            if first > pending[1]:
                yield pending
                pending = (first, first)
            whole = position // UNIT * UNIT
            if whole > pending[0]:
                yield pending[0], whole
                pending = (whole, whole)
            pending = (pending[0], max(-(-position // GRAIN) * GRAIN, pending[1]))
        if end is not None and position >= end:
            break
    yield pending[0], min(pending[1], position)
    yield position, position


def split(start: int, end: int, unit: int, kind: Kind) -> Iterator[Piece]:
    """A range as pieces that end at multiples of `unit`."""
    while start < end:
        stop = min((start // unit + 1) * unit, end)
        yield Piece(start, stop - start, kind)
        start = stop


class KnownZeroes:
    """Ranges of a target that read as zeroes before anything is written."""

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Remember (offset, length) ranges that are in order; small ones are not worth it."""
        kept = list(islice(((o, o + n) for o, n in ranges if n >= GRAIN), _MOST_KNOWN))
        self._starts = [start for start, _ in kept]
        self._ends = [end for _, end in kept]

    def apply(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same pieces, with those to be zeroed split into what has to be and what is zero already."""
        for piece in pieces:
            if piece.kind is not Kind.ZERO:
                yield piece
                continue
            position, end = piece.offset, piece.offset + piece.length
            for start, stop in self._within(position, end):
                if start > position:
                    yield Piece(position, start - position, Kind.ZERO)
                yield Piece(start, stop - start, Kind.ALREADY_ZERO)
                position = stop
            if position < end:
                yield Piece(position, end - position, Kind.ZERO)

    def _within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        index = max(bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < end:
            first, last = max(self._starts[index], start), min(self._ends[index], end)
            if first < last:
                yield first, last
            index += 1


def operation(piece: Piece, payload: Payload | None) -> Operation | None:
    """The request that puts a payload, or zeroes, where a piece goes; None where the target has them already."""
    match piece.kind:
        case Kind.DATA:
            return Operation(Command.WRITE, piece.offset, piece.length, data=payload)
        case Kind.ZERO:
            return Operation(Command.WRITE_ZEROES, piece.offset, piece.length)
        case Kind.ALREADY_ZERO:
            return None


def throttle(
    items: Iterable[tuple[Piece, Payload | None]], rate: int | None, pause: Callable[[float], object] = time.sleep
) -> Iterator[tuple[Piece, Payload | None]]:
    """The same pieces, data no faster than `rate` bytes per second; `pause` waits so many seconds, or less."""
    started, sent = time.monotonic(), 0
    for piece, payload in items:
        if rate and payload is not None:
            pause(max(0.0, started + sent / rate - time.monotonic()))
            sent += piece.length
        yield piece, payload
