"""lz4 (LZ4 Frame Format Description 1.6.4): frames that follow one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import lz4.frame

from restore.source.compressed.input import Input
from restore.source.compressed.parallel import Step
from restore.source.compressed.serial import decode_one

MAGIC: Final = b"\x04\x22\x4d\x18"
LEGACY: Final = b"\x02\x21\x4c\x18"
_FRAME: Final = "an lz4 frame"


def decode(source: Input) -> Iterator[Step]:
    """All frames."""
    first = True
    while first or source.peek(1):
        if source.peek(4) != MAGIC:
            source.damaged("no lz4 frame begins here, and it is not the end")
        first = False
        yield from decode_one(source, lz4.frame.LZ4FrameDecompressor(), RuntimeError, _FRAME)
