"""The transmission phase without input or output: judging requests, building replies, parsing replies.

The structs here are the hot path's precompiled form of the definitions in `wire.py`; a test holds them equal.

Specification: sections "Transmission", "Request types", "Structured reply types", "Error values".
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nbd import wire
from nbd.errors import ProtocolError, RequestFailed
from nbd.wire import Command, CommandFlag, Error, ReplyFlag, ReplyType

REQUEST: Final = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY: Final = struct.Struct(">IIQ")  # magic, error, cookie
CHUNK: Final = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length of the payload
OFFSET_DATA: Final = struct.Struct(">Q")  # the absolute offset; data follow
OFFSET_HOLE: Final = struct.Struct(">QI")
EXTENT: Final = struct.Struct(">II")
ERROR: Final = struct.Struct(">IH")  # error, length of the message that follows
CONTEXT: Final = struct.Struct(">I")

# Flags a command may carry; FUA is valid for all of them (section "Command flags"). Plain integers here and below: the
# arithmetic of enum.IntFlag costs more than the rest of a small request.
_ALLOWED: Final[dict[int, int]] = {
    int(Command.READ): int(CommandFlag.FUA | CommandFlag.DF),
    int(Command.WRITE): int(CommandFlag.FUA),
    int(Command.FLUSH): int(CommandFlag.FUA),
    int(Command.TRIM): int(CommandFlag.FUA),
    int(Command.CACHE): int(CommandFlag.FUA),
    int(Command.WRITE_ZEROES): int(CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    int(Command.BLOCK_STATUS): int(CommandFlag.FUA | CommandFlag.REQ_ONE),
}
_PAST_END: Final[dict[int, int]] = {int(Command.WRITE): Error.ENOSPC, int(Command.WRITE_ZEROES): Error.ENOSPC}
_MODIFYING: Final = frozenset(int(c) for c in (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES))
_MAX_PIECES: Final = 1 << 16  # pieces of one READ that do not join, in the order they come
_DF: Final = int(CommandFlag.DF)
_WRITE: Final = int(Command.WRITE)
_FLUSH: Final = int(Command.FLUSH)
_BLOCK_STATUS: Final = int(Command.BLOCK_STATUS)


@dataclass(frozen=True, slots=True)
class Rules:
    """What was agreed in the handshake and decides whether a request is allowed.

    Attributes:
        size: bytes of the export.
        read_only: the export was offered with `READ_ONLY`.
        structured: structured replies were negotiated.
        has_context: a metadata context is in force.
        maximum: most payload bytes of one request or reply.
    """

    size: int
    read_only: bool
    structured: bool
    has_context: bool
    maximum: int = wire.MAX_PAYLOAD

    def refusal(self, command: int, flags: int, offset: int, length: int) -> int:
        """The error value that a request deserves before anything is done for it; 0 when it is allowed."""
        allowed = _ALLOWED.get(command)
        if allowed is None or flags & ~allowed:
            return Error.EINVAL
        if command == _FLUSH:
            return Error.EINVAL if offset or length else 0
        if self.read_only and command in _MODIFYING:
            return Error.EPERM
        if not length:
            return Error.EINVAL
        if offset + length > self.size:
            return _PAST_END.get(command, Error.EINVAL)
        if command <= _WRITE and length > self.maximum:
            return Error.EOVERFLOW
        if flags & _DF and not self.structured:
            return Error.EINVAL
        if command == _BLOCK_STATUS and not self.has_context:
            return Error.EINVAL
        return 0


# --- Replies, as the server sends them ---


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """A simple reply; the data of a successful READ follow it."""
    return SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, cookie)


def chunk(cookie: int, kind: int, length: int, *, done: bool) -> bytes:
    """The head of a structured reply chunk with `length` bytes of payload to follow."""
    return CHUNK.pack(wire.STRUCTURED_REPLY_MAGIC, ReplyFlag.DONE if done else 0, kind, cookie, length)


def done_chunk(cookie: int) -> bytes:
    """The chunk that ends a structured reply and says nothing else."""
    return chunk(cookie, ReplyType.NONE, 0, done=True)


def data_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """The head of a chunk with `length` bytes of data at `offset`, which follow it."""
    return chunk(cookie, ReplyType.OFFSET_DATA, OFFSET_DATA.size + length, done=done) + OFFSET_DATA.pack(offset)


def hole_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """A chunk that stands for `length` zeroes at `offset`."""
    return chunk(cookie, ReplyType.OFFSET_HOLE, OFFSET_HOLE.size, done=done) + OFFSET_HOLE.pack(offset, length)


def error_chunk(cookie: int, error: int, message: str = "") -> bytes:
    """A final error chunk, with words for people; `message` is cut at the string limit."""
    text = message.encode()[: wire.MAX_STRING]
    head = chunk(cookie, ReplyType.ERROR, ERROR.size + len(text), done=True)
    return head + ERROR.pack(error, len(text)) + text


def status_chunk(cookie: int, context: int, extents: Sequence[tuple[int, int]]) -> bytes:
    """A final BLOCK_STATUS chunk; `extents` are (length, status flags)."""
    body = CONTEXT.pack(context) + b"".join(EXTENT.pack(length, flags) for length, flags in extents)
    return chunk(cookie, ReplyType.BLOCK_STATUS, len(body), done=True) + body


# --- Replies, as the client reads them ---


@dataclass(slots=True)
class Pending:
    """A request that the client has sent and that is not answered yet.

    Attributes:
        cookie: names the request on the wire.
        buffer: where the data of a READ go, exactly `length` bytes.
        extents: what a BLOCK_STATUS answered, as (length, status flags).
        failure: the server's error, once it has told one.
    """

    cookie: int
    command: int
    flags: int
    offset: int
    length: int
    buffer: memoryview | None = None
    extents: list[tuple[int, int]] = field(default_factory=list)
    failure: RequestFailed | None = None
    _covered: list[tuple[int, int]] = field(default_factory=list)
    _covered_bytes: int = 0

    def fail(self, error: int, message: str) -> None:
        """Take note of an error; the first one told stands."""
        if self.failure is None:
            number = wire.errno_from_error(error)
            name = Command(self.command).name
            self.failure = RequestFailed(number, name, self.offset, self.length, message)

    def _cover(self, offset: int, length: int) -> int:
        start = offset - self.offset
        if self.command != Command.READ or length == 0 or start < 0 or start + length > self.length:
            raise ProtocolError(f"data of {length} bytes at {offset} lie outside what was asked for")
        self._covered_bytes += length
        if self._covered_bytes > self.length or len(self._covered) > _MAX_PIECES:
            raise ProtocolError("the chunks of a READ overlap, or are too many")
        if self._covered and self._covered[-1][1] == start:
            start, _ = self._covered.pop()
            self._covered.append((start, offset - self.offset + length))
        else:
            self._covered.append((start, start + length))
        return offset - self.offset

    def _finish(self) -> None:
        """Check that a READ's chunks cover the request once, without gap or overlap."""
        if self.failure is not None:
            return
        if self.command == Command.READ:
            position = 0
            for start, end in sorted(self._covered):
                if start != position:
                    raise ProtocolError("the chunks of a READ overlap or leave a gap")
                position = end
            if position != self.length:
                raise ProtocolError("the chunks of a READ do not cover what was asked for")
        elif self.command == Command.BLOCK_STATUS and not self.extents:
            raise ProtocolError("a BLOCK_STATUS reply without extents")


Want: TypeAlias = int | memoryview  # so many bytes, or exactly this buffer filled


def read_reply(pending: dict[int, Pending], *, structured: bool) -> Generator[Want, bytes, int | None]:
    """Parse one simple reply or one chunk.

    Yields what it wants next: a number of bytes, to be sent in, or a buffer to be filled in place (send `b""` then).

    Args:
        pending: the requests in flight by cookie; the one answered is updated, and stays in the dict.
        structured: structured replies were negotiated.

    Returns:
        The cookie of the request that is now answered in full, None when more chunks are to come.

    Raises:
        ProtocolError: the specification does not allow these bytes; the connection must be closed.
    """
    head = yield SIMPLE_REPLY.size
    magic = int.from_bytes(head[:4], "big")
    if magic == wire.SIMPLE_REPLY_MAGIC:
        return (yield from _simple(head, pending, structured))
    if magic == wire.STRUCTURED_REPLY_MAGIC and structured:
        return (yield from _chunk(head + (yield CHUNK.size - SIMPLE_REPLY.size), pending))
    raise ProtocolError(f"wrong magic {magic:#010x} where a reply was to begin")


def _find(pending: dict[int, Pending], cookie: int) -> Pending:
    try:
        return pending[cookie]
    except KeyError:
        raise ProtocolError(f"a reply with the cookie {cookie:#x}, which no request in flight has") from None


def _simple(head: bytes, pending: dict[int, Pending], structured: bool) -> Generator[Want, bytes, int]:
    _, error, cookie = SIMPLE_REPLY.unpack(head)
    request = _find(pending, cookie)
    if structured and request.command == Command.READ:
        raise ProtocolError("a simple reply to a READ though structured replies were negotiated")
    if error:
        request.fail(error, "")
    elif request.command == Command.READ:
        if request.buffer is None:
            raise ProtocolError("data where none were asked for")
        yield request.buffer
    elif request.command == Command.BLOCK_STATUS:
        raise ProtocolError("a simple reply to a BLOCK_STATUS")
    return int(cookie)


def _chunk(head: bytes, pending: dict[int, Pending]) -> Generator[Want, bytes, int | None]:
    _, flags, kind, cookie, length = CHUNK.unpack(head)
    request = _find(pending, cookie)
    done = bool(flags & ReplyFlag.DONE)
    if kind & wire.REPLY_ERROR_BIT:
        yield from _error(kind, length, request)
    elif kind == ReplyType.NONE:
        if length or not done:
            raise ProtocolError("a NONE chunk with a payload or without DONE")
    elif kind == ReplyType.OFFSET_DATA:
        if length <= OFFSET_DATA.size:
            raise ProtocolError("an OFFSET_DATA chunk without data")
        (offset,) = OFFSET_DATA.unpack((yield OFFSET_DATA.size))
        size = length - OFFSET_DATA.size
        start = request._cover(offset, size)
        if request.buffer is None:
            raise ProtocolError("data where none were asked for")
        yield request.buffer[start : start + size]
    elif kind == ReplyType.OFFSET_HOLE:
        if length != OFFSET_HOLE.size:
            raise ProtocolError(f"an OFFSET_HOLE chunk of {length} bytes")
        offset, size = OFFSET_HOLE.unpack((yield OFFSET_HOLE.size))
        start = request._cover(offset, size)
        if request.buffer is None:
            raise ProtocolError("a hole where no data were asked for")
        request.buffer[start : start + size] = bytes(size)
    elif kind == ReplyType.BLOCK_STATUS:
        yield from _status(length, request)
    else:
        raise ProtocolError(f"a chunk of the unknown type {kind}")
    if not done:
        return None
    request._finish()
    return int(cookie)


def _error(kind: int, length: int, request: Pending) -> Generator[Want, bytes, None]:
    if not ERROR.size <= length <= ERROR.size + wire.MAX_STRING + OFFSET_DATA.size:
        raise ProtocolError(f"an error chunk of {length} bytes")
    body = yield length
    error, size = ERROR.unpack_from(body)
    if ERROR.size + size > length or (kind == ReplyType.ERROR_OFFSET and length != ERROR.size + size + 8) or not error:
        raise ProtocolError("an error chunk whose lengths or error value are impossible")
    request.fail(error, body[ERROR.size : ERROR.size + size].decode(errors="replace"))


def _status(length: int, request: Pending) -> Generator[Want, bytes, None]:
    count, rest = divmod(length - CONTEXT.size, EXTENT.size)
    if request.command != Command.BLOCK_STATUS or request.extents:
        raise ProtocolError("a BLOCK_STATUS chunk that was not asked for")
    if rest or not 1 <= count <= wire.MAX_EXTENTS or (request.flags & CommandFlag.REQ_ONE and count != 1):
        raise ProtocolError(f"a BLOCK_STATUS chunk of {length} bytes")
    body = yield length
    extents = list(EXTENT.iter_unpack(memoryview(body)[CONTEXT.size :]))
    if any(size == 0 for size, _ in extents) or sum(size for size, _ in extents[:-1]) >= request.length:
        raise ProtocolError("the extents of a BLOCK_STATUS are empty or go past what was asked for")
    request.extents = extents
