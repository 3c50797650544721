"""A file system made as small as its tools say is safe, its partition and its disk with it; in the private process.

What is under it is a scratch overlay (see `restore.fit.shrink`); the image that lies beneath is not written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import RestoreError
from restore.finish.grow import check_ext
from restore.finish.volumes import Volume, device_of, medium_of, mounted_volume
from restore.fit.shrink import BTRFS_MINIMUM, EXT, EXT_MINIMUM, NTFS_MINIMUM
from restore.partitions import gpt, mbr
from restore.partitions.gpt import GPTError
from restore.private.attach import opened
from restore.private.process import uninterrupted
from restore.report import Report
from restore.tools import ToolFailed
from targetmode.disks.layout import fd_reader
from targetmode.disks.signatures import identify

MARGIN: Final = 4 << 20  # bytes left over beside what the tools say, and a fiftieth of that
_STEP: Final = 1 << 20  # sizes are multiples of this
_BTRFS_LEAST: Final = 256 << 20  # bytes; the kernel makes none smaller (fs/btrfs/ioctl.c, btrfs_ioctl_resize)
_ROUNDS: Final = 4  # each time their estimate is better, since less is spread over less
_WORTH: Final = 0.95  # of the size, above which one more round is not


def smallest_in_private(
    report: Report,
    directory: Path,
    *,
    overlay: str,
    kind: str,
    offset: int,
    length: int,
    scheme: str | None,
    number: int | None,
) -> int:
    """Shrink the last file system of an image, and move its partition's end.

    Args:
        report: is told nothing.
        directory: a new one.
        overlay: path of a qcow2 file over the image.
        kind: of the file system, as blkid names it.
        offset, length: where it lies in the image, in bytes.
        scheme: of the partition table, `gpt` or `mbr`; None where there is none.
        number: of the partition in it.

    Returns:
        The size in bytes that the image may be cut to.

    Raises:
        RestoreError: a tool failed, or the table cannot be changed.
        OSError: it cannot be read or written.
    """
    with opened(overlay, read_only=False, form="qcow2") as under:

        def read(at: int, count: int) -> bytes:
            return fd_reader(under.fd)(offset + at, count)

        volume = Volume(None, identify(read, length), offset, length)
        if kind == "btrfs":
            with mounted_volume(under, volume, directory) as root:
                size = _smallest_btrfs(root, length)
        else:
            with device_of(under, volume) as device, uninterrupted():
                if kind in EXT:
                    size = _smallest_ext(device, 1024 << int.from_bytes(read(1024 + 24, 4), "little"), length)
                else:
                    size = _smallest_ntfs(device, length)
        if scheme is None or number is None:
            return size
        medium = medium_of(under)
        if scheme == "mbr":
            return mbr.cut_after(medium, number, offset + size)
        table = gpt.load(medium)
        if table is None:
            raise GPTError("there is no GPT")
        found = table.cut_after(number, offset + size)
        if found < under.size:
            table.store()
        return found


def _with_margin(minimum: int, most: int) -> int:
    """A size with a little room in it, and no more than there is."""
    return min(-(-(minimum + minimum // 50 + MARGIN) // _STEP) * _STEP, most)


def _smallest_ext(device: Path, block: int, size: int) -> int:
    check_ext(device)
    for _ in range(_ROUNDS):
        match = EXT_MINIMUM.search(tools.run(["resize2fs", "-P", device]).out)
        if match is None:
            raise RestoreError("resize2fs -P does not say how small the file system can be")
        wanted = _with_margin(int(match[1]) * block, size)
        if wanted > size * _WORTH:
            break
        tools.run(["resize2fs", device, f"{wanted // 512}s"])
        check_ext(device)
        size = wanted
    return size


def _smallest_ntfs(device: Path, size: int) -> int:
    found = tools.run(["ntfsresize", "--info", "--force", "--no-progress-bar", device], good=(0, 1))
    match = NTFS_MINIMUM.search(found.out)
    if match is None:
        if "olume is full" in found.out + found.err:
            return size
        raise ToolFailed(f"ntfsresize: {tools.complaint(found.err, found.out, found.code)}", found.code)
    wanted = _with_margin(int(match[1]), size)
    if wanted < size:
        tools.run(["ntfsresize", "--force", "--force", "--no-progress-bar", "--size", str(wanted), device])
    return wanted


def _smallest_btrfs(root: Path, size: int) -> int:
    for _ in range(_ROUNDS):
        match = BTRFS_MINIMUM.match(tools.run(["btrfs", "inspect-internal", "min-dev-size", root]).out)
        if match is None:
            raise RestoreError("btrfs inspect-internal min-dev-size does not say how small the file system can be")
        wanted = max(_with_margin(int(match[1]), size), _BTRFS_LEAST)
        if wanted > size * _WORTH:
            break
        try:
            tools.run(["btrfs", "filesystem", "resize", str(wanted), root])
        except ToolFailed:
            break  # no room to move things to; it is whole, and as large as it was
        size = wanted
    return size
