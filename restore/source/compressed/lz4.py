"""lz4 (LZ4 Frame Format Description 1.6.4): frames one after the other, of blocks that mostly stand by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import lz4.block
import lz4.frame
import xxhash

from restore.source import SourceError
from restore.source.compressed.input import Input, damage
from restore.source.compressed.parallel import Job, Step
from restore.source.compressed.serial import decode_one
from restore.source.compressed.zstd import is_skippable, skip

MAGIC: Final = b"\x04\x22\x4d\x18"
LEGACY: Final = b"\x02\x21\x4c\x18"
_FRAME: Final = "an lz4 frame"
_BATCH: Final = 1 << 20  # bytes, decoded, that small blocks are decoded together for
_PLAIN: Final = 1 << 31  # in a block's size: it is not compressed


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says of itself (Frame Descriptor).

    Attributes:
        stored: its bytes, the magic number included.
        block: bytes, decoded, of a block at most.
        independent: blocks do not refer to those before them.
        block_checksum: each block has one.
        checksum: the frame ends with one of its content.
        size: bytes of its content, None where it does not say.
    """

    stored: bytes
    block: int
    independent: bool
    block_checksum: bool
    checksum: bool
    size: int | None


def decode(source: Input) -> Iterator[Step]:
    """All frames."""
    first = True
    while first or source.peek(1):
        first = False
        magic = source.peek(4)
        if magic == LEGACY:
            raise SourceError(
                f"{source.name} is in lz4's legacy format, which tells neither its size nor a checksum; "
                "unpack it first: lz4 -d"
            )
        if is_skippable(magic):
            skip(source)
        elif magic == MAGIC:
            yield from _frame(source)
        else:
            source.damaged("no lz4 frame begins here, and it is not the end")


def read_header(source: Input) -> FrameHeader:
    """The header of the frame that begins here; raises `SourceError` where it is damaged."""
    at = source.position
    stored = source.exactly(7, _FRAME)
    flags, descriptor = stored[4:6]
    has_size, has_dictionary = flags >> 3 & 1, flags & 1
    stored += source.exactly(8 * has_size + 4 * has_dictionary, _FRAME)
    if xxhash.xxh32_intdigest(stored[4:-1]) >> 8 & 0xFF != stored[-1]:
        source.damaged("an lz4 frame's header does not match its checksum", at)
    kind = descriptor >> 4
    if flags >> 6 != 1 or flags & 2 or descriptor & 0x8F or kind < 4:
        source.damaged("an lz4 frame's header says what is not known here", at)
    if has_dictionary:
        raise SourceError(f"{source.name} was compressed with a dictionary, which it does not hold")
    size = int.from_bytes(stored[6:14], "little") if has_size else None
    return FrameHeader(stored, 1 << 8 + 2 * kind, bool(flags & 0x20), bool(flags & 0x10), bool(flags & 4), size)


def _frame(source: Input) -> Iterator[Step]:
    begin = source.position
    header = read_header(source)
    if not header.independent:
        source.give_back(header.stored)
        yield from decode_one(source, lz4.frame.LZ4FrameDecompressor(), RuntimeError, _FRAME)
        return
    whole = _Whole()
    batch: list[_Block] = []
    while True:
        at = source.position
        word = int.from_bytes(source.exactly(4, _FRAME), "little")
        size = word & ~_PLAIN
        if size > header.block:
            source.damaged(f"an lz4 block of {size} bytes, where {header.block} are the most", at)
        if word:
            data = source.exactly(size, _FRAME)
            checksum = int.from_bytes(source.exactly(4, _FRAME), "little") if header.block_checksum else None
            batch.append(_Block(source.name, at, data, bool(word & _PLAIN), header.block, checksum))
        if batch and (not word or len(batch) * header.block >= _BATCH):
            yield _job(batch, whole)
            batch = []
        if not word:
            break
    checksum = int.from_bytes(source.exactly(4, _FRAME), "little") if header.checksum else None
    name = source.name
    yield Job(list, 0, lambda _: whole.check(name, begin, header.size, checksum))


def _job(batch: list[_Block], whole: _Whole) -> Job:
    cost = sum(len(block.data) + block.most for block in batch)
    return Job(lambda: [block.decode() for block in batch], cost, whole.add)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block that stands by itself.

    Attributes:
        name: of the image.
        at: where in what is stored it begins.
        data: what it holds.
        plain: that is not compressed.
        most: bytes, decoded, at most.
        checksum: XXH32 of `data`, where it has one.
    """

    name: str
    at: int
    data: bytes
    plain: bool
    most: int
    checksum: int | None

    def decode(self) -> bytes:
        if self.checksum is not None and xxhash.xxh32_intdigest(self.data) != self.checksum:
            raise SourceError(damage(self.name, self.at, "an lz4 block does not match its checksum"))
        if self.plain:
            return self.data
        try:
            return lz4.block.decompress(self.data, uncompressed_size=self.most)  # type: ignore[no-any-return]
        except lz4.block.LZ4BlockError:
            raise SourceError(damage(self.name, self.at, "an lz4 block that cannot be decoded")) from None


class _Whole:
    """What the blocks of a frame are together."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh32()
        self._size = 0

    def add(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._digest.update(piece)
            self._size += len(piece)

    def check(self, name: str, at: int, size: int | None, checksum: int | None) -> None:
        if size not in (None, self._size):
            raise SourceError(damage(name, at, f"an lz4 frame holds {self._size} bytes, and says {size}"))
        if checksum not in (None, self._digest.intdigest()):
            raise SourceError(damage(name, at, "an lz4 frame does not match its checksum"))
