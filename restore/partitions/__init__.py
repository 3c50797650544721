"""Partition tables that are changed: made to fit a disk, partitions made larger, identifiers renewed.

`Medium` is what gpt.py and mbr.py change them on. Reading them is `targetmode.disks`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from targetmode.disks.layout import Reader, fd_reader


@dataclass(frozen=True, slots=True)
class Medium:
    """A disk as something that is read and written, whether it is local or exported.

    Attributes:
        read: `read(offset, length)` returns exactly `length` bytes or raises OSError or NBDError.
        write: `write(data, offset)` writes all of it or raises.
        flush: brings what was written to stable storage or raises.
        size: bytes.
        sector_size: logical sector size in bytes as far as is known; a table written with another is found too.
        block: offsets and lengths that reach `write` and `read` are multiples of this many bytes, a power of two.
    """

    read: Reader
    write: Callable[[bytes, int], object]
    flush: Callable[[], object]
    size: int
    sector_size: int = 512
    block: int = 1

    def get(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere."""
        first, end = self._around(offset, length)
        return self.read(first, end - first)[offset - first :][:length]

    def put(self, data: bytes, offset: int) -> None:
        """Bytes to anywhere; the rest of the blocks that they lie in stays what it is."""
        first, end = self._around(offset, len(data))
        if (first, end) != (offset, offset + len(data)):
            around = self.read(first, end - first)
            data = around[: offset - first] + data + around[offset - first + len(data) :]
        self.write(data, first)

    def _around(self, offset: int, length: int) -> tuple[int, int]:
        end = -(-(offset + length) // self.block) * self.block
        return offset // self.block * self.block, max(min(end, self.size), offset + length)


def fd_medium(fd: int, size: int, sector_size: int = 512) -> Medium:
    """The medium that `fd` has open to read and write: `size` bytes."""

    def write(data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, offset)
            view, offset = view[count:], offset + count

    return Medium(fd_reader(fd), write, lambda: os.fsync(fd), size, sector_size)
