"""What a file system says of itself: is it clean, how large is it, how much of it may be unused at most.

Nothing is trusted that is read here: whatever it is, the answer is `Facts` or `Unmapped`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore import tools
from restore.source.used.runs import Run, Runs
from targetmode.disks.layout import Reader
from targetmode.disks.probes.media import field
from targetmode.disks.signatures import identify

EXT: Final = frozenset({"ext2", "ext3", "ext4"})
DIRTY: Final = "was not unmounted cleanly"
_BROKEN: Final = "has a superblock that contradicts itself"

_EXT_VALID, _EXT_ERRORS = 0x1, 0x2
_EXT_RECOVER, _EXT_64BIT = 0x4, 0x80
_EXT_BIGALLOC, _EXT_ORPHANS = 0x200, 0x10000

_XFS_AGS: Final = 1 << 20  # allocation groups that are believed at most
_XFS_HEADERS: Final = 4  # sectors at the start of each allocation group: superblock, AGF, AGI, AGFL
_XFS_STATE: Final = re.compile(r"state: <(\w+)>")

BTRFS_SUPER: Final = 64 << 10  # offset of btrfs's superblock, whose size is reserved for each
_BTRFS_MIRRORS: Final = (64 << 10, 64 << 20, 256 << 30)
_BTRFS_KNOWN: Final = 0xFFF | 1 << 16  # incompat bits: up to RAID1C34, and simple quotas

_FAT12_CLUSTERS, _FAT16_CLUSTERS = 4085, 65525  # the fewest that are none of that kind any more
_FAT_PIECE: Final = 4 << 20

_F2FS_MAGIC: Final = 0xF2F52010
_F2FS_BLOCK: Final = 4096
_F2FS_UNMOUNTED, _F2FS_FSCK, _F2FS_ERROR = 0x1, 0x10, 0x8
_F2FS_DEVICES: Final = 2201  # offset in the superblock of the first of several devices

_HFS_UNMOUNTED, _HFS_INCONSISTENT = 1 << 8, 1 << 11
_HFS_HEADER: Final = 1024

_NTFS_HIBERNATED: Final = 14  # ntfs-3g.probe(8)


class Unmapped(Exception):
    """It is not known which blocks are in use; `str()` says why, as a clause whose subject is the file system."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file system before its map is read.

    Attributes:
        kind: as blkid names it.
        size: bytes of it, which its map has to have.
        unused: bytes that are unused at most, as it counts them itself; None where it does not.
        reserved: what is in use whatever the map says; in bytes.
        nodesize: bytes of a block of metadata, for btrfs.
        known: the runs that are unused, where they are known without a map.
    """

    kind: str
    size: int
    unused: int | None
    reserved: tuple[Run, ...] = ()
    nodesize: int = 0
    known: Runs | None = None


def kind_of(read: Reader, length: int) -> str:
    """What lies there, as blkid names it; empty where that is not known. Raises `OSError`."""
    signature = identify(read, length)
    if signature is not None:
        return signature.kind
    if length > 2 * _F2FS_BLOCK and field(read(1024, 4), "<I", 0) == _F2FS_MAGIC:
        return "f2fs"
    return ""


def facts_of(kind: str, read: Reader, length: int) -> Facts:
    """Look at a file system.

    Args:
        kind: which it is.
        read: reads from where it begins.
        length: bytes of the partition that it lies in.

    Raises:
        Unmapped: there is no map of it, or none to be trusted.
        OSError: it cannot be read.
    """
    look = _LOOKS.get(kind)
    if look is None:
        raise Unmapped("has no map of used blocks that is known here")
    facts = look(kind, read, length)
    if not 0 < facts.size <= length:
        raise Unmapped("is larger than where it lies")
    if facts.unused is not None and not 0 <= facts.unused <= facts.size:
        raise Unmapped(_BROKEN)
    return facts


def check_device(kind: str, device: Path) -> None:
    """What only its own tools can tell of a file system: whether it is clean.

    Raises:
        Unmapped: it is not.
        RestoreError: that cannot be told.
    """
    if kind == "xfs":
        # Whatever follows is what there is in the log; none of it matters.
        state = _XFS_STATE.search(tools.run(["xfs_logprint", "-t", device], good=range(256)).out)
        if state is None or state[1] != "CLEAN":
            raise Unmapped(DIRTY)
    elif kind == "ntfs":
        code = tools.run(["ntfs-3g.probe", "--readwrite", device], good=range(256)).code
        if code == _NTFS_HIBERNATED:
            raise Unmapped("holds a hibernated Windows")
        if code:
            raise Unmapped(DIRTY)


def _ext(kind: str, read: Reader, length: int) -> Facts:
    """Linux Documentation/filesystems/ext4/super.rst."""
    block = read(1024, 1024)
    state, incompat, ro_compat = field(block, "<H", 58), field(block, "<I", 96), field(block, "<I", 100)
    if not state & _EXT_VALID or state & _EXT_ERRORS or incompat & _EXT_RECOVER or ro_compat & _EXT_ORPHANS:
        raise Unmapped(DIRTY)
    if ro_compat & _EXT_BIGALLOC:
        raise Unmapped("has clusters of several blocks (bigalloc)")
    size, count, unused = 1024 << field(block, "<I", 24), field(block, "<I", 4), field(block, "<I", 12)
    if incompat & _EXT_64BIT:
        count += field(block, "<I", 0x150) << 32
        unused += field(block, "<I", 0x158) << 32
    return Facts(kind, count * size, unused * size, ((0, 1024 + size),))


def _xfs(kind: str, read: Reader, length: int) -> Facts:
    """XFS Algorithms and Data Structures, section 14.1."""
    block = read(0, 512)
    size, count, unused = field(block, ">I", 4), field(block, ">Q", 8), field(block, ">Q", 144)
    group, groups, sector = field(block, ">I", 84), field(block, ">I", 88), field(block, ">H", 102)
    if field(block, ">Q", 24):
        raise Unmapped("has a real-time section")
    if not field(block, ">Q", 48):
        raise Unmapped("has its log elsewhere")
    if block[126] or groups > _XFS_AGS or not group or (groups - 1) * group >= count:
        raise Unmapped(_BROKEN)
    headers = tuple((at, at + _XFS_HEADERS * sector) for at in range(0, groups * group * size, group * size))
    return Facts(kind, count * size, unused * size, headers)


def _btrfs(kind: str, read: Reader, length: int) -> Facts:
    """Linux include/uapi/linux/btrfs_tree.h, struct btrfs_super_block."""
    block = read(BTRFS_SUPER, 4096)
    if field(block, "<Q", 96):
        raise Unmapped(DIRTY)
    if field(block, "<Q", 136) != 1:
        raise Unmapped("lies on several devices")
    if field(block, "<Q", 188) & ~_BTRFS_KNOWN:
        raise Unmapped("has features that are not known here")
    size, used, nodesize = field(block, "<Q", 209), field(block, "<Q", 120), field(block, "<I", 148)
    mirrors = tuple((at, at + BTRFS_SUPER) for at in _BTRFS_MIRRORS)
    return Facts(kind, size, size - used, mirrors, nodesize)


def _fat(kind: str, read: Reader, length: int) -> Facts:
    """Microsoft FAT specification 1.03, sections 3 and 4."""
    boot = read(0, 512)
    sector, cluster, reserved, fats = field(boot, "<H", 11), boot[13], field(boot, "<H", 14), boot[16]
    sectors = field(boot, "<H", 19) or field(boot, "<I", 32)
    fat_sectors = field(boot, "<H", 22) or field(boot, "<I", 36)
    data = reserved + fats * fat_sectors + -(-field(boot, "<H", 17) * 32 // sector)
    clusters = (sectors - data) // cluster
    wide = clusters >= _FAT16_CLUSTERS
    bits = 32 if wide else 16 if clusters >= _FAT12_CLUSTERS else 12
    if clusters <= 0 or (clusters + 2) * bits > fat_sectors * sector * 8 or sectors * sector > length:
        raise Unmapped(_BROKEN)
    if boot[0x41 if wide else 0x25] & 1:  # Linux's mark
        raise Unmapped(DIRTY)
    size, head, whole = cluster * sector, ((0, data * sector),), sectors * sector
    if bits == 12:
        free = _fat12_free(read, reserved * sector, clusters)
        runs = Runs((data * sector + at * size, data * sector + (at + 1) * size) for at in free)
        return Facts(kind, whole, runs.total, head, known=runs)
    return Facts(kind, whole, _fat_unused(read, reserved * sector, clusters, bits) * size, head)


def _fat12_free(read: Reader, start: int, clusters: int) -> list[int]:
    """The free clusters, of which there are few: partclone.fat (0.3.23) takes some that are in use for free."""
    packed = int.from_bytes(read(start, -(-(clusters + 2) * 12 // 8)), "little")
    return [at for at in range(clusters) if not packed >> 12 * (at + 2) & 0xFFF]


def _fat_unused(read: Reader, start: int, clusters: int, bits: int) -> int:
    """How many clusters are free or bad, after a look at the mark of a clean volume, in FAT[1]."""
    code, width, clean, bad = ("I", 4, 1 << 27, 0x0FFFFFF7) if bits == 32 else ("H", 2, 1 << 15, 0xFFF7)
    if not int.from_bytes(read(start + width, width), "little") & clean:
        raise Unmapped(DIRTY)
    unused, left, at = 0, clusters * width, start + 2 * width
    while left:
        piece = array(code, read(at, min(left, _FAT_PIECE)))
        unused += piece.count(0) + piece.count(bad)
        at += len(piece) * width
        left -= len(piece) * width
    return unused


def _exfat(kind: str, read: Reader, length: int) -> Facts:
    """Microsoft exFAT file system specification, section 3.1."""
    boot = read(0, 512)
    if field(boot, "<H", 106) & 0b110:  # VolumeDirty, MediaFailure
        raise Unmapped(DIRTY)
    shift, heap, clusters = boot[108], field(boot, "<I", 88), field(boot, "<I", 92)
    heap_bytes = heap << shift
    return Facts(kind, field(boot, "<Q", 72) << shift, clusters << shift + boot[109], ((0, heap_bytes),))


def _ntfs(kind: str, read: Reader, length: int) -> Facts:
    """Linux fs/ntfs3/ntfs.h, NTFS_BOOT; the map has whole clusters, and behind them is a copy of the boot sector."""
    boot = read(0, 512)
    sectors = boot[13] if boot[13] <= 128 else 1 << 256 - boot[13]
    cluster = field(boot, "<H", 11) * sectors
    return Facts(kind, field(boot, "<Q", 40) // sectors * cluster, None, ((0, 16 * 512),))


def _hfsplus(kind: str, read: Reader, length: int) -> Facts:
    """Apple TN1150, Volume Header."""
    header = read(_HFS_HEADER, 512)
    attributes, size = field(header, ">I", 4), field(header, ">I", 40)
    if not attributes & _HFS_UNMOUNTED or attributes & _HFS_INCONSISTENT:
        raise Unmapped(DIRTY)
    return Facts(kind, field(header, ">I", 44) * size, field(header, ">I", 48) * size, ((0, 2 * _HFS_HEADER),))


def _f2fs(kind: str, read: Reader, length: int) -> Facts:
    """Linux include/linux/f2fs_fs.h, struct f2fs_super_block and f2fs_checkpoint."""
    block = read(1024, 3072)
    if field(block, "<I", 16) != 12 or not 0 < field(block, "<I", 20) < 16:
        raise Unmapped(_BROKEN)
    if block[_F2FS_DEVICES]:
        raise Unmapped("lies on several devices")
    first, segment = field(block, "<I", 76), 1 << field(block, "<I", 20)
    if (first + 2 * segment) * _F2FS_BLOCK > length:
        raise Unmapped(_BROKEN)
    packs = [read(at * _F2FS_BLOCK, _F2FS_BLOCK) for at in (first, first + segment)]
    newest = max(packs, key=lambda pack: field(pack, "<Q", 0))
    blocks = field(newest, "<I", 136)
    if not 1 <= blocks <= segment:
        raise Unmapped(_BROKEN)
    end = read((first + packs.index(newest) * segment + blocks - 1) * _F2FS_BLOCK, 8)
    flags = field(newest, "<I", 132)
    if end != newest[:8] or not flags & _F2FS_UNMOUNTED or flags & (_F2FS_FSCK | _F2FS_ERROR):
        raise Unmapped(DIRTY)
    size, main = field(block, "<Q", 36) * _F2FS_BLOCK, field(block, "<I", 92) * _F2FS_BLOCK
    return Facts(kind, size, size - main - field(newest, "<Q", 16) * _F2FS_BLOCK, ((0, main),))


def _swap(kind: str, read: Reader, length: int) -> Facts:
    """Linux include/linux/swap.h: a swap area that nothing is in has a header of a page."""
    signature = identify(read, length)
    if signature is None:
        raise Unmapped(_BROKEN)
    return Facts(kind, length, None, ((0, signature.offset + 10),), known=Runs([(0, length)]))


_LOOKS: Final[dict[str, Callable[[str, Reader, int], Facts]]] = {
    **dict.fromkeys(EXT, _ext),
    "xfs": _xfs,
    "btrfs": _btrfs,
    "vfat": _fat,
    "exfat": _exfat,
    "ntfs": _ntfs,
    "hfsplus": _hfsplus,
    "f2fs": _f2fs,
    "swap": _swap,
}
