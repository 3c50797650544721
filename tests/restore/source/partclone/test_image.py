"""What is decoded of an image, at random and as a stream; its damage."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source import SourceError, Zeroes
from restore.source.partclone.image import PartcloneImage
from restore.source.partclone.stream import PartcloneStream
from restore.source.storage.file import LocalFile
from tests.restore.source.partclone.images import (
    CRC32,
    NONE,
    XXH64,
    XXH128,
    Content,
    Memory,
    header,
    image,
    image_1,
    some_content,
)
from tests.support import assert_same_bytes, examples

CONTENT = some_content()
FLAT = CONTENT.flat()
MIB = 1 << 20


def at_random(data: bytes) -> bytes:
    found = PartcloneImage(Memory(data), len(data))
    chunks, offset = [], 0
    while offset < found.size:
        chunks.append(found.chunk(offset))
        offset = chunks[-1][1]
    decoded = {}
    for start, end in random.Random(1).sample(chunks, len(chunks)):
        decoded[start] = bytes(found.decode(start, end))
        assert len(decoded[start]) == end - start
    assert sum(extent.length for extent in found.extents()) == found.size
    return b"".join(decoded[start] for start, _ in chunks)


def streamed(data: bytes, piece: int = 1000) -> bytes:
    found = PartcloneStream(Memory(data, seekable=False, piece=piece))
    flat = b"".join(bytes(part.length) if isinstance(part, Zeroes) else part for part in found.decode())
    assert len(flat) == found.size
    return flat


BOTH = pytest.mark.parametrize("decode", [at_random, streamed])
Decode = Callable[[bytes], bytes]


@BOTH
@pytest.mark.parametrize("reseed", [True, False])
@pytest.mark.parametrize("per", [1, 4, 7, 10_000])
@pytest.mark.parametrize("mode", [NONE, CRC32, XXH64, XXH128])
def test_checksums(decode: Decode, mode: int, per: int, reseed: bool) -> None:
    assert_same_bytes(decode(image(CONTENT, mode, per, reseed=reseed)), FLAT)


@BOTH
def test_version_1(decode: Decode) -> None:
    assert_same_bytes(decode(image_1(CONTENT)), FLAT)


@BOTH
def test_no_bitmap(decode: Decode) -> None:
    full = Content(300, 512, {number: random.Random(number).randbytes(512) for number in range(300)})
    assert_same_bytes(decode(image(full, CRC32, 9, bitmap=0)), full.flat())


@BOTH
def test_no_block_in_use(decode: Decode) -> None:
    empty = Content(3_000, 4096, {})
    assert_same_bytes(decode(image(empty)), bytes(3_000 * 4096))


@BOTH
def test_large_blocks(decode: Decode) -> None:
    """Larger than a unit of what is decoded, and than what is checked together."""
    size = 3 * MIB + 512
    content = Content(13, size, {number: random.Random(number).randbytes(size) for number in (0, *range(2, 13))})
    for mode, per, reseed in ((CRC32, 11, True), (XXH64, 5, False)):
        assert_same_bytes(decode(image(content, mode, per, reseed=reseed)), content.flat())


def test_large_blocks_of_version_1() -> None:
    content = Content(5, MIB, {number: random.Random(number).randbytes(MIB) for number in (1, 2, 4)})
    assert_same_bytes(at_random(image_1(content)), content.flat())
    assert_same_bytes(streamed(image_1(content), 70_001), content.flat())


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]


@BOTH
@pytest.mark.parametrize(
    ("made", "strip"),
    [
        (image(CONTENT, CRC32, 4), 4 * 1024 + 4),
        (image(CONTENT, CRC32, 4, reseed=False), 4 * 1024 + 4),
        (image(CONTENT, XXH128, 4), 4 * 1024 + 16),
        (image(CONTENT, XXH64, 4, reseed=False), 4 * 1024 + 8),
    ],
    ids=["CRC-32", "CRC-32 on and on", "XXH128", "XXH64 on and on"],
)
def test_a_damaged_block(decode: Decode, made: bytes, strip: int) -> None:
    name = {4: "CRC-32", 8: "XXH64", 16: "XXH128"}[strip % 1024]
    used = sorted(CONTENT.blocks)
    begin = 110 + 126 + 4
    for within in (0, 4095, strip - 1):  # the first byte, the last one, the checksum itself
        message = (
            f"memory: blocks {used[40]} to {used[43]} are damaged, "
            f"their {name} is not right (from byte {begin + 10 * strip} on)"
        )
        with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
            decode(flipped(made, begin + 10 * strip + within))
    last = len(used) // 4 * 4
    with pytest.raises(SourceError, match=f"^memory: blocks? {used[last]} "):  # the short strip at the end
        decode(flipped(made, len(made) - 1))


@BOTH
def test_a_damaged_block_of_version_1(decode: Decode) -> None:
    made = image_1(CONTENT)
    first = 4160 + CONTENT.total + 8
    number = sorted(CONTENT.blocks)[3]
    message = f"memory: block {number} is damaged, its CRC-32 is not right (from byte {first + 3 * 1028} on)"
    with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
        decode(flipped(made, first + 3 * 1028))


def test_lengths() -> None:
    made = image(CONTENT)
    for cut in (1, 4, 5000):
        with pytest.raises(SourceError, match=f"^memory is cut short: it has {len(made) - cut} of {len(made)} bytes$"):
            at_random(made[:-cut])
        with pytest.raises(SourceError, match=f"^memory is cut short: it ends at byte {len(made) - cut}, within "):
            streamed(made[:-cut])
    with pytest.raises(SourceError, match=r"^memory: 3 bytes follow its last block, which do not belong to it$"):
        at_random(made + b"abc")
    with pytest.raises(SourceError, match=r"^memory: bytes follow its last block, which do not belong to it$"):
        streamed(made + b"abc")
    with pytest.raises(SourceError, match=r"^memory is cut short: it ends within the bitmap of blocks in use$"):
        at_random(made[:200])
    with pytest.raises(SourceError, match=r"^memory is cut short: it ends at byte 200, within the bitmap of blocks"):
        streamed(made[:200])


def test_a_bitmap_that_is_not_there_takes_no_memory() -> None:
    huge = header(Content(8 << 30, 512, {}), CRC32, 4)
    with pytest.raises(SourceError, match="is cut short"):
        at_random(huge + bytes(1000))
    with pytest.raises(SourceError, match="is cut short"):
        streamed(huge + bytes(1000))


def test_plain_where_there_is_no_checksum(tmp_path: Path) -> None:
    for mode in (NONE, CRC32):
        path = tmp_path / "image"
        path.write_bytes(image(CONTENT, mode, 4))
        storage = LocalFile(str(path))
        found = PartcloneImage(storage, storage.size)
        try:
            first, count = max(found._bitmap.runs(), key=lambda run: run[1])
            for offset, length, there in (
                (first * 1024, count * 1024, True),
                (first * 1024 + 100, 2000, True),
                (first * 1024, count * 1024 + 1, False),
                (first * 1024 - 1, 10, False),
                (len(FLAT) - 1000, 1000, False),
            ):
                place = found.plain(offset, length)
                assert (place is not None) == (there and mode == NONE)
                if place is not None:
                    assert_same_bytes(storage.read(place.offset, length), FLAT[offset : offset + length])
        finally:
            found.close()


def test_extents() -> None:
    made = image(Content(10, 512, dict.fromkeys((2, 3, 9), bytes(512)), 6000))
    found = [(extent.length, extent.zero) for extent in PartcloneImage(Memory(made), len(made)).extents()]
    assert found == [(1024, True), (1024, False), (5 * 512, True), (512, False), (6000 - 5120, True)]


@st.composite
def contents(draw: st.DrawFn) -> Content:
    total = draw(st.integers(1, 40))
    used = draw(st.sets(st.integers(0, total - 1)))
    return Content(total, 512, {number: bytes((draw(st.integers(0, 255)),)) * 512 for number in used})


@given(contents(), st.sampled_from((CRC32, XXH64, XXH128)), st.integers(1, 9), st.booleans(), st.data())
@examples(150)
def test_any_damage_is_found(content: Content, mode: int, per: int, reseed: bool, data: st.DataObject) -> None:
    """Whatever byte is another one, or missing: `SourceError`, and nothing else."""
    made = image(content, mode, per, reseed=reseed)
    assert_same_bytes(at_random(made), content.flat())
    assert_same_bytes(streamed(made, data.draw(st.integers(1, 700))), content.flat())
    at = data.draw(st.integers(0, len(made) - 1))
    wrong = data.draw(st.sampled_from((flipped(made, at), made[:at], made[:at] + made[at + 1 :], made + made[at:])))
    for decode in (at_random, streamed):
        with pytest.raises(SourceError):
            decode(wrong)


@given(
    contents(),
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from(("total", "used", "block", "device", "per", "mode", "size", "bitmap", "reseed")),
        st.integers(0, 255),
        max_size=3,
    ),
)
@examples(200)
def test_a_hostile_header(content: Content, tail: bytes, fields: dict[str, int]) -> None:
    """Decoded, or a `SourceError`; whatever it says, with the right CRC-32."""
    made = header(content, CRC32, 4, **fields) + image(content)[110:] + tail
    for decode in (at_random, streamed):
        try:
            decode(made)
        except SourceError as error:
            assert str(error).startswith("memory")
