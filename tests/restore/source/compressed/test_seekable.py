"""zstd in the seekable format is read at random, and held against its seek table.

Debian packages: zstd.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nbd.backend import Extent
from restore.source import SourceError
from restore.source.chunked import ChunkedSource
from restore.source.compressed import decompressed
from restore.source.compressed.seekable import SeekTable, zero_frame
from restore.source.raw import RawImage
from restore.source.storage import InParts, Storage
from tests.restore.source.compressed.files import MIB, Bytes, compress, content, decoded
from tests.support import assert_same_bytes, examples

CONTENT = content(4 * MIB)
LENGTHS = (300_000, MIB, 1, 700_000, MIB + 205_000, 64 << 10, 64 << 10)


def seekable(lengths: Sequence[int] = LENGTHS, *, checksums: bool = True, tool: str = "zstd") -> bytes:
    """Frames by zstd, and a seek table as the format's specification has it."""
    data, position, entries, stored = CONTENT, 0, b"", b""
    for length in lengths:
        part = data[position : position + length]
        position += length
        frame = compress(tool, part)
        stored += frame
        entries += struct.pack("<II", len(frame), length)
        if checksums:
            entries += struct.pack("<I", xxhash.xxh64_intdigest(part) & 0xFFFFFFFF)
    footer = struct.pack("<IBI", len(lengths), checksums << 7, 0x8F92EAB1)
    return stored + struct.pack("<II", 0x184D2A5E, len(entries) + len(footer)) + entries + footer


WHOLE = seekable()
NOISE = compress("zstd", b"noise")


def opened(data: bytes) -> Storage:
    return decompressed(Bytes(data), "zstd")


@pytest.mark.parametrize("checksums", [False, True])
@pytest.mark.parametrize("tool", ["zstd", "zstd --no-check", "zstd --no-content-size"])
def test_what_is_in_it(checksums: bool, tool: str) -> None:
    storage = opened(seekable(checksums=checksums, tool=tool))
    want = CONTENT[: sum(LENGTHS)]
    assert storage.seekable
    assert storage.size == len(want)
    assert_same_bytes(storage.read(0, len(want) + 5), want)
    assert_same_bytes(b"".join(storage.stream()), want)


@given(st.lists(st.tuples(st.integers(0, sum(LENGTHS)), st.integers(0, 3 * MIB)), min_size=1, max_size=6))
@examples(40)
def test_any_range(reads: list[tuple[int, int]]) -> None:
    storage = opened(WHOLE)
    want = CONTENT[: sum(LENGTHS)]
    for offset, length in reads:
        assert_same_bytes(storage.read(offset, length), want[offset : offset + length])


def test_only_what_is_wanted_is_read_and_once() -> None:
    stored = Bytes(WHOLE)
    storage = decompressed(stored, "zstd")
    assert storage.size is not None
    del stored.reads[:]
    storage.read(300_000 + MIB + 5, 10)
    storage.read(300_000 + MIB + 500, 10)
    assert len(stored.reads) == 1
    source = ChunkedSource(RawImage(storage, storage.size))
    del stored.reads[:]
    for offset in range(0, storage.size, 300_000):
        source.payload(offset, min(300_000, storage.size - offset))
    assert len(set(stored.reads)) == len(stored.reads) == len(LENGTHS)
    source.close()
    assert stored.closed == 1


def test_many_that_read_a_little_at_once() -> None:
    """Have each frame decoded once among them, and again where that failed."""
    stored = Bytes(WHOLE)
    storage = decompressed(stored, "zstd")
    del stored.reads[:]
    with ThreadPoolExecutor(4) as pool:
        offsets = range(0, sum(LENGTHS) - 1000, 10_000)
        found = list(pool.map(lambda offset: storage.read(offset, 1000), offsets))
    assert_same_bytes(b"".join(found), b"".join(CONTENT[offset : offset + 1000] for offset in offsets))
    assert len(stored.reads) == len(set(stored.reads)) >= len(LENGTHS) - 1
    again = Bytes(WHOLE)
    storage = decompressed(again, "zstd")
    again.data = b""
    with pytest.raises(OSError, match="image ends at byte 0, earlier than it did at the start"):
        storage.read(5, 10)
    again.data = WHOLE
    assert storage.read(5, 10) == CONTENT[5:15]


def test_frames_are_decoded_together_by_the_mib() -> None:
    storage = opened(WHOLE)
    assert isinstance(storage, InParts)
    starts = [sum(LENGTHS[:count]) for count in range(len(LENGTHS) + 1)]
    chunks, offset = [], 0
    while offset < sum(LENGTHS):
        start, end = storage.chunk(offset)
        assert start == offset
        assert {storage.chunk(at) for at in (start, end - 1)} == {(start, end)}
        chunks.append((start, end))
        offset = end
    assert [(starts.index(a), starts.index(b)) for a, b in chunks] == [(0, 2), (2, 5), (5, 7)]


def test_without_reading_at_random() -> None:
    """A server that only sends it whole sends what is decoded in order."""
    assert_same_bytes(decoded(WHOLE, seekable=False), CONTENT[: sum(LENGTHS)])


@pytest.mark.parametrize("size", [1, 2, 100, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, (128 << 10) + 2, 3 * MIB + 7])
def test_zeroes(size: int) -> None:
    frame = zero_frame(size)
    assert subprocess.run(["zstd", "-dc"], input=frame, capture_output=True, check=True).stdout == bytes(size)
    assert len(frame) < 40 + 4 * (size >> 17)


def test_holes() -> None:
    """Are parts that are nothing but zeroes, whoever made them."""
    table, stored = SeekTable(), b""
    for frame, length in (
        (compress("zstd", b"\1" * 100), 100),
        (zero_frame(5 * MIB), 5 * MIB),
        (zero_frame(99_999), 99_999),
        (compress("zstd", bytes(2 * MIB)), 2 * MIB),
        (compress("zstd", bytes(2 * MIB - 1) + b"\1"), 2 * MIB),
        (zero_frame(MIB), MIB),
    ):
        stored += frame
        table.append(frame, length)
    storage = opened(stored + b"".join(table.pieces()))
    assert isinstance(storage, InParts)
    wanted = [(100, False), (7 * MIB + 99_999, True), (2 * MIB, False), (MIB, True)]
    assert list(storage.extents()) == [Extent(length, hole=zero, zero=zero) for length, zero in wanted]
    assert storage.read(0, 1 << 30) == b"\1" * 100 + bytes(9 * MIB + 99_998) + b"\1" + bytes(MIB)


def damaged(data: bytes) -> str:
    storage = opened(data)
    assert storage.seekable
    with pytest.raises(SourceError) as caught:
        storage.read(0, 1 << 30)
    return str(caught.value)


def test_a_checksum_that_is_not_right() -> None:
    data = bytearray(WHOLE)
    data[-9 - 12 * len(LENGTHS) + 8] ^= 1
    assert damaged(bytes(data)) == (
        "image is damaged at byte 0 of what is stored: a frame's checksum is not that in the seek table"
    )
    plain = bytearray(seekable(tool="zstd --no-check"))
    plain[100] ^= 1  # in noise, which is stored as it is
    assert damaged(bytes(plain)) == damaged(bytes(data))


def test_a_size_that_is_not_right() -> None:
    first = len(compress("zstd", CONTENT[:300_000]))
    data = bytearray(WHOLE)
    struct.pack_into("<I", data, len(data) - 9 - 12 * len(LENGTHS) + 4, 299_999)
    said = "image is damaged at byte 0 of what is stored: a frame holds 300000 bytes, and by the seek table "
    plain = bytearray(seekable(tool="zstd --no-content-size"))
    struct.pack_into("<I", plain, len(plain) - 9 - 12 * len(LENGTHS) + 4, 300_001)
    assert damaged(bytes(plain)) == said + "300001"
    # zstd knows its content's size only of a file, so this is told by what is decoded
    assert "a zstd frame: " in damaged(bytes(data)) or damaged(bytes(data)) == said + "299999"
    moved = bytearray(WHOLE)
    at = len(moved) - 9 - 12 * len(LENGTHS)
    struct.pack_into("<I", moved, at, first + 1)
    (second,) = struct.unpack_from("<I", moved, at + 12)
    struct.pack_into("<I", moved, at + 12, second - 1)
    assert "image is damaged at byte 0 of what is stored: a zstd frame: " in damaged(bytes(moved))


@pytest.mark.parametrize("where", ["count", "descriptor", "magic", "stored size", "frame size"])
def test_a_table_that_is_none(where: str) -> None:
    """Does not matter: all frames are decoded in their order."""
    data = bytearray(WHOLE)
    table = len(data) - 9 - 12 * len(LENGTHS)
    at = {"count": -9, "descriptor": -5, "magic": -1, "stored size": table, "frame size": table - 4}[where]
    data[at] ^= 4
    if where == "frame size":
        with pytest.raises(SourceError, match=r"cut short|no zstd frame begins here"):
            decoded(bytes(data))
        return
    assert not opened(bytes(data)).seekable
    assert_same_bytes(decoded(bytes(data)), CONTENT[: sum(LENGTHS)])


def test_two_of_them() -> None:
    """The last table is not of both."""
    assert not opened(WHOLE + WHOLE).seekable
    assert_same_bytes(decoded(WHOLE + WHOLE), CONTENT[: sum(LENGTHS)] * 2)


@given(st.integers(0, len(WHOLE) - 1) | st.integers(len(WHOLE) - 110, len(WHOLE) - 1), st.integers(1, 255))
@examples(60)
def test_a_byte_that_is_not_right(at: int, value: int) -> None:
    data = bytearray(WHOLE)
    data[at] ^= value
    want = CONTENT[: sum(LENGTHS)]
    try:
        storage = opened(bytes(data))
        found = storage.read(0, 1 << 30) if storage.seekable else b"".join(storage.stream())
    except SourceError as error:
        assert str(error).startswith("image ")
    else:
        assert_same_bytes(found, want)


@given(st.binary(max_size=60), st.integers(0, 1 << 32), st.integers(0, 255))
@examples(100)
def test_a_table_of_noise(entries: bytes, count: int, descriptor: int) -> None:
    footer = struct.pack("<IBI", count & 0xFFFFFFFF, descriptor, 0x8F92EAB1)
    table = struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries + footer
    try:
        storage = opened(NOISE + table)
        found = storage.read(0, 1 << 30) if storage.seekable else b"".join(storage.stream())
        assert found == b"noise"
    except SourceError as error:
        assert str(error).startswith("image ")
