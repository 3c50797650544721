"""CRC-32s of runs, which are decoded in any order and by several threads, put together to those of blocks."""

from __future__ import annotations

import threading
from array import array
from functools import lru_cache
from typing import Final

from restore.source.udif.format import RunType
from restore.source.udif.layout import HOLES, Layout

_POLYNOMIAL: Final = 0xEDB88320
_ONES: Final = 0xFFFFFFFF


class DifferentData(Exception):
    """A run decoded to other bytes than before, or a block's runs have not the checksum that it is to have."""


class Checksums:
    """What is known of the checksums of a layout's blocks; may be used by several threads.

    Each block's is put together from its first run on as far as those behind it are known, so that little is left to do
    when the last one comes.
    """

    def __init__(self, layout: Layout) -> None:
        """Judge those of blocks that have only holes.

        Raises:
            DifferentData: as `add`.
        """
        self._layout = layout
        self._lock = threading.Lock()
        self._crcs = array("I", bytes(4 * len(layout.starts)))
        self._known = bytearray(len(layout.starts))
        self._next = [block.runs.start for block in layout.blocks]
        self._so_far = [0] * len(layout.blocks)
        self._wrong: dict[int, str] = {}
        for number, block in enumerate(layout.blocks):
            if block.crc is not None:
                self._go_on(number)

    def add(self, block: int, run: int, crc: int) -> None:
        """Tell of a run that was decoded, each time that it is.

        Args:
            block: index of the layout's block that the run is in.
            run: index of the run.
            crc: of its bytes.

        Raises:
            DifferentData: its block is damaged; `str()` says so. From then on each of its runs is.
        """
        if self._layout.blocks[block].crc is None:
            return
        with self._lock:
            if block in self._wrong:
                raise DifferentData(self._wrong[block])
            if self._known[run]:
                if self._crcs[run] != crc:
                    raise self._is_wrong(block, "reading it twice did not give the same")
                return
            self._crcs[run] = crc
            self._known[run] = True
            if run == self._next[block]:
                self._go_on(block)

    def _go_on(self, number: int) -> None:
        layout, block = self._layout, self._layout.blocks[number]
        run, crc = self._next[number], self._so_far[number]
        while run < block.runs.stop:
            kind, length = layout.kinds[run], layout.end(run) - layout.starts[run]
            if kind == RunType.ZERO:
                crc = combine(crc, crc_of_zeroes(length), length)
            elif kind not in HOLES:
                if not self._known[run]:
                    break
                crc = combine(crc, self._crcs[run], length)
            run += 1
        self._next[number], self._so_far[number] = run, crc
        if run == block.runs.stop and crc != block.crc:
            raise self._is_wrong(number, f"its checksum is {crc:08X}, and {block.crc:08X} by the image's tables")

    def _is_wrong(self, number: int, how: str) -> DifferentData:
        self._wrong[number] = f'"{self._layout.blocks[number].name}": {how}'
        return DifferentData(self._wrong[number])


def combine(first: int, second: int, length: int) -> int:
    """The CRC-32 of two pieces of data, of those of each and the length of the second in bytes."""
    return _times(_shift(length), first) ^ second


def crc_of_zeroes(length: int) -> int:
    """The CRC-32 of so many bytes of zeroes."""
    return _times(_shift(length), _ONES) ^ _ONES


def _times(left: int, right: int) -> int:
    """The product of two polynomials modulo the CRC's; bit 31 is the lowest power, as everywhere here."""
    product, bit = 0, 1 << 31
    while left:
        if left & bit:
            product ^= right
            left ^= bit
        bit >>= 1
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product


@lru_cache(1024)
def _shift(length: int) -> int:
    """The polynomial that moves a CRC over so many bytes: x to the power of 8 * `length`."""
    power, square = 1 << 31, 1 << 23  # 1, and x to the power of 8
    while length:
        if length & 1:
            power = _times(square, power)
        square = _times(square, square)
        length >>= 1
    return power
