"""A partclone image that can only be read from its start, such as a compressed one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from restore.source import SourceError, Zeroes
from restore.source.partclone.bitmap import Bitmap, parse_bitmap
from restore.source.partclone.checksum import checksum
from restore.source.partclone.header import HEADER_1_SIZE, HEADER_2_SIZE, Header, parse_header
from restore.source.partclone.image import check_stored_size, damaged
from restore.source.storage import Storage, interrupt

_UNIT: Final = 1 << 20  # what is decoded comes in pieces that end at multiples of this
_ZEROES: Final = memoryview(bytes(_UNIT))
_HEADER: Final = "partclone's header"
_BITMAP: Final = "the bitmap of blocks in use"
_BLOCKS: Final = "the blocks in use"


class PartcloneStream:
    """A partclone image as a `Stream`."""

    def __init__(self, storage: Storage) -> None:
        """Take over `storage`, and read the header and the bitmap.

        Raises:
            SourceError: it is damaged.
            OSError: it cannot be read.
        """
        self.name = storage.name
        self._storage = storage
        self._done = 0  # blocks in use that the last `decode` has passed
        feed = _Feed(storage.stream(), self.name)
        raw = feed.read(HEADER_2_SIZE, _HEADER)
        if raw[30:34] == b"0001":
            raw += feed.read(HEADER_1_SIZE - len(raw), _HEADER)
        self._raw = raw
        self._header = header = parse_header(raw, self.name)
        stored = feed.read(header.blocks_start - header.bitmap_start, _BITMAP)
        self._bitmap = parse_bitmap(header, stored, self.name)
        if storage.size is not None:
            check_stored_size(header, self._bitmap, storage.size, self.name)

    @property
    def size(self) -> int:
        """As the header tells."""
        return self._header.size

    def decode(self) -> Iterator[bytes | Zeroes]:
        """Blocks in use as they come, the checksum of some looked at when they have passed; zeroes between."""
        block_size = self._header.block_size
        feed = _Feed(self._storage.stream(), self.name)
        if feed.read(len(self._raw), _HEADER) != self._raw:
            raise SourceError(f"{self.name} is no longer what it was when it was opened")
        feed.skip(self._header.blocks_start - self._header.bitmap_start, _BITMAP)
        strips = _Strips(self._header, self._bitmap, feed, self.name)
        units = _Units()
        position = self._done = 0
        for first, count in self._bitmap.runs():
            yield from units.zeroes((first - position) * block_size)
            left = count * block_size
            while left:
                size = min(left, units.room, strips.left)
                for view in feed.take(size, _BLOCKS):
                    strips.add(view)
                    units.add(view)
                left -= size
                if not strips.left:
                    strips.end()
                if not units.room:
                    yield units.unit()
            position = first + count
            self._done += count
        if strips.begun:
            strips.end()
        feed.end()
        yield from units.zeroes(self._header.size - position * block_size)
        if units.begun:
            yield units.unit()

    def fraction(self) -> float:
        """Of the blocks in use."""
        return self._done / max(self._bitmap.used, 1)

    def check_unchanged(self) -> None:
        """As the storage tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        interrupt(self._storage)

    def close(self) -> None:
        """Close it."""
        self._storage.close()


class _Feed:
    """What is stored, taken in portions of any size."""

    def __init__(self, pieces: Iterator[bytes], name: str) -> None:
        self._pieces = pieces
        self._name = name
        self._piece = memoryview(b"")
        self._position = 0

    def take(self, size: int, what: str) -> Iterator[memoryview]:
        """The next bytes, as they come."""
        while size:
            if not self._piece:
                piece = next(self._pieces, None)
                if piece is None:
                    raise SourceError(f"{self._name} is cut short: it ends at byte {self._position}, within {what}")
                self._piece = memoryview(piece)
                continue
            part = self._piece[:size]
            self._piece = self._piece[len(part) :]
            self._position += len(part)
            size -= len(part)
            yield part

    def read(self, size: int, what: str) -> bytes:
        """The next bytes; no more memory is taken than there are."""
        return b"".join(self.take(size, what))

    def skip(self, size: int, what: str) -> None:
        """Pass over the next bytes."""
        for _ in self.take(size, what):
            pass

    def end(self) -> None:
        """See that nothing follows, which also has a decompressor check what is at the end."""
        if self._piece or any(self._pieces):
            raise SourceError(f"{self._name}: bytes follow its last block, which do not belong to it")


class _Strips:
    """The blocks that share a checksum, as they pass."""

    def __init__(self, header: Header, bitmap: Bitmap, feed: _Feed, name: str) -> None:
        self._header, self._bitmap, self._feed, self._name = header, bitmap, feed, name
        self._size = (header.per_checksum or bitmap.total) * header.block_size
        self._made = checksum(header)
        self._index = 0
        self.left = self._size  # bytes of blocks until the next checksum

    @property
    def begun(self) -> bool:
        """Whether blocks have passed that still lack their checksum."""
        return self.left < self._size

    def add(self, view: memoryview) -> None:
        """Bytes of blocks."""
        self._made.update(view)
        self.left -= len(view)

    def end(self) -> None:
        """The checksum follows."""
        if self._feed.read(self._header.mode.size, "a checksum") != self._made.value():
            raise damaged(self._header, self._bitmap, self._index, self._name)
        self._index += 1
        self.left = self._size
        if self._header.reseed:
            self._made = checksum(self._header)


class _Units:
    """What was decoded, put together to whole units."""

    def __init__(self) -> None:
        self._parts: list[memoryview] = []
        self.room = _UNIT  # bytes

    @property
    def begun(self) -> bool:
        """Whether there is a part of one."""
        return bool(self._parts)

    def add(self, view: memoryview) -> None:
        """Bytes; no more than there is room for."""
        self._parts.append(view)
        self.room -= len(view)

    def zeroes(self, length: int) -> Iterator[bytes | Zeroes]:
        """Zeroes, as many as you like: what is complete with them."""
        if self._parts:
            count = min(length, self.room)
            self.add(_ZEROES[:count])
            length -= count
            if not self.room:
                yield self.unit()
        if length >= _UNIT:
            yield Zeroes(length - length % _UNIT)
        if length % _UNIT:
            self.add(_ZEROES[: length % _UNIT])

    def unit(self) -> bytes:
        """What there is."""
        unit = b"".join(self._parts)
        self._parts = []
        self.room = _UNIT
        return unit
