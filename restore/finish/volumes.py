"""The volumes of a target that is attached: its partitions, or all of it where it has none."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore.partitions import Medium, fd_medium
from restore.private.attach import Opened, loop
from restore.private.mounting import Filesystem, mount_device
from restore.private.rooted import Rooted
from targetmode.disks.contents import describe_contents
from targetmode.disks.layout import Partition, PartitionTable, fd_reader
from targetmode.disks.signatures import Signature

ROOTS: Final = ("ext2", "ext3", "ext4", "xfs", "btrfs")
"""Kinds of file systems that a Linux system may lie in."""

_SUBVOLUMES: Final = ("", "@/", "@rootfs/", "root/")
"""Where in a btrfs distributions have their root directory."""

_BLKRRPART: Final = 0x125F  # Linux include/uapi/linux/fs.h


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, or all of a disk that has none.

    Attributes:
        partition: None where there are none.
        signature: what it holds, as far as is known.
        offset, length: where it lies, in bytes.
    """

    partition: Partition | None
    signature: Signature | None
    offset: int
    length: int

    @property
    def kind(self) -> str:
        """What it holds, as blkid names it; empty where that is not known."""
        return "" if self.signature is None else self.signature.kind

    def __str__(self) -> str:
        """For people: `Partition 2 (ext4 "root")`, `File system (ext4 "root")`."""
        what = "File system" if self.partition is None else f"Partition {self.partition.number}"
        return f"{what} ({self.signature or 'unknown'})"


def medium_of(under: Opened) -> Medium:
    """What is attached, as something to change a partition table on."""
    return fd_medium(under.fd, under.size, under.sector_size)


def volumes(under: Opened) -> tuple[PartitionTable | None, list[Volume]]:
    """The partition table, and the volumes as they lie on the disk.

    Raises:
        OSError: it cannot be read.
    """
    contents = describe_contents(fd_reader(under.fd), under.size, under.sector_size)
    if contents.table is None:
        return None, [Volume(None, contents.signature, 0, under.size)]
    found = [
        Volume(held.partition, held.signature, held.partition.start, held.partition.length)
        for held in contents.partitions
    ]
    return contents.table, sorted(found, key=lambda volume: volume.offset)


@contextmanager
def device_of(under: Opened, volume: Volume) -> Iterator[Path]:
    """The volume as a block device."""
    with loop(under, volume.offset, volume.length) as device:
        yield device


@contextmanager
def mounted_volume(under: Opened, volume: Volume, directory: Path) -> Iterator[Path]:
    """The volume mounted to be written, on a new directory below this one.

    Raises:
        Refused: it cannot be mounted.
    """
    assert volume.signature is not None
    found = Filesystem(str(volume), volume.signature, volume.offset, volume.length, volume.partition)
    root = directory / "volume"
    root.mkdir()
    try:
        with device_of(under, volume) as device, mount_device(device, found, root, read_only=False):
            yield root
    finally:
        root.rmdir()


@contextmanager
def systems_in(under: Opened, volume: Volume, directory: Path) -> Iterator[tuple[Rooted, list[str]]]:
    """A volume's files, and what leads from its root to where root directories of systems may be."""
    with mounted_volume(under, volume, directory) as root, Rooted(root) as rooted:
        prefixes = _SUBVOLUMES if volume.kind == "btrfs" else _SUBVOLUMES[:1]
        yield rooted, [prefix for prefix in prefixes if rooted.has(prefix or ".")]


def reread(under: Opened) -> None:
    """Have the kernel read a changed partition table, where it knows partitions of what is attached."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(under.fd, _BLKRRPART)
