"""Partition tables, whatever their scheme: what one looks like, and how to read one from a disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Reader: TypeAlias = Callable[[int, int], bytes]
"""`read(offset, length)` returns exactly `length` bytes that lie within the disk, or raises OSError."""

MAX_PARTITIONS = 255
"""The highest partition number that is kept: Linux makes no more (DISK_MAX_PARTS in linux/major.h is 256)."""

SECTOR_SIZES = (512, 4096)
"""The logical sector sizes, in bytes, that disks have."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition that lies within its disk.

    Attributes:
        number: As Linux numbers it, from 1; MBR logical partitions count from 5.
        start: Offset of the first byte from the start of the disk, in bytes.
        length: In bytes, more than 0.
        type: GPT type GUID in lower case, or MBR type such as `0x83`.
        name: GPT partition name, safe to print; empty in an MBR.
        uuid: As blkid's PARTUUID: the unique partition GUID, or for an MBR the disk identifier and number.
    """

    number: int
    start: int
    length: int
    type: str
    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A partition table.

    Attributes:
        scheme: `gpt` or `mbr`.
        uuid: The disk GUID, or the MBR disk identifier as eight hexadecimal digits; empty when there is none.
        partitions: In the order of their numbers.
    """

    scheme: Literal["gpt", "mbr"]
    uuid: str
    partitions: tuple[Partition, ...]


def read_table(read: Reader, size: int, sector_size: int) -> PartitionTable | None:
    """Reads the partition table of a disk.

    The bytes of the disk are not trusted: whatever they are, the answer is None or a table whose partitions lie
    within `[0, size)`.

    Args:
        read: Reads from the disk.
        size: Of the disk, in bytes.
        sector_size: Logical sector size of the disk in bytes. An image file has none of its own: a GPT written with
            the other of `SECTOR_SIZES` is found too, whereas nothing in an MBR tells its sector size.

    Raises:
        OSError: The first sector cannot be read. Other unreadable sectors count as damaged.
    """
    from targetmode.disks import gpt, mbr

    if size < min(SECTOR_SIZES):
        return None
    first_sector = read(0, 512)
    if not mbr.has_boot_signature(first_sector):
        return None
    if mbr.is_protective(first_sector):
        for candidate in dict.fromkeys((sector_size, *SECTOR_SIZES)):
            if (table := gpt.read_gpt(read, size, candidate)) is not None:
                return table
        return None
    return mbr.read_mbr(read, size, sector_size)


def partition_name(disk_name: str, number: int) -> str:
    """Names a partition as Linux does: `sda`, 1 is `sda1`; a name that ends in a digit takes a `p`: `nvme0n1p1`."""
    return f"{disk_name}{'p' if disk_name[-1:].isdigit() else ''}{number}"


def fd_reader(fd: int) -> Reader:
    """Makes a Reader of an open file descriptor; reading past the end of the file raises OSError (EIO)."""

    def read(offset: int, length: int) -> bytes:
        chunks = []
        while length > 0:
            chunk = os.pread(fd, length, offset)
            if not chunk:
                raise OSError(errno.EIO, f"unexpected end of device at byte {offset}")
            chunks.append(chunk)
            offset += len(chunk)
            length -= len(chunk)
        return b"".join(chunks)

    return read
