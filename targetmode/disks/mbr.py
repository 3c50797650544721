"""The legacy Master Boot Record and its extended partitions (UEFI 2.10 section 5.2, Linux block/partitions/msdos.c).

A boot sector ends in 0x55 0xAA whether it holds a partition table or is the first sector of a FAT, exFAT or NTFS file
system, so those are ruled out first, as libblkid does (libblkid/src/partitions/dos.c).
"""

from __future__ import annotations

from typing import Any

from construct import Array, Bytes, Const, ConstructError, Int8ul, Int32ul, Struct

from targetmode.disks.layout import MAX_PARTITIONS, Partition, PartitionTable, Reader
from targetmode.disks.probes.containers import lvm2
from targetmode.disks.probes.dos import bitlocker, exfat, ntfs, vfat
from targetmode.disks.probes.media import Media

MAX_LINKS = 100
"""How many extended boot records may follow one another without a logical partition, as in Linux."""

GPT_PROTECTIVE = 0xEE
"""The type of the partition that keeps MBR tools away from a GPT (UEFI 2.10 section 5.2.3)."""

EXTENDED_TYPES = frozenset({0x05, 0x0F, 0x85})
"""Types of an extended partition: CHS, LBA, Linux."""

RECORD = Struct(
    "boot_indicator" / Int8ul,
    "starting_chs" / Bytes(3),
    "os_type" / Int8ul,
    "ending_chs" / Bytes(3),
    "starting_lba" / Int32ul,
    "size_in_lba" / Int32ul,
)
"""An MBR partition record: UEFI 2.10 section 5.2.1, table 5.2."""

BOOT_RECORD = Struct(
    "boot_code" / Bytes(440),
    "unique_mbr_disk_signature" / Int32ul,
    "unknown" / Bytes(2),
    "partition_record" / Array(4, RECORD),
    "signature" / Const(b"\x55\xaa"),
)
"""A master or extended boot record: UEFI 2.10 section 5.2.1, table 5.1."""

_BOOT_INDICATORS = (0x00, 0x80)


def has_boot_signature(sector: bytes) -> bool:
    """Tells whether the first 512 bytes of `sector` end in 0x55 0xAA."""
    return sector[510:512] == b"\x55\xaa"


def is_protective(sector: bytes) -> bool:
    """Tells whether a boot sector is a protective or hybrid MBR: one record of type 0xEE, which starts at LBA 1."""
    try:
        record = BOOT_RECORD.parse(sector)
    except ConstructError:
        return False
    return any(entry.os_type == GPT_PROTECTIVE and entry.starting_lba == 1 for entry in record.partition_record)


def read_mbr(read: Reader, size: int, sector_size: int) -> PartitionTable | None:
    """Reads an MBR with its logical partitions.

    Extended partitions are containers, not places for data, and are left out; their number is not used again.

    Args:
        read: Reads from the disk.
        size: Of the disk, in bytes.
        sector_size: Logical sector size in bytes, the unit of every address in the table.

    Returns:
        The table, or None when the first sector is not a master boot record.

    Raises:
        OSError: The first sector, or what tells a file system from a table, cannot be read.
    """
    media = Media(read, size)
    record = _parse(media.at(0, 512))
    if record is None or any(entry.boot_indicator not in _BOOT_INDICATORS for entry in record.partition_record):
        return None
    if any(entry.os_type == GPT_PROTECTIVE for entry in record.partition_record):
        return None
    if any(probe(media) is not None for probe in (vfat, exfat, ntfs, bitlocker)):
        return None
    if not any(entry.size_in_lba for entry in record.partition_record) and lvm2(media) is not None:
        return None
    disk = record.unique_mbr_disk_signature
    limit = size // sector_size
    slots: dict[int, tuple[int, int, int]] = {}
    for number, entry in enumerate(record.partition_record, start=1):
        if entry.os_type not in EXTENDED_TYPES:
            slots[number] = (entry.os_type, entry.starting_lba, entry.size_in_lba)
    number = 5
    for entry in record.partition_record:
        if entry.os_type in EXTENDED_TYPES and entry.size_in_lba:
            for logical in _logical(media, entry.starting_lba, entry.size_in_lba, sector_size):
                if number > MAX_PARTITIONS:
                    break
                slots[number] = logical
                number += 1
    partitions = tuple(
        Partition(
            number=number,
            start=start * sector_size,
            length=length * sector_size,
            type=f"{os_type:#04x}",
            name="",
            uuid=f"{disk:08x}-{number:02x}" if disk else "",
        )
        for number, (os_type, start, length) in slots.items()
        if length and start >= 1 and start + length <= limit
    )
    return PartitionTable("mbr", f"{disk:08x}" if disk else "", partitions)


def _parse(sector: bytes) -> Any:
    """Parses a boot record; None when it is cut short or not signed."""
    try:
        return BOOT_RECORD.parse(sector)
    except ConstructError:
        return None


def _logical(media: Media, first: int, length: int, sector_size: int) -> list[tuple[int, int, int]]:
    """Follows the chain of extended boot records in the extended partition of `length` sectors at LBA `first`.

    Links must lead forward and stay inside the extended partition, so the chain ends.

    Returns:
        Type, starting LBA and length in sectors of each logical partition.
    """
    found: list[tuple[int, int, int]] = []
    current, current_length = first, length
    links_without_data = 0
    while links_without_data < MAX_LINKS and len(found) < MAX_PARTITIONS:
        links_without_data += 1
        try:
            record = _parse(media.at(current * sector_size, 512))
        except OSError:
            break
        if record is None:
            break
        link = None
        for index, entry in enumerate(record.partition_record):
            if not entry.size_in_lba:
                continue
            start = current + entry.starting_lba
            if entry.os_type in EXTENDED_TYPES:
                if link is None and entry.starting_lba:
                    link = (first + entry.starting_lba, entry.size_in_lba)
            elif index < 2 or (
                entry.starting_lba + entry.size_in_lba <= current_length
                and first <= start <= first + length - entry.size_in_lba
            ):
                found.append((entry.os_type, start, entry.size_in_lba))
                links_without_data = 0
        if link is None or link[0] <= current or link[0] >= first + length:
            break
        current, current_length = link
    return found
