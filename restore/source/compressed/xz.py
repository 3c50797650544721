"""xz: streams of blocks, with an index of them at the end (The .xz File Format, 1.2.1)."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from typing import Final

from restore.source.compressed.input import Input
from restore.source.compressed.parallel import Step
from restore.source.compressed.serial import decode_one

MAGIC: Final = b"\xfd7zXZ\0"
MEMORY: Final = 512 << 20  # bytes that a decoder may take, for a dictionary above all
_STREAM: Final = "an xz stream"


def decode(source: Input) -> Iterator[Step]:
    """All streams."""
    first = True
    while first or source.peek(1):
        if source.peek(6) != MAGIC:
            source.damaged("no xz stream begins here, and it is not the end")
        first = False
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
        yield from decode_one(source, decoder, lzma.LZMAError, _STREAM)
        while source.peek(4) == bytes(4):  # Stream Padding
            source.exactly(4, _STREAM)
