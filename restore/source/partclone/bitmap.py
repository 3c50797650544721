"""Which blocks are in an image (IMAGE_FORMATS.md, "Bitmap"): runs of them, and how many come before each."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import Final

from restore.source import SourceError
from restore.source.partclone.header import BitmapMode, Header, crc32

_MAGIC_1: Final = b"BiTmAgIc"
_STEP: Final = 4096  # bytes of the bitmap looked at together
_ALL: Final = {True: b"\xff" * _STEP, False: bytes(_STEP)}
_OTHER: Final = {True: re.compile(rb"[^\xff]", re.DOTALL), False: re.compile(rb"[^\0]", re.DOTALL)}
_DIGITS: Final = bytes(ord("1") if byte == 1 else ord("0") for byte in range(256))


class Bitmap:
    """The blocks of a file system, each in use or not.

    Attributes:
        total: blocks.
    """

    def __init__(self, bits: bytes, total: int) -> None:
        """Take bits, the lowest of each byte first; what follows the last block in its byte is left out."""
        spare = -total % 8
        if spare and bits[-1] >> (8 - spare):
            bits = bits[:-1] + bytes((bits[-1] & 0xFF >> spare,))
        self._bits = bits
        self.total = total

    @cached_property
    def used(self) -> int:
        """Blocks in use."""
        return self._ranks[-1]

    def runs(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """The runs of blocks in use within `[start, end)`, each as its first block and how many there are."""
        end = self.total if end is None else end
        while (first := self._next(start, used=True)) < end:
            start = self._next(first, used=False)
            yield first, min(start, end) - first

    def all_used(self, start: int, end: int) -> bool:
        """Whether every block of `[start, end)` is in use."""
        return self._next(start, used=False) >= end

    def rank(self, block: int) -> int:
        """How many blocks in use come before this one."""
        byte, bit = divmod(block, 8)
        step = byte // _STEP
        part = int.from_bytes(self._bits[step * _STEP : byte + 1], "little")
        return self._ranks[step] + (part & ((1 << (byte - step * _STEP) * 8 + bit) - 1)).bit_count()

    def block(self, rank: int) -> int:
        """The block in use that so many come before; for errors, as it looks for it from the start."""
        for first, count in self.runs():
            if rank < count:
                return first + rank
            rank -= count
        return self.total

    @cached_property
    def _ranks(self) -> array[int]:
        """How many blocks in use come before each step; of all last."""
        counts = (
            int.from_bytes(self._bits[at : at + _STEP], "little").bit_count() for at in range(0, len(self._bits), _STEP)
        )
        return array("Q", accumulate(counts, initial=0))

    def _next(self, block: int, *, used: bool) -> int:
        """The first block from this one on that is in use, or that is not; `total` if there is none."""
        bits, unwanted = self._bits, 0x00 if used else 0xFF
        byte, bit = divmod(block, 8)
        if block >= self.total:
            return self.total
        found = (bits[byte] ^ unwanted) >> bit
        if not found:
            bit = 0
            byte += 1
            full = _ALL[not used]
            while bits.startswith(full, byte):
                byte += _STEP
            match = _OTHER[not used].search(bits, byte)
            if match is None:
                return self.total
            byte = match.start()
            found = bits[byte] ^ unwanted
        return min(byte * 8 + bit + (found & -found).bit_length() - 1, self.total)


def parse_bitmap(header: Header, stored: bytes, name: str) -> Bitmap:
    """The bitmap of an image.

    Args:
        header: of the image.
        stored: the bytes from `Header.bitmap_start` to `Header.blocks_start`.
        name: of the image, for errors.

    Raises:
        SourceError: it is damaged.
    """
    bits, seal = stored[: header.bitmap_size], stored[header.bitmap_size :]
    match header.bitmap:
        case BitmapMode.NONE:
            return Bitmap(b"\xff" * -(-header.total_blocks // 8), header.total_blocks)
        case BitmapMode.BIT:
            if int.from_bytes(seal, "little") != crc32(bits):
                raise SourceError(f"{name}: the bitmap of blocks in use is damaged, its CRC-32 is not right")
            return Bitmap(bits, header.total_blocks)
        case BitmapMode.BYTE:
            if seal != _MAGIC_1:
                raise SourceError(f"{name}: the bitmap of blocks in use is damaged, its end is not where it should be")
            return Bitmap(_packed(bits), header.total_blocks)


def _packed(data: bytes) -> bytes:
    """Bits of a byte for each block, where 1 is in use and anything else is not, as partclone takes it."""
    digits = data.translate(_DIGITS)
    step = 8 * _STEP
    parts = (digits[at : at + step] for at in range(0, len(digits), step))
    return b"".join(int(part[::-1], 2).to_bytes(-(-len(part) // 8), "little") for part in parts)
