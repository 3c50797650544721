"""What a datagram says, and how it is made by the hundred."""

from __future__ import annotations

import pytest
from construct import ConstError, StreamError
from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.packet import (
    HEADER,
    HEADER_SIZE,
    LEAST_SEGMENT,
    MAGIC,
    MOST_SEGMENT,
    MULTIPLE,
    PACKED,
    VERSION,
    Header,
    Headers,
    datagram,
    parse,
    segment_size,
    segments_of,
)
from tests.support import examples

U64, U32 = st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)


@examples(200)
@given(session=U64, sequence=U64, chunk=U32, segment=U32)
def test_precompiled_is_what_is_described(session: int, sequence: int, chunk: int, segment: int) -> None:
    packed = Header(session, sequence, chunk, segment).pack()
    assert len(packed) == HEADER.sizeof() == PACKED.size == HEADER_SIZE
    said = HEADER.parse(packed)
    assert (said.session, said.sequence, said.chunk, said.segment) == (session, sequence, chunk, segment)
    assert parse(packed, session) == Header(session, sequence, chunk, segment)
    assert parse(packed, session ^ 1) is None


@examples(300)
@given(data=st.binary(max_size=64))
def test_anything_else_is_nothing(data: bytes) -> None:
    """It is what the description says it is, or None; nothing is raised."""
    found = parse(data, 0)
    try:
        said = HEADER.parse(data)
    except (ConstError, StreamError):
        assert found is None
    else:
        assert (found is None) == (said.session != 0)


@pytest.mark.parametrize(
    "header",
    [
        PACKED.pack(MAGIC ^ 1, VERSION, 0, 7, 0, 0, 0),
        PACKED.pack(MAGIC, VERSION + 1, 0, 7, 0, 0, 0),
        PACKED.pack(MAGIC, VERSION, 1, 7, 0, 0, 0),
        PACKED.pack(MAGIC, VERSION, 0, 7, 0, 0, 0)[:-1],
    ],
)
def test_not_ours(header: bytes) -> None:
    assert parse(header, 7) is None


def test_headers_of_a_chunk() -> None:
    headers = Headers(7, 300)
    for sequence, chunk in ((0, 0), (1 << 40, 0xFEDCBA98), (5, 3)):
        headers.name(sequence, chunk)
        assert [bytes(view) for view in headers.views] == [Header(7, sequence, chunk, at).pack() for at in range(300)]


def test_a_whole_datagram_fits_the_mtu() -> None:
    size = segment_size(1500)
    packed = datagram(size).build(
        {"header": {"session": 7, "sequence": 0, "chunk": 0, "segment": 0}, "data": bytes(size)}
    )
    assert 1500 - MULTIPLE < len(packed) + 20 + 8 <= 1500
    assert size % MULTIPLE == 0
    assert segment_size(1500, ipv6=True) == (1500 - 40 - 8 - HEADER_SIZE) // MULTIPLE * MULTIPLE
    assert segment_size(65536) == MOST_SEGMENT
    assert segment_size(LEAST_SEGMENT + HEADER_SIZE + 28) == LEAST_SEGMENT
    with pytest.raises(ValueError, match="an MTU of 567 bytes is too small"):
        segment_size(LEAST_SEGMENT + HEADER_SIZE + 27)


def test_segments() -> None:
    assert [segments_of(length, 1000) for length in (1, 1000, 1001)] == [1, 1, 2]
