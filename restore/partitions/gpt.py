"""Changing a GUID Partition Table: its place on the disk, a partition's end, identifiers (UEFI 2.10 section 5.3)."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from typing import Final

from restore.errors import RestoreError
from restore.partitions import Medium
from restore.partitions.mbr import fit_protective
from targetmode.disks import gpt, mbr
from targetmode.disks.layout import SECTOR_SIZES, Partition
from targetmode.disks.text import printable

MOVED: Final = "Backup partition table moved to the end of the disk"
LEFT: Final = "Partition table left as it is: {}"
_UNUSED: Final = bytes(16)


class GPTError(RestoreError):
    """A table that is left as it is; says why."""


class GPT:
    """A disk's GPT, taken from its primary copy, which is whole; `store` writes what was changed.

    Attributes:
        sector_size: bytes, that the table was written with.
    """

    def __init__(self, medium: Medium, copy: gpt.Copy, sector_size: int) -> None:
        """Change this table; `load` finds it."""
        self._medium = medium
        self._copy = copy
        self._header = dict(copy.header)
        self._array = bytearray(copy.array)
        self._entry_size: int = copy.header.size_of_partition_entry
        self.sector_size = sector_size
        self._last_lba = medium.size // sector_size - 1

    @property
    def disk_guid(self) -> str:
        """The disk's GUID, in lower case."""
        return gpt.format_guid(self._header["disk_guid"])

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The used entries that lie on the disk."""
        return gpt.parse_entries(bytes(self._array), self._entry_size, self._last_lba, self.sector_size)

    @property
    def made_for(self) -> int:
        """Bytes of the disk that it says it is on."""
        return (int(self._header["alternate_lba"]) + 1) * self.sector_size

    @property
    def usable_end(self) -> int:
        """Where a partition has to end at the latest, in bytes, once the table fits the disk."""
        return (self._backup_array_lba) * self.sector_size

    def is_fitted(self) -> bool:
        """Whether the backup is at the end of the disk and all up to it is usable."""
        try:
            backup = gpt.read_copy(self._medium.get, self._last_lba, self._last_lba, self.sector_size)
        except OSError:
            backup = None
        header = self._header
        return (
            backup is not None
            and backup.array == self._array
            and header["alternate_lba"] == self._last_lba
            and header["last_usable_lba"] == backup.header.last_usable_lba
            and backup.header.alternate_lba == 1
            and backup.header.partition_entry_lba > header["last_usable_lba"]
        )

    def set_end(self, number: int, end: int) -> int:
        """Have a partition end at most at byte `end` of the disk, on a whole MiB where it began on one.

        Returns:
            Its new length in bytes; never less than before.

        Raises:
            GPTError: there is no such partition, or another is in the way.
        """
        partition = next((found for found in self.partitions if found.number == number), None)
        if partition is None:
            raise GPTError(f"there is no partition {number}")
        before = partition.start + partition.length
        if self._is_hybrid():
            raise GPTError("there is a hybrid MBR beside the GPT, which has to say the same")
        step = max(1 << 20, self.sector_size) if partition.start % (1 << 20) == 0 else self.sector_size
        end = max(min(end, self.usable_end) // step * step, before)
        for other in self.partitions:
            if other.number != number and partition.start < other.start + other.length and other.start < end:
                raise GPTError(f"partition {number} cannot grow over partition {other.number}")
        at = (number - 1) * self._entry_size + 40
        self._array[at : at + 8] = (end // self.sector_size - 1).to_bytes(8, "little")
        return end - partition.start

    def cut_after(self, number: int, end: int) -> int:
        """Have the last partition end at byte `end` of the disk, earlier than it did, and the disk soon behind that.

        Returns:
            The size, a whole MiB, that the disk is to have: `store` puts the backup at the end of that.

        Raises:
            GPTError: there is no such partition, it is not the last one, or there is a hybrid MBR, which says more.
        """
        step, sector = 1 << 20, self.sector_size
        partitions = {found.number: found for found in self.partitions}
        partition = partitions.pop(number, None)
        if partition is None:
            raise GPTError(f"there is no partition {number}")
        for other in partitions.values():
            if other.start + other.length > partition.start:
                raise GPTError(f"partition {number} is not behind partition {other.number}")
        if not partition.start < end <= partition.start + partition.length or end % sector:
            raise GPTError(f"partition {number} cannot end at byte {end}")
        if self._is_hybrid():
            raise GPTError("there is a hybrid MBR beside it")
        size = -(-(end + (self._array_sectors + 1) * sector) // step) * step
        if size < self._medium.size:
            self._last_lba = size // sector - 1
            at = (number - 1) * self._entry_size + 40
            self._array[at : at + 8] = (end // sector - 1).to_bytes(8, "little")
        return min(size, self._medium.size)

    def renew(self) -> dict[str, str]:
        """Give the disk and every partition a new random GUID; old ones and their new ones, in lower case."""
        changed: dict[str, str] = {}

        def fresh(old: bytes) -> bytes:
            new = uuid.uuid4()
            changed[gpt.format_guid(old)] = str(new)
            return new.bytes_le

        self._header["disk_guid"] = fresh(self._header["disk_guid"])
        for at in range(0, len(self._array), self._entry_size):
            if not self._array.startswith(_UNUSED, at):
                self._array[at + 16 : at + 32] = fresh(bytes(self._array[at + 16 : at + 32]))
        return changed

    def store(self) -> None:
        """Write it: the backup at the end of the disk first, then the primary, so that one of both is always whole.

        Raises:
            GPTError: what it says of itself cannot be on this disk.
            OSError, NBDError: the disk cannot be read or written.
        """
        medium, sector, header = self._medium, self.sector_size, self._header
        self._check()
        old_backup = list(self._old_backup())
        primary_array = header["partition_entry_lba"]
        header["last_usable_lba"] = self._backup_array_lba - 1
        header["partition_entry_array_crc32"] = zlib.crc32(self._array)
        backup_header = self._pack(my_lba=self._last_lba, alternate_lba=1, partition_entry_lba=self._backup_array_lba)
        medium.put(self._padded(self._array), self._backup_array_lba * sector)
        medium.put(backup_header, self._last_lba * sector)
        medium.flush()
        if self._array != self._copy.array:
            medium.put(self._padded(self._array), primary_array * sector)
        medium.put(self._pack(my_lba=1, alternate_lba=self._last_lba, partition_entry_lba=primary_array), sector)
        record = medium.get(0, 512)
        if (fitted := fit_protective(record, self._last_lba)) != record:
            medium.put(fitted, 0)
        medium.flush()
        for first, count in old_backup:
            medium.put(bytes(count * sector), first * sector)
        if old_backup:
            medium.flush()

    def _is_hybrid(self) -> bool:
        record = self._medium.get(0, 512)
        return sum(any(record[at : at + 16]) for at in range(446, 510, 16)) != 1

    @property
    def _array_sectors(self) -> int:
        return -(-len(self._array) // self.sector_size)

    @property
    def _backup_array_lba(self) -> int:
        return self._last_lba - self._array_sectors

    def _check(self) -> None:
        """That all of it has room, and nothing lies where the backup goes."""
        header, last = self._header, self._backup_array_lba - 1
        primary_end = header["partition_entry_lba"] + self._array_sectors
        if header["first_usable_lba"] > last or primary_end > last + 1:
            raise GPTError("the disk has no room for the backup partition table")
        for at in range(0, len(self._array), self._entry_size):
            if self._array.startswith(_UNUSED, at):
                continue
            entry = gpt.ENTRY.parse(self._array[at : at + gpt.ENTRY_SIZE])
            number = at // self._entry_size + 1
            if entry.ending_lba > last:
                raise GPTError(f"partition {number} reaches to where the backup partition table has to be")
            if entry.starting_lba < primary_end:
                raise GPTError(f"partition {number} begins within the partition table")

    def _pack(self, **values: int) -> bytes:
        """One header as a whole sector; what follows the fields that are known stays as it is."""
        known: bytes = gpt.HEADER.build({**self._header, **values, "header_crc32": 0})
        raw = known + self._copy.raw_header[len(known) :]
        raw = raw[:16] + gpt.header_crc(raw).to_bytes(4, "little") + raw[20:]
        return raw.ljust(self.sector_size, b"\0")

    def _padded(self, array: bytearray) -> bytes:
        return bytes(array).ljust(self._array_sectors * self.sector_size, b"\0")

    def _old_backup(self) -> Iterator[tuple[int, int]]:
        """Where the backup was, as first sector and number of them: what neither a partition nor the new one has."""
        lba = self._copy.header.alternate_lba
        if not 1 < lba < self._last_lba:
            return
        try:
            old = gpt.read_copy(self._medium.get, lba, self._last_lba, self.sector_size)
        except OSError:
            return
        if old is None or old.header.disk_guid != self._copy.header.disk_guid or old.header.alternate_lba != 1:
            return
        sectors = -(-len(old.array) // self.sector_size)
        for first, count in ((old.header.partition_entry_lba, sectors), (lba, 1)):
            end = min(first + count, self._backup_array_lba)
            if first < end and self._is_free(first, end):
                yield first, end - first

    def _is_free(self, first: int, end: int) -> bool:
        primary = self._copy.header.partition_entry_lba
        taken = [(0, 2), (primary, primary + self._array_sectors)]
        for partition in self.partitions:
            start = partition.start // self.sector_size
            taken.append((start, start + partition.length // self.sector_size))
        return all(end <= begin or first >= stop for begin, stop in taken)


def load(medium: Medium) -> GPT | None:
    """The GPT of a disk.

    Returns:
        None when the disk has no GPT.

    Raises:
        GPTError: it has one whose primary copy is damaged.
        OSError, NBDError: the disk cannot be read.
    """
    if medium.size < 3 * min(SECTOR_SIZES) or not mbr.is_protective(medium.get(0, 512)):
        return None
    signed = []
    for sector_size in dict.fromkeys((medium.sector_size, *SECTOR_SIZES)):
        last_lba = medium.size // sector_size - 1
        if last_lba < 2:
            continue
        if (copy := gpt.read_copy(medium.get, 1, last_lba, sector_size)) is not None:
            return GPT(medium, copy, sector_size)
        signed += [sector_size] if medium.get(sector_size, 8) == b"EFI PART" else []
    if signed:
        raise GPTError(f"the primary GPT at byte {signed[0]} is damaged")
    raise GPTError("there is a protective MBR but no GPT")


def move_backup(medium: Medium) -> str | None:
    """Move the backup GPT to the end of a disk that is larger than the one the table was made for.

    Returns:
        A line to say: that it was moved, or why the table is left as it is. None where there is nothing to say.

    Raises:
        OSError, NBDError: the disk cannot be read or written.
    """
    try:
        table = load(medium)
        if table is None or table.is_fitted():
            return None
        table.store()
    except GPTError as error:
        return LEFT.format(printable(str(error)))
    return MOVED
