"""Sets of chunks, against Python's own."""

from __future__ import annotations

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.chunkset import ChunkSet
from tests.support import examples

COUNT = 77
MEMBERS = st.sets(st.integers(0, COUNT - 1))


@examples(200)
@given(first=MEMBERS, second=MEMBERS, start=st.integers(0, COUNT))
def test_as_pythons_own(first: set[int], second: set[int], start: int) -> None:
    chunks = ChunkSet(COUNT, first)
    assert list(chunks) == sorted(first)
    assert len(chunks) == len(first)
    assert bool(chunks) == bool(first)
    assert chunks.next(start) == min((member for member in first if member >= start), default=None)
    copy = chunks.copy()
    chunks.update(ChunkSet(COUNT, second))
    assert set(chunks) == first | second
    chunks.remove_all(ChunkSet(COUNT, second))
    assert set(chunks) == first - second
    for member in second:
        copy.discard(member)
        assert member not in copy
    assert copy == chunks
    assert ChunkSet.from_text(copy.to_text(), COUNT) == copy


def test_full() -> None:
    assert list(ChunkSet.full(9)) == list(range(9))
    assert not ChunkSet.full(0)
    assert ChunkSet.full(3) != ChunkSet.full(4)


@pytest.mark.parametrize("member", [-1, 5])
def test_there_is_no_such_chunk(member: int) -> None:
    with pytest.raises(IndexError, match=f"no chunk {member}, there are 5"):
        ChunkSet(5, [member])
    assert member not in ChunkSet.full(5)
    ChunkSet(5).discard(member)


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "AAAA",
        "é",
        packed(b""),
        packed(b"\0\0"),
        packed(b"\x20"),  # chunk 5 of 5
        packed(bytes(1 << 20)),
        base64.b64encode(zlib.compress(b"\1") + b"x").decode(),
        base64.b64encode(zlib.compress(b"\1")[:-1]).decode(),
    ],
)
def test_no_set(text: str) -> None:
    with pytest.raises(ValueError, match=r"it is no set|it has chunks that are not there: there are 5"):
        ChunkSet.from_text(text, 5)


@examples(200)
@given(text=st.text(max_size=40))
def test_whatever_comes(text: str) -> None:
    try:
        assert len(ChunkSet.from_text(text, 12)) <= 12
    except ValueError as error:
        assert str(error)
