"""Reading a disk's partition table, whatever its scheme."""

from __future__ import annotations

from targetmode.disks import gpt, mbr
from targetmode.disks.layout import SECTOR_SIZES, PartitionTable, Reader


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
