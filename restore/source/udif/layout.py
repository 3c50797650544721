"""Trailer, property list and blocks of a UDIF image: read, and checked before anything is believed or allocated.

What holds of the runs that come out: they follow one another from the image's first sector to its last, as 7-Zip wants
them too. A sector that no run has, or two have, is damage: what belongs there is not known.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass, field
from typing import Any, Final

from restore.errors import Refused
from restore.source import CHUNK_LIMIT, SourceError
from restore.source.storage import Storage
from restore.source.udif import lzfse
from restore.source.udif.format import (
    CRC32,
    FAST_RUN,
    KOLY,
    MAX_PLIST,
    MAX_SECTORS,
    MISH,
    MISH_SIGNATURE,
    MISH_SIZE,
    MISH_VERSION,
    RUN_SIZE,
    SECTOR,
    RunType,
)
from restore.source.udif.plist import Item, parse_items
from restore.source.udif.recognise import KOLY_SIZE, KOLY_VERSION, find_koly

HOLES: Final[frozenset[int]] = frozenset({RunType.ZERO, RunType.IGNORE})
PIECE: Final = 4 << 20  # bytes that a longer raw run is cut into
_STORED_TYPES: Final[frozenset[int]] = frozenset(RunType) - HOLES - {RunType.COMMENT, RunType.END}
_OVERHEAD: Final = 4 << 10  # bytes; a run may be stored in twice its size and this


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the disk with a checksum of its own, such as a partition.

    Attributes:
        name: for people.
        crc: the CRC-32 of its runs, but for those of type IGNORE; None where it has none that could be checked.
        runs: which ones of the layout's they are.
    """

    name: str
    crc: int | None
    runs: range


@dataclass(slots=True)
class Layout:
    """Where what of the image is, in the order of its sectors; arrays with an item for each run.

    Attributes:
        size: bytes of the image.
        starts: first byte in the image; a run ends where the next one starts, the last one at `size`.
        kinds: `RunType`, but for COMMENT and END.
        offsets: first stored byte in the file.
        stored: bytes stored.
        blocks: in order.
    """

    size: int = 0
    starts: array[int] = field(default_factory=lambda: array("Q"))
    kinds: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    stored: array[int] = field(default_factory=lambda: array("Q"))
    blocks: list[Block] = field(default_factory=list)

    def end(self, run: int) -> int:
        """The byte of the image behind a run."""
        return self.starts[run + 1] if run + 1 < len(self.starts) else self.size


def read_layout(storage: Storage) -> Layout:
    """All that there is to know of an image before its runs are decoded.

    Raises:
        Refused: it is no UDIF image, or one that cannot be restored from.
        SourceError: it is damaged.
        OSError: it cannot be read.
    """
    return _Reader(storage).layout()


class _Reader:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._name = storage.name
        self._size = storage.size or 0
        self._layout = Layout()
        self._raw = 0  # bytes in raw runs

    def layout(self) -> Layout:
        koly = self._koly()
        parts = self._parts(koly)
        self._check_master(koly, [head for _, head, _ in parts])
        parts.sort(key=lambda part: (part[1].first_sector, part[1].sectors))
        sector = 0
        for name, head, runs in parts:
            if head.first_sector != sector:
                raise self._damaged(self._misplaced(f'"{name}"', sector, head.first_sector))
            if not 0 <= head.sectors <= koly.sectors - sector:
                raise self._damaged(f'"{name}" goes on behind the image\'s {koly.sectors} sectors')
            self._add_block(name, head, koly.data_offset + head.data_start, runs)
            sector += head.sectors
        if sector != koly.sectors:
            raise self._damaged(self._misplaced("the end", sector, koly.sectors))
        if not sector:
            raise Refused(f"{self._name} is a UDIF image of no sectors at all")
        self._layout.size = sector * SECTOR
        if RunType.LZFSE in self._layout.kinds and not lzfse.available():
            raise Refused(f"{self._name} is compressed with LZFSE, for which a library is missing; pip install lzfse")
        return self._layout

    def _koly(self) -> Any:
        data = find_koly(self._storage)
        if data is None:
            raise Refused(f"{self._name} is no UDIF image: it does not end with a koly trailer; it may be cut short")
        koly = KOLY.parse(data)
        if koly.version != KOLY_VERSION or koly.size != KOLY_SIZE:
            raise self._damaged(f"its trailer has version {koly.version} and {koly.size} bytes, and not 4 and 512")
        if koly.segment_count > 1:
            raise Refused(
                f"{self._name} is segment {koly.segment_number} of {koly.segment_count} of a UDIF image; "
                f"join them on a Mac with hdiutil convert -format UDZO"
            )
        if koly.sectors > MAX_SECTORS:
            raise self._damaged(f"its trailer tells of {koly.sectors} sectors")
        if not koly.plist_length and koly.resource_length:
            raise Refused(
                f"{self._name} has its block tables in a resource fork, as very old images do; "
                f"make a new one of it on a Mac with hdiutil convert -format UDZO"
            )
        return koly

    def _parts(self, koly: Any) -> list[tuple[str, Any, memoryview]]:
        """Each block's name, head and table of runs, as the property list has them."""
        if not 0 < koly.plist_length <= MAX_PLIST:
            raise self._damaged(f"its property list has {koly.plist_length} bytes, and {MAX_PLIST} are the most")
        data = self._stored(koly.plist_offset, koly.plist_length, "its property list")
        try:
            items = parse_items(data)
        except ValueError as error:
            raise self._damaged(f"its property list {error}") from None
        return [(item.name, *self._mish(item)) for item in items]

    def _mish(self, item: Item) -> tuple[Any, memoryview]:
        name, content = item.name, item.data
        if len(content) < MISH_SIZE or not content.startswith(MISH_SIGNATURE):
            raise self._damaged(f'"{name}" is no mish block')
        head = MISH.parse(content)
        if head.version != MISH_VERSION:
            raise self._damaged(f'"{name}" is a mish block of version {head.version}')
        if head.run_count * RUN_SIZE != len(content) - MISH_SIZE:
            raise self._damaged(f'"{name}" has room for another number of runs than the {head.run_count} it tells of')
        return head, memoryview(content)[MISH_SIZE:]

    def _check_master(self, koly: Any, heads: list[Any]) -> None:
        master = koly.master_checksum
        if _crc(master) is None or any(head.checksum.bits % 8 or head.checksum.bits > 1024 for head in heads):
            return  # what it is of is not known
        found = 0
        for head in heads:
            found = zlib.crc32(head.checksum.data[: head.checksum.bits // 8], found)
        if found != _crc(master):
            raise self._damaged(f"the checksum of its checksums is {found:08X}, and {_crc(master):08X} by its trailer")

    def _add_block(self, name: str, head: Any, base: int, table: memoryview) -> None:
        """Take over a block's runs; those of no sectors, and what is behind END, are none."""
        first = len(self._layout.starts)
        position, behind, ended = head.first_sector, head.first_sector + head.sectors, False
        for kind, _, start, sectors, offset, length in FAST_RUN.iter_unpack(table):
            if ended:
                raise self._damaged(f'"{name}" has runs behind its end')
            if kind == RunType.COMMENT:
                continue
            if kind == RunType.END:
                ended = True
                continue
            if head.first_sector + start != position:
                raise self._damaged(self._misplaced(f'a run of "{name}"', position, head.first_sector + start))
            if sectors > behind - position:
                raise self._damaged(f'"{name}" has runs of more than its {head.sectors} sectors')
            if sectors:
                self._add_run(name, kind, position * SECTOR, sectors * SECTOR, base + offset, length)
            position += sectors
        if position != behind:
            raise self._damaged(self._misplaced(f'the end of "{name}"', position, behind))
        self._layout.blocks.append(Block(name, _crc(head.checksum), range(first, len(self._layout.starts))))

    def _add_run(self, name: str, kind: int, start: int, size: int, offset: int, stored: int) -> None:
        where = f'the run at sector {start // SECTOR}, in "{name}",'
        if kind in HOLES:
            self._append(kind, start, 0, 0)
            return
        if kind not in _STORED_TYPES:
            raise self._damaged(f"{where} is of unknown type {kind:#010x}")
        if offset + stored > self._size:
            raise self._damaged(f"{where} is stored up to byte {offset + stored}, and the file ends at {self._size}")
        if kind == RunType.RAW:
            if stored != size:
                raise self._damaged(f"{where} is {size} bytes long, and stored raw in {stored}")
            self._raw += size
            if self._raw > self._size:
                raise self._damaged(f"{where} is stored where others are")
            for at in range(0, size, PIECE):
                self._append(kind, start + at, offset + at, min(PIECE, size - at))
            return
        if size > CHUNK_LIMIT:
            raise self._damaged(f"{where} is {size} bytes long, and {CHUNK_LIMIT} are the most")
        if stored > 2 * size + _OVERHEAD:
            raise self._damaged(f"{where} is {size} bytes long, and stored in {stored}")
        self._append(kind, start, offset, stored)

    def _append(self, kind: int, start: int, offset: int, stored: int) -> None:
        layout = self._layout
        layout.kinds.append(kind)
        layout.starts.append(start)
        layout.offsets.append(offset)
        layout.stored.append(stored)

    def _stored(self, offset: int, length: int, what: str) -> bytes:
        if offset + length > self._size:
            raise self._damaged(f"{what} is stored up to byte {offset + length}, and the file ends at {self._size}")
        data = self._storage.read(offset, length)
        if len(data) != length:
            raise OSError(f"{self._name} ends at byte {offset + len(data)}, earlier than it did at the start")
        return data

    def _misplaced(self, what: str, wanted: int, found: int) -> str:
        if found > wanted:
            return f"before {what} there is nothing for sectors {wanted} to {found - 1}"
        return f"{what} begins at sector {found}, and what is before ends at {wanted}"

    def _damaged(self, text: str) -> SourceError:
        return damaged(self._name, text)


def damaged(name: str, text: str) -> SourceError:
    """What is wrong with an image, in one line."""
    return SourceError(f"{name} is damaged: {text}; get another copy of it")


def _crc(checksum: Any) -> int | None:
    if checksum.type != CRC32 or checksum.bits != 32:
        return None
    return int.from_bytes(checksum.data[:4])
