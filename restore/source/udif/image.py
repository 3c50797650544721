"""A UDIF image as `Chunks`: a run each, or small ones together, decoded at random and checked as a whole."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.source import SourceSettings
from restore.source.storage import Interruptible, Storage
from restore.source.udif import codecs
from restore.source.udif.checksum import Checksums, DifferentData
from restore.source.udif.format import SECTOR, RunType
from restore.source.udif.layout import HOLES, damaged, read_layout

_TOGETHER: Final = 1 << 20  # bytes that small runs make a chunk of
_SMALL_HOLE: Final = 64 << 10  # bytes; one between small runs does not part them
_SLACK: Final = 64 << 10  # bytes between stored runs that are read along


class UdifImage:
    """`Chunks` of a UDIF image.

    Every run that is decoded is counted in its block's CRC-32. Who reads all of a block, in any order and in parts,
    gets a `SourceError` with the last of it if that is wrong. So raw runs lie `plain` only in blocks
    without a checksum.
    """

    def __init__(self, storage: Storage, settings: SourceSettings) -> None:
        """Take over a seekable `storage` of known size, once it was found to be good.

        Raises:
            Refused: it is no UDIF image, or one that cannot be restored from; says what to do.
            SourceError: it is damaged.
            OSError: it cannot be read.
        """
        self.name = storage.name
        self._storage = storage
        self._layout = layout = read_layout(storage)
        self.size: int = layout.size
        try:
            self._checksums = Checksums(layout)
        except DifferentData as error:
            raise damaged(self.name, str(error)) from None
        self._chunks, self._firsts = self._cut()
        self._block_starts = [block.runs.start for block in layout.blocks if block.runs]
        self._block_numbers = [number for number, block in enumerate(layout.blocks) if block.runs]
        unchecked = [block.name for block in layout.blocks if block.crc is None and block.runs]
        if unchecked:
            settings.notify(f'{self.name} has no CRC-32 for "{unchecked[0]}"{_others(len(unchecked) - 1)}: not checked')

    def extents(self) -> Iterator[Extent]:
        """Runs of types ZERO and IGNORE are holes."""
        layout = self._layout
        start, hole = 0, layout.kinds[0] in HOLES
        for run, kind in enumerate(layout.kinds):
            if (kind in HOLES) != hole:
                yield Extent(layout.starts[run] - start, hole=hole, zero=hole)
                start, hole = layout.starts[run], not hole
        yield Extent(self.size - start, hole=hole, zero=hole)

    def chunk(self, offset: int) -> tuple[int, int]:
        """A run, small ones together, or a part of a hole."""
        index = bisect_right(self._chunks, offset) - 1
        start = self._chunks[index]
        end = self._chunks[index + 1] if index + 1 < len(self._chunks) else self.size
        if self._layout.kinds[self._firsts[index]] in HOLES:
            start = offset - (offset - start) % _TOGETHER
            end = min(start + _TOGETHER, end)
        return start, end

    def decode(self, start: int, end: int) -> bytes | bytearray | memoryview:
        """Decode the runs of a chunk, and add them to the blocks' checksums."""
        layout = self._layout
        first = bisect_right(layout.starts, start) - 1
        if layout.kinds[first] in HOLES:
            return bytes(end - start)
        runs = range(first, bisect_right(layout.starts, end - 1))
        parts = []
        for run, stored in zip(runs, self._stored(runs), strict=True):
            size = layout.end(run) - layout.starts[run]
            parts.append(bytes(size) if stored is None else self._decode_run(run, stored, size))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def plain(self, offset: int, length: int) -> FileRange | None:
        """Raw runs of a block without a checksum, as far as they are stored one behind the other."""
        layout = self._layout
        first = run = bisect_right(layout.starts, offset) - 1
        before = layout.offsets[first] - layout.starts[first]
        while True:
            if layout.kinds[run] != RunType.RAW or layout.offsets[run] - layout.starts[run] != before:
                return None
            if layout.blocks[self._block(run)].crc is not None:
                return None
            if layout.end(run) >= offset + length:
                return self._storage.plain(before + offset, length)
            run += 1

    def check_unchanged(self) -> None:
        """As the storage tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        if isinstance(self._storage, Interruptible):
            self._storage.interrupt()

    def close(self) -> None:
        """Close the storage."""
        self._storage.close()

    def _cut(self) -> tuple[array[int], array[int]]:
        """The chunks: where each begins, and its first run."""
        layout = self._layout
        chunks, firsts = array("Q"), array("Q")
        run, count = 0, len(layout.starts)
        while run < count:
            start = layout.starts[run]
            chunks.append(start)
            firsts.append(run)
            run = behind = run + 1
            if layout.kinds[run - 1] in HOLES:
                continue
            while behind < count and layout.end(behind) - start <= _TOGETHER:
                if layout.kinds[behind] not in HOLES:
                    run = behind + 1
                elif layout.end(behind) - layout.starts[behind] > _SMALL_HOLE:
                    break
                behind += 1
        return chunks, firsts

    def _stored(self, runs: range) -> list[memoryview | None]:
        """The stored bytes of each run, None for a hole; those that lie together are read together."""
        offsets, stored = self._layout.offsets, self._layout.stored
        data = [run for run in runs if self._layout.kinds[run] not in HOLES]
        low, high = min(offsets[run] for run in data), max(offsets[run] + stored[run] for run in data)
        whole = None
        if high - low <= sum(stored[run] for run in data) + _SLACK:
            whole = memoryview(self._read(low, high - low))
        found: list[memoryview | None] = []
        for run in runs:
            if self._layout.kinds[run] in HOLES:
                found.append(None)
            elif whole is None:
                found.append(memoryview(self._read(offsets[run], stored[run])))
            else:
                found.append(whole[offsets[run] - low :][: stored[run]])
        return found

    def _read(self, offset: int, length: int) -> bytes:
        data = self._storage.read(offset, length)
        if len(data) != length:
            raise OSError(f"{self.name} ends at byte {offset + len(data)}, earlier than it did at the start")
        return data

    def _decode_run(self, run: int, stored: memoryview, size: int) -> bytes | bytearray | memoryview:
        layout, block = self._layout, self._block(run)
        kind = RunType(layout.kinds[run])
        try:
            data = codecs.decode(kind, stored, size)
        except ValueError as error:
            where = f'the {kind.name} run at sector {layout.starts[run] // SECTOR}, in "{layout.blocks[block].name}"'
            raise damaged(self.name, f"{where}, stored at byte {layout.offsets[run]}: {error}") from None
        try:
            self._checksums.add(block, run, codecs.crc32(data))
        except DifferentData as error:
            raise damaged(self.name, str(error)) from None
        return data

    def _block(self, run: int) -> int:
        return self._block_numbers[bisect_right(self._block_starts, run) - 1]


def _others(count: int) -> str:
    return f" and {count} other block{'s' if count > 1 else ''}" if count else ""
