"""A file system made small enough for a target, on a scratch overlay: the source is read, and never written.

The overlay is a qcow2 file whose backing file is the source; it holds only the blocks that shrinking moves or changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbd.uri import NBDURI
from restore import tools
from restore.errors import Refused
from restore.exports import SCHEMES
from restore.finish.grow import check_ext
from restore.finish.volumes import Volume, mounted_volume
from restore.private.attach import Opened, loop, opened
from restore.private.process import in_private, uninterrupted
from restore.report import Report
from restore.tools import ToolFailed
from targetmode.disks.layout import fd_reader
from targetmode.disks.signatures import identify
from targetmode.disks.text import format_size

EXT: Final = ("ext2", "ext3", "ext4")
SHRINKABLE: Final = (*EXT, "btrfs", "ntfs")
"""Kinds of file systems that can be made smaller."""

_BLOCK: Final = 4096  # bytes that the new size is a multiple of
EXT_MINIMUM: Final = re.compile(r": (\d+)\s*$")
NTFS_MINIMUM: Final = re.compile(r"You might resize at (\d+) bytes")
_BTRFS_LEAST: Final = 256 << 20  # bytes; Linux makes none smaller (btrfs_ioctl_resize in fs/btrfs/ioctl.c)
BTRFS_MINIMUM: Final = re.compile(r"^(\d+) bytes")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A smaller copy of a file system, as an image.

    Attributes:
        path: of a file with a backing file, the source, which has to stay as it is.
        form: its format, as qemu-img names it.
        size: bytes of the image.
    """

    path: Path
    form: str
    size: int


@asynccontextmanager
async def shrunk(
    source: str,
    kind: str,
    size: int,
    target_size: int,
    report: Report,
    *,
    form: str = "raw",
    offset: int = 0,
    name: str | None = None,
) -> AsyncIterator[Shrunk]:
    """Make a file system smaller than its target; the image lasts as long as the context.

    Args:
        source: what it lies in: a path of an image or device, or an NBD URI.
        kind: of the file system, as blkid names it.
        size: of its volume, in bytes.
        target_size: what it may have at most, in bytes.
        report: is told.
        form: the source's format, as qemu-img names it.
        offset: where in the decoded source the volume begins, in bytes.
        name: of the source for people, where that is not what it lies in.

    Raises:
        Refused: it cannot be made so small; one line with the sizes.
        RestoreError: its tools failed.
    """
    name = source if name is None else name
    check_shrinkable(name, kind, size, target_size)
    new_size = target_size // _BLOCK * _BLOCK
    with tempfile.TemporaryDirectory(prefix="asr-shrink-") as directory:
        overlay = Path(directory) / "overlay.qcow2"
        backing = _backing(source, form, offset, size)
        create = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw" if offset else form,
            "-b",
            backing,
            overlay,
            size,
        ]
        await asyncio.to_thread(tools.run, list(map(str, create)))
        report.begin(f"Making {kind} fit")
        arguments = {"overlay": str(overlay), "name": name, "kind": kind, "size": new_size}
        await in_private("restore.fit.shrink:shrink_in_private", arguments, report)
        await asyncio.to_thread(tools.run, ["qemu-img", "resize", "-q", "--shrink", str(overlay), str(new_size)])
        report.done()
        yield Shrunk(overlay, "qcow2", new_size)


def check_shrinkable(name: str, kind: str, size: int, target_size: int) -> None:
    """See that a file system is of a kind that can be made smaller; the sizes are to be told.

    Raises:
        Refused: it is not, or this is not root.
    """
    sizes = f"{name} has {format_size(size)} and the target {format_size(target_size)}"
    if kind not in SHRINKABLE:
        what = kind or "what is on it"
        raise Refused(f"{sizes}: {what} cannot be made smaller; only ext2, ext3, ext4, btrfs and ntfs can")
    if os.geteuid() != 0:
        raise Refused(f"{sizes}: only root can make its {kind} smaller")


def _backing(source: str, form: str, offset: int, size: int) -> str:
    """The source as qemu takes a backing file."""
    is_export = source.startswith(SCHEMES)
    where = source if is_export else str(Path(source).resolve())
    if not offset:
        return where
    lower: dict[str, Any]
    if is_export:
        uri = NBDURI.parse(source)
        server: dict[str, Any] = {"type": "inet", "host": uri.host, "port": str(uri.port)}
        if uri.socket is not None:
            server = {"type": "unix", "path": uri.socket}
        lower = {"driver": "nbd", "export": uri.export, "server": server}
    else:
        driver = "host_device" if stat.S_ISBLK(Path(where).stat().st_mode) else "file"
        lower = {"driver": driver, "filename": where}
    if form != "raw":
        lower = {"driver": form, "file": lower}
    return "json:" + json.dumps({"driver": "raw", "offset": offset, "size": size, "file": lower})


def shrink_in_private(report: Report, directory: Path, *, overlay: str, name: str, kind: str, size: int) -> None:
    """What `shrunk` does, in the private process."""
    with opened(overlay, read_only=False, form="qcow2") as under:
        if kind == "btrfs":
            _shrink_btrfs(under, directory, name, size)
            return
        with loop(under) as device, uninterrupted():
            if kind in EXT:
                _shrink_ext(under, device, name, size)
            else:
                _shrink_ntfs(device, name, size)


def _refuse(source: str, kind: str, minimum: int, size: int) -> None:
    if minimum > size:
        least, have = format_size(minimum), format_size(size)
        if least == have:
            least, have = f"{minimum} bytes ({least})", f"{size}"
        raise Refused(f"{source} does not fit: its {kind} can be made no smaller than {least}, the target has {have}")


def _shrink_ext(under: Opened, device: Path, source: str, size: int) -> None:
    try:
        check_ext(device)
    except tools.ToolFailed as error:
        raise Refused(f"the file system of {source} is damaged: {error}; repair it in a copy of the image") from None
    block = 1024 << int.from_bytes(fd_reader(under.fd)(1024 + 24, 4), "little")
    if match := EXT_MINIMUM.search(tools.run(["resize2fs", "-P", device]).out):
        _refuse(source, "file system", int(match[1]) * block, size)
    tools.run(["resize2fs", device, f"{size // 512}s"])
    check_ext(device)


def _shrink_ntfs(device: Path, source: str, size: int) -> None:
    found = tools.run(["ntfsresize", "--info", "--force", "--no-progress-bar", device], good=(0, 1))
    if match := NTFS_MINIMUM.search(found.out):
        _refuse(source, "file system", int(match[1]), size)
    tools.run(["ntfsresize", "--force", "--force", "--no-progress-bar", "--size", str(size), device])


def _shrink_btrfs(under: Opened, directory: Path, source: str, size: int) -> None:
    volume = Volume(None, identify(fd_reader(under.fd), under.size), 0, under.size)
    with mounted_volume(under, volume, directory) as root:
        try:
            tools.run(["btrfs", "filesystem", "resize", str(size), root])
        except ToolFailed:
            found = tools.run(["btrfs", "inspect-internal", "min-dev-size", root]).out
            match = BTRFS_MINIMUM.match(found)
            _refuse(source, "file system", max(int(match[1]) if match else 0, _BTRFS_LEAST, size + 1), size)
