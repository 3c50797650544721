"""The header of a partclone image (IMAGE_FORMATS.md, "Image header")."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from construct import Bytes, Const, ConstructError, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from restore.source import SourceError
from targetmode.disks.text import decode

MAGIC: Final = b"partclone-image"
HEADER_1_SIZE: Final = 4160
HEADER_2_SIZE: Final = 110

MIN_BLOCK: Final = 512
MAX_BLOCK: Final = 64 << 20  # bytes; as in partclone
MAX_BLOCK_1: Final = 1 << 20  # bytes; version 0001 knew no larger ones than 64 KiB
MAX_BITMAP: Final = 1 << 30  # bytes; enough for 32 TiB in blocks of 4 KiB
MAX_IMPLIED: Final = 16 << 20  # bytes of a bitmap that is not there, as all blocks are in use
MAX_SIZE: Final = (1 << 63) - 1

HEADER_1: Final = Struct(
    "magic" / Const(MAGIC),
    "file_system" / Bytes(15),
    "version" / Const(b"0001"),
    "padding" / Bytes(2),
    "block_size" / Int32ul,
    "device_size" / Int64ul,
    "total_blocks" / Int64ul,
    "used_blocks" / Int64ul,
)
"""What is used of the header of version 0001; it is filled up to `HEADER_1_SIZE`."""

HEADER_2: Final = Struct(
    "magic" / Const(MAGIC + b"\0"),
    "tool_version" / Bytes(14),
    "version" / Const(b"0002"),
    "endianness" / Int16ul,
    "file_system" / Bytes(16),
    "device_size" / Int64ul,
    "total_blocks" / Int64ul,
    "used_blocks_of_superblock" / Int64ul,
    "used_blocks" / Int64ul,
    "block_size" / Int32ul,
    "feature_size" / Int32ul,
    "image_version" / Int16ul,
    "cpu_bits" / Int16ul,
    "checksum_mode" / Int16ul,
    "checksum_size" / Int16ul,
    "blocks_per_checksum" / Int32ul,
    "reseed_checksum" / Int8ul,
    "bitmap_mode" / Int8ul,
    "crc" / Int32ul,
)
"""The header of version 0002."""

_LITTLE_ENDIAN: Final = 0xC0DE
_FEATURE_SIZE: Final = 18  # bytes from feature_size to bitmap_mode


class Mode(Enum):
    """How blocks are checked: the value in the header, the checksum's bytes, its name."""

    NONE = (0x00, 0, "none")
    CRC32 = (0x20, 4, "CRC-32")
    XXH64 = (0x30, 8, "XXH64")
    XXH128 = (0x31, 16, "XXH128")
    CRC32_0001 = (0xFF, 4, "CRC-32")  # of version 0001: over the first byte of a block, as often as the block is long

    @property
    def size(self) -> int:
        """Bytes of one checksum."""
        return self.value[1]

    @property
    def label(self) -> str:
        """Its name, for people."""
        return self.value[2]


class BitmapMode(Enum):
    """How the bitmap is kept."""

    NONE = 0x00  # not at all: every block is in use
    BIT = 0x01
    BYTE = 0x08  # of version 0001: a byte for each block


@dataclass(frozen=True, slots=True)
class Header:
    """What an image says of itself, checked.

    Attributes:
        version: of the format, 1 or 2.
        file_system: as partclone calls it, such as `EXTFS`.
        device_size: bytes of the device that the image was made of, as partclone took it.
        total_blocks: of the file system.
        block_size: bytes.
        mode: of the checksums.
        per_checksum: blocks in use that share a checksum; 0 without checksums.
        reseed: each checksum is over its own blocks only; else over all blocks up to it.
        bitmap: how that is kept.
    """

    version: int
    file_system: str
    device_size: int
    total_blocks: int
    block_size: int
    mode: Mode
    per_checksum: int
    reseed: bool
    bitmap: BitmapMode

    @property
    def size(self) -> int:
        """Bytes of the image: room for the device's size, which partclone asks of a target, and for all blocks."""
        return max(self.device_size, self.total_blocks * self.block_size)

    @property
    def bitmap_start(self) -> int:
        """Where the bitmap begins, in bytes of what is stored."""
        return HEADER_1_SIZE if self.version == 1 else HEADER_2_SIZE

    @property
    def bitmap_size(self) -> int:
        """Bytes of the bitmap as it is stored, without what follows it."""
        match self.bitmap:
            case BitmapMode.NONE:
                return 0
            case BitmapMode.BIT:
                return -(-self.total_blocks // 8)
            case BitmapMode.BYTE:
                return self.total_blocks

    @property
    def bitmap_seal_size(self) -> int:
        """Bytes that follow the bitmap: its CRC-32, or in version 0001 a magic word."""
        match self.bitmap:
            case BitmapMode.NONE:
                return 0
            case BitmapMode.BIT:
                return 4
            case BitmapMode.BYTE:
                return 8

    @property
    def blocks_start(self) -> int:
        """Where the first block in use lies, in bytes of what is stored."""
        return self.bitmap_start + self.bitmap_size + self.bitmap_seal_size

    def stored_size(self, used: int) -> int:
        """Bytes of an image with so many blocks in use."""
        checksums = -(-used // self.per_checksum) if self.per_checksum else 0
        return self.blocks_start + used * self.block_size + checksums * self.mode.size

    def stored_at(self, rank: int) -> int:
        """Where the block in use that so many come before lies, in bytes of what is stored."""
        checksums = rank // self.per_checksum if self.per_checksum else 0
        return self.blocks_start + rank * self.block_size + checksums * self.mode.size


def crc32(data: bytes | memoryview) -> int:
    """The CRC-32 as partclone keeps it: not inverted at the end."""
    return zlib.crc32(data) ^ 0xFFFFFFFF


def parse_header(raw: bytes, name: str) -> Header:
    """The header of an image.

    Args:
        raw: the image's first `HEADER_1_SIZE` bytes, or as many as there are.
        name: of the image, for errors.

    Raises:
        SourceError: it is damaged, or says what cannot be.
    """
    if len(raw) < HEADER_2_SIZE:
        raise SourceError(f"{name} is cut short: it ends within partclone's header")
    version = raw[30:34] if raw.startswith(MAGIC) else b""
    try:
        match version:
            case b"0001":
                return _parse_1(raw, name)
            case b"0002":
                return _parse_2(raw[:HEADER_2_SIZE], name)
    except ConstructError:
        version = b""
    if not version:
        raise SourceError(f"{name} does not begin with the header of a partclone image")
    raise SourceError(f"{name} is a partclone image of version {decode(version)!r}; only 0001 and 0002 are known")


def _parse_1(raw: bytes, name: str) -> Header:
    if len(raw) < HEADER_1_SIZE:
        raise SourceError(f"{name} is cut short: it ends within partclone's header")
    fields = HEADER_1.parse(raw)
    header = Header(
        version=1,
        file_system=decode(fields.file_system),
        device_size=fields.device_size,
        total_blocks=fields.total_blocks,
        block_size=fields.block_size,
        mode=Mode.CRC32_0001,
        per_checksum=1,
        reseed=False,
        bitmap=BitmapMode.BYTE,
    )
    return _checked(header, fields, name)


def _parse_2(raw: bytes, name: str) -> Header:
    fields = HEADER_2.parse(raw)
    if fields.crc != crc32(raw[:-4]):
        raise SourceError(f"{name}: partclone's header is damaged, its CRC-32 is not right")
    if fields.endianness != _LITTLE_ENDIAN:
        raise SourceError(f"{name} was made by partclone on a big-endian machine, which cannot be read")
    if fields.feature_size != _FEATURE_SIZE or fields.image_version != 2:
        raise SourceError(f"{name}: partclone's header has features that are not known")
    modes = {mode.value[0]: mode for mode in Mode if mode is not Mode.CRC32_0001}
    mode = modes.get(fields.checksum_mode)
    if mode is None:
        raise SourceError(f"{name}: checksums of the unknown kind {fields.checksum_mode:#x}")
    if fields.checksum_size != mode.size:
        raise SourceError(f"{name}: {mode.label} checksums of {fields.checksum_size} bytes cannot be")
    if mode is not Mode.NONE and not fields.blocks_per_checksum:
        raise SourceError(f"{name}: checksums of no blocks cannot be")
    if fields.bitmap_mode not in (BitmapMode.NONE.value, BitmapMode.BIT.value):
        raise SourceError(f"{name}: a bitmap of the unknown kind {fields.bitmap_mode}")
    header = Header(
        version=2,
        file_system=decode(fields.file_system),
        device_size=fields.device_size,
        total_blocks=fields.total_blocks,
        block_size=fields.block_size,
        mode=mode,
        per_checksum=0 if mode is Mode.NONE else fields.blocks_per_checksum,
        reseed=bool(fields.reseed_checksum),
        bitmap=BitmapMode(fields.bitmap_mode),
    )
    return _checked(header, fields, name)


def _checked(header: Header, fields: Any, name: str) -> Header:
    most = MAX_BLOCK_1 if header.version == 1 else MAX_BLOCK
    if not MIN_BLOCK <= header.block_size <= most or header.block_size % MIN_BLOCK:
        raise SourceError(f"{name}: blocks of {header.block_size} bytes cannot be")
    if not header.total_blocks:
        raise SourceError(f"{name} is of a file system without blocks")
    if fields.used_blocks > header.total_blocks:
        raise SourceError(f"{name}: {fields.used_blocks} blocks in use of {header.total_blocks} cannot be")
    if header.size > MAX_SIZE:
        raise SourceError(f"{name}: a file system of {header.size} bytes cannot be")
    most = MAX_IMPLIED if header.bitmap is BitmapMode.NONE else MAX_BITMAP
    if max(-(-header.total_blocks // 8), header.bitmap_size) > most:
        raise SourceError(f"{name}: a bitmap of {header.total_blocks} blocks is larger than can be read")
    return header
