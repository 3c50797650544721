"""The definitions themselves, and that the hot path's precompiled structs say the same."""

from __future__ import annotations

import errno

import pytest
from construct import ConstError, ConstructError
from hypothesis import given
from hypothesis import strategies as st

from nbd import responder, transmission, wire
from nbd.wire import ReplyType
from tests.support import examples

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFFFFFF)
U64 = st.integers(0, 0xFFFFFFFFFFFFFFFF)


@examples(50)
@given(U16, U16, U64, U64, U32)
def test_request(flags: int, kind: int, cookie: int, offset: int, length: int) -> None:
    packed = transmission.REQUEST.pack(wire.REQUEST_MAGIC, flags, kind, cookie, offset, length)
    values = {"flags": flags, "type": kind, "cookie": cookie, "offset": offset, "length": length}
    assert wire.Request.build(values) == packed
    parsed = wire.Request.parse(packed)
    assert all(parsed[name] == value for name, value in values.items())
    assert transmission.REQUEST.size == wire.Request.sizeof() == 28


@examples(50)
@given(U32, U64)
def test_simple_reply(error: int, cookie: int) -> None:
    packed = transmission.simple_reply(cookie, error)
    assert packed == wire.SimpleReply.build({"error": error, "cookie": cookie})
    parsed = wire.SimpleReply.parse(packed)
    assert (parsed.error, parsed.cookie) == (error, cookie)
    assert transmission.SIMPLE_REPLY.unpack(packed) == (wire.SIMPLE_REPLY_MAGIC, error, cookie)
    assert transmission.SIMPLE_REPLY.size == wire.SimpleReply.sizeof() == 16


@examples(50)
@given(U64, U16, U32, st.booleans())
def test_chunk_header(cookie: int, kind: int, length: int, done: bool) -> None:
    packed = transmission.chunk(cookie, kind, length, done=done)
    values = {"flags": int(done), "type": kind, "cookie": cookie, "length": length}
    assert packed == wire.StructuredReplyHeader.build(values)
    parsed = wire.StructuredReplyHeader.parse(packed)
    assert all(parsed[name] == value for name, value in values.items())
    assert transmission.CHUNK.size == wire.StructuredReplyHeader.sizeof() == 20


@examples(50)
@given(U64, U64, st.binary(min_size=1, max_size=100), st.booleans())
def test_data_chunk(cookie: int, offset: int, data: bytes, done: bool) -> None:
    packed = transmission.data_chunk(cookie, offset, len(data), done=done) + data
    reply = wire.StructuredReply.parse(packed)
    assert (reply.header.cookie, reply.header.type, reply.header.flags) == (cookie, ReplyType.OFFSET_DATA, int(done))
    assert (reply.payload.offset, reply.payload.data) == (offset, data)
    assert wire.StructuredReply.build(reply) == packed


@examples(50)
@given(U64, U64, st.integers(0, 0xFFFFFFF0))
def test_data_chunk_of_the_hot_path(cookie: int, offset: int, length: int) -> None:
    packed = responder._CHUNK_HEAD.pack(wire.STRUCTURED_REPLY_MAGIC, 1, 1, cookie, 8 + length, offset)
    assert packed == transmission.data_chunk(cookie, offset, length, done=True)
    header = {"flags": 1, "type": ReplyType.OFFSET_DATA, "cookie": cookie, "length": 8 + length}
    assert packed == wire.StructuredReplyHeader.build(header) + wire.OffsetData.build({"offset": offset, "data": b""})


@examples(50)
@given(U64, U64, U32, st.booleans())
def test_hole_chunk(cookie: int, offset: int, length: int, done: bool) -> None:
    reply = wire.StructuredReply.parse(transmission.hole_chunk(cookie, offset, length, done=done))
    assert (reply.header.type, reply.header.flags) == (ReplyType.OFFSET_HOLE, int(done))
    assert (reply.payload.offset, reply.payload.length) == (offset, length)
    assert transmission.OFFSET_HOLE.size == wire.OffsetHole.sizeof()


@examples(50)
@given(U64, U32, st.lists(st.tuples(U32, U32), max_size=20))
def test_status_chunk(cookie: int, context: int, extents: list[tuple[int, int]]) -> None:
    packed = transmission.status_chunk(cookie, context, extents)
    reply = wire.StructuredReply.parse(packed)
    assert (reply.header.cookie, reply.header.type, reply.header.flags) == (cookie, ReplyType.BLOCK_STATUS, 1)
    assert reply.payload.context == context
    assert [(extent.length, extent.flags) for extent in reply.payload.extents] == extents
    assert wire.StructuredReply.build(reply) == packed
    assert transmission.EXTENT.size == wire.ExtentDescriptor.sizeof()


@examples(50)
@given(U64, st.integers(1, 0xFFFFFFFF), st.text(max_size=5000))
def test_error_chunk(cookie: int, error: int, message: str) -> None:
    reply = wire.StructuredReply.parse(transmission.error_chunk(cookie, error, message))
    assert (reply.header.type, reply.header.flags, reply.payload.error) == (ReplyType.ERROR, 1, error)
    assert reply.payload.message == message.encode()[: wire.MAX_STRING]


@examples(50)
@given(U64)
def test_done_chunk(cookie: int) -> None:
    reply = wire.StructuredReply.parse(transmission.done_chunk(cookie))
    assert (reply.header.type, reply.header.flags, reply.header.length) == (ReplyType.NONE, 1, 0)
    assert reply.header.cookie == cookie


@examples(50)
@given(U64, U16)
def test_export_name_reply(size: int, flags: int) -> None:
    short = wire.ExportNameReply.build({"size": size, "flags": flags})
    assert len(short) == 10
    assert wire.ExportNameReplyPadded.build({"size": size, "flags": flags}) == short + bytes(124)


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (wire.Greeting, b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3"),
        (wire.OptionHeader, b"IHAVEOPT" + bytes(8)),
        (wire.OptionReplyHeader, (0x3E889045565A9).to_bytes(8, "big") + bytes(12)),
        (wire.Request, (0x25609513).to_bytes(4, "big") + bytes(24)),
        (wire.SimpleReply, (0x67446698).to_bytes(4, "big") + bytes(12)),
        (wire.StructuredReplyHeader, (0x668E33EF).to_bytes(4, "big") + bytes(16)),
    ],
)
def test_magic_numbers_are_those_of_the_specification(message: object, data: bytes) -> None:
    message.parse(data)  # type: ignore[attr-defined]
    with pytest.raises(ConstError):
        message.parse(b"\xff" + data[1:])  # type: ignore[attr-defined]
    with pytest.raises(ConstructError):
        message.parse(data[:-1])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [error.name for error in wire.Error])
def test_errors_keep_their_names(name: str) -> None:
    assert wire.error_from_errno(getattr(errno, name)).name == name
    assert wire.errno_from_error(wire.Error[name]) == getattr(errno, name)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EROFS, wire.Error.EPERM),
        (errno.EDQUOT, wire.Error.ENOSPC),
        (errno.EFBIG, wire.Error.ENOSPC),
        (errno.EBADF, wire.Error.EIO),
        (errno.ENXIO, wire.Error.EIO),
    ],
)
def test_errors_without_a_name_on_the_wire(number: int, error: int) -> None:
    assert wire.error_from_errno(number) == error


def test_unknown_errors_read_as_einval() -> None:
    assert wire.errno_from_error(4711) == errno.EINVAL
