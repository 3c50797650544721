"""Small images with their manifests, for tests of the pure parts."""

from __future__ import annotations

import random
from functools import lru_cache

from blake3 import blake3

from restore.manifest.bmap import BLOCK, Bmap
from restore.multicast.layout import CHUNK, Layout
from restore.multicast.packet import Header, Headers, segments_of
from restore.multicast.repair import RepairMaker

SEGMENT = 1440
SESSION = 0x1122334455667788


@lru_cache
def image(chunks: int, last: int = CHUNK, seed: int = 1) -> bytes:
    """So many chunks, of which the last has another length."""
    return random.Random(seed).randbytes((chunks - 1) * CHUNK + last)


def manifest(data: bytes, unit: int = CHUNK) -> Bmap:
    """Of an image that is all mapped, by ranges of so many bytes."""
    found = Bmap(len(data))
    for start in range(0, len(data), unit):
        part = data[start : start + unit]
        found.append(start // BLOCK, (start + len(part) - 1) // BLOCK, bytes(32), blake3(part).digest())
    return found


def layout(data: bytes, unit: int = CHUNK) -> Layout:
    return Layout(manifest(data, unit))


def repairs(
    data: bytes, chunk: int, sequence: int, first: int, count: int, size: int = SEGMENT, unit: int = CHUNK
) -> list[bytes]:
    """Some of the datagrams that repair a chunk of so many bytes."""
    part = data[chunk * unit : (chunk + 1) * unit]
    segments = segments_of(len(part), size)
    maker = RepairMaker(size)
    maker.learn(chunk, memoryview(part.ljust(segments * size, b"\0")))
    made = maker.make(chunk, first, count)
    return [
        Header(SESSION, sequence, chunk, number).pack() + bytes(each)
        for number, each in enumerate(made, segments + first)
    ]


def datagrams(data: bytes, chunk: int, sequence: int, size: int = SEGMENT, unit: int = CHUNK) -> list[bytes]:
    """Those of one chunk of so many bytes, in order."""
    part = data[chunk * unit : (chunk + 1) * unit]
    count = segments_of(len(part), size)
    headers = Headers(SESSION, count)
    headers.name(sequence, chunk)
    padded = part.ljust(count * size, b"\0")
    return [bytes(headers.views[at]) + padded[at * size : (at + 1) * size] for at in range(count)]
