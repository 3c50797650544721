"""--grow: the last partition of a disk and its file system take all the room there is behind them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from restore import tools
from restore.finish.volumes import Volume, device_of, medium_of, mounted_volume, reread, volumes
from restore.partitions import gpt, mbr
from restore.partitions.gpt import GPTError
from restore.partitions.mbr import MBRError
from restore.private.attach import Opened
from restore.private.process import uninterrupted
from targetmode.disks.layout import PartitionTable
from targetmode.disks.text import format_size

_EXT: Final = ("ext2", "ext3", "ext4")
_GROW: Final = (*_EXT, "xfs", "btrfs", "ntfs")
_E2FSCK_GOOD: Final = (0, 1, 2)  # nothing to do, or all that there was to do is done


def grow(under: Opened, directory: Path) -> Iterator[str]:
    """Grow the last partition and its file system, or the only file system; gives a line for each change.

    Raises:
        RestoreError: a file system could not be grown.
        OSError: the disk cannot be read or written.
    """
    table, found = volumes(under)
    if not found:
        yield "Nothing grown: there are no partitions"
        return
    last = found[-1]
    if last.kind not in _GROW:
        yield f"{last} left as it is: only ext2, ext3, ext4, xfs, btrfs and ntfs can grow"
        return
    if last.partition is not None and table is not None:
        try:
            length = _grow_partition(under, table, last)
        except (GPTError, MBRError) as error:
            yield f"{last} left as it is: {error}"
            return
        if length > last.length:
            yield f"{last} grown from {format_size(last.length)} to {format_size(length)}"
        last = Volume(last.partition, last.signature, last.offset, length)
    grow_filesystem(under, last, directory)
    yield f"{last}: file system fills {format_size(last.length)}"


def check_ext(device: Path) -> None:
    """Check and repair an ext file system, as its tools demand it before they change it.

    Raises:
        ToolFailed: it needs somebody to decide.
    """
    with uninterrupted():
        tools.run(["e2fsck", "-f", "-p", device], good=_E2FSCK_GOOD)


def rebuild_directories(device: Path) -> None:
    """Make the indexes of an ext file system's directories anew, where tune2fs leaves that to e2fsck.

    It does so for checksums of large directories' indexes, and asks for it. Nothing else is wrong then with a file
    system that was right before, so that every question can be answered with yes.

    Raises:
        ToolFailed: it could not be done.
    """
    with uninterrupted():
        tools.run(["e2fsck", "-f", "-y", "-D", device], good=_E2FSCK_GOOD)


def grow_filesystem(under: Opened, volume: Volume, directory: Path) -> None:
    """Have a file system fill its volume.

    Raises:
        RestoreError: it could not.
    """
    if volume.kind == "xfs":
        with mounted_volume(under, volume, directory) as root:
            tools.run(["xfs_growfs", root])
    elif volume.kind == "btrfs":
        with mounted_volume(under, volume, directory) as root:
            tools.run(["btrfs", "filesystem", "resize", "max", root])
    else:
        with device_of(under, volume) as device, uninterrupted():
            if volume.kind in _EXT:
                check_ext(device)
                tools.run(["resize2fs", device])
            else:
                tools.run(["ntfsresize", "--force", "--force", "--no-progress-bar", device])


def _grow_partition(under: Opened, table: PartitionTable, volume: Volume) -> int:
    """The partition's new length, in bytes."""
    assert volume.partition is not None
    medium = medium_of(under)
    if table.scheme == "mbr":
        length = mbr.set_end(medium, volume.partition.number, under.size)
    else:
        found = gpt.load(medium)
        if found is None:
            raise GPTError("there is no GPT")
        length = found.set_end(volume.partition.number, found.usable_end)
        found.store()
    reread(under)
    return length
