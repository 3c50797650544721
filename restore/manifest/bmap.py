"""A block map: which blocks of an image are to be copied, and their digests; written as bmap 2.0.

The format is that of bmaptool (its documentation of bmap 1.2 to 2.0): XML with the image's size, a list of ranges of
mapped blocks, each with its digest, and a digest of the file itself. What lies between the ranges is undefined. Two
things are ours, and bmaptool passes them over: each range's `blake3`, and the element `ImageFile`, which says what the
image's file was like when it was scanned.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from restore.replacing import replacing
from targetmode.disks.text import format_size

BLOCK: Final = 4096  # bytes of a block in the maps that are written here
UNIT: Final = 1 << 20  # ranges are cut at multiples of this
MAX_RANGES: Final = 1 << 24  # 16 TiB of ranges of 1 MiB
BLAKE3_SIZE: Final = 32  # bytes
SIZES: Final = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}  # of a digest, in bytes
_HAS_CHECKSUM: Final = 1
_HAS_BLAKE3: Final = 2
_LINES: Final = 4096  # written at once


@dataclass(frozen=True, slots=True)
class Range:
    """A run of mapped blocks.

    Attributes:
        start: first byte of the image.
        end: byte behind the last one; never beyond the image.
        checksum: digest by the map's `checksum_type`; None if it has none.
        blake3: digest by BLAKE3; None if it has none.
    """

    start: int
    end: int
    checksum: bytes | None
    blake3: bytes | None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """What the file of an image was like when it was scanned.

    Attributes:
        size: bytes of the file, which for a compressed image is not that of the image.
        mtime_ns: when it was last changed, in nanoseconds since 1970.
    """

    size: int
    mtime_ns: int


@dataclass(slots=True)
class Bmap:
    """A block map, at most 80 bytes a range in memory.

    Attributes:
        image_size: bytes.
        block_size: bytes.
        checksum_type: of each range's `checksum`, a key of `SIZES`; None where ranges have none.
        image_file: None in a map that was not made here.
        version: of the format it was read from.
        signer: whose signature it has, as far as that was checked.
    """

    image_size: int
    block_size: int = BLOCK
    checksum_type: str | None = "sha256"
    image_file: ImageFile | None = None
    version: str = "2.0"
    signer: str | None = None
    mapped_blocks: int = 0
    _firsts: array[int] = field(default_factory=lambda: array("Q"))
    _lasts: array[int] = field(default_factory=lambda: array("Q"))
    _flags: bytearray = field(default_factory=bytearray)
    _checksums: bytearray = field(default_factory=bytearray)
    _blake3s: bytearray = field(default_factory=bytearray)

    @property
    def blocks(self) -> int:
        """Blocks of the image."""
        return -(-self.image_size // self.block_size)

    @property
    def mapped(self) -> int:
        """Bytes of all ranges."""
        if not self._lasts:
            return 0
        return self.mapped_blocks * self.block_size - max(0, (self._lasts[-1] + 1) * self.block_size - self.image_size)

    @property
    def complete(self) -> bool:
        """Whether every range has a digest."""
        return 0 not in self._flags

    @property
    def has_checksums(self) -> bool:
        """Whether every range has one by `checksum_type`."""
        return all(flags & _HAS_CHECKSUM for flags in set(self._flags))

    def append(self, first: int, last: int, checksum: bytes | None, blake3: bytes | None = None) -> None:
        """Add a range of blocks.

        Args:
            first: its first block, behind all that were added before.
            last: its last block.
            checksum: as long as `checksum_type` has it.
            blake3: 32 bytes.

        Raises:
            ValueError: it is not behind the ones before, or one too many; says so.
        """
        if last < first:
            raise ValueError(f"range {first}-{last} ends before it begins")
        if self._lasts and first <= self._lasts[-1]:
            raise ValueError(f"range {first}-{last} does not follow block {self._lasts[-1]}, the last one before it")
        if len(self._flags) == MAX_RANGES:
            raise ValueError(f"it has more than {MAX_RANGES} ranges")
        flags = (_HAS_CHECKSUM if checksum is not None else 0) | (_HAS_BLAKE3 if blake3 is not None else 0)
        if checksum is not None:
            _store(self._checksums, len(self._flags), SIZES[self.checksum_type or ""], checksum)
        if blake3 is not None:
            _store(self._blake3s, len(self._flags), BLAKE3_SIZE, blake3)
        self._flags.append(flags)
        self._firsts.append(first)
        self._lasts.append(last)
        self.mapped_blocks += last - first + 1

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._flags)

    def __getitem__(self, index: int) -> Range:
        """A range by its number from 0."""
        flags = self._flags[index]
        checksum = blake3 = None
        if flags & _HAS_CHECKSUM:
            size = SIZES[self.checksum_type or ""]
            checksum = bytes(self._checksums[index * size : (index + 1) * size])
        if flags & _HAS_BLAKE3:
            blake3 = bytes(self._blake3s[index * BLAKE3_SIZE : (index + 1) * BLAKE3_SIZE])
        end = min((self._lasts[index] + 1) * self.block_size, self.image_size)
        return Range(self._firsts[index] * self.block_size, end, checksum, blake3)

    def __iter__(self) -> Iterator[Range]:
        """All ranges, in order."""
        return (self[index] for index in range(len(self)))

    def span(self, index: int) -> tuple[int, int]:
        """Start and end of a range in bytes of the image, without its digests."""
        end = min((self._lasts[index] + 1) * self.block_size, self.image_size)
        return self._firsts[index] * self.block_size, end

    def find(self, offset: int) -> int:
        """The number of the first range that ends behind `offset`; `len(self)` if none does."""
        return bisect_left(self._lasts, offset // self.block_size)


def _store(digests: bytearray, index: int, size: int, digest: bytes) -> None:
    if len(digest) != size:
        raise ValueError(f"a digest of {len(digest)} bytes where {size} are due")
    digests += bytes(index * size - len(digests))  # of ranges without one
    digests += digest


def write(bmap: Bmap, path: str | Path) -> None:
    """Write a map as a bmap 2.0 file, which appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    if bmap.checksum_type is None:
        raise AssertionError("a bmap 2.0 file has a checksum type")
    digest = hashlib.new(bmap.checksum_type, usedforsecurity=False)
    with replacing(path) as file:
        head, at = _head(bmap, bmap.checksum_type)
        digest.update(head)
        file.write(head)
        for first in range(0, len(bmap), _LINES):
            lines = "".join(_line(bmap, index) for index in range(first, min(first + _LINES, len(bmap)))).encode()
            digest.update(lines)
            file.write(lines)
        end = b"    </BlockMap>\n</bmap>\n"
        digest.update(end)
        file.write(end)
        file.flush()
        os.pwrite(file.fileno(), digest.hexdigest().encode(), at)


def _head(bmap: Bmap, checksum_type: str) -> tuple[bytes, int]:
    """What comes before the ranges, and where in it the file's own digest is, of which there are zeroes."""
    zeroes = "0" * (2 * SIZES[checksum_type])
    percent = 100 * bmap.mapped_blocks / bmap.blocks if bmap.blocks else 0
    file = bmap.image_file
    lines = [
        '<?xml version="1.0" ?>',
        '<bmap version="2.0">',
        f"    <!-- {format_size(bmap.image_size)}, of which {percent:.1f} % are mapped; what is not is undefined -->",
        f"    <ImageSize> {bmap.image_size} </ImageSize>",
        f"    <BlockSize> {bmap.block_size} </BlockSize>",
        f"    <BlocksCount> {bmap.blocks} </BlocksCount>",
        f"    <MappedBlocksCount> {bmap.mapped_blocks} </MappedBlocksCount>",
        f"    <ChecksumType> {checksum_type} </ChecksumType>",
        f"    <BmapFileChecksum> {zeroes} </BmapFileChecksum>",
        *([f'    <ImageFile size="{file.size}" mtime_ns="{file.mtime_ns}"/>'] if file is not None else []),
        "    <BlockMap>",
    ]
    head = ("\n".join(lines) + "\n").encode()
    return head, head.index(zeroes.encode())


def _line(bmap: Bmap, index: int) -> str:
    found = bmap[index]
    first, last = found.start // bmap.block_size, (found.end - 1) // bmap.block_size
    checksum = f' chksum="{found.checksum.hex()}"' if found.checksum is not None else ""
    blake3 = f' blake3="{found.blake3.hex()}"' if found.blake3 is not None else ""
    blocks = f"{first}-{last}" if last > first else f"{first}"
    return f"        <Range{checksum}{blake3}> {blocks} </Range>\n"
