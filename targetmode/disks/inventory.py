"""The disks of this machine, and any one disk, partition or image file, with what is on it and what uses it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from targetmode.disks.layout import fd_reader
from targetmode.disks.machine import HERE, Machine, block_size_of
from targetmode.disks.mounts import identity_of
from targetmode.disks.preflight import CannotOpen, NotADisk
from targetmode.disks.text import printable
from targetmode.disks.uses import Survey, Use

if TYPE_CHECKING:
    from targetmode.disks.contents import Contents

_SKIPPED = ("ram", "zram")
_SYSFS_SECTOR = 512
"""The unit of every size and start in sysfs, in bytes, whatever the disk's sector size."""

_FILE_SECTOR = 512


@dataclass(frozen=True, slots=True)
class DiskPartition:
    """A partition of a disk as the kernel knows it.

    Attributes:
        name: Such as `sda1`.
        number: From 1.
        start: Offset from the start of the disk, in bytes.
        size: In bytes.
        in_use: What it is used for itself.
    """

    name: str
    number: int
    start: int
    size: int
    in_use: tuple[Use, ...]


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole disk, a partition, or an image file.

    Attributes:
        path: Of its device node or file, without symbolic links.
        name: The base name of `path`: `sda`, `system.img`.
        size: In bytes.
        model: The maker's name for it; empty when there is none.
        serial: Its serial number; empty when there is none.
        rotational: Whether it is a disk that turns.
        read_only: Whether it cannot be written.
        removable: Whether its medium can be taken out.
        logical_sector: The smallest unit it can address, in bytes.
        physical_sector: The smallest unit it writes without reading first, in bytes.
        optimal_io: The size of request it likes best, in bytes; 0 when it does not say.
        contents: What is written on it; None when it cannot be read, or was not asked for.
        in_use: Why it may not be offered or overwritten, partitions included; empty when nothing was found.
        partitions: Its partitions as the kernel knows them.
    """

    path: Path
    name: str
    size: int
    model: str
    serial: str
    rotational: bool
    read_only: bool
    removable: bool
    logical_sector: int
    physical_sector: int
    optimal_io: int
    contents: Contents | None
    in_use: tuple[Use, ...]
    partitions: tuple[DiskPartition, ...]


def list_disks(*, contents: bool = True, machine: Machine = HERE) -> list[Disk]:
    """Lists the whole disks of this machine by name: all that have a size, but for RAM disks and hidden paths.

    Args:
        contents: Whether to read what is written on them.
        machine: Where the kernel tells about them.
    """
    survey = Survey(machine)
    return [
        _describe_device(survey, name, contents=contents)
        for name in machine.disks()
        if not name.startswith(_SKIPPED) and not machine.number(name, "hidden") and machine.number(name, "size")
    ]


def inspect(path: str | os.PathLike[str], *, contents: bool = True, machine: Machine = HERE) -> Disk:
    """Describes a block device, whole or partition, or a regular file.

    Args:
        path: Of the device or file, or of a symbolic link to it such as `/dev/disk/by-id/…`.
        contents: Whether to read what is written on it; nothing is read otherwise.
        machine: Where the kernel tells about it.

    Raises:
        NotADisk: There is nothing at `path`, or something else.
        CannotOpen: It may not be looked up.
    """
    try:
        resolved = Path(path).resolve(strict=True)
        status = resolved.stat()
    except PermissionError as error:
        raise CannotOpen(path, "may not be looked up; this needs root", error.errno or 0) from error
    except (OSError, RuntimeError) as error:
        raise NotADisk(path, "does not exist") from error
    survey = Survey(machine)
    device = identity_of(status).device
    if device is not None:
        name = machine.name(device)
        if name is None:
            raise NotADisk(path, "is a device node without a device")
        return _describe_device(survey, name, contents=contents)
    if not stat.S_ISREG(status.st_mode):
        raise NotADisk(path, "is neither a block device nor an image file")
    return Disk(
        path=resolved,
        name=resolved.name,
        size=status.st_size,
        model="",
        serial="",
        rotational=False,
        read_only=not os.access(resolved, os.W_OK),
        removable=False,
        logical_sector=_FILE_SECTOR,
        physical_sector=status.st_blksize,
        optimal_io=0,
        contents=_read_contents(resolved, _FILE_SECTOR) if contents else None,
        in_use=survey.of_path(resolved),
        partitions=(),
    )


def _describe_device(survey: Survey, name: str, *, contents: bool) -> Disk:
    """Describes a block device by its kernel name; a partition has its disk's model and sector sizes."""
    machine = survey.machine
    disk = machine.parent(name) or name
    node = machine.node(name)
    logical_sector = machine.number(disk, "queue/logical_block_size") or _FILE_SECTOR
    return Disk(
        path=node,
        name=node.name,
        size=machine.number(name, "size") * _SYSFS_SECTOR,
        model=_model(machine, disk),
        serial=_serial(machine, disk),
        rotational=machine.number(disk, "queue/rotational") == 1,
        read_only=machine.number(name, "ro") == 1,
        removable=machine.number(disk, "removable") == 1,
        logical_sector=logical_sector,
        physical_sector=machine.number(disk, "queue/physical_block_size") or logical_sector,
        optimal_io=machine.number(disk, "queue/optimal_io_size"),
        contents=_read_contents(node, logical_sector) if contents else None,
        in_use=survey.of_device(name),
        partitions=tuple(
            DiskPartition(
                name=partition,
                number=machine.number(partition, "partition"),
                start=machine.number(partition, "start") * _SYSFS_SECTOR,
                size=machine.number(partition, "size") * _SYSFS_SECTOR,
                in_use=survey.of_device_alone(partition),
            )
            for partition in machine.partitions(name)
        ),
    )


def _model(machine: Machine, disk: str) -> str:
    """Joins vendor and model as SCSI, NVMe and MMC disks give them; SCSI's ATA layer has `ATA` for a vendor."""
    vendor = machine.attribute(disk, "device/vendor")
    model = machine.attribute(disk, "device/model") or machine.attribute(disk, "device/name")
    named = vendor and model and vendor != "ATA" and not vendor.startswith("0x")
    return printable(f"{vendor} {model}" if named else model)


def _serial(machine: Machine, disk: str) -> str:
    """Finds the serial number: virtio's, NVMe's and MMC's own attribute, or SCSI's vital product data page 0x80."""
    serial = machine.attribute(disk, "serial") or machine.attribute(disk, "device/serial")
    if not serial:
        try:
            page = (machine.directory(disk) / "device" / "vpd_pg80").read_bytes()
        except OSError:
            return ""
        serial = page[4:].decode("ascii", "replace").strip("\0 ")
    return printable(serial)


def _read_contents(path: Path, logical_sector: int) -> Contents | None:
    """Reads what is written on a device or file; None when it cannot be read."""
    from targetmode.disks.contents import describe_contents

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        size = block_size_of(fd) if stat.S_ISBLK(status.st_mode) else status.st_size
        return describe_contents(fd_reader(fd), size, logical_sector)
    except OSError:
        return None
    finally:
        os.close(fd)
