"""The GUID Partition Table (UEFI 2.10 section 5.3)."""

from __future__ import annotations

import uuid
import zlib
from dataclasses import dataclass
from typing import Any

from construct import Bytes, Const, ConstructError, Int32ul, Int64ul, Struct

from targetmode.disks.layout import MAX_PARTITIONS, Partition, PartitionTable, Reader
from targetmode.disks.text import decode

MAX_ENTRIES_BYTES = 1 << 20
"""The largest partition entry array that is read, in bytes; the usual one has 16 KiB."""

HEADER_SIZE = 92
"""The smallest HeaderSize, in bytes."""

ENTRY_SIZE = 128
"""The smallest SizeOfPartitionEntry, in bytes; larger ones are this times a power of two."""

HEADER = Struct(
    "signature" / Const(b"EFI PART"),
    "revision" / Int32ul,
    "header_size" / Int32ul,
    "header_crc32" / Int32ul,
    "reserved" / Const(0, Int32ul),
    "my_lba" / Int64ul,
    "alternate_lba" / Int64ul,
    "first_usable_lba" / Int64ul,
    "last_usable_lba" / Int64ul,
    "disk_guid" / Bytes(16),
    "partition_entry_lba" / Int64ul,
    "number_of_partition_entries" / Int32ul,
    "size_of_partition_entry" / Int32ul,
    "partition_entry_array_crc32" / Int32ul,
)
"""The GPT header: UEFI 2.10 section 5.3.2, table 5.5."""

ENTRY = Struct(
    "partition_type_guid" / Bytes(16),
    "unique_partition_guid" / Bytes(16),
    "starting_lba" / Int64ul,
    "ending_lba" / Int64ul,
    "attributes" / Int64ul,
    "partition_name" / Bytes(72),
)
"""A GPT partition entry: UEFI 2.10 section 5.3.3, table 5.6."""

_HEADER_CRC_OFFSET = 16
_UNUSED = bytes(16)


@dataclass(frozen=True, slots=True)
class Copy:
    """One of a disk's two copies of a GPT, whose checksums are right.

    Attributes:
        header: As `HEADER` parses it.
        raw_header: Its `HeaderSize` bytes.
        array: The partition entry array.
    """

    header: Any
    raw_header: bytes
    array: bytes


def read_gpt(read: Reader, size: int, sector_size: int) -> PartitionTable | None:
    """Reads a GPT: the primary one, or the backup at the end of the disk when the primary is damaged.

    The header's and the entries' CRC-32 must be right. Entries that do not lie within the disk are dropped, as Linux
    drops them. The protective MBR is the caller's to check (UEFI 2.10 section 5.2.3).

    Args:
        read: Reads from the disk.
        size: Of the disk, in bytes.
        sector_size: Logical sector size, in bytes.

    Returns:
        The table, or None when neither header is a valid one for this sector size.
    """
    last_lba = size // sector_size - 1
    if last_lba < 1:
        return None
    for lba in (1, last_lba):
        try:
            copy = read_copy(read, lba, last_lba, sector_size)
        except OSError:
            continue
        if copy is not None:
            partitions = parse_entries(copy.array, copy.header.size_of_partition_entry, last_lba, sector_size)
            return PartitionTable("gpt", format_guid(copy.header.disk_guid), partitions)
    return None


def read_copy(read: Reader, lba: int, last_lba: int, sector_size: int) -> Copy | None:
    """Reads the copy of the table whose header is at `lba`.

    Args:
        read: Reads from the disk.
        lba: Of the header, in sectors.
        last_lba: Of the disk.
        sector_size: Logical sector size, in bytes.

    Returns:
        The copy, or None when it is not valid.

    Raises:
        OSError: It cannot be read.
    """
    sector = read(lba * sector_size, sector_size)
    try:
        header = HEADER.parse(sector)
    except ConstructError:
        return None
    entry_size = header.size_of_partition_entry
    array_size = header.number_of_partition_entries * entry_size
    if not (
        HEADER_SIZE <= header.header_size <= sector_size
        and header_crc(sector[: header.header_size]) == header.header_crc32
        and header.my_lba == lba
        and header.first_usable_lba <= header.last_usable_lba <= last_lba
        and entry_size >= ENTRY_SIZE
        and entry_size & (entry_size - 1) == 0
        and 0 < array_size <= MAX_ENTRIES_BYTES
        and 2 <= header.partition_entry_lba <= last_lba
        and header.partition_entry_lba * sector_size + array_size <= (last_lba + 1) * sector_size
    ):
        return None
    array = read(header.partition_entry_lba * sector_size, array_size)
    if zlib.crc32(array) != header.partition_entry_array_crc32:
        return None
    return Copy(header, sector[: header.header_size], array)


def header_crc(header: bytes) -> int:
    """Computes a header's CRC-32, its own field taken as zero (UEFI 2.10 section 5.3.2, HeaderCRC32)."""
    return zlib.crc32(header[:_HEADER_CRC_OFFSET] + bytes(4) + header[_HEADER_CRC_OFFSET + 4 :])


def parse_entries(array: bytes, entry_size: int, last_lba: int, sector_size: int) -> tuple[Partition, ...]:
    """Parses the used entries of a partition entry array that lie within the disk."""
    partitions = []
    for number, offset in enumerate(range(0, len(array), entry_size), start=1):
        if number > MAX_PARTITIONS:
            break
        if array.startswith(_UNUSED, offset):
            continue
        entry: Any = ENTRY.parse(array[offset : offset + ENTRY_SIZE])
        if not 1 <= entry.starting_lba <= entry.ending_lba <= last_lba:
            continue
        partitions.append(
            Partition(
                number=number,
                start=entry.starting_lba * sector_size,
                length=(entry.ending_lba - entry.starting_lba + 1) * sector_size,
                type=format_guid(entry.partition_type_guid),
                name=decode(entry.partition_name, "utf-16-le"),
                uuid=format_guid(entry.unique_partition_guid),
            )
        )
    return tuple(partitions)


def format_guid(raw: bytes) -> str:
    """Formats an EFI GUID, whose first three fields are little-endian (UEFI 2.10 appendix A)."""
    return str(uuid.UUID(bytes_le=raw))
