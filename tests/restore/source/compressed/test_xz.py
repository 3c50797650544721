"""xz files with an index of several blocks are read at random.

Debian packages: xz-utils.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source import SourceError
from restore.source.compressed import decompressed, xz
from restore.source.compressed.xz import read_index
from restore.source.storage import InParts
from tests.restore.source.compressed.files import MIB, Bytes, compress, compressed_content, content, decoded
from tests.support import assert_same_bytes, examples

BLOCKS = "xz, several blocks"


@given(st.lists(st.tuples(st.integers(0, 6 * MIB), st.integers(0, 3 * MIB)), min_size=1, max_size=4))
@examples(15)
def test_any_range(reads: list[tuple[int, int]]) -> None:
    storage = decompressed(Bytes(compressed_content(BLOCKS)), "xz")
    assert storage.seekable
    assert storage.size == len(content())
    for offset, length in reads:
        assert_same_bytes(storage.read(offset, length), content()[offset : offset + length])


def test_streams_and_padding() -> None:
    """Checks of several kinds, blocks of several sizes, an empty stream."""
    parts = [compressed_content(tool, 700_000) for tool in ("xz", BLOCKS, "xz, SHA-256")]
    empty = compress("xz", b"")
    data = parts[0] + bytes(4) + empty + parts[1] + bytes(400) + parts[2] + empty + bytes(8)
    storage = decompressed(Bytes(data), "xz")
    assert isinstance(storage, InParts)
    assert storage.size == 2_100_000
    assert_same_bytes(storage.read(0, 1 << 30), content(700_000) * 3)
    assert storage.chunk(0) == (0, 1_400_000)  # the second begins in the same MiB
    assert_same_bytes(decoded(data, seekable=False), content(700_000) * 3)


def test_a_large_block() -> None:
    """Is decoded in order; its size is known."""
    storage = decompressed(Bytes(compress("xz -0 --check=crc32", bytes(64 * MIB))), "xz")
    assert not storage.seekable
    assert storage.size == 64 * MIB == sum(len(piece) for piece in storage.stream())


def test_a_block_that_is_larger_than_memory_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comes piece by piece, told by the sizes in its header."""
    monkeypatch.setattr(xz, "_WHOLE", 900_000)
    assert_same_bytes(decoded(compressed_content(BLOCKS), seekable=False), content())
    data = bytearray(compressed_content(BLOCKS))
    data[MIB // 2] ^= 1
    with pytest.raises(SourceError, match=r"^image is damaged at byte 12 of what is stored: an xz block: "):
        decoded(bytes(data), seekable=False)


@pytest.mark.parametrize(("back", "what"), [(1, "footer"), (11, "footer"), (20, "index"), (13, "index")])
def test_an_index_that_is_not_right(back: int, what: str) -> None:
    """Is not believed; and decoding in order says so when it comes there."""
    data = bytearray(compressed_content(BLOCKS, 70_000))
    data[-back] ^= 1
    assert read_index(Bytes(bytes(data))) is None
    of = "not right" if what == "footer" else "not that of its blocks"
    with pytest.raises(SourceError) as caught:
        decoded(bytes(data))
    at = len(data) - 12 if what == "footer" else caught.value.args[0].split()[5]
    assert str(caught.value) == f"image is damaged at byte {at} of what is stored: an xz stream's {what} is {of}"


def test_a_block_that_is_not_right() -> None:
    data = bytearray(compressed_content(BLOCKS))
    data[40] ^= 1
    storage = decompressed(Bytes(bytes(data)), "xz")
    with pytest.raises(SourceError) as caught:
        storage.read(0, 10)
    assert str(caught.value).startswith("image is damaged at byte 12 of what is stored: an xz block: ")
    assert_same_bytes(storage.read(2 * MIB, MIB), content()[2 * MIB : 3 * MIB])


@given(st.binary(min_size=1, max_size=200), st.integers(0, 300))
@examples(100)
def test_an_index_of_noise(noise: bytes, back: int) -> None:
    good = compressed_content(BLOCKS, 70_000)
    data = good[: len(good) - back] + noise + good[len(good) - min(back, 12) :]
    try:
        decoded(data, "xz")
    except SourceError as error:
        assert str(error).startswith("image ")
