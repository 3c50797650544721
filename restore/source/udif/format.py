"""What a UDIF image (`.dmg`) consists of, as `construct` definitions; all integers are big-endian.

    data fork      the stored bytes of all runs
    property list  XML: `resource-fork/blkx[]`, each with a name and, as `Data`, a `mish` block: a part of the disk, and
                   its runs
    koly           512 bytes, the last of the file; the first in some old images

Apple has not published the format. The definitions agree with what 7-Zip, dmg2img and qemu read. The parser goes
through runs, of which there may be many, with a precompiled struct; it is tested against `RUN`.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct as Precompiled
from typing import Final

from construct import Array, Bytes, Int32sb, Int32ub, Int64ub, Struct, this

SECTOR: Final = 512  # bytes; the unit of what is in the image, whatever the disk's own sectors were
MAX_SECTORS: Final = 1 << 54  # so that bytes fit a signed 64-bit file offset
MAX_PLIST: Final = 16 << 20  # bytes


class RunType(IntEnum):
    """How the sectors of a run are stored."""

    ZERO = 0  # not at all: they are zeroes, and the checksum covers them
    RAW = 1
    IGNORE = 2  # not at all: nothing uses them, and the checksum leaves them out; they read as zeroes
    ADC = 0x80000004
    ZLIB = 0x80000005
    BZIP2 = 0x80000006
    LZFSE = 0x80000007
    LZMA = 0x80000008  # an .xz stream
    COMMENT = 0x7FFFFFFE
    END = 0xFFFFFFFF


CRC32: Final = 2
"""The type of a checksum that is a CRC-32, of 32 bits."""

CHECKSUM: Final = Struct(
    "type" / Int32ub,  # 0 is none
    "bits" / Int32ub,
    "data" / Bytes(128),
)

KOLY: Final = Struct(
    "signature" / Bytes(4),
    "version" / Int32ub,
    "size" / Int32ub,  # of this
    "flags" / Int32ub,
    "running_data_offset" / Int64ub,  # of a segment
    "data_offset" / Int64ub,
    "data_length" / Int64ub,
    "resource_offset" / Int64ub,
    "resource_length" / Int64ub,
    "segment_number" / Int32ub,
    "segment_count" / Int32ub,  # 0 or 1: it is whole
    "segment_id" / Bytes(16),
    "data_checksum" / CHECKSUM,  # of the data fork as it is stored
    "plist_offset" / Int64ub,
    "plist_length" / Int64ub,
    "reserved" / Bytes(120),
    "master_checksum" / CHECKSUM,  # of the blocks' checksums, one after the other
    "variant" / Int32ub,
    "sectors" / Int64ub,
    "reserved2" / Bytes(12),
)

MISH_SIGNATURE: Final = b"mish"
MISH_VERSION: Final = 1
MISH: Final = Struct(
    "signature" / Bytes(4),
    "version" / Int32ub,
    "first_sector" / Int64ub,
    "sectors" / Int64ub,
    "data_start" / Int64ub,  # from the data fork's beginning
    "buffers_needed" / Int32ub,  # sectors
    "descriptor" / Int32sb,
    "reserved" / Bytes(24),
    "checksum" / CHECKSUM,  # of what the runs hold
    "run_count" / Int32ub,
)
MISH_SIZE: Final = MISH.sizeof()

RUN: Final = Struct(
    "type" / Int32ub,
    "comment" / Int32ub,
    "start" / Int64ub,  # sectors from the block's first
    "sectors" / Int64ub,
    "offset" / Int64ub,  # bytes from the block's `data_start`
    "length" / Int64ub,  # bytes stored
)
RUN_SIZE: Final = RUN.sizeof()
FAST_RUN: Final = Precompiled(">IIQQQQ")

BLOCK: Final = Struct("head" / MISH, "runs" / Array(this.head.run_count, RUN))
"""A whole `mish` block."""
