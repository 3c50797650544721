"""Zstandard's seekable format (0.1.0): frames of known sizes, and a seek table in a skippable frame at the end."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Final

import xxhash
import zstandard

from restore.source import SourceError
from restore.source.compressed.blocks import Index, Part
from restore.source.compressed.input import damage
from restore.source.compressed.zstd import MAGIC, decode_frame, is_skippable
from restore.source.storage import Storage

_HEAD: Final = struct.Struct("<II")  # Skippable_Magic_Number, Frame_Size
_FOOTER: Final = struct.Struct("<IBI")  # Number_Of_Frames, Seek_Table_Descriptor, Seekable_Magic_Number
_SKIPPABLE: Final = 0x184D2A5E
_SEEKABLE: Final = 0x8F92EAB1
_CHECKSUMS: Final = 0x80  # in the descriptor: entries have a checksum
_RESERVED: Final = 0x7C
_MOST: Final = 1 << 24  # frames; of 1 MiB each that are 16 TiB
_EMPTIES: Final = 1000  # frames that hold nothing, at most, and
_EMPTY: Final = 1 << 10  # bytes that one may take
_BLOCK: Final = 128 << 10
_HAS_CHECKSUM: Final = 0x04  # in a frame's header descriptor


class Seekable:
    """How frames with an entry in a seek table are decoded: a `Format`."""

    def __init__(self, name: str, checksums: array[int] | None) -> None:
        """`checksums` has the low half of the XXH64 of each frame's content."""
        self._name = name
        self._checksums = checksums

    def decode(self, part: Part, stored: bytes) -> bytes:
        """A frame's content, held against the table."""
        if stored[:4] != MAGIC:
            raise SourceError(damage(self._name, part.at, "no zstd frame begins here, as its seek table says"))
        try:
            told = zstandard.frame_content_size(stored)
        except zstandard.ZstdError:
            told = -1  # which decoding will say better
        if told > part.length:
            raise SourceError(damage(self._name, part.at, _sizes(told, part.length)))
        data = decode_frame(self._name, part.at, stored, part.length)
        if len(data) != part.length:
            raise SourceError(damage(self._name, part.at, _sizes(len(data), part.length)))
        if self._checksums is not None and _checksum(stored, data) != self._checksums[part.number]:
            raise SourceError(damage(self._name, part.at, "a frame's checksum is not that in the seek table"))
        return data

    def is_zero(self, part: Part, stored: bytes) -> bool:
        """Whether it is a frame as `zero_frame` makes them."""
        return stored == zero_frame(part.length)


def _sizes(have: int, want: int) -> str:
    return f"a frame holds {have} bytes, and by the seek table {want}"


def _checksum(stored: bytes, data: bytes) -> int:
    """Of a frame that was decoded; it ends with that itself where it has one, and then it was found to be right."""
    if stored[4] & _HAS_CHECKSUM:
        return int.from_bytes(stored[-4:], "little")
    return xxhash.xxh64_intdigest(data) & 0xFFFFFFFF


def read_seek_table(storage: Storage) -> tuple[Index, Seekable] | None:
    """The parts of a storage in the seekable format.

    Returns:
        None where it has no seek table, or one that is not of all that is stored. All frames can still be decoded
        in order.

    Raises:
        SourceError, OSError: it cannot be read.
    """
    size = storage.size
    if size is None or not storage.seekable or size < _HEAD.size + _FOOTER.size:
        return None
    count, descriptor, magic = _FOOTER.unpack(storage.read(size - _FOOTER.size, _FOOTER.size))
    words = 3 if descriptor & _CHECKSUMS else 2
    length = _HEAD.size + 4 * words * count + _FOOTER.size
    if magic != _SEEKABLE or descriptor & _RESERVED or not 0 < count <= _MOST or length > size:
        return None
    table = storage.read(size - length, length - _FOOTER.size)
    if _HEAD.unpack_from(table) != (_SKIPPABLE, length - _HEAD.size):
        return None
    entries = array("I", table[_HEAD.size :])
    if sys.byteorder == "big":
        entries.byteswap()
    stored, lengths = entries[0::words], entries[1::words]
    if sum(stored) != size - length:
        return None
    checksums = entries[2::words] if words == 3 else None
    index = Index()
    kept = array("I")
    at = 0
    empty = 0
    for number, (taken, held) in enumerate(zip(stored, lengths, strict=True)):
        if not held and taken:  # nothing would ever be read of it, so that nobody would see if that is not so
            empty += 1
            if taken > _EMPTY or empty > _EMPTIES or not _is_empty(storage.name, at, storage.read(at, taken)):
                return None
        if held:
            index.append(at, taken, held)
            if checksums is not None:
                kept.append(checksums[number])
        at += taken
    return (index, Seekable(storage.name, kept if checksums is not None else None)) if len(index) else None


def _is_empty(name: str, at: int, stored: bytes) -> bool:
    """Whether a frame holds nothing."""
    if is_skippable(stored[:4]):
        return int.from_bytes(stored[4:8], "little") == len(stored) - 8
    with suppress(SourceError, zstandard.ZstdError):
        return zstandard.frame_content_size(stored) in (-1, 0) and not decode_frame(name, at, stored, 1)
    return False


class SeekTable:
    """A seek table that grows with the frames that are written; 12 bytes for each."""

    def __init__(self) -> None:
        self._entries = array("I")

    def append(self, frame: bytes, length: int) -> None:
        """Add a frame, which ends with a checksum, of so many bytes of content."""
        self._entries.extend((len(frame), length, int.from_bytes(frame[-4:], "little")))

    def pieces(self) -> Iterator[bytes]:
        """The skippable frame that has to follow the last frame."""
        count = len(self._entries) // 3
        yield _HEAD.pack(_SKIPPABLE, 12 * count + _FOOTER.size)
        entries = self._entries
        if sys.byteorder == "big":
            entries = array("I", entries)
            entries.byteswap()
        yield entries.tobytes()
        yield _FOOTER.pack(count, _CHECKSUMS, _SEEKABLE)


@lru_cache(128)
def zero_frame(length: int) -> bytes:
    """A frame of so many zeroes, at least one: 4 bytes for every 128 KiB.

    The first block is a byte as it is: zstd up to 1.4.3 refuses a frame that begins with a run (RFC 8878, 3.1.1.2.2).
    """
    digest = xxhash.xxh64()
    left = length - 1
    blocks = [_block(0, 1, last=not left)]
    while left:
        size = min(left, _BLOCK)
        left -= size
        blocks.append(_block(1, size, last=not left))
    for start in range(0, length, _BLOCK):
        digest.update(_ZEROES[: length - start])
    descriptor = 0x80 | _HAS_CHECKSUM  # a content size of four bytes, and a window
    window = bytes([(17 - 10) << 3])  # of 128 KiB
    head = MAGIC + bytes([descriptor]) + window + length.to_bytes(4, "little")
    return head + b"".join(blocks) + (digest.intdigest() & 0xFFFFFFFF).to_bytes(4, "little")


_ZEROES: Final = bytes(_BLOCK)


def _block(kind: int, size: int, *, last: bool) -> bytes:
    """A block of one byte that is zero, as it is (0) or repeated (1)."""
    return (last | kind << 1 | size << 3).to_bytes(3, "little") + b"\0"
