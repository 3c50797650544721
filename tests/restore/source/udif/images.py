"""UDIF images in memory, right ones and wrong ones."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

from nbd.connection import FileRange
from restore.errors import RestoreError
from restore.source import SourceSettings
from restore.source.udif.format import CRC32, SECTOR, RunType
from restore.source.udif.image import UdifImage
from scripts.dmg import Part, Run, compress, tail

NAME: Final = "x.dmg"
KIB: Final = 1 << 10
MIB: Final = 1 << 20


class Memory:
    """A storage of bytes, which may be changed; counts what is read."""

    name = NAME
    seekable: Final = True

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.reads: list[tuple[int, int]] = []
        self.closed = self.changed = False

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length >= 0
        self.reads.append((offset, length))
        return self.content[offset : offset + length]

    def stream(self) -> Iterator[bytes]:
        yield self.content

    def plain(self, offset: int, length: int) -> FileRange | None:
        assert offset + length <= self.size
        return FileRange(99, offset)

    def check_unchanged(self) -> None:
        if self.changed:
            raise RestoreError(f"{self.name} was changed meanwhile")

    def close(self) -> None:
        self.closed = True


def text(size: int, seed: int = 1) -> bytes:
    """Bytes that can be compressed to about a half; never zeroes."""
    choice = random.Random(seed)
    words = [choice.randbytes(4) for _ in range(200)]
    return b"".join(choice.choices(words, k=size // 4 + 1))[:size]


def part(
    name: str, first: int, pieces: Sequence[tuple[RunType, bytes]], fork: bytearray, *, checked: bool = True
) -> Part:
    """A block of runs that hold these bytes, with its stored bytes added to the data fork."""
    position, crc = 0, 0
    runs = []
    for kind, data in pieces:
        stored = compress(kind, data)
        runs.append(Run(kind, position, len(data) // SECTOR, len(fork), len(stored)))
        position += len(data) // SECTOR
        crc = crc if kind == RunType.IGNORE else zlib.crc32(data, crc)
        fork += stored
    runs.append(Run(RunType.END, position, 0, len(fork)))
    return Part(name, first, position, runs, (CRC32, 32, crc.to_bytes(4)) if checked else (0, 0, b""))


def whole(*pieces: tuple[RunType, bytes], checked: bool = True) -> bytes:
    """An image of one block."""
    fork = bytearray()
    block = part("disk", 0, pieces, fork, checked=checked)
    return bytes(fork) + tail([block], len(fork))


def opened(content: bytes, notes: list[str] | None = None) -> UdifImage:
    """The image that bytes are."""
    return UdifImage(Memory(content), SourceSettings(notify=(notes if notes is not None else []).append))


def read_all(image: UdifImage) -> bytes:
    """All of an image, chunk by chunk."""
    found, offset = [], 0
    while offset < image.size:
        start, end = image.chunk(offset)
        assert start == offset < end <= image.size
        data = image.decode(start, end)
        assert len(data) == end - start
        found.append(bytes(data))
        offset = end
    return b"".join(found)
