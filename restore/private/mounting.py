"""File systems, found on what is attached and mounted for as long as a context lasts; see `restore.private.process`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import Refused
from restore.private.attach import Opened, loop, opened
from restore.tools import ToolFailed
from targetmode.disks.contents import describe_contents
from targetmode.disks.layout import Partition, fd_reader
from targetmode.disks.signatures import Signature
from targetmode.disks.text import format_size

_EXT: Final = frozenset({"ext2", "ext3", "ext4"})
MOUNTED_AS: Final = {
    **{kind: kind for kind in _EXT},
    "xfs": "xfs",
    "btrfs": "btrfs",
    "ntfs": "ntfs-3g",
    "vfat": "vfat",
    "exfat": "exfat",
    "hfsplus": "hfsplus",
    "iso9660": "iso9660",
    "squashfs": "squashfs",
}
"""Kinds of file systems that are mounted, as `mount -t` knows them."""

_UNREPLAYED: Final = {**dict.fromkeys(_EXT, "noload"), "xfs": "norecovery", "btrfs": "rescue=nologreplay"}
_ALWAYS: Final = ("nosuid", "nodev", "noexec")
_UNMOUNT: Final = 20.0  # seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file system is, as whoever asks for it says.

    Attributes:
        where: a path of a disk, partition, image or mount point, or an NBD URI.
        partition: its number in there; None for the only one.
        option: what names the partition on the command line, for refusals.
        form: as `attach.opened` takes it.
    """

    where: str
    partition: int | None = None
    option: str = "--source-partition"
    form: str = "raw"


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A file system on something that is attached.

    Attributes:
        name: for people.
        signature: which it is.
        offset: bytes from the start of what it is on.
        length: bytes.
        partition: the partition that it is in; None where it is without.
    """

    name: str
    signature: Signature
    offset: int
    length: int
    partition: Partition | None

    @property
    def kind(self) -> str:
        """As blkid names it."""
        return self.signature.kind


def find_filesystem(of: Opened, place: Place) -> Filesystem:
    """The file system that is meant: that on all of it, else that in the partition named, else the only one.

    Raises:
        Refused: there is none, or there are several.
        OSError: it cannot be read.
    """
    contents = describe_contents(fd_reader(of.fd), of.size, of.sector_size)
    found = []
    for held in contents.partitions:
        partition, signature = held.partition, held.signature
        if place.partition not in (None, partition.number):
            continue
        if signature is not None and signature.kind in MOUNTED_AS:
            name = f"partition {partition.number} of {place.where}"
            found.append(Filesystem(name, signature, partition.start, partition.length, partition))
        elif place.partition is not None:
            held_kind = "no known file system" if signature is None else f"{signature}, which is not mounted"
            raise Refused(f"partition {partition.number} of {place.where} has {held_kind}")
    if place.partition is not None and not found:
        there = ", ".join(str(held) for held in contents.partitions) or "no partitions"
        raise Refused(f"{place.where} has no partition {place.partition}; it has {there}")
    if contents.signature is not None and contents.table is None and place.partition is None:
        if contents.signature.kind not in MOUNTED_AS:
            raise Refused(f"{place.where} has {contents.signature}, which is not mounted")
        return Filesystem(place.where, contents.signature, 0, of.size, None)
    if contents.signature is not None and not found and contents.signature.kind in MOUNTED_AS:
        return Filesystem(place.where, contents.signature, 0, of.size, None)  # a hybrid ISO image
    if len(found) > 1:
        listed = ", ".join(
            f"{one.partition.number if one.partition else ''} {one.signature} {format_size(one.length)}"
            for one in found
        )
        raise Refused(f"{place.where} has several file systems: {listed}; say which: {place.option} N")
    if not found:
        raise Refused(f"{place.where} has no file system: {contents}")
    return found[0]


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted file system.

    Attributes:
        root: where.
        kind: which, as blkid names it.
        name: for people.
        note: a line to say about it; empty for none.
    """

    root: Path
    kind: str
    name: str
    note: str


@contextmanager
def reached(place: Place, *, read_only: bool) -> Iterator[Opened | None]:
    """What the file system is on, kept from others as long as the context lasts; None for a mount point.

    Raises:
        Refused: it is not there, or in use.
        RestoreError: what was written could not be brought to it.
    """
    if not place.where.startswith("nbd") and Path(place.where).is_dir():
        yield None
        return
    with opened(place.where, read_only=read_only, form=place.form) as under:
        yield under


@contextmanager
def mounted(place: Place, under: Opened | None, root: Path, *, read_only: bool) -> Iterator[Mounted]:
    """Mount a file system on `root`, a directory that is made for it.

    Args:
        place: where it is.
        under: as `reached` gave it.
        root: where to mount it.
        read_only: nothing is written to it.

    Raises:
        Refused: there is none, or it cannot be mounted.
        RestoreError: what was written could not be brought to it.
    """
    root.mkdir()
    with ExitStack() as stack:
        if under is None:
            yield stack.enter_context(_bound(place, root, read_only=read_only))
            return
        found = find_filesystem(under, place)
        device = stack.enter_context(loop(under, found.offset, found.length))
        note = stack.enter_context(mount_device(device, found, root, read_only=read_only))
        yield Mounted(root, found.kind, found.name, note)


@contextmanager
def mount_device(device: Path, found: Filesystem, root: Path, *, read_only: bool) -> Iterator[str]:
    """Mount a block device on a directory; gives a line to say, or none.

    Raises:
        Refused: it cannot be mounted, with what mount says.
    """
    kind = found.kind
    if kind == "btrfs" and Path("/sys/fs/btrfs", found.signature.uuid).exists():
        uuid = found.signature.uuid
        raise Refused(f"{found.name}: another btrfs with the same UUID {uuid} is mounted, and Linux confuses the two")
    if MOUNTED_AS[kind] == "ntfs-3g":
        tools.find("mount.ntfs-3g")
    options = [*_ALWAYS, "ro" if read_only else "rw", *(["nouuid"] if kind == "xfs" else [])]
    note = ""
    try:
        _mount(MOUNTED_AS[kind], options, device, root)
    except ToolFailed as error:
        if not read_only or kind not in _UNREPLAYED:
            raise Refused(f"{found.name}: {kind} cannot be mounted: {error}") from None
        try:
            _mount(MOUNTED_AS[kind], [*options, _UNREPLAYED[kind]], device, root)
        except ToolFailed:
            raise Refused(f"{found.name}: {kind} cannot be mounted: {error}") from None
        note = f"{found.name} was not unmounted cleanly; what only its journal has is not copied"
    try:
        if not read_only and os.statvfs(root).f_flag & os.ST_RDONLY:
            raise Refused(f"{found.name}: {kind} can only be mounted read-only; check it first: fsck.{kind}")
        yield note
    finally:
        unmount(root)


def unmount(root: Path) -> None:
    """Unmount, in the end even while something is still in use; it is written out in any case.

    Raises:
        ToolFailed: it was not mounted.
    """
    deadline = time.monotonic() + _UNMOUNT
    while True:
        try:
            tools.run(["umount", root])
            return
        except ToolFailed:
            if time.monotonic() > deadline:
                with contextlib.suppress(OSError):
                    os.sync()
                tools.run(["umount", "--lazy", root])
                return
            time.sleep(0.05)


def _mount(kind: str, options: list[str], device: Path, root: Path) -> None:
    tools.run(["mount", "-t", kind, "-o", ",".join(options), device, root])


@contextmanager
def _bound(place: Place, root: Path, *, read_only: bool) -> Iterator[Mounted]:
    """A volume that is mounted already; what is mounted within it is another volume."""
    path = Path(place.where).resolve()
    if not path.is_mount():
        raise Refused(f"{place.where} is a directory, not where a volume is mounted")
    if path == Path("/"):
        raise Refused(f"{place.where} is the running system's own volume")
    kind = _kind_of_mount(path)
    tools.run(["mount", "--bind", path, root])
    try:
        if read_only:
            tools.run(["mount", "-o", "remount,bind,ro", root])
        elif os.statvfs(root).f_flag & os.ST_RDONLY:
            raise Refused(f"{place.where} is mounted read-only; remount it first: mount -o remount,rw {place.where}")
        yield Mounted(root, kind, place.where, "")
        if not read_only:
            tools.run(["sync", "-f", root])
    finally:
        unmount(root)


def _kind_of_mount(path: Path) -> str:
    """Its kind by /proc/self/mountinfo (proc_pid_mountinfo(5)): the last one that is mounted there."""
    kind = ""
    device = path.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(" ")
        major, _, minor = fields[2].partition(":")
        if os.makedev(int(major), int(minor)) == device or fields[4] == str(path):
            kind = fields[fields.index("-", 6) + 1]
    return "ntfs" if kind in ("fuseblk", "ntfs3") else kind
