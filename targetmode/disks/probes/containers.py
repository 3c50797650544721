"""Signatures of what other block devices are made from: MD RAID, LVM, LUKS, ZFS pools."""

from __future__ import annotations

import zlib
from itertools import pairwise

from targetmode.disks.probes.media import Media, Signature, field, format_uuid
from targetmode.disks.text import decode

_MD_MAGIC = 0xA92B4EFC
_MD1_SIZE = 256
_MD1_MAX_DEVICES = 4096

_LVM_CRC_INITIAL = 0xF597A6CF

_ZFS_LABEL = 256 * 1024
_ZFS_NVLIST_OFFSET = 16 * 1024
_ZFS_NVLIST_SIZE = 112 * 1024
_ZFS_MIN_DEVICE = 64 << 20
_NV_UINT64 = 8
_NV_STRING = 9


def linux_raid(media: Media) -> Signature | None:
    """Recognises a member of an MD array, metadata 0.90, 1.0, 1.1 or 1.2 (Linux include/uapi/linux/raid/md_p.h)."""
    if media.size > 0x10000:
        found = _md_0_90(media, (media.size & ~0xFFFF) - 0x10000)
        if found is None:
            found = _md_1(media, (media.size & ~0xFFF) - 0x2000)
        if found is not None:
            return found
    return _md_1(media, 0) or _md_1(media, 0x1000)


def _md_0_90(media: Media, offset: int) -> Signature | None:
    """Parses metadata 0.90, whose byte order is that of the machine that made it."""
    superblock = media.at(offset, 4096)
    for order in "<>":
        if superblock and field(superblock, f"{order}I", 0) == _MD_MAGIC:
            words = [field(superblock, f"{order}I", at) for at in (20, 52, 56, 60)]
            return Signature(
                "linux_raid_member", "", format_uuid(b"".join(word.to_bytes(4, "big") for word in words)), offset
            )
    return None


def _md_1(media: Media, offset: int) -> Signature | None:
    """Parses metadata 1.x, which names its own place and has a checksum."""
    superblock = media.at(offset, _MD1_SIZE)
    if (
        not superblock
        or field(superblock, "<I", 0) != _MD_MAGIC
        or field(superblock, "<I", 4) != 1
        or field(superblock, "<Q", 144) != offset >> 9
    ):
        return None
    devices = field(superblock, "<I", 220)
    if devices > _MD1_MAX_DEVICES:
        return None
    summed = media.at(offset, _MD1_SIZE + 2 * devices)
    if not summed or _md_1_checksum(summed) != field(superblock, "<I", 216):
        return None
    return Signature("linux_raid_member", decode(superblock[32:64]), format_uuid(superblock[16:32]), offset)


def _md_1_checksum(superblock: bytes) -> int:
    """Sums a 1.x superblock with its device roles, the checksum's own field taken as zero (calc_sb_1_csum in md.c)."""
    raw = superblock[:216] + bytes(4) + superblock[220:]
    total = sum(int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4))
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def lvm2(media: Media) -> Signature | None:
    """Recognises an LVM2 physical volume: a label in one of the first four sectors (LVM2 lib/label/label.h)."""
    for sector in range(4):
        label = media.at(sector * 512, 512)
        if (
            label[:8] == b"LABELONE"
            and label[24:32] == b"LVM2 001"
            and field(label, "<Q", 8) == sector
            and zlib.crc32(label[20:], _LVM_CRC_INITIAL ^ 0xFFFFFFFF) ^ 0xFFFFFFFF == field(label, "<I", 16)
        ):
            raw = decode(label[32:64], "ascii")
            cuts = (0, 6, 10, 14, 18, 22, 26, 32)
            return Signature(
                "LVM2_member",
                "",
                "-".join(raw[start:end] for start, end in pairwise(cuts)),
                sector * 512,
            )
    return None


def luks(media: Media) -> Signature | None:
    """Recognises LUKS 1 and 2 by the primary header (LUKS2 on-disk format specification, section 2.1)."""
    header = media.at(0, 512)
    if header[:6] != b"LUKS\xba\xbe":
        return None
    version = field(header, ">H", 6)
    if version not in (1, 2) or (version == 2 and field(header, ">Q", 256) != 0):
        return None
    return Signature("crypto_LUKS", decode(header[24:72]) if version == 2 else "", decode(header[168:208], "ascii"))


def zfs(media: Media) -> Signature | None:
    """Recognises a device of a ZFS pool by one of its four vdev labels (ZFS on-disk format, section 1.2).

    The label is the pool's name, the UUID its GUID in decimal.
    """
    if media.size < _ZFS_MIN_DEVICE:
        return None
    end = media.size - media.size % _ZFS_LABEL
    for label in (0, _ZFS_LABEL, end - 2 * _ZFS_LABEL, end - _ZFS_LABEL):
        offset = label + _ZFS_NVLIST_OFFSET
        header = media.at(offset, 16)
        if not header or header[0] != 1 or header[1] > 1 or header[2:4] != bytes(2) or header[4:8] != bytes(4):
            continue
        pairs = _nvlist(media.at(offset, _ZFS_NVLIST_SIZE))
        name, guid = pairs.get("name"), pairs.get("pool_guid")
        if isinstance(name, str) and isinstance(guid, int):
            return Signature("zfs_member", name, str(guid), label)
    return None


def _nvlist(raw: bytes) -> dict[str, str | int]:
    """Takes the strings and 64-bit numbers of an XDR-encoded nvlist's top level (OpenZFS module/nvpair/nvpair.c)."""
    pairs: dict[str, str | int] = {}
    offset = 12
    while offset + 20 <= len(raw):
        pair_size = field(raw, ">I", offset)
        name_size = field(raw, ">I", offset + 8)
        value = offset + 12 + (name_size + 3) // 4 * 4
        if pair_size < 20 or offset + pair_size > len(raw) or value + 8 > offset + pair_size:
            break
        name = decode(raw[offset + 12 : offset + 12 + name_size])
        value_type = field(raw, ">I", value)
        if value_type == _NV_UINT64 and value + 16 <= offset + pair_size:
            pairs[name] = field(raw, ">Q", value + 8)
        elif value_type == _NV_STRING and value + 12 <= offset + pair_size:
            pairs[name] = decode(raw[value + 12 : value + 12 + min(field(raw, ">I", value + 8), pair_size)])
        offset += pair_size
    return pairs
