"""An image's GPT made to fit a disk that is larger than the one it was made for, before a block is written.

What moving the backup would write is worked out on the image as it would lie on the target, and then laid over the
image: so it is restored, verified and compared later on like everything else.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, Self

from nbd.backend import Extent
from restore.blocks.plan import HEAD
from restore.partitions import Medium
from restore.partitions.gpt import GPTError, load, move_backup
from restore.source import Arriving, Described, Description, Forgetful, Payload, R, Source, Unmapped
from restore.source.payload import as_memory

MOVING: Final = "The backup partition table goes to the end of the disk"
_SECTOR: Final = 512  # bytes that a place which is changed is a multiple of
_MOST: Final = 1 << 20  # bytes that a source gives at once

Patch = tuple[int, bytes]


class Overlaid:
    """A `Source` with other bytes in some places, which may be behind its end; what lies between is `Unmapped`."""

    def __init__(self, source: Source, size: int, patches: Iterable[Patch]) -> None:
        """Take over `source`, which `close` closes.

        Args:
            source: what is changed.
            size: bytes with what lies behind its end.
            patches: offset and bytes of each, in order, not overlapping.
        """
        self.name = source.name
        self.size: int = size
        self.sequential = source.sequential
        self._source = source
        self._patches = list(patches)

    @property
    def least_size(self) -> int:
        """Of the image itself."""
        return self._source.least_size

    @property
    def expected_size(self) -> int:
        """Of the image itself."""
        return self._source.expected_size

    def extents(self) -> Iterator[Extent]:
        """Those of the source, data where it is changed."""
        position, ahead = 0, 0
        for extent in chain(self._source.extents(), self._rest()):
            if isinstance(extent, _Rest):
                if position >= self.size:
                    return
                extent = Unmapped(self.size - position, hole=True, zero=False)
            end = position + extent.length
            while position < end:
                while ahead < len(self._patches) and sum(_span(self._patches[ahead])) <= position:
                    ahead += 1
                start, length = _span(self._patches[ahead]) if ahead < len(self._patches) else (end, 0)
                if start > position:
                    length = min(start, end) - position
                    yield type(extent)(length, hole=extent.hole, zero=extent.zero)
                else:
                    length = min(start + length, end) - position
                    yield Extent(length, hole=False, zero=False)
                position += length

    def _rest(self) -> Iterator[Extent]:
        yield _Rest(0, hole=True, zero=False)

    def payload(self, offset: int, length: int) -> Payload:
        """The source's, changed where it is."""
        end = offset + length
        inside = [(at, data) for at, data in self._patches if at < end and offset < at + len(data)]
        if not inside:
            return self._source.payload(offset, length)
        buffer = memoryview(bytearray(length))
        for start, stop in _around(inside, offset, end):
            buffer[start - offset : stop - offset] = as_memory(
                self._source.payload(start, stop - start), stop - start, self.name
            )
        for at, data in inside:
            first, last = max(at, offset), min(at + len(data), end)
            buffer[first - offset : last - offset] = data[first - at : last - at]
        return buffer

    @property
    def checked(self) -> bool:
        """As the source is, but for what is changed, which is our own."""
        return isinstance(self._source, Forgetful) and self._source.checked

    def forget(self, offset: int, length: int) -> None:
        """What the source has of it."""
        length = min(length, self._source.least_size - offset)
        if isinstance(self._source, Forgetful) and length > 0:
            self._source.forget(offset, length)

    def arrivals(self, ranges: Iterable[R], stopped: Callable[[], bool]) -> Iterator[R]:
        """As the source's come, what is changed being at hand."""
        return self._source.arrivals(ranges, stopped) if isinstance(self._source, Arriving) else iter(ranges)

    def described(self, offset: int, length: int) -> list[Description] | None:
        """As the source has it, but where it is changed."""
        changed = any(at < offset + length and offset < at + len(data) for at, data in self._patches)
        return None if changed or not isinstance(self._source, Described) else self._source.described(offset, length)

    def progressed(self, restored: int, verified: int) -> None:
        """Tell the source."""
        if isinstance(self._source, Arriving):
            self._source.progressed(restored, verified)

    def reader(self) -> Self:
        """Over a reader of the source."""
        return type(self)(self._source.reader(), self.size, self._patches)

    def check_unchanged(self) -> None:
        """As the source tells."""
        self._source.check_unchanged()

    def close(self) -> None:
        """Close the source."""
        self._source.close()


class _Rest(Extent):
    """Stands for what lies behind the end of a source, whose size is known then."""


def _span(patch: Patch) -> tuple[int, int]:
    return patch[0], len(patch[1])


def _around(patches: list[Patch], start: int, end: int) -> Iterator[tuple[int, int]]:
    """What of a range is not in any of the patches, which are all around it."""
    for at, data in patches:
        if start < at:
            yield start, at
        start = max(start, at + len(data))
    if start < end:
        yield start, end


def fit_table(source: Source, size: int, sector_size: int) -> tuple[Source, str | None]:
    """Have the GPT of an image fit a disk.

    Args:
        source: the image; closed when what is returned is.
        size: bytes of the disk, at least as many as the image has.
        sector_size: logical sector size of the disk, in bytes.

    Returns:
        The image as it is to be restored, and a line to say: that the backup was moved, or why the table is left as it
        is; None where there is nothing to say.

    Raises:
        SourceError, OSError: the source failed.
    """
    sectors: dict[int, bytes] = {}

    def read(offset: int, length: int) -> bytes:
        first, last = offset // _SECTOR, -(-(offset + length) // _SECTOR)
        found = b"".join(sectors.get(at) or _read(source, at * _SECTOR, _SECTOR) for at in range(first, last))
        return found[offset - first * _SECTOR :][:length]

    def write(data: bytes, offset: int) -> None:
        for at in range(0, len(data), _SECTOR):
            sectors[(offset + at) // _SECTOR] = data[at : at + _SECTOR]

    medium = Medium(read, write, lambda: None, size, sector_size, block=_SECTOR)
    if source.sequential:
        try:
            table = load(medium)
        except GPTError:
            table = None
        if table is not None and table.made_for == size:
            return source, None  # its end is not looked at, which would be to decode it all
    note = move_backup(medium)
    if not sectors:
        return source, note
    return Overlaid(source, size, _joined(sectors)), MOVING


def _joined(sectors: dict[int, bytes]) -> Iterator[Patch]:
    first, data = -1, b""
    for at in sorted(sectors):
        if at != first + len(data) // _SECTOR:
            if data:
                yield first * _SECTOR, data
            first, data = at, b""
        data += sectors[at]
    yield first * _SECTOR, data


def _read(source: Source, offset: int, length: int) -> bytes:
    """Bytes of the image as it would lie on the disk: zeroes behind its end."""
    if source.sequential and offset + length > HEAD:
        raise OSError(errno.ESPIPE, f"{source.name} can only be read in order")
    count = max(min(length, source.least_size - offset), 0)
    found = bytes(as_memory(source.payload(offset, count), count, source.name)) if count else b""
    return found.ljust(length, b"\0")
