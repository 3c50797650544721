"""The checksums of blocks (partclone's checksum.c)."""

from __future__ import annotations

from typing import Final, Protocol

import xxhash

from restore.source.partclone.header import Header, Mode

try:
    from isal.isal_zlib import crc32
except ImportError:  # there is none for this processor
    from zlib import crc32


class Checksum(Protocol):
    """A checksum that is being made."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes of blocks."""
        ...

    def value(self) -> bytes:
        """What it is so far, as an image keeps it."""
        ...


def checksum(header: Header) -> Checksum:
    """A new one of the kind that an image has."""
    match header.mode:
        case Mode.NONE:
            return _None()
        case Mode.CRC32:
            return _CRC32()
        case Mode.XXH64 | Mode.XXH128:
            return _XXH(header.mode)
        case Mode.CRC32_0001:
            return _FirstBytes(header.block_size)


class _None:
    def update(self, data: memoryview) -> None:
        pass

    def value(self) -> bytes:
        return b""


class _CRC32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview) -> None:
        self._value = crc32(data, self._value)

    def value(self) -> bytes:
        return (self._value ^ 0xFFFFFFFF).to_bytes(4, "little")


class _XXH:
    def __init__(self, mode: Mode) -> None:
        self._digest = xxhash.xxh64() if mode is Mode.XXH64 else xxhash.xxh3_128()
        self._size: Final = mode.size

    def update(self, data: memoryview) -> None:
        self._digest.update(data)

    def value(self) -> bytes:
        return self._digest.intdigest().to_bytes(self._size, "little")


class _FirstBytes:
    """A CRC-32 that takes the first byte of each block for all of its bytes, as version 0001 has it by mistake."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._left = 0  # bytes of the current block that are still to come
        self._value = 0
        self._blocks: dict[int, bytes] = {}

    def update(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            if not self._left:
                first = data[at]
                block = self._blocks.get(first)
                if block is None:
                    block = self._blocks[first] = bytes((first,)) * self._block_size
                self._value = crc32(block, self._value)
                self._left = self._block_size
            count = min(self._left, len(data) - at)
            at += count
            self._left -= count

    def value(self) -> bytes:
        return (self._value ^ 0xFFFFFFFF).to_bytes(4, "little")
