"""What a partition table looks like, whatever its scheme, and what it is read through."""

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
