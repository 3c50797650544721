"""Judging requests and parsing replies, without a socket."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd import transmission, wire
from nbd.errors import ProtocolError
from nbd.transmission import Pending, Rules, chunk, data_chunk, done_chunk, error_chunk, hole_chunk, read_reply
from nbd.wire import Command, CommandFlag, Error, ReplyType
from tests.support import examples

SIZE = 1 << 20
KIB = 1024


# --- Requests ---


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "error"),
    [
        (Command.READ, 0, 0, SIZE, 0),
        (Command.READ, CommandFlag.FUA, 0, 1, 0),
        (Command.READ, 0, SIZE - 1, 1, 0),
        (Command.READ, 0, SIZE - 1, 2, Error.EINVAL),
        (Command.READ, 0, (1 << 64) - 1, 1, Error.EINVAL),
        (Command.READ, 0, 0, 0, Error.EINVAL),
        (Command.READ, CommandFlag.DF, 0, 1, 0),
        (Command.READ, CommandFlag.REQ_ONE, 0, 1, Error.EINVAL),
        (Command.WRITE, 0, SIZE, 1, Error.ENOSPC),
        (Command.WRITE, 0, 0, 0, Error.EINVAL),
        (Command.WRITE, CommandFlag.DF, 0, 1, Error.EINVAL),
        (Command.WRITE_ZEROES, 0, 1, SIZE, Error.ENOSPC),
        (Command.WRITE_ZEROES, 22, 0, 1, Error.EINVAL),
        (Command.WRITE_ZEROES, 19, 0, 1, 0),
        (Command.TRIM, 0, 1, SIZE, Error.EINVAL),
        (Command.CACHE, 0, 1, SIZE, Error.EINVAL),
        (Command.FLUSH, 0, 0, 0, 0),
        (Command.FLUSH, 0, 1, 0, Error.EINVAL),
        (Command.FLUSH, 0, 0, 1, Error.EINVAL),
        (Command.BLOCK_STATUS, CommandFlag.REQ_ONE, 0, 1, 0),
        (Command.BLOCK_STATUS, 0, 1, SIZE, Error.EINVAL),
        (Command.RESIZE, 0, 0, 1, Error.EINVAL),
        (99, 0, 0, 1, Error.EINVAL),
        (Command.READ, 1 << 15, 0, 1, Error.EINVAL),
    ],
)
def test_refusal(command: int, flags: int, offset: int, length: int, error: int) -> None:
    rules = Rules(SIZE, read_only=False, structured=True, has_context=True)
    assert rules.refusal(command, flags, offset, length) == error


def test_refusals_by_what_was_agreed() -> None:
    plain = Rules(SIZE, read_only=True, structured=False, has_context=False)
    assert [plain.refusal(command, 0, 0, 1) for command in range(8)] == [
        0,
        Error.EPERM,
        Error.EINVAL,
        Error.EINVAL,
        Error.EPERM,
        0,
        Error.EPERM,
        Error.EINVAL,
    ]
    assert plain.refusal(Command.READ, CommandFlag.DF, 0, 1) == Error.EINVAL
    small = Rules(SIZE, read_only=False, structured=True, has_context=True, maximum=4096)
    assert small.refusal(Command.READ, 0, 0, 4097) == Error.EOVERFLOW
    assert small.refusal(Command.WRITE, 0, 0, 4097) == Error.EOVERFLOW
    assert small.refusal(Command.WRITE_ZEROES, 0, 0, SIZE) == 0


# --- Replies ---


def pending_requests() -> dict[int, Pending]:
    """One request of every kind."""
    return {
        1: Pending(1, Command.READ, 0, 4096, 1024, memoryview(bytearray(1024))),
        2: Pending(2, Command.WRITE, 0, 0, 512),
        3: Pending(3, Command.FLUSH, 0, 0, 0),
        4: Pending(4, Command.TRIM, 0, 0, 4096),
        5: Pending(5, Command.WRITE_ZEROES, 0, 0, 4096),
        6: Pending(6, Command.BLOCK_STATUS, 0, 0, 65536),
        7: Pending(7, Command.BLOCK_STATUS, CommandFlag.REQ_ONE, 0, 65536),
        8: Pending(8, Command.CACHE, 0, 0, 4096),
        9: Pending(9, Command.READ, 0, 0, 16, memoryview(bytearray(16))),
    }


def parse(stream: bytes, pending: dict[int, Pending], *, structured: bool = True) -> list[int]:
    """The cookies answered by a stream of replies; it may end in the middle of one."""
    position = 0
    answered: list[int] = []
    while pending:
        steps = read_reply(pending, structured=structured)
        want = next(steps)
        try:
            while True:
                size = want if isinstance(want, int) else len(want)
                assert 0 <= size <= wire.MAX_EXTENTS * 8 + 4
                piece = stream[position : position + size]
                if len(piece) < size:
                    return answered
                position += size
                if isinstance(want, int):
                    want = steps.send(piece)
                else:
                    want[:] = piece
                    want = steps.send(b"")
        except StopIteration as done:
            if done.value is not None:
                answered.append(done.value)
                del pending[done.value]
    return answered


def read_of(length: int, offset: int = 0) -> tuple[dict[int, Pending], Pending]:
    request = Pending(1, Command.READ, 0, offset, length, memoryview(bytearray(length)))
    return {1: request}, request


def test_chunks_in_any_order() -> None:
    pieces = [
        data_chunk(1, 100, 10, done=False) + b"a" * 10,
        hole_chunk(1, 110, 20, done=False),
        data_chunk(1, 130, 5, done=False) + b"b" * 5,
    ]
    for order in itertools.permutations(pieces):
        pending, request = read_of(35, 100)
        assert request.buffer is not None
        request.buffer[:] = b"x" * 35
        assert parse(b"".join(order) + done_chunk(1), pending) == [1]
        assert bytes(request.buffer) == b"a" * 10 + bytes(20) + b"b" * 5


def test_a_simple_reply_with_data() -> None:
    pending, request = read_of(5)
    assert parse(transmission.simple_reply(1) + b"hello", pending, structured=False) == [1]
    assert bytes(request.buffer or b"") == b"hello"


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([done_chunk(1)], id="nothing"),
        pytest.param([data_chunk(1, 0, 99, done=True) + bytes(99)], id="too little"),
        pytest.param([hole_chunk(1, 1, 99, done=True)], id="gap at the start"),
        pytest.param([hole_chunk(1, 0, 40, done=False), hole_chunk(1, 50, 50, done=True)], id="gap inside"),
        pytest.param([hole_chunk(1, 0, 60, done=False), hole_chunk(1, 40, 60, done=True)], id="overlap"),
        pytest.param([hole_chunk(1, 0, 60, done=False), hole_chunk(1, 0, 60, done=False)], id="twice"),
        pytest.param([hole_chunk(1, 0, 50, done=False), hole_chunk(1, 0, 50, done=True)], id="half of it twice"),
        pytest.param([hole_chunk(1, 0, 101, done=True)], id="past the end"),
        pytest.param([hole_chunk(1, 0, 0xFFFFFFFF, done=True)], id="4 GiB"),
        pytest.param([hole_chunk(1, (1 << 64) - 1, 1, done=True)], id="far away"),
        pytest.param([hole_chunk(1, 0, 0, done=False)], id="empty hole"),
        pytest.param([data_chunk(1, 0, 0, done=False)], id="empty data"),
        pytest.param([data_chunk(1, 0, 0xFFFFFFF7, done=False)], id="data of 4 GiB"),
        pytest.param([chunk(1, ReplyType.OFFSET_DATA, 3, done=True) + bytes(3)], id="no offset"),
        pytest.param([chunk(1, ReplyType.OFFSET_HOLE, 13, done=True) + bytes(13)], id="long hole"),
        pytest.param([chunk(1, ReplyType.NONE, 0, done=False)], id="NONE that is not the last"),
        pytest.param([chunk(1, ReplyType.NONE, 1, done=True) + b"x"], id="NONE with a payload"),
        pytest.param([chunk(1, 3, 8, done=True) + bytes(8)], id="unknown type"),
        pytest.param([transmission.status_chunk(1, 0, [(100, 0)])], id="extents"),
        pytest.param([transmission.simple_reply(1) + bytes(100)], id="simple reply"),
        pytest.param([done_chunk(2)], id="unknown cookie"),
        pytest.param([chunk(1, ReplyType.ERROR, 5, done=True) + bytes(5)], id="short error"),
        pytest.param([chunk(1, ReplyType.ERROR, 6, done=True) + bytes(6)], id="error 0"),
        pytest.param([chunk(1, ReplyType.ERROR, 6, done=True) + b"\0\0\0\5\xff\xff"], id="error with a long message"),
        pytest.param([chunk(1, ReplyType.ERROR, 0xFFFFFFFF, done=True)], id="error of 4 GiB"),
        pytest.param([chunk(1, ReplyType.ERROR_OFFSET, 6, done=True) + b"\0\0\0\5\0\0"], id="error without its offset"),
        pytest.param([b"\0" * 20], id="no magic"),
    ],
)
def test_what_a_read_must_not_get(chunks: list[bytes]) -> None:
    pending, _ = read_of(100)
    with pytest.raises(ProtocolError):
        parse(b"".join(chunks), pending)


@pytest.mark.parametrize(
    ("cookie", "reply"),
    [
        (6, transmission.simple_reply(6)),
        (6, done_chunk(6)),
        (6, transmission.status_chunk(6, 7, [])),
        (6, transmission.status_chunk(6, 7, [(0, 0)])),
        (6, transmission.status_chunk(6, 7, [(4096, 0), (0, 0)])),
        (6, transmission.status_chunk(6, 7, [(65536, 0), (1, 0)])),
        (6, transmission.status_chunk(6, 7, [(1 << 31, 0), (1 << 31, 0), (1 << 31, 0)])),
        (6, chunk(6, ReplyType.BLOCK_STATUS, 0, done=True)),
        (6, chunk(6, ReplyType.BLOCK_STATUS, 3, done=True) + bytes(3)),
        (6, chunk(6, ReplyType.BLOCK_STATUS, 13, done=True) + bytes(13)),
        (6, chunk(6, ReplyType.BLOCK_STATUS, 4 + 8 * (wire.MAX_EXTENTS + 1), done=True)),
        (6, chunk(6, ReplyType.BLOCK_STATUS, 0xFFFFFFFC, done=True)),
        (7, transmission.status_chunk(7, 7, [(4096, 0), (4096, 0)])),
        (2, hole_chunk(2, 0, 512, done=True)),
        (2, data_chunk(2, 0, 512, done=True) + bytes(512)),
        (2, transmission.status_chunk(2, 0, [(512, 0)])),
        (3, hole_chunk(3, 0, 0, done=True)),
    ],
)
def test_what_other_requests_must_not_get(cookie: int, reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(reply, {cookie: pending_requests()[cookie]})


def test_extents() -> None:
    pending = pending_requests()
    request, one = pending[6], pending[7]
    # The last extent may go past the request; an extent more than that may not.
    extents = [(512, 0), (65536, 3), (1024, 0)]
    with pytest.raises(ProtocolError):
        parse(transmission.status_chunk(6, 7, extents), pending)
    pending = {6: request, 7: one}
    request.extents = []
    stream = transmission.status_chunk(6, 7, extents[:2]) + transmission.status_chunk(7, 7, [(4096, 2)])
    assert parse(stream, pending) == [6, 7]
    assert (request.extents, one.extents) == (extents[:2], [(4096, 2)])


def test_two_status_chunks_are_one_too_many() -> None:
    first = bytearray(transmission.status_chunk(6, 7, [(4096, 0)]))
    first[4:6] = bytes(2)  # not the last one
    with pytest.raises(ProtocolError):
        parse(bytes(first) + transmission.status_chunk(6, 8, [(4096, 0)]), pending_requests())


@pytest.mark.parametrize(
    "reply",
    [
        error_chunk(1, Error.EIO, "a bad sector"),
        data_chunk(1, 4096, 100, done=False) + bytes(100) + error_chunk(1, Error.EIO, "a bad sector"),
        chunk(1, ReplyType.ERROR_OFFSET, 26, done=False)
        + struct.pack(">IH12sQ", 5, 12, b"a bad sector", 4200)
        + done_chunk(1),
        chunk(1, 0x8099, 18, done=True) + struct.pack(">IH12s", 5, 12, b"a bad sector"),
        error_chunk(1, Error.EIO, "a bad sector")[:4]
        + b"\0\0"
        + error_chunk(1, Error.EIO, "a bad sector")[6:]
        + error_chunk(1, Error.ENOSPC, "the second error does not count"),
    ],
)
def test_errors_are_kept_with_their_words(reply: bytes) -> None:
    pending = pending_requests()
    request = pending[1]
    assert parse(reply, pending) == [1]
    assert request.failure is not None
    assert (request.failure.errno, request.failure.command) == (5, "READ")
    assert (request.failure.offset, request.failure.length) == (4096, 1024)
    assert "a bad sector" in str(request.failure)


@pytest.mark.parametrize("cookie", range(1, 10))
@pytest.mark.parametrize("structured", [True, False])
def test_simple_errors(cookie: int, structured: bool) -> None:
    pending = pending_requests()
    request = pending[cookie]
    reply = transmission.simple_reply(cookie, Error.ESHUTDOWN)
    if structured and request.command == Command.READ:
        with pytest.raises(ProtocolError):
            parse(reply, pending)
        return
    assert parse(reply, pending, structured=structured) == [cookie]
    assert request.failure is not None
    assert request.failure.errno == 108


def test_structured_replies_need_negotiation() -> None:
    with pytest.raises(ProtocolError):
        parse(done_chunk(2), pending_requests(), structured=False)


def test_a_read_in_tiny_pieces_takes_little_memory() -> None:
    size = 20_000
    pending, request = read_of(size)
    stream = b"".join(data_chunk(1, offset, 1, done=False) + b"x" for offset in range(size)) + done_chunk(1)
    tracemalloc.start()
    try:
        assert parse(stream, pending) == [1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert bytes(request.buffer or b"") == b"x" * size
    assert peak < 1 << 17


def test_a_read_in_too_many_scattered_pieces_is_a_protocol_error() -> None:
    pending, _ = read_of(1 << 20)
    with pytest.raises(ProtocolError):
        parse(b"".join(hole_chunk(1, 2 * number, 1, done=False) for number in range(100_000)), pending)


# --- Any bytes ---

COOKIES = st.one_of(st.integers(0, 10), st.integers(0, (1 << 64) - 1))
LENGTHS = st.one_of(st.sampled_from([0, 1, 6, 8, 12, 16, 512, 1024]), st.integers(0, 0xFFFFFFFF))
OFFSETS = st.one_of(st.sampled_from([0, 4096, 4608]), st.integers(0, (1 << 64) - 1))


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """One reply: well-formed for one of the requests, or nearly so."""
    cookie, done = draw(COOKIES), draw(st.booleans())
    kind = draw(st.integers(0, 7))
    size = draw(st.sampled_from([16, 512, 1024]))
    offset = draw(OFFSETS)
    match kind:
        case 0:
            return transmission.simple_reply(cookie, draw(st.sampled_from([0, 0, 5, 28, 77]))) + draw(
                st.sampled_from([b"", bytes(16), bytes(1024)])
            )
        case 1:
            return data_chunk(cookie, offset, size, done=done) + bytes(size)
        case 2:
            return hole_chunk(cookie, offset, draw(LENGTHS), done=done)
        case 3:
            extents = draw(st.lists(st.tuples(LENGTHS, st.integers(0, 4)), max_size=4))
            return transmission.status_chunk(cookie, 7, extents)
        case 4:
            return error_chunk(cookie, draw(st.integers(0, 100)), draw(st.text(max_size=10)))
        case 5:
            return done_chunk(cookie)
        case 6:
            payload = draw(st.binary(max_size=40))
            kinds = st.one_of(st.sampled_from([*ReplyType]), st.integers(0, 0xFFFF))
            return chunk(cookie, draw(kinds), len(payload), done=done) + payload
        case _:
            return chunk(cookie, draw(st.integers(0, 0xFFFF)), draw(LENGTHS), done=done) + draw(st.binary(max_size=40))


def outcome(stream: bytes, *, structured: bool) -> object:
    pending = pending_requests()
    asked: Sequence[Pending] = list(pending.values())
    try:
        answered = parse(stream, pending, structured=structured)
    except ProtocolError:
        return None
    for request in asked:
        if request.cookie in answered and request.failure is None and request.command == Command.BLOCK_STATUS:
            assert request.extents
    return answered


@examples(1000)
@given(st.one_of(st.binary(max_size=100), st.lists(chunks(), max_size=6).map(b"".join)), st.booleans())
def test_any_bytes_parse_or_are_a_protocol_error(stream: bytes, structured: bool) -> None:
    outcome(stream, structured=structured)
