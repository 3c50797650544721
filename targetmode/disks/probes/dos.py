"""File systems whose first sector is a boot sector with a BIOS parameter block: FAT, exFAT, NTFS, BitLocker."""

from __future__ import annotations

from targetmode.disks.probes.media import Media, Signature, field, is_power_of_two
from targetmode.disks.text import decode

_DIRECTORY_BYTES = 64 * 1024
"""How much of a root directory, or of one cluster of it, is searched for the label, in bytes."""

_DIRECTORY_CLUSTERS = 16
"""How many clusters of a root directory are searched for the label."""

_MFT_RECORD_BYTES = 64 * 1024
"""The largest NTFS file record that is read, in bytes; the usual one has 1 or 4 KiB."""


def vfat(media: Media) -> Signature | None:
    """Recognises FAT12, FAT16 and FAT32 (Microsoft FAT specification 1.03, sections 3.1 to 3.5)."""
    boot = media.at(0, 512)
    if boot[510:512] != b"\x55\xaa" or boot[54:62] in (b"JFS     ", b"HPFS    ") or bitlocker(media) is not None:
        return None
    bytes_per_sector = field(boot, "<H", 11)
    sectors_per_cluster = boot[13]
    reserved_sectors = field(boot, "<H", 14)
    fats = boot[16]
    root_entries = field(boot, "<H", 17)
    sectors = field(boot, "<H", 19) or field(boot, "<I", 32)
    media_type = boot[21]
    short_fat_length = field(boot, "<H", 22)
    fat_length = short_fat_length or field(boot, "<I", 36)
    if not (
        fats
        and fat_length
        and reserved_sectors
        and (media_type == 0xF0 or media_type >= 0xF8)
        and is_power_of_two(sectors_per_cluster)
        and is_power_of_two(bytes_per_sector)
        and 512 <= bytes_per_sector <= 4096
    ):
        return None
    root_sector = reserved_sectors + fats * fat_length
    root_sectors = -(-root_entries * 32 // bytes_per_sector)
    clusters = (sectors - root_sector - root_sectors) // sectors_per_cluster
    if not 0 <= clusters <= (0xFFF4 if short_fat_length else 0x0FFFFFF6):
        return None
    if short_fat_length:
        directory = media.at(root_sector * bytes_per_sector, root_entries * 32)
        serial = boot[39:43] if boot[38] in (0x28, 0x29) else b""
        return Signature("vfat", _fat_label(directory) or "", _fat_serial(serial))
    if not _fat32_info_is_valid(media, field(boot, "<H", 48) * bytes_per_sector):
        return None
    cluster_bytes = sectors_per_cluster * bytes_per_sector
    cluster = field(boot, "<I", 44)
    label = None
    for _ in range(_DIRECTORY_CLUSTERS):
        if not 2 <= cluster < clusters + 2:
            break
        offset = root_sector * bytes_per_sector + (cluster - 2) * cluster_bytes
        if (label := _fat_label(media.at(offset, min(cluster_bytes, _DIRECTORY_BYTES)))) is not None:
            break
        link = media.at(reserved_sectors * bytes_per_sector + cluster * 4, 4)
        if not link:
            break
        cluster = field(link, "<I", 0) & 0x0FFFFFFF
    return Signature("vfat", label or "", _fat_serial(boot[67:71]))


def _fat_label(directory: bytes) -> str | None:
    """Finds the volume label in a FAT root directory (section 6.1); empty when the directory ends without one.

    None means that the directory may go on elsewhere.
    """
    for offset in range(0, len(directory), 32):
        entry = directory[offset : offset + 32]
        attributes = entry[11]
        if entry[0] == 0:
            return ""
        if entry[0] == 0xE5 or attributes & 0x3F == 0x0F or entry[20:22] != bytes(2) or entry[26:28] != bytes(2):
            continue
        if attributes & 0x18 == 0x08:
            name = b"\xe5" + entry[1:11] if entry[0] == 0x05 else entry[:11]
            return decode(name, "cp850")
    return None


def _fat_serial(raw: bytes) -> str:
    """Formats a four-byte volume serial number as blkid does."""
    return f"{raw[3]:02X}{raw[2]:02X}-{raw[1]:02X}{raw[0]:02X}" if raw else ""


def _fat32_info_is_valid(media: Media, offset: int) -> bool:
    """Checks the signatures of the FAT32 FSInfo sector (section 5), which some volumes leave zero or do not have."""
    if offset == 0:
        return True
    info = media.at(offset, 512)
    return info[:4] in (b"RRaA", b"RRdA", bytes(4)) and info[484:488] in (b"rrAa", bytes(4))


def exfat(media: Media) -> Signature | None:
    """Recognises exFAT (Microsoft exFAT file system specification, section 3.1)."""
    boot = media.at(0, 512)
    if boot[:11] != b"\xeb\x76\x90EXFAT   " or any(boot[11:64]) or boot[510:512] != b"\x55\xaa":
        return None
    fat_offset = field(boot, "<I", 80)
    heap_offset = field(boot, "<I", 88)
    clusters = field(boot, "<I", 92)
    cluster = field(boot, "<I", 96)
    sector_shift, cluster_shift, fats = boot[108:111]
    if not (9 <= sector_shift <= 12 and cluster_shift <= 25 - sector_shift and fats in (1, 2)):
        return None
    label = ""
    cluster_bytes = 1 << (sector_shift + cluster_shift)
    for _ in range(_DIRECTORY_CLUSTERS):
        if not 2 <= cluster < clusters + 2:
            break
        offset = (heap_offset << sector_shift) + (cluster - 2) * cluster_bytes
        directory = media.at(offset, min(cluster_bytes, _DIRECTORY_BYTES))
        if (found := _exfat_label(directory)) is not None:
            label = found
            break
        link = media.at((fat_offset << sector_shift) + cluster * 4, 4)
        if not link:
            break
        cluster = field(link, "<I", 0)
    return Signature("exfat", label, _fat_serial(boot[100:104]))


def _exfat_label(directory: bytes) -> str | None:
    """Finds the volume label directory entry (section 7.3); empty at the end, None when the directory may go on."""
    for offset in range(0, len(directory), 32):
        entry_type, characters = directory[offset], directory[offset + 1]
        if entry_type == 0x00:
            return ""
        if entry_type == 0x83:
            return decode(directory[offset + 2 : offset + 2 + 2 * min(characters, 11)], "utf-16-le")
    return None


def ntfs(media: Media) -> Signature | None:
    """Recognises NTFS (Linux fs/ntfs3/ntfs.h, NTFS_BOOT): its boot sector and the $Volume record of its MFT."""
    boot = media.at(0, 512)
    if boot[3:11] != b"NTFS    ":
        return None
    bytes_per_sector = field(boot, "<H", 11)
    sectors_per_cluster = boot[13] if boot[13] <= 128 else 1 << min(256 - boot[13], 31)
    cluster_bytes = bytes_per_sector * sectors_per_cluster
    if not (
        is_power_of_two(bytes_per_sector)
        and 256 <= bytes_per_sector <= 4096
        and is_power_of_two(sectors_per_cluster)
        and cluster_bytes <= 2 << 20
        and not any(boot[14:21])
        and not any(boot[22:24])
        and not any(boot[32:36])
    ):
        return None
    record_size = field(boot, "<b", 64)
    record_bytes = record_size * cluster_bytes if record_size > 0 else 1 << min(-record_size, 31)
    if not 256 <= record_bytes <= _MFT_RECORD_BYTES:
        return None
    mft = field(boot, "<Q", 48) * cluster_bytes
    volume = media.at(mft + 3 * record_bytes, record_bytes)
    if not media.starts(mft, b"FILE") or not volume.startswith(b"FILE"):
        return None
    return Signature("ntfs", _ntfs_label(volume), f"{field(boot, '<Q', 72):016X}")


def _ntfs_label(record: bytes) -> str:
    """Finds the $VOLUME_NAME attribute, type 0x60, in a file record (Linux fs/ntfs3/ntfs.h, ATTRIB)."""
    offset = field(record, "<H", 20)
    while offset + 24 <= len(record):
        attribute_type, length = field(record, "<I", offset), field(record, "<I", offset + 4)
        if attribute_type == 0x60:
            start = offset + field(record, "<H", offset + 20)
            return decode(record[start : start + field(record, "<I", offset + 16)], "utf-16-le")
        if attribute_type == 0xFFFFFFFF or length == 0:
            break
        offset += length
    return ""


def bitlocker(media: Media) -> Signature | None:
    """Recognises an encrypted BitLocker volume by the boot sector of Windows Vista and later."""
    return Signature("BitLocker", "", "") if media.starts(3, b"-FVE-FS-") else None
