"""Bounded reading from an untrusted disk, as the parsers of superblocks need it."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from targetmode.disks.layout import Reader

HEAD_SIZE = 72 * 1024
"""How much of the start of a disk is read at once, in bytes: up to and with btrfs's superblock, the furthest."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What a disk or partition holds, by its superblock.

    Attributes:
        kind: As blkid names it: `ext4`, `vfat`, `LVM2_member`, `crypto_LUKS`.
        label: Its name, safe to print; empty when it has none.
        uuid: As blkid prints it; empty when it has none.
        offset: Where the superblock that tells so starts, in bytes.
    """

    kind: str
    label: str
    uuid: str
    offset: int = 0

    def __str__(self) -> str:
        """Says kind and label: `ext4 "root"`."""
        return f'{self.kind} "{self.label}"' if self.label else self.kind


class Media:
    """A disk or partition of known size whose head is read once.

    Attributes:
        size: In bytes.
    """

    __slots__ = ("_head", "_read", "size")

    def __init__(self, read: Reader, size: int) -> None:
        self.size = size
        self._read = read
        self._head: bytes | None = None

    def at(self, offset: int, length: int) -> bytes:
        """Reads `length` bytes at `offset`; empty when they do not all lie within the disk.

        Raises:
            OSError: They cannot be read.
        """
        if offset < 0 or length <= 0 or offset + length > self.size:
            return b""
        if offset + length <= HEAD_SIZE:
            if self._head is None:
                self._head = self._read(0, min(HEAD_SIZE, self.size))
            return self._head[offset : offset + length]
        return self._read(offset, length)

    def starts(self, offset: int, magic: bytes) -> bool:
        """Tells whether `magic` is at `offset`."""
        return self.at(offset, len(magic)) == magic


def field(raw: bytes, layout: str, offset: int) -> int:
    """Takes the one integer that the `struct` format `layout` describes from `raw` at `offset`."""
    value: int = struct.unpack_from(layout, raw, offset)[0]
    return value


def format_uuid(raw: bytes) -> str:
    """Formats 16 bytes as a UUID in the order they are stored; empty when they are all zero."""
    return str(uuid.UUID(bytes=raw)) if any(raw) else ""


def is_power_of_two(value: int) -> bool:
    """Tells whether `value` is 1, 2, 4, 8, and so on."""
    return value > 0 and value & (value - 1) == 0
