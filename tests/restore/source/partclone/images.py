"""Partclone images: made by partclone, and put together here, by what IMAGE_FORMATS.md says and by nothing of ours.

Debian packages: partclone.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from nbd.connection import FileRange
from tests.serving import run

HEADER: Final = struct.Struct("<16s14s4sH16sQQQQIIHHHHIBB")  # and a CRC-32
NONE, CRC32, XXH64, XXH128 = 0x00, 0x20, 0x30, 0x31
SIZES: Final = {NONE: 0, CRC32: 4, XXH64: 8, XXH128: 16}
QUIET: Final = ("-q", "-f", "1")  # it waits for its progress to be shown, so much at least


def crc(data: bytes | bytearray) -> int:
    """As partclone has it."""
    return zlib.crc32(data) ^ 0xFFFFFFFF


def checksum(mode: int, data: bytes) -> bytes:
    """Of some blocks."""
    match mode:
        case 0x20:
            return crc(data).to_bytes(4, "little")
        case 0x30:
            return xxhash.xxh64(data).intdigest().to_bytes(8, "little")
        case 0x31:
            return xxhash.xxh3_128(data).intdigest().to_bytes(16, "little")
        case _:
            return b""


@dataclass(frozen=True, slots=True)
class Content:
    """A file system: its blocks in use by their number, and how many there are."""

    total: int
    block_size: int
    blocks: dict[int, bytes]
    device_size: int = 0

    def flat(self) -> bytes:
        """All of it."""
        size = max(self.total * self.block_size, self.device_size)
        data = bytearray(size)
        for number, block in self.blocks.items():
            data[number * self.block_size : (number + 1) * self.block_size] = block
        return bytes(data)


def header(content: Content, kind: int, each: int, going_on: int = 0, bits: int = 1, **fields: int) -> bytes:
    """A header of version 0002; any of its fields may be told apart."""
    used = len(content.blocks)
    values = {
        "device": content.device_size or content.total * content.block_size,
        "total": content.total,
        "super": used,
        "used": used,
        "block": content.block_size,
        "feature": 18,
        "version": 2,
        "cpu": 64,
        "mode": kind,
        "size": SIZES[kind],
        "per": each,
        "reseed": 1 - going_on,
        "bitmap": bits,
        **fields,
    }
    raw = HEADER.pack(b"partclone-image", b"0.3.23", b"0002", values.pop("endian", 0xC0DE), b"EXTFS", *values.values())
    return raw + crc(raw).to_bytes(4, "little")


def image(content: Content, mode: int = CRC32, per: int = 4, *, reseed: bool = True, bitmap: int = 1) -> bytes:
    """An image of version 0002."""
    bits = bytearray(-(-content.total // 8))
    for number in content.blocks:
        bits[number // 8] |= 1 << number % 8
    stored = header(content, mode, per, going_on=int(not reseed), bits=bitmap)
    if bitmap:
        stored += bytes(bits) + crc(bytes(bits)).to_bytes(4, "little")
    return stored + b"".join(_strips([content.blocks[number] for number in sorted(content.blocks)], mode, per, reseed))


def _strips(blocks: Sequence[bytes], mode: int, per: int, reseed: bool) -> Iterator[bytes]:
    if mode == NONE:
        yield from blocks
        return
    before = b""
    for at in range(0, len(blocks), per):
        strip = b"".join(blocks[at : at + per])
        before = strip if reseed else before + strip
        yield strip + checksum(mode, before)


def image_1(content: Content) -> bytes:
    """An image of version 0001, whose checksums are of the first byte of each block, by mistake, and go on."""
    used = len(content.blocks)
    size = content.device_size or content.total * content.block_size
    stored = b"partclone-image" + b"EXTFS".ljust(15, b"\0") + b"0001\0\0"
    stored = (stored + struct.pack("<IQQQ", content.block_size, size, content.total, used)).ljust(4160, b"\0")
    stored += bytes(int(number in content.blocks) for number in range(content.total)) + b"BiTmAgIc"
    value = 0
    for number in sorted(content.blocks):
        block = content.blocks[number]
        value = zlib.crc32(block[:1] * content.block_size, value)
        stored += block + (value ^ 0xFFFFFFFF).to_bytes(4, "little")
    return stored


def some_content(seed: int = 3, total: int = 1003, block_size: int = 1024) -> Content:
    """Blocks at random places: long runs, short ones, and a last block that is in use."""
    rng = random.Random(seed)
    blocks: dict[int, bytes] = {}
    at = 3
    while at < total:
        for number in range(at, min(at + rng.choice((1, 2, 9, 80)), total)):
            blocks[number] = rng.randbytes(block_size)
            at = number
        at += rng.choice((2, 3, 17, 70))
    blocks[total - 1] = rng.randbytes(block_size)
    return Content(total, block_size, blocks, total * block_size + 1536)


class Memory:
    """A storage of bytes, which can be read from anywhere or only from the start."""

    name = "memory"

    def __init__(self, data: bytes, *, seekable: bool = True, piece: int = 1 << 20) -> None:
        self.data, self.seekable, self._piece = data, seekable, piece
        self.size: int | None = len(data) if seekable else None

    def read(self, offset: int, length: int) -> bytes:
        assert self.seekable
        return self.data[offset : offset + length]

    def stream(self) -> Iterator[bytes]:
        for at in range(0, len(self.data), self._piece):
            yield self.data[at : at + self._piece]

    def plain(self, offset: int, length: int) -> FileRange | None:
        return None

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass


def partclone(commands: Sequence[Sequence[str | Path]]) -> None:
    """Run several at the same time: each of them waits for a second."""
    with ThreadPoolExecutor(len(commands)) as pool:
        list(pool.map(lambda command: run(*command), commands))


def clone(kind: str, source: Path, target: Path, *options: str) -> list[str | Path]:
    """The command that makes an image."""
    return [f"partclone.{kind}", *QUIET, *options, "-c", "-s", source, "-O", target, "-L", f"{target}.log"]


def restoration(source: Path, target: Path) -> list[str | Path]:
    """The command that restores one into a file of the device's size."""
    return ["partclone.restore", *QUIET, "-W", "-s", source, "-O", target, "-L", f"{target}.log"]
