"""What is written on a disk or partition: which file system or container, its label and UUID."""

from __future__ import annotations

from collections.abc import Callable

from targetmode.disks.layout import Reader
from targetmode.disks.probes import containers, dos, filesystems
from targetmode.disks.probes.media import Media, Signature

__all__ = ["Signature", "identify"]

_PROBES: tuple[Callable[[Media], Signature | None], ...] = (
    containers.linux_raid,
    containers.lvm2,
    containers.luks,
    dos.bitlocker,
    dos.vfat,
    filesystems.swap,
    filesystems.xfs,
    filesystems.ext,
    filesystems.iso9660,
    containers.zfs,
    filesystems.hfsplus,
    dos.ntfs,
    filesystems.squashfs,
    filesystems.btrfs,
    dos.exfat,
    filesystems.apfs,
)
"""In libblkid's order (libblkid/src/superblocks/superblocks.c): the container before what it contains."""


def identify(read: Reader, size: int) -> Signature | None:
    """Identifies what a disk or partition holds by its superblock.

    The bytes are not trusted: whatever they are, the answer is a Signature or None.

    Args:
        read: Reads from the disk or partition.
        size: Of the disk or partition, in bytes.

    Raises:
        OSError: A place where a superblock may be cannot be read.
    """
    media = Media(read, size)
    for probe in _PROBES:
        if (signature := probe(media)) is not None:
            return signature
    return None
