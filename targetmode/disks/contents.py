"""What a disk holds, in one line for the one who is about to erase it."""

from __future__ import annotations

from dataclasses import dataclass

from targetmode.disks.layout import Partition, PartitionTable, Reader
from targetmode.disks.signatures import Signature, identify
from targetmode.disks.table import read_table
from targetmode.disks.text import format_size

_MAX_LISTED = 12
"""How many partitions the one line names."""


@dataclass(frozen=True, slots=True)
class PartitionContents:
    """A partition and what it holds.

    Attributes:
        partition: Where it lies.
        signature: What it holds; None when that is not known or could not be read.
    """

    partition: Partition
    signature: Signature | None

    def __str__(self) -> str:
        """Says number, kind, label and size: `2 ext4 "root" 900.0 MiB`."""
        held = "unknown" if self.signature is None else str(self.signature)
        return f"{self.partition.number} {held} {format_size(self.partition.length)}"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a disk holds; `str()` says it in one line.

    Attributes:
        table: Its partition table, if it has one.
        signature: What the disk as a whole holds, if anything that is known: a file system without a partition table,
            or one beside it as on a hybrid ISO image.
        partitions: Each partition of the table, in its order.
    """

    table: PartitionTable | None
    signature: Signature | None
    partitions: tuple[PartitionContents, ...]

    def __str__(self) -> str:
        """Says all of it in one line: `gpt: 1 vfat "EFI" 64.0 MiB, 2 ext4 "root" 900.0 MiB`."""
        parts = []
        if self.signature is not None:
            parts.append(str(self.signature))
        if self.table is not None:
            listed = [str(partition) for partition in self.partitions[:_MAX_LISTED]]
            if len(self.partitions) > _MAX_LISTED:
                listed.append(f"and {len(self.partitions) - _MAX_LISTED} more")
            parts.append(f"{self.table.scheme}: {', '.join(listed) or 'no partitions'}")
        return "; ".join(parts) or "no partition table, no known file system"


def describe_contents(read: Reader, size: int, sector_size: int) -> Contents:
    """Looks at everything on a disk that says what it holds.

    Args:
        read: Reads from the disk.
        size: Of the disk, in bytes.
        sector_size: Logical sector size of the disk, in bytes.

    Raises:
        OSError: The disk cannot be read; a partition that cannot be read counts as unknown.
    """
    table = read_table(read, size, sector_size)
    signature = identify(read, size)
    if table is None:
        return Contents(None, signature, ())
    partitions = tuple(PartitionContents(partition, _identify_in(read, partition)) for partition in table.partitions)
    if signature is not None and any(
        partition.start <= signature.offset < partition.start + partition.length for partition in table.partitions
    ):
        signature = None
    return Contents(table, signature, partitions)


def _identify_in(read: Reader, partition: Partition) -> Signature | None:
    """Identifies what a partition holds; None when it cannot be read."""
    try:
        return identify(lambda offset, length: read(partition.start + offset, length), partition.length)
    except OSError:
        return None
