"""Signatures of file systems and swap areas that are not of the DOS family."""

from __future__ import annotations

import hashlib

from targetmode.disks.probes.media import Media, Signature, field, format_uuid, is_power_of_two
from targetmode.disks.text import decode

_EXT_SUPERBLOCK = 1024
_EXT_HAS_JOURNAL = 0x0004
_EXT_JOURNAL_DEVICE = 0x0008
_EXT2_RO_COMPAT = 0x0001 | 0x0002 | 0x0004
_EXT2_INCOMPAT = 0x0002 | 0x0010
_EXT3_INCOMPAT = _EXT2_INCOMPAT | 0x0004

_SWAP_MIN = 10 * 4096
_SWAP_PAGES = (0x1000, 0x2000, 0x4000, 0x8000, 0x10000)
_SUSPEND_MAGICS = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")

_BTRFS_SUPERBLOCK = 64 * 1024
_BTRFS_MIN = 1 << 20

_ISO_SECTOR = 2048
_ISO_DESCRIPTORS = range(16, 32)
_ISO_JOLIET_ESCAPES = (b"%/@", b"%/C", b"%/E")

_HFSPLUS_UUID_NAMESPACE = bytes.fromhex("b3e20f39f29211d697a400306543ecac")


def ext(media: Media) -> Signature | None:
    """Recognises ext2, ext3, ext4 and an external journal (`jbd`): Linux Documentation/filesystems/ext4/super.rst."""
    superblock = media.at(_EXT_SUPERBLOCK, 1024)
    if superblock[56:58] != b"\x53\xef":
        return None
    inodes, blocks, log_block_size = field(superblock, "<I", 0), field(superblock, "<I", 4), field(superblock, "<I", 24)
    compat, incompat, ro_compat = (field(superblock, "<I", at) for at in (92, 96, 100))
    if log_block_size > 6 or not blocks:
        return None
    if incompat & _EXT_JOURNAL_DEVICE:
        kind = "jbd"
    elif not inodes:
        return None
    elif ro_compat & ~_EXT2_RO_COMPAT or incompat & ~_EXT3_INCOMPAT:
        kind = "ext4"
    elif compat & _EXT_HAS_JOURNAL:
        kind = "ext3"
    else:
        kind = "ext4" if incompat & ~_EXT2_INCOMPAT else "ext2"
    return Signature(kind, decode(superblock[120:136]), format_uuid(superblock[104:120]), _EXT_SUPERBLOCK)


def xfs(media: Media) -> Signature | None:
    """Recognises XFS (XFS Algorithms and Data Structures, section 14.1)."""
    superblock = media.at(0, 512)
    if superblock[:4] != b"XFSB":
        return None
    block_size, sector_size = field(superblock, ">I", 4), field(superblock, ">H", 102)
    if not (
        is_power_of_two(block_size)
        and 512 <= block_size <= 65536
        and is_power_of_two(sector_size)
        and 512 <= sector_size <= 32768
        and field(superblock, ">I", 88)
        and field(superblock, ">Q", 8)
    ):
        return None
    return Signature("xfs", decode(superblock[108:120]), format_uuid(superblock[32:48]))


def btrfs(media: Media) -> Signature | None:
    """Recognises btrfs (Linux fs/btrfs, struct btrfs_super_block)."""
    superblock = media.at(_BTRFS_SUPERBLOCK, 4096)
    if superblock[64:72] != b"_BHRfS_M" or media.size < _BTRFS_MIN or not field(superblock, "<I", 144):
        return None
    return Signature("btrfs", decode(superblock[299:555]), format_uuid(superblock[32:48]), _BTRFS_SUPERBLOCK)


def swap(media: Media) -> Signature | None:
    """Recognises a swap area, and one that holds a hibernated system (`swsuspend`): Linux include/linux/swap.h."""
    if media.size < _SWAP_MIN:
        return None
    for page in _SWAP_PAGES:
        magic = media.at(page - 10, 10)
        if magic == b"SWAP-SPACE":
            return Signature("swap", "", "", page - 10)
        suspended = magic.startswith(_SUSPEND_MAGICS)
        if magic != b"SWAPSPACE2" and not suspended:
            continue
        header = media.at(1024, 512)
        version = header[:4]
        if not suspended and (version not in (b"\1\0\0\0", b"\0\0\0\1") or not field(header, "<I", 4)):
            return None
        return Signature(
            "swsuspend" if suspended else "swap", decode(header[28:44]), format_uuid(header[12:28]), page - 10
        )
    return None


def squashfs(media: Media) -> Signature | None:
    """Recognises squashfs 4 (Linux fs/squashfs/squashfs_fs.h); it has neither label nor UUID."""
    superblock = media.at(0, 96)
    if superblock[:4] != b"hsqs" or field(superblock, "<H", 28) < 4:
        return None
    return Signature("squashfs", "", "")


def iso9660(media: Media) -> Signature | None:
    """Recognises ISO 9660, with the label from the Joliet descriptor where there is one (ECMA-119 section 8.4)."""
    if not media.starts(_ISO_DESCRIPTORS[0] * _ISO_SECTOR + 1, b"CD001"):
        return None
    primary = joliet = b""
    for sector in _ISO_DESCRIPTORS:
        descriptor = media.at(sector * _ISO_SECTOR, _ISO_SECTOR)
        if descriptor[1:6] != b"CD001" or descriptor[0] == 255:
            break
        if descriptor[0] == 1:
            primary = primary or descriptor
        elif descriptor[0] == 2 and descriptor[88:91] in _ISO_JOLIET_ESCAPES:
            joliet = joliet or descriptor
    if not primary:
        return None
    label = decode(primary[40:72])
    if joliet:
        short = decode(joliet[40:72], "utf-16-be")
        label = short + label[len(short) :] if label.upper().startswith(short.upper()) else short
    return Signature(
        "iso9660", label, _iso_date(primary[830:847]) or _iso_date(primary[813:830]), _ISO_DESCRIPTORS[0] * _ISO_SECTOR
    )


def _iso_date(raw: bytes) -> str:
    """Formats a date and time (ECMA-119 section 8.4.26.1) as blkid's UUID; empty when it is not specified."""
    digits = raw[:16]
    if not digits.isdigit() or (digits == b"0" * 16 and raw[16] == 0):
        return ""
    text = digits.decode("ascii")
    return "-".join((text[:4], *(text[at : at + 2] for at in range(4, 16, 2))))


def apfs(media: Media) -> Signature | None:
    """Recognises an APFS container (Apple File System Reference, nx_superblock_t); its volumes are not looked at."""
    superblock = media.at(0, 4096)
    if superblock[32:36] != b"NXSB" or field(superblock, "<H", 24) != 1 or field(superblock, "<I", 36) != 4096:
        return None
    return Signature("apfs", "", format_uuid(superblock[72:88]))


def hfsplus(media: Media) -> Signature | None:
    """Recognises HFS+ and HFSX (Apple TN1150, Volume Header); the label, which is in the catalogue, is not read."""
    header = media.at(1024, 512)
    if header[:2] not in (b"H+", b"HX") or field(header, ">H", 2) not in (4, 5):
        return None
    block_size = field(header, ">I", 40)
    if block_size < 512 or not is_power_of_two(block_size):
        return None
    finder_id = header[104:112]
    uuid = ""
    if any(finder_id):
        digest = bytearray(hashlib.md5(_HFSPLUS_UUID_NAMESPACE + finder_id, usedforsecurity=False).digest())
        digest[6] = 0x30 | digest[6] & 0x0F
        digest[8] = 0x80 | digest[8] & 0x3F
        uuid = format_uuid(bytes(digest))
    return Signature("hfsplus", "", uuid, 1024)
