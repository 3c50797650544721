"""A partclone image whose bytes can be read from anywhere: blocks are found by counting those in use before them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.source import SourceError
from restore.source.partclone.bitmap import Bitmap, parse_bitmap
from restore.source.partclone.checksum import checksum
from restore.source.partclone.header import HEADER_1_SIZE, Header, Mode, parse_header
from restore.source.storage import Storage, interrupt

_CHUNK: Final = 4 << 20  # bytes of the image decoded together
_TOGETHER: Final = 32 << 20  # bytes of what is stored that are read at once, to check them and to take blocks of them
_PIECE: Final = 1 << 20


class PartcloneImage:
    """A partclone image as `Chunks`.

    A checksum covers some blocks, a *strip*. A strip is checked when the first of its blocks is wanted, and once only.
    Where checksums go on from strip to strip (partclone's `--no-reseed`, and version 0001), all strips before it are.
    """

    def __init__(self, storage: Storage, size: int) -> None:
        """Take over `storage`, of `size` bytes.

        Raises:
            SourceError: it is damaged.
            OSError: it cannot be read.
        """
        self.name = storage.name
        self._storage = storage
        self._header = header = parse_header(storage.read(0, HEADER_1_SIZE), self.name)
        if header.blocks_start > size:
            raise SourceError(f"{self.name} is cut short: it ends within the bitmap of blocks in use")
        self._bitmap = parse_bitmap(header, self._stored(header.bitmap_start, header.blocks_start), self.name)
        check_stored_size(header, self._bitmap, size, self.name)
        self.size = header.size
        self._unit = max(_CHUNK // header.block_size, 1) * header.block_size
        self._per_strip = header.per_checksum
        self._checked = bytearray(-(-self._bitmap.used // self._per_strip) if self._per_strip else 0)
        self._running = checksum(header)  # over all strips that were checked, where it goes on from strip to strip
        self._next_strip = 0
        self._order = threading.Lock()

    def extents(self) -> Iterator[Extent]:
        """Runs of blocks in use are data, all between and behind them are holes."""
        return extents(self._header, self._bitmap)

    def chunk(self, offset: int) -> tuple[int, int]:
        """Some MiB, whole blocks."""
        start = offset - offset % self._unit
        return start, min(start + self._unit, self.size)

    def decode(self, start: int, end: int) -> bytes | bytearray | memoryview:
        """Blocks in use from where they are stored, checked, and zeroes between them."""
        block_size, total = self._header.block_size, self._bitmap.total
        first, last = min(start // block_size, total), min(-(-end // block_size), total)
        rank, stop = self._bitmap.rank(first), self._bitmap.rank(last)
        if rank == stop:
            return bytes(end - start)
        stored = self._blocks(rank, stop)
        parts: list[memoryview | bytes] = []
        position = first
        for begin, count in self._bitmap.runs(first, last):
            if begin > position:
                parts.append(bytes((begin - position) * block_size))
            parts += _take(stored, count * block_size)
            position = begin + count
        if (rest := end - position * block_size) > 0:
            parts.append(bytes(rest))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def plain(self, offset: int, length: int) -> FileRange | None:
        """Where there is no checksum and all of the blocks are in use, they lie one after the other."""
        if self._header.mode is not Mode.NONE:
            return None
        block_size = self._header.block_size
        first, within = divmod(offset, block_size)
        last = -(-(offset + length) // block_size)
        if last > self._bitmap.total or not self._bitmap.all_used(first, last):
            return None
        return self._storage.plain(self._header.stored_at(self._bitmap.rank(first)) + within, length)

    def check_unchanged(self) -> None:
        """As the storage tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        interrupt(self._storage)

    def close(self) -> None:
        """Close it."""
        self._storage.close()

    def _blocks(self, rank: int, stop: int) -> list[memoryview]:
        """The blocks in use from the one that `rank` others come before to that before `stop`, without checksums."""
        header, per = self._header, self._per_strip
        if not per:
            return [memoryview(self._stored(header.stored_at(rank), header.stored_at(stop)))]
        strip, end = rank // per, -(-stop // per)
        start = header.stored_at(rank)
        data = memoryview(b"")
        if self._checked.find(0, strip, end) >= 0:
            first, last = self._strip(strip)[0], self._strip(end - 1)[1]
            if header.reseed and last - first <= _TOGETHER:
                data, start = memoryview(self._stored(first, last)), first
                for index in range(strip, end):
                    at, until = self._strip(index)
                    self._check(index, [data[at - first : until - first]])
            else:
                self._check_apart(strip, end)
        if not data:
            data = memoryview(self._stored(start, header.stored_at(stop - 1) + header.block_size))
        blocks = []
        while rank < stop:
            count = min(per - rank % per, stop - rank)
            at = header.stored_at(rank) - start
            blocks.append(data[at : at + count * header.block_size])
            rank += count
        return blocks

    def _strip(self, index: int) -> tuple[int, int]:
        """Where a strip lies with its checksum, in bytes of what is stored."""
        rank = index * self._per_strip
        count = min(self._per_strip, self._bitmap.used - rank)
        start = self._header.stored_at(rank)
        return start, start + count * self._header.block_size + self._header.mode.size

    def _check(self, index: int, pieces: list[memoryview]) -> None:
        """Check a strip whose bytes are here, its checksum last; one that begins anew with each strip."""
        if self._checked[index]:
            return
        made = checksum(self._header)
        for piece in pieces:
            made.update(piece[: -self._header.mode.size])
        self._compare(index, made.value(), bytes(pieces[-1][-self._header.mode.size :]))

    def _check_apart(self, strip: int, end: int) -> None:
        """Check strips that are too large to be held, or one after the other from the first of all."""
        header = self._header
        with self._order:
            for index in range(strip if header.reseed else self._next_strip, end):
                if self._checked[index]:
                    continue
                made = checksum(header) if header.reseed else self._running
                at, until = self._strip(index)
                until -= header.mode.size
                for offset in range(at, until, _PIECE):
                    made.update(memoryview(self._stored(offset, min(offset + _PIECE, until))))
                self._compare(index, made.value(), self._stored(until, until + header.mode.size))
                self._next_strip = index + 1

    def _compare(self, index: int, made: bytes, stored: bytes) -> None:
        if made != stored:
            raise damaged(self._header, self._bitmap, index, self.name)
        self._checked[index] = 1

    def _stored(self, start: int, end: int) -> bytes:
        data = self._storage.read(start, end - start)
        if len(data) != end - start:
            raise OSError(f"{self.name} ends at byte {start + len(data)}, earlier than it did at the start")
        return data


def extents(header: Header, bitmap: Bitmap) -> Iterator[Extent]:
    """The runs of an image."""
    position = 0
    for first, count in bitmap.runs():
        start, end = first * header.block_size, (first + count) * header.block_size
        if start > position:
            yield Extent(start - position, hole=True, zero=True)
        yield Extent(end - start, hole=False, zero=False)
        position = end
    if position < header.size:
        yield Extent(header.size - position, hole=True, zero=True)


def check_stored_size(header: Header, bitmap: Bitmap, size: int, name: str) -> None:
    """See whether what is stored is as long as it has to be; raises `SourceError`."""
    expected = header.stored_size(bitmap.used)
    if size < expected:
        raise SourceError(f"{name} is cut short: it has {size} of {expected} bytes")
    if size > expected:
        raise SourceError(f"{name}: {size - expected} bytes follow its last block, which do not belong to it")


def damaged(header: Header, bitmap: Bitmap, index: int, name: str) -> SourceError:
    """What to say of the blocks of a checksum that is not right, by which of the checksums it is."""
    rank = index * header.per_checksum
    first, last = bitmap.block(rank), bitmap.block(min(rank + header.per_checksum, bitmap.used) - 1)
    which = f"block {first} is damaged, its" if first == last else f"blocks {first} to {last} are damaged, their"
    return SourceError(f"{name}: {which} {header.mode.label} is not right (from byte {header.stored_at(rank)} on)")


def _take(stored: list[memoryview], size: int) -> list[memoryview]:
    """Remove so many bytes from the beginning of what is stored."""
    taken = []
    while size:
        part = stored[0][:size]
        taken.append(part)
        size -= len(part)
        if len(part) == len(stored[0]):
            del stored[0]
        else:
            stored[0] = stored[0][len(part) :]
    return taken
