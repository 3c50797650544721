"""The mount table of our mount namespace, with what it takes to mount something again (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from targetmode.disks.machine import HERE, Device, Machine
from targetmode.disks.mounts import unescape


@dataclass(frozen=True, slots=True)
class Row:
    """A mount.

    Attributes:
        id, parent: of this mount, and of that which it lies in.
        device: number of the file system; major 0 where it is not that of a block device.
        root: the directory of the file system that is at the mount point.
        mount_point: where.
        options: of this mount alone, separated by commas: `rw,nosuid,relatime`.
        shared: what is mounted in it is passed on to other mount namespaces.
        kind: of the file system, as `mount -t` knows it.
        source: what was mounted, as its file system tells.
        super_options: of the file system: `rw,errors=remount-ro`.
    """

    id: int
    parent: int
    device: Device
    root: str
    mount_point: str
    options: str
    shared: bool
    kind: str
    source: str
    super_options: str

    @property
    def read_only(self) -> bool:
        """Nothing can be written to the file system, wherever else it may be mounted."""
        return "ro" in self.super_options.split(",")

    def block_device(self) -> Device | None:
        """The block device that it is on; btrfs and FUSE have device numbers of their own, and tell a path."""
        if self.device[0]:
            return self.device
        if self.kind != "btrfs" and not self.kind.startswith("fuseblk"):
            return None
        try:
            status = Path(self.source).stat()
        except (OSError, ValueError):
            return None
        return (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISBLK(status.st_mode) else None


def rows(machine: Machine = HERE) -> list[Row]:
    """All mounts that we see, in the order they were made. Raises `OSError`."""
    return list(_parse((machine.proc / "self" / "mountinfo").read_bytes()))


def _parse(table: bytes) -> Iterator[Row]:
    for line in table.splitlines():
        fields = line.split(b" ")
        try:
            dash = fields.index(b"-", 6)
            major, _, minor = fields[2].partition(b":")
            kind, source, super_options = fields[dash + 1 : dash + 4]
            yield Row(
                id=int(fields[0]),
                parent=int(fields[1]),
                device=(int(major), int(minor)),
                root=unescape(fields[3]),
                mount_point=unescape(fields[4]),
                options=unescape(fields[5]),
                shared=any(tag.startswith(b"shared:") for tag in fields[6:dash]),
                kind=unescape(kind),
                source=unescape(source),
                super_options=unescape(super_options),
            )
        except (IndexError, ValueError):
            continue


def mount_id(path: str | os.PathLike[str]) -> int:
    """The mount that a path lies in, or whose mount point it is. Raises `OSError`."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text("ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return int(value)
    finally:
        os.close(fd)
    raise OSError(f"the kernel does not tell which mount {os.fspath(path)} is in")


def row_at(path: str | os.PathLike[str], table: list[Row]) -> Row | None:
    """The mount that a path lies in, or whose mount point it is."""
    try:
        number = mount_id(path)
    except OSError:
        return None
    return next((row for row in table if row.id == number), None)
