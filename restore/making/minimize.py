"""`asr imagescan --minimize PATH`: a copy of an image that is no longer than its contents, with a scan of its own.

    image ◀── overlay: file system, partition, table made small ──qemu-img──▶ PATH, sparse ──▶ PATH.bmap

The image itself is read, and never written. The copy has a temporary name until it is whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbd.backend import Extent
from restore import tools
from restore.errors import Refused, RestoreError, say
from restore.fit.shrink import SHRINKABLE
from restore.manifest.bmap import Bmap
from restore.manifest.damage import map_path
from restore.manifest.scan import ScanSettings, scan_beside
from restore.private.process import in_private
from restore.replacing import sync_directory, umask
from restore.report import Report
from restore.source import Image, SourceSettings
from restore.source.contents import contents_of
from restore.source.detect import open_image
from restore.source.spill import attachable, spill
from restore.tools import ToolFailed
from targetmode.disks.contents import Contents
from targetmode.disks.text import format_size

COPYING: Final = "Copying"
CHECKSUM: Final = "Block checksum of the copy:"
_RESERVE: Final = 16 << 20  # bytes left over for the file system's own use and for the scan
_PERCENT: Final = re.compile(rb"\((\d+\.\d+)/100%\)")

Used = Callable[[Path], Iterable[Extent] | None]
"""The used blocks of a raw image file, as `scan_beside` takes them."""


@dataclass(frozen=True, slots=True)
class Last:
    """The file system that ends last in an image.

    Attributes:
        kind: as blkid names it.
        offset, length: where it lies, in bytes.
        scheme: of the partition table; None where there is none.
        number: of its partition.
    """

    kind: str
    offset: int
    length: int
    scheme: str | None = None
    number: int | None = None


def check_minimized(path: Path) -> None:
    """See that a copy can come to be at `path`, as far as that can be told beforehand.

    Raises:
        Refused: it is there already, or cannot be; or we are not root.
    """
    if os.path.lexists(path):
        raise Refused(f"{path} exists; --minimize writes a new file")
    if not path.parent.is_dir():
        raise Refused(f"{path} cannot be written: {path.parent} is no directory")
    if os.geteuid() != 0:
        raise Refused("--minimize mounts and shrinks the image's file system, which needs root")
    tools.find("qemu-img")


def last_filesystem(name: str, contents: Contents | None, size: int) -> Last:
    """What of an image can be made smaller.

    Args:
        name: the image's, for people.
        contents: what it holds; None where that cannot be read.
        size: bytes of the image.

    Raises:
        Refused: nothing; the line says what ends last, with its size.
    """
    only = "only ext2, ext3, ext4, btrfs and ntfs can be made smaller"
    if contents is None or contents.table is None:
        kind = "" if contents is None or contents.signature is None else contents.signature.kind
        if kind in SHRINKABLE:
            return Last(kind, 0, size)
        what = "unknown" if contents is None or contents.signature is None else str(contents.signature)
        raise Refused(f"{name} cannot be minimized: all of it is {what} {format_size(size)}, and {only}")
    if not contents.partitions:
        raise Refused(f"{name} cannot be minimized: its partition table has no partitions")
    last = max(contents.partitions, key=lambda held: held.partition.start + held.partition.length)
    kind = "" if last.signature is None else last.signature.kind
    if kind not in SHRINKABLE:
        raise Refused(f"{name} cannot be minimized: its last partition is {last}, and {only}")
    if contents.table.scheme == "mbr" and last.partition.number > 4:
        raise Refused(f"{name} cannot be minimized: its last partition, {last}, is a logical one")
    there = last.partition
    return Last(kind, there.start, there.length, contents.table.scheme, there.number)


async def minimize(
    image: Image,
    place: str,
    path: Path,
    settings: ScanSettings,
    report: Report,
    used: Used = lambda path: None,
) -> Bmap:
    """Write a copy of an image that is shrunk to its contents, and its scan.

    Args:
        image: it, open; whoever opened it closes it.
        place: where it was found.
        path: of the copy, a raw sparse file, which must not be there yet.
        settings: how the copy is to be scanned.
        report: told as it goes, but not that it is the end.
        used: tells the copy's used blocks.

    Returns:
        The copy's scan.

    Raises:
        Refused: it cannot be made smaller, or there is no room, with the sizes; nothing was written.
        RestoreError: the source, a tool or writing failed; nothing is left of the copy.
        OSError: likewise.
    """
    check_minimized(path)
    source = image.source
    if image.path is not None and map_path(image.path).exists():
        raise Refused(f"{place} may not be whole, as {map_path(image.path)} says, so no other image is made of it")
    with tempfile.TemporaryDirectory(prefix="asr-minimize-") as scratch:
        form = attachable(image, place)
        if form is None and not source.sequential:
            last_filesystem(place, contents_of(source), source.least_size)  # before all of it is decoded
        under = place
        if form is None:
            under, form = str(await spill(source, Path(scratch), report)), "raw"
            with closing(open_image(under, SourceSettings(format="raw")).source) as decoded:
                size = decoded.least_size
                last = last_filesystem(place, contents_of(decoded), size)
        else:
            size = source.least_size
            last = last_filesystem(place, contents_of(source), size)
        overlay = Path(scratch) / "overlay.qcow2"
        options = ["-q", "-f", "qcow2", "-F", form, "-b", str(Path(under).resolve())]
        await asyncio.to_thread(tools.run, ["qemu-img", "create", *options, str(overlay), str(size)])
        report.begin(f"Making {last.kind} as small as it can be")
        smaller = await in_private(
            "restore.fit.smallest:smallest_in_private",
            {
                "overlay": str(overlay),
                "kind": last.kind,
                "offset": last.offset,
                "length": last.length,
                "scheme": last.scheme,
                "number": last.number,
            },
            report,
        )
        report.done()
        if smaller < size:
            await asyncio.to_thread(tools.run, ["qemu-img", "resize", "-q", "--shrink", overlay, str(smaller)])
        await _check_room(overlay, path)
        async with _new(path) as temporary:
            await _convert(overlay, temporary, smaller, path, report)
            source.check_unchanged()
    report.note(
        f"{path}: {format_size(size)} became {format_size(smaller)}"
        if smaller < size
        else f"{path}: nothing could be made smaller, so it is as large as {place}"
    )
    runs = await asyncio.to_thread(used, path)
    with closing(open_image(str(path), SourceSettings(format="raw")).source) as copy:
        return await scan_beside(copy, path, runs, settings, report, CHECKSUM)


async def _check_room(overlay: Path, path: Path) -> None:
    """See that there is room for all that is not known to be zeroes."""
    told = await asyncio.to_thread(
        tools.run, ["qemu-img", "measure", "-O", "raw", "-f", "qcow2", "--output=json", overlay]
    )
    needed = int(json.loads(told.out)["required"]) + _RESERVE
    room = os.statvfs(path.parent)
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise Refused(
            f"{path.parent} has no room for {path.name}: up to {format_size(needed)} are needed, "
            f"and {format_size(free)} are free"
        )


@asynccontextmanager
async def _new(path: Path) -> AsyncIterator[Path]:
    """A file beside `path` that takes its name, which has to be free, when the block ends well, and else is removed."""
    try:
        fd, name = tempfile.mkstemp(prefix=".asr.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise Refused(f"{path} cannot be written: {say(error)}") from None
    temporary = Path(name)
    try:
        try:
            yield temporary
            os.fchmod(fd, 0o666 & ~umask())
            await asyncio.to_thread(os.fsync, fd)
        finally:
            os.close(fd)
        if os.path.lexists(path):
            raise Refused(f"{path} exists; --minimize writes a new file")
        map_path(path).unlink(missing_ok=True)  # of an older one of that name, and the copy is whole
        temporary.rename(path)
    except OSError as error:
        raise RestoreError(f"{path} cannot be written: {say(error)}") from None
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_directory(path.parent)


async def _convert(overlay: Path, temporary: Path, size: int, path: Path, report: Report) -> None:
    """Write what an overlay shows to a sparse raw file.

    Raises:
        ToolFailed: it cannot be read or written.
    """
    words = [tools.find("qemu-img"), "convert", "-p", "-f", "qcow2", "-O", "raw", "-S", "64k"]
    process = await asyncio.create_subprocess_exec(
        *words,
        str(overlay),
        str(temporary),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=tools.environment(),
        start_new_session=True,  # Ctrl-C on the terminal is for us to pass on
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    try:
        report.progress(COPYING, 0, size)
        while said := await process.stdout.read(4096):
            if told := _PERCENT.findall(said):
                report.progress(COPYING, min(int(float(told[-1]) / 100 * size), size - 1), size)
        status = await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if status:
        why = tools.complaint((await errors).decode("utf-8", "replace"), "", status)
        raise ToolFailed(f"{path} cannot be written: {why}", status)
    report.progress(COPYING, size, size)
