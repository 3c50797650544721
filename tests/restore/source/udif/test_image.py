from __future__ import annotations

import random
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.errors import RestoreError
from restore.source import CHUNK_LIMIT, SourceError, SourceSettings
from restore.source.chunked import ChunkedSource
from restore.source.udif.format import RunType
from restore.source.udif.image import UdifImage
from scripts.dmg import Part, Run, tail
from tests.restore.source.udif.images import KIB, MIB, Memory, opened, part, read_all, text, whole
from tests.support import assert_same_bytes, examples

HOLES = (RunType.ZERO, RunType.IGNORE)
DATA = (RunType.RAW, RunType.ZLIB, RunType.BZIP2, RunType.LZFSE, RunType.LZMA, RunType.ADC)
TEXT = text(300 * KIB)


def piece(kind: RunType, sectors: int, seed: int) -> tuple[RunType, bytes]:
    return kind, bytes(sectors * 512) if kind in HOLES else TEXT[seed % 1000 :][: sectors * 512]


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(HOLES + DATA), st.sampled_from([1, 9, 64, 200])), min_size=1, max_size=8),
        min_size=1,
        max_size=3,
    ),
    st.randoms(use_true_random=False),
)
@examples(30)
def test_any_image_read_in_any_way(blocks: list[list[tuple[RunType, int]]], order: random.Random) -> None:
    fork, parts, content = bytearray(b"before"), [], b""
    extents: list[tuple[bool, int]] = []
    for number, kinds in enumerate(blocks):
        pieces = [piece(kind, sectors, number) for kind, sectors in kinds]
        parts.append(part(f"block {number}", len(content) // 512, pieces, fork, checked=number != 1))
        content += b"".join(data for _, data in pieces)
        extents += [(kind in HOLES, len(data)) for kind, data in pieces]
    image = opened(bytes(fork) + tail(parts, len(fork)))
    assert image.size == len(content)
    assert [(extent.zero, extent.hole, extent.length) for extent in image.extents()] == [
        (hole, hole, sum(length for _, length in group)) for hole, group in groupby(extents, key=lambda found: found[0])
    ]
    assert_same_bytes(read_all(image), content)
    source = ChunkedSource(image, workers=2)
    for _ in range(20):
        offset = order.randrange(len(content))
        length = min(order.randrange(1, MIB), len(content) - offset)
        payload = source.payload(offset, length)
        if isinstance(payload, FileRange):
            assert payload.fd == 99
        else:
            assert_same_bytes(payload, content[offset : offset + length])
    source.close()


def test_small_runs_are_decoded_together_and_read_at_once() -> None:
    """200 KiB each and a small hole; what is larger, and what is behind a large hole, is by itself."""
    small = [(RunType.ZLIB, TEXT[number : number + 200 * KIB]) for number in range(3)]
    hole, large = (RunType.ZERO, bytes(64 * KIB)), (RunType.IGNORE, bytes(65 * KIB))
    many = [*small, hole, small[0], large, small[1], (RunType.ZLIB, TEXT * 4), large]
    storage = Memory(whole(*many))
    image = UdifImage(storage, SourceSettings())
    chunks, offset = [], 0
    while offset < image.size:
        start, end = image.chunk(offset)
        chunks.append((end - start) // KIB)
        offset = end
    assert chunks == [864, 65, 200, 1200, 65]
    storage.reads.clear()
    image.decode(*image.chunk(0))
    assert len(storage.reads) == 1
    image.decode(*image.chunk(864 * KIB))
    assert len(storage.reads) == 1, "a hole was read"


def test_runs_that_are_stored_far_apart_are_read_one_by_one() -> None:
    fork = bytearray()
    block = part("disk", 0, [(RunType.RAW, TEXT[: 8 * KIB]), (RunType.RAW, TEXT[8 * KIB : 16 * KIB])], fork)
    fork[8 * KIB : 8 * KIB] = bytes(MIB)
    block.runs[1].offset += MIB
    storage = Memory(bytes(fork) + tail([block], len(fork)))
    image = UdifImage(storage, SourceSettings())
    storage.reads.clear()
    assert_same_bytes(read_all(image), TEXT[: 16 * KIB])
    assert storage.reads == [(0, 8 * KIB), (MIB + 8 * KIB, 8 * KIB)]


def test_holes_of_any_size() -> None:
    """A disk of 8 EiB less a little, in one block."""
    sectors = (1 << 54) - 8
    block = Part("disk", 0, sectors, [Run(RunType.IGNORE, 0, sectors)], (2, 32, bytes(4)))
    image = opened(tail([block], 0))
    assert image.size == sectors * 512
    assert [*image.extents()] == [Extent(image.size, hole=True, zero=True)]
    for offset in (0, MIB - 1, MIB, (1 << 62) + 12345, image.size - 1):
        start, end = image.chunk(offset)
        assert start <= offset < end <= start + CHUNK_LIMIT
        assert not any(image.decode(start, end))


def test_large_raw_runs_are_cut_and_checked() -> None:
    data = text(MIB) * 11
    content = whole((RunType.RAW, data))
    image = opened(content)
    assert image.plain(0, MIB) is None, "its checksum would not be checked"
    assert image.chunk(5 * MIB) == (4 * MIB, 8 * MIB)
    assert_same_bytes(read_all(image), data)
    wrong = bytearray(content)
    wrong[10 * MIB] ^= 1
    image = opened(bytes(wrong))
    image.decode(8 * MIB, 11 * MIB)
    image.decode(4 * MIB, 8 * MIB)
    with pytest.raises(SourceError, match=r'^x.dmg is damaged: "disk": its checksum is '):
        image.decode(0, 4 * MIB)
    with pytest.raises(SourceError, match="its checksum is"):
        image.decode(8 * MIB, 11 * MIB)


def test_without_checksums() -> None:
    """It is said, and raw runs lie plain where the file is a local one."""
    notes: list[str] = []
    data = text(9 * MIB)
    fork = bytearray(b"x" * 100)
    first = part("one", 0, [(RunType.RAW, data)], fork, checked=False)
    second = part("two", 9 * MIB // 512, [(RunType.ZLIB, TEXT)], fork, checked=False)
    image = opened(bytes(fork) + tail([first, second], len(fork)), notes)
    assert notes == ['x.dmg has no CRC-32 for "one" and 1 other block: not checked']
    assert image.plain(4 * MIB - 1, MIB) == FileRange(99, 100 + 4 * MIB - 1)
    assert image.plain(9 * MIB - 1, 1) == FileRange(99, 100 + 9 * MIB - 1)
    assert image.plain(9 * MIB - 1, 2) is None
    assert image.plain(9 * MIB, 1) is None
    assert_same_bytes(read_all(image), data + TEXT)


def test_checked_images_say_nothing() -> None:
    notes: list[str] = []
    opened(whole((RunType.ZLIB, TEXT)), notes)
    assert not notes


def test_a_run_that_cannot_be_decoded_is_named() -> None:
    content = bytearray(whole((RunType.RAW, TEXT[: 8 * KIB]), (RunType.ADC, TEXT[: 8 * KIB])))
    content[8 * KIB] = 0
    with pytest.raises(SourceError) as caught:
        read_all(opened(bytes(content)))
    assert str(caught.value) == (
        'x.dmg is damaged: the ADC run at sector 16, in "disk", stored at byte 8192: a copy from before the beginning; '
        "get another copy of it"
    )


def test_a_file_that_changes() -> None:
    storage = Memory(whole((RunType.RAW, TEXT)))
    image = UdifImage(storage, SourceSettings())
    image.check_unchanged()
    storage.content, right = storage.content[: 10 * KIB], storage.content
    with pytest.raises(OSError, match=r"x.dmg ends at byte 10240, earlier than it did at the start"):
        read_all(image)
    storage.content = right
    assert_same_bytes(read_all(image), TEXT)
    storage.content = b"y" + right[1:]
    with pytest.raises(SourceError, match='"disk": reading it twice did not give the same'):
        read_all(image)
    storage.changed = True
    with pytest.raises(RestoreError, match="was changed meanwhile"):
        image.check_unchanged()
    image.close()
    assert storage.closed
