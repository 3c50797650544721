"""What a compressed file holds where an index tells its parts: read at random, each part decoded once."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.source import CHUNK_LIMIT
from restore.source.compressed.parallel import Job, in_order, workers
from restore.source.storage import Interruptible, Networked, Storage

UNIT: Final = 1 << 20  # parts that begin in the same one are decoded together
LARGEST: Final = CHUNK_LIMIT - UNIT  # bytes, decoded, of a part
_KEPT: Final = 32 << 20  # bytes of parts that are kept for who reads a little at a time
_EMPTY: Final = 1000  # what shrinks by such a factor may well be zeroes
_GRAIN: Final = 64 << 10  # bytes; smaller runs of zeroes are not looked for
_ZEROES: Final = bytes(UNIT)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an image that can be decoded by itself.

    Attributes:
        number: its place among all.
        at: where it is stored, in bytes.
        stored: how many bytes that are.
        length: bytes of the image that it holds.
    """

    number: int
    at: int
    stored: int
    length: int


class Index:
    """Where the parts are: 24 bytes for each."""

    def __init__(self) -> None:
        self._starts = array("Q", [0])
        self._places = array("Q")
        self._stored = array("Q")

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._starts[-1]

    def append(self, at: int, stored: int, length: int) -> None:
        """Add a part, which must not be empty."""
        self._starts.append(self.size + length)
        self._places.append(at)
        self._stored.append(stored)

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._places)

    def __getitem__(self, number: int) -> Part:
        """The part of that number."""
        length = self._starts[number + 1] - self._starts[number]
        return Part(number, self._places[number], self._stored[number], length)

    def start(self, number: int) -> int:
        """Where a part begins in the image; of the number of parts its size."""
        return self._starts[number]

    def find(self, offset: int) -> int:
        """The part that holds a byte of the image."""
        return bisect_right(self._starts, offset) - 1

    def together(self, offset: int) -> tuple[int, int]:
        """The first of the parts that are decoded together around a byte, and the one behind the last."""
        unit = self._starts[self.find(offset)] // UNIT * UNIT
        return bisect_left(self._starts, unit), bisect_left(self._starts, min(unit + UNIT, self.size))

    def largest(self) -> int:
        """Bytes of the image in the largest part."""
        return max(end - start for start, end in pairwise(self._starts))

    def small(self) -> Sequence[int]:
        """The parts that are stored as so little that they may be zeroes."""
        lengths = (end - start for start, end in pairwise(self._starts))
        both = enumerate(zip(self._stored, lengths, strict=True))
        return [number for number, (stored, length) in both if stored * _EMPTY - _GRAIN < length >= _GRAIN]


class Format(Protocol):
    """How the parts are decoded; from any thread."""

    def decode(self, part: Part, stored: bytes) -> bytes:
        """A part's bytes, which are as many as it says; raises `SourceError`."""
        ...

    def is_zero(self, part: Part, stored: bytes) -> bool:
        """Whether it can be seen without decoding that a part is nothing but zeroes."""
        ...


class DecodedBlocks:
    """The decoded bytes of a storage: a `Storage` that can be read from anywhere."""

    seekable: Final = True

    def __init__(self, storage: Storage, index: Index, form: Format) -> None:
        """Take over `storage`."""
        self.name = storage.name
        self.size: int = index.size
        self._storage = storage
        self._index = index
        self._format = form
        self._passed = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._kept_bytes = 0
        self._zero: dict[int, bool] = {}
        self._small: Sequence[int] | None = None

    @property
    def connections(self) -> int:
        """How many parts are worth reading at once."""
        return self._storage.connections if isinstance(self._storage, Networked) else workers()

    @property
    def least_size(self) -> int:
        """It is known."""
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end. Raises `SourceError`, `OSError`."""
        end = min(offset + length, self.size)
        pieces = []
        while offset < end:
            number = self._index.find(offset)
            start, stop = self._index.start(number), self._index.start(number + 1)
            last = min(stop, end)
            if (offset, last) == (start, stop):
                pieces.append(self._decode(number))
            else:
                pieces.append(self._lately(number)[offset - start : last - start])
            offset = last
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def chunk(self, offset: int) -> tuple[int, int]:
        """Start and end, in bytes of the image, of what is decoded together around an offset."""
        first, behind = self._index.together(offset)
        return self._index.start(first), self._index.start(behind)

    def extents(self) -> Iterator[Extent]:
        """The runs of data and of zeroes, these only as whole parts; raises `SourceError`, `OSError`."""
        if self._small is None:
            self._small = self._index.small()
        position = zeroes = 0
        for number in self._small:
            if not self._is_zero(number):
                continue
            start, stop = self._index.start(number), self._index.start(number + 1)
            if start > position:
                if zeroes:
                    yield Extent(zeroes, hole=True, zero=True)
                    zeroes = 0
                yield Extent(start - position, hole=False, zero=False)
            zeroes += stop - start
            position = stop
        if zeroes:
            yield Extent(zeroes, hole=True, zero=True)
        if position < self.size:
            yield Extent(self.size - position, hole=False, zero=False)

    def stream(self) -> Iterator[bytes]:
        """All of it, decoded on all cores ahead of who reads; raises `SourceError`, `OSError`."""
        self._passed = 0
        for piece in in_order(self._jobs()):
            for start in range(0, len(piece), UNIT):
                part = piece[start : start + UNIT]
                self._passed += len(part)
                yield part

    def fraction(self) -> float:
        """How far, 0 to 1, the last `stream` has come."""
        return self._passed / self.size if self.size else 0.0

    def plain(self, offset: int, length: int) -> FileRange | None:
        """It does not lie in a file."""
        return None

    def check_unchanged(self) -> None:
        """As what it is stored in tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        if isinstance(self._storage, Interruptible):
            self._storage.interrupt()

    def close(self) -> None:
        """Close it."""
        self._storage.close()

    def _jobs(self) -> Iterator[Job]:
        number = 0
        while number < len(self._index):
            behind = self._index.together(self._index.start(number))[1]
            part = range(number, behind)
            cost = self._index.start(behind) - self._index.start(number)
            yield Job(lambda part=part: [self._decode(n) for n in part], 2 * cost)  # type: ignore[misc]
            number = behind

    def _decode(self, number: int) -> bytes:
        part = self._index[number]
        return self._format.decode(part, self._read(part))

    def _read(self, part: Part) -> bytes:
        stored = self._storage.read(part.at, part.stored)
        if len(stored) != part.stored:
            raise OSError(f"{self.name} ends at byte {part.at + len(stored)}, earlier than it did at the start")
        return stored

    def _lately(self, number: int) -> bytes:
        """A part of which only a piece is wanted, and others probably soon."""
        with self._lock:
            found = self._kept.get(number)
            if found is not None:
                self._kept.move_to_end(number)
            else:
                mine = self._kept[number] = Future[bytes]()
                self._kept_bytes += self._index[number].length
                while self._kept_bytes > _KEPT and len(self._kept) > 2 * workers():
                    self._kept_bytes -= self._index[self._kept.popitem(last=False)[0]].length
        if found is not None:
            return found.result()
        try:
            mine.set_result(self._decode(number))
        except BaseException as error:
            mine.set_exception(error)
            with self._lock:  # it may go better the next time
                if self._kept.get(number) is mine:
                    del self._kept[number]
                    self._kept_bytes -= self._index[number].length
        return mine.result()

    def _is_zero(self, number: int) -> bool:
        known = self._zero.get(number)
        if known is None:
            part = self._index[number]
            stored = self._read(part)
            known = self._format.is_zero(part, stored) or _all_zero(self._format.decode(part, stored))
            self._zero[number] = known
        return known


def _all_zero(data: bytes) -> bool:
    return all(data.startswith(_ZEROES[: len(data) - at], at) for at in range(0, len(data), UNIT))
