"""What this machine offers: the disks it has claimed, and every export that there is of them at this moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nbd.backend import FileBackend, measure
from targetmode.disks.contents import Contents, describe_contents
from targetmode.disks.inventory import inspect
from targetmode.disks.layout import fd_reader, partition_name
from targetmode.disks.preflight import Claim, claim
from targetmode.disks.table import read_table
from targetmode.disks.text import format_size


class OfferError(Exception):
    """The disks named cannot be offered together; `str()` is one line that says why."""


@dataclass(frozen=True, slots=True)
class Export:
    """A disk, or a partition of one, under the name that clients ask for.

    Attributes:
        name: `sda`, `sda1`.
        disk: the disk it is, or is a part of.
        start: where it begins on the disk, in bytes.
        size: bytes.
        number: the partition's number, None for the whole disk.
    """

    name: str
    disk: OfferedDisk
    start: int
    size: int
    number: int | None

    @property
    def whole(self) -> bool:
        """Whether this is the whole disk."""
        return self.number is None

    @property
    def description(self) -> str:
        """For people who list the exports; it stays the same while the export does."""
        what = f"partition {self.number} of {self.disk.name}" if self.number is not None else self.disk.model
        return f"{what}, {format_size(self.size)}" + (", read-only" if self.disk.read_only else "")

    def open(self) -> FileBackend:
        """The export, opened anew: its own file description, so that a failed write-back is told to each.

        Raises:
            OSError: the device is gone.
        """
        flags = os.O_RDONLY if self.disk.read_only else os.O_RDWR
        fd = os.open(f"/proc/self/fd/{self.disk.fd}", flags | os.O_CLOEXEC)
        return FileBackend(fd, read_only=self.disk.read_only, start=self.start, size=self.size)


class OfferedDisk:
    """A disk or image file that this process has claimed.

    Attributes:
        name: its base name.
        path: its device node or file.
        fd: the claim's descriptor.
        model: maker and model, `image file` for a file.
        serial: may be empty.
        read_only: nobody may write.
    """

    def __init__(self, claimed: Claim) -> None:
        """Take over a claim."""
        self._claim = claimed
        disk = inspect(claimed.path, contents=False)
        self.name = disk.name
        self.path: Path = disk.path
        self.fd = claimed.fd
        self.model = disk.model or ("disk" if claimed.is_block else "image file")
        self.serial = disk.serial
        self.read_only = claimed.read_only
        self._sector = disk.logical_sector

    @property
    def size(self) -> int:
        """Bytes, as of now."""
        return measure(self.fd).size

    def exports(self) -> list[Export]:
        """The whole disk and its partitions, as its partition table says now; one that cannot be read has none."""
        size = self.size
        exports = [Export(self.name, self, 0, size, None)]
        try:
            table = read_table(fd_reader(self.fd), size, self._sector)
        except OSError:
            table = None
        if table is not None:
            exports += [
                Export(partition_name(self.name, part.number), self, part.start, part.length, part.number)
                for part in table.partitions
            ]
        return exports

    def contents(self) -> Contents | None:
        """What is written on it now, None where it cannot be read."""
        try:
            return describe_contents(fd_reader(self.fd), self.size, self._sector)
        except OSError:
            return None

    def flush(self) -> None:
        """Bring everything that was written to stable storage.

        Raises:
            OSError: something is lost.
        """
        if not self.read_only:
            os.fsync(self.fd)

    def close(self) -> None:
        """Give the disk up."""
        self._claim.close()


class Offer:
    """All the disks that are offered; the first is also the default export."""

    def __init__(self, disks: Sequence[OfferedDisk]) -> None:
        """Offer these disks, at least one."""
        self.disks = list(disks)

    @classmethod
    def claim(cls, paths: Sequence[str], *, read_only: bool) -> Offer:
        """Claim every disk, or none.

        Raises:
            PreflightError: one may not be offered.
            OfferError: two would have the same name, or one a name that no export can have.
        """
        disks: list[OfferedDisk] = []
        try:
            for path in paths:
                disk = OfferedDisk(claim(path, read_only=read_only))
                disks.append(disk)
                if not disk.name.isprintable():  # nor is what is not UTF-8
                    raise OfferError(f"{path}: its name cannot be an export's; give it one of printable characters")
                if disk.name in (other.name for other in disks[:-1]):
                    raise OfferError(f"{path}: another disk is called {disk.name} too; serve them separately")
        except BaseException:
            for disk in disks:
                disk.close()
            raise
        return cls(disks)

    def exports(self) -> list[Export]:
        """Every export there is now; a whole disk comes before a partition of the same name."""
        found = [export for disk in self.disks for export in disk.exports()]
        by_name: dict[str, Export] = {}
        for export in sorted(found, key=lambda export: not export.whole):
            by_name.setdefault(export.name, export)
        return [export for export in found if by_name[export.name] is export]

    def find(self, name: str) -> Export | None:
        """The export of that name, the first disk for `""`, None where there is none."""
        if not name:
            return self.disks[0].exports()[0]
        return next((export for export in self.exports() if export.name == name), None)

    def close(self) -> None:
        """Give the disks up."""
        for disk in self.disks:
            disk.close()
