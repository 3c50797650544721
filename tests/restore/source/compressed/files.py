"""Compressed files as the usual programs make them, and storages of bytes at hand.

Debian packages: bzip2 gzip lz4 pbzip2 pigz tabix xz-utils zstd.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Final

from restore.source.compressed import HEAD, decompressed, sniff

MIB: Final = 1 << 20
TOOLS: Final = {
    "gzip": "gzip",
    "gzip, with a name": "gzip -N",
    "pigz": "pigz -p 2",
    "bgzip": "bgzip -c",
    "bzip2": "bzip2 -1",
    "pbzip2": "pbzip2 -p2 -b1 -1",
    "xz": "xz -0",
    "xz, several blocks": "xz -0 -T2 --block-size=1MiB",
    "xz, several blocks in one thread": "xz -0 -T1 --block-size=1MiB",
    "xz, SHA-256": "xz -0 -T2 --block-size=1MiB --check=sha256",
    "zstd": "zstd",
    "zstd, in threads": "zstd -T2 -B512K",
    "pzstd": "pzstd -p 2",
    "zstd, a long window": "zstd --long=27",
    "lz4": "lz4 -c",
    "lz4, small blocks": "lz4 -c -B4 -BX",
    "lz4, blocks that depend on others": "lz4 -c -BD -B5",
    "lz4, with its size": "lz4 -c --content-size",
}
"""Commands that compress standard input, or a file whose path is added, to standard output."""


@cache
def content(size: int = 2 * MIB + 612_345, seed: int = 1) -> bytes:
    """What is compressed: noise, text, and zeroes of some MiB in the middle."""
    source = random.Random(seed)
    words = [source.randbytes(source.randrange(2, 12)) for _ in range(500)]
    text = b" ".join(source.choices(words, k=size // 24))
    data = source.randbytes(size // 5) + text[: size // 5]
    return data + bytes(size - 2 * len(data)) + data[::-1]


def compress(tool: str, data: bytes) -> bytes:
    """Have one of `TOOLS`, or any command, do it."""
    command = TOOLS.get(tool, tool).split()
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=60)
    return done.stdout


@cache
def compressed_content(tool: str, size: int = 2 * MIB + 612_345) -> bytes:
    """`content` compressed, once for all tests."""
    return compress(tool, content(size))


class Bytes:
    """A `Storage` of bytes; without `seekable` as a server sends it that sends it whole."""

    name = "image"

    def __init__(self, data: bytes, *, seekable: bool = True, piece: int = MIB) -> None:
        self.data = data
        self.seekable = seekable
        self.size = len(data) if seekable else None
        self.piece = piece
        self.closed = 0
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, length: int) -> bytes:
        assert self.seekable
        self.reads.append((offset, length))
        return self.data[offset : offset + length]

    def stream(self) -> Iterator[bytes]:
        for start in range(0, len(self.data), self.piece):
            yield self.data[start : start + self.piece]

    def plain(self, offset: int, length: int) -> None:
        return None

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


def decoded(data: bytes, form: str | None = None, *, seekable: bool = True, piece: int = MIB) -> bytes:
    """All that a compressed file holds."""
    found = form or sniff(data[:HEAD])
    assert found is not None
    storage = decompressed(Bytes(data, seekable=seekable, piece=piece), found)
    whole = b"".join(storage.stream())
    assert storage.size in (None, len(whole))
    return whole
