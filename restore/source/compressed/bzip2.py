"""bzip2: streams that follow one another."""

from __future__ import annotations

import bz2
from collections.abc import Iterator
from typing import Final

from restore.source.compressed.input import Input
from restore.source.compressed.parallel import Step
from restore.source.compressed.serial import decode_one

BLOCK: Final = b"\x31\x41\x59\x26\x53\x59"  # a block begins
END: Final = b"\x17\x72\x45\x38\x50\x90"  # the stream ends
_STREAM: Final = "a bzip2 stream"


def begins(head: bytes) -> bool:
    """Whether a stream begins here."""
    return head[:3] == b"BZh" and head[3:4] in b"123456789" and head[4:10] in (BLOCK, END)


def decode(source: Input) -> Iterator[Step]:
    """All streams."""
    first = True
    while first or source.peek(1):
        if not begins(source.peek(10)):
            source.damaged("no bzip2 stream begins here, and it is not the end")
        first = False
        yield from decode_one(source, bz2.BZ2Decompressor(), OSError, _STREAM)
