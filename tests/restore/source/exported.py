"""Disks to be exported or put into images, and how all of a source is read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from restore.source import Source
from restore.source.payload import as_memory
from tests.restore.engine import MIB
from tests.serving import pattern

SIZE: Final = 13 * MIB


def disk_with_holes(path: Path, size: int = SIZE) -> bytes:
    """Data in its first 3 MiB, 4 KiB at 5 MiB, and from 9 MiB on; holes between."""
    data = bytearray(size)
    for start, end in ((0, 3 * MIB), (5 * MIB, 5 * MIB + 4096), (9 * MIB, size)):
        data[start:end] = pattern(end - start, start)
    with path.open("wb") as file:
        file.truncate(size)
        for start, end in ((0, 3 * MIB), (5 * MIB, 5 * MIB + 4096), (9 * MIB, size)):
            file.seek(start)
            file.write(data[start:end])
    return bytes(data)


def read_all(source: Source) -> bytes:
    assert source.size is not None
    pieces = ((at, min(MIB, source.size - at)) for at in range(0, source.size, MIB))
    return b"".join(as_memory(source.payload(at, length), length, source.name) for at, length in pieces)
