"""What the kernel tells about block devices, in sysfs and procfs."""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

BLKGETSIZE64 = 0x80081272
"""The ioctl that tells a block device's size in bytes (Linux include/uapi/linux/fs.h)."""

BLKROGET = 0x125E
"""The ioctl that tells whether a block device is set read-only (Linux include/uapi/linux/fs.h)."""

LOOP_GET_STATUS64 = 0x4C05
"""The ioctl that tells what a loop device is attached to (Linux include/uapi/linux/loop.h)."""

_LOOP_INFO64 = struct.Struct("=5Q4I64s64s32s2Q")

Device = tuple[int, int]
"""A device number: major, minor."""


@dataclass(frozen=True, slots=True)
class Loop:
    """An attached loop device.

    Attributes:
        name: Such as `loop0`.
        backing_path: The backing file's path as the kernel shows it; it may be gone or be out of reach.
        backing_file: `st_dev` and `st_ino` of the backing file, when they could be found out.
        backing_device: The device number, when a block device backs it.
        offset: Where in the backing file the loop device starts, in bytes.
        limit: How many bytes of the backing file it takes at most; 0 for all.
    """

    name: str
    backing_path: str
    backing_file: tuple[int, int] | None
    backing_device: Device | None
    offset: int
    limit: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the kernel tells about the machine.

    Attributes:
        sys: The sysfs mount.
        proc: The procfs mount.
        dev: Where the device nodes are.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")

    def disks(self) -> list[str]:
        """Names every whole block device, sorted; empty where there is no sysfs."""
        return _children(self.sys / "block")

    def directory(self, name: str) -> Path:
        """Finds the sysfs directory of a whole device or partition, whether or not it exists."""
        return (self.sys / "class" / "block" / name).resolve()

    def attribute(self, name: str, attribute: str) -> str:
        """Reads an attribute such as `queue/rotational`, without padding; empty when there is none."""
        try:
            return (self.directory(name) / attribute).read_text("utf-8", "replace").strip()
        except OSError:
            return ""

    def number(self, name: str, attribute: str) -> int:
        """Reads an attribute that is a number; 0 when there is none."""
        text = self.attribute(name, attribute)
        return int(text) if text.isdecimal() else 0

    def name(self, device: Device) -> str | None:
        """Finds the kernel's name of a block device, such as `sda1`."""
        try:
            return (self.sys / "dev" / "block" / f"{device[0]}:{device[1]}").readlink().name
        except OSError:
            return None

    def device(self, name: str) -> Device | None:
        """Finds the device number of a block device."""
        major, _, minor = self.attribute(name, "dev").partition(":")
        return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None

    def parent(self, name: str) -> str | None:
        """Names the whole device of a partition; None when `name` is a whole device itself."""
        directory = self.directory(name)
        return directory.parent.name if (directory / "partition").exists() else None

    def partitions(self, name: str) -> list[str]:
        """Names a whole device's partitions as the kernel sees them, by number."""
        directory = self.directory(name)
        found = [child for child in _children(directory) if (directory / child / "partition").exists()]
        return sorted(found, key=lambda partition: self.number(partition, "partition"))

    def holders(self, name: str) -> list[str]:
        """Names the block devices that are made from this one: device mapper, MD RAID, bcache."""
        return _children(self.directory(name) / "holders")

    def btrfs_of(self, name: str) -> str | None:
        """Finds the UUID of the mounted btrfs that this block device is part of."""
        for filesystem in _children(self.sys / "fs" / "btrfs"):
            if (self.sys / "fs" / "btrfs" / filesystem / "devices" / name).exists():
                return filesystem
        return None

    def node(self, name: str) -> Path:
        """Tells the path of a block device's node; device mapper's are found by the name their maker gave them."""
        mapped = self.attribute(name, "dm/name")
        if mapped and (self.dev / "mapper" / mapped).exists():
            return self.dev / "mapper" / mapped
        return self.dev / name.replace("!", "/")

    def loops(self) -> list[Loop]:
        """Finds every attached loop device."""
        found = []
        for name in self.disks():
            if name.startswith("loop") and (self.directory(name) / "loop").exists():
                found.append(self._loop(name))
        return found

    def _loop(self, name: str) -> Loop:
        """Finds out what backs a loop device: with privilege from the device itself, else by the backing path."""
        path = self.attribute(name, "loop/backing_file")
        offset, limit = self.number(name, "loop/offset"), self.number(name, "loop/sizelimit")
        try:
            fd = os.open(self.node(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                raw = fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size))
            finally:
                os.close(fd)
        except OSError:
            return self._loop_by_path(name, path, offset, limit)
        device, inode, backing = _LOOP_INFO64.unpack(raw)[:3]
        return Loop(
            name, path, (device, inode), (os.major(backing), os.minor(backing)) if backing else None, offset, limit
        )

    def _loop_by_path(self, name: str, path: str, offset: int, limit: int) -> Loop:
        """Describes a loop device by what its backing file's path leads to now."""
        try:
            status = Path(path).stat()
        except OSError:
            return Loop(name, path, None, None, offset, limit)
        device = (os.major(status.st_rdev), os.minor(status.st_rdev)) if status.st_rdev else None
        return Loop(name, path, (status.st_dev, status.st_ino), device, offset, limit)

    def process_ids(self) -> list[int]:
        """Lists the processes that can be seen, in the order of their numbers."""
        return sorted(int(entry) for entry in _children(self.proc) if entry.isdecimal())

    def process(self, pid: int) -> str:
        """Names a process for people: `process 1234 (qemu-nbd)`."""
        try:
            command = (self.proc / str(pid) / "comm").read_text("utf-8", "replace").strip()
        except OSError:
            return f"process {pid}"
        return f"process {pid} ({command})"


HERE = Machine()
"""The machine this runs on."""


def block_size_of(fd: int) -> int:
    """Asks an open block device for its size, in bytes.

    Raises:
        OSError: It is no block device, or has no medium.
    """
    size: int = struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0]
    return size


def is_write_protected(fd: int) -> bool:
    """Asks an open block device whether it is set read-only; Linux lets it be opened to write all the same.

    Raises:
        OSError: It is no block device.
    """
    protected: int = struct.unpack("=i", fcntl.ioctl(fd, BLKROGET, bytes(4)))[0]
    return protected != 0


def _children(directory: Path) -> list[str]:
    """Names what is in a directory, sorted; empty when it cannot be read."""
    try:
        return sorted(child.name for child in directory.iterdir())
    except OSError:
        return []
