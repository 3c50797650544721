"""The server's side of one connection in the transmission phase: a plain blocking loop, one request after the other.

Small requests go through one buffer with `pwrite` and `preadv`; bulk data never enter Python, they are spliced from the
socket to the file and sent from the file to the socket by the kernel. After an error reply the stream is in step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import struct
import termios
import time
from typing import Final, NoReturn, Protocol

from nbd import wire
from nbd.backend import Extent, FileBackend
from nbd.errors import ProtocolError
from nbd.negotiation import Ready
from nbd.transmission import (
    REQUEST,
    SIMPLE_REPLY,
    Rules,
    data_chunk,
    done_chunk,
    error_chunk,
    hole_chunk,
    simple_reply,
    status_chunk,
)
from nbd.wire import Command, CommandFlag, Error, StateFlag, TransmissionFlag

SMALL: Final = 64 << 10  # at most this goes through the buffer; above it a splice is cheaper
BOX: Final = 256 << 10  # received requests, and replies to send, that are handled together
PIPE_SIZE: Final = 1 << 20
WRITE_BACK: Final = 8 << 20  # bytes of bulk data after which the kernel is told to begin writing them to the disk
MAX_EXTENTS: Final = 1 << 16  # in one reply: 2^20 are allowed, and would take more memory than all the rest
SPIN_NS: Final = 50_000  # how long to look for the next request before sleeping: a wake-up costs more than a request
STOP_QUIET: Final = 1.0  # seconds of silence after which a stopping connection is over
STOP_IDLE: Final = 0.01  # the same, between two requests
STOPPED: Final = "the server stopped"
STOP_LIMIT: Final = 5.0  # seconds after which it is over in any case

# Plain integers: see transmission.py.
_READ, _WRITE, _DISC, _FLUSH = int(Command.READ), int(Command.WRITE), int(Command.DISC), int(Command.FLUSH)
_TRIM, _CACHE, _ZEROES, _STATUS = (
    int(Command.TRIM),
    int(Command.CACHE),
    int(Command.WRITE_ZEROES),
    int(Command.BLOCK_STATUS),
)
_FUA, _DF, _REQ_ONE = int(CommandFlag.FUA), int(CommandFlag.DF), int(CommandFlag.REQ_ONE)
_NO_HOLE, _FAST = int(CommandFlag.NO_HOLE), int(CommandFlag.FAST_ZERO)
_CHUNK_HEAD: Final = struct.Struct(">IHHQIQ")  # an OFFSET_DATA chunk's head and its offset
_MORE: Final = socket.MSG_MORE
_SPLICE_MOVE: Final = 1


class Observer(Protocol):
    """Whom a connection tells what it does, and asks before its first write.

    Attributes:
        read: counts the bytes read by the client, in element 0 of a shared array.
        written: counts the bytes written or zeroed, in element 0.
    """

    read: memoryview
    written: memoryview

    def begin_writing(self) -> str | None:
        """Called before the first request that modifies; a text refuses it, and is asked for again next time."""
        ...

    def flushed(self) -> None:
        """A flush that the client asked for has succeeded."""
        ...

    def failed(self, command: str, offset: int, length: int, error: OSError) -> None:
        """A request could not be carried out."""
        ...


class Hangup(Exception):
    """The client is gone, or is to be left."""


class Responder:
    """Answers the requests of one client until it leaves.

    Small requests that arrived together are received together and answered together: `_inbox` holds what was received
    and not yet looked at, between `_head` and `_tail`; `_outbox` holds the first `_out` bytes of replies not yet sent.

    Attributes:
        dirty: something was written since the client's last flush.
    """

    def __init__(self, sock: socket.socket, backend: FileBackend, ready: Ready, observer: Observer) -> None:
        """Prepare to serve `backend` on a blocking socket whose handshake ended in `ready`."""
        self._sock = sock
        self._backend = backend
        self._observer = observer
        self._structured = ready.structured
        self._contexts = tuple(ready.contexts.values())
        self._rules = Rules(
            size=ready.export.size,
            read_only=bool(ready.export.flags & TransmissionFlag.READ_ONLY),
            structured=ready.structured,
            has_context=bool(ready.contexts),
            maximum=ready.export.sizes.maximum,
        )
        self._inbox = memoryview(mmap.mmap(-1, BOX))
        self._head = self._tail = 0
        self._outbox = memoryview(mmap.mmap(-1, BOX))
        self._out = 0
        self._pipe: tuple[int, int] | None = None
        self._behind = (0, 0)  # a run of bulk data that the disk was not told to write yet, from offset to offset
        self._may_write = False
        self._idle = False
        self._stopping = False
        self._grace: int | None = None
        self._stop_at = 0.0
        self.dirty = False

    def stop(self) -> None:
        """End soon: what the client has sent so far is carried out, later requests get `ESHUTDOWN`.

        To be called from a signal handler in the thread that runs `run`; may be called again. It limits the socket's
        waits and raises nothing: an exception might come when data are received and not yet taken note of.
        """
        if not self._stopping:
            self._stopping = True
            self._stop_at = time.monotonic() + STOP_LIMIT
        self._limit_waits(STOP_IDLE if self._idle and not self._queued() else STOP_QUIET)

    def run(self) -> str:
        """Serve until the end; the return value says how it came.

        Raises:
            ProtocolError: the client broke the protocol.
        """
        try:
            self._loop()
        except Hangup as reason:
            return str(reason)
        except BlockingIOError:  # only a stopping connection's waits are limited
            return STOPPED
        except (ConnectionError, TimeoutError) as error:
            return f"connection lost: {error.strerror}"
        finally:
            self._close_pipe()

    def _loop(self) -> NoReturn:
        """The hot path: judges and dispatches; small reads and writes are carried out in place."""
        unpack, refusal = REQUEST.unpack_from, self._rules.refusal
        pack_simple, pack_chunk = SIMPLE_REPLY.pack_into, _CHUNK_HEAD.pack_into
        backend, structured = self._backend, self._structured
        inbox, outbox = self._inbox, self._outbox
        fd, start, preadv, pwrite = backend.fd, backend.start, os.preadv, os.pwrite
        read, written = self._observer.read, self._observer.written
        head_size = _CHUNK_HEAD.size if structured else SIMPLE_REPLY.size
        ahead = BOX  # how much to receive at once: after bulk data a header alone, so that the next can be spliced
        while True:
            if self._tail - self._head < 28:
                self._idle = True
                self._receive(28, ahead)
                self._idle = False
            magic, flags, command, cookie, offset, length = unpack(inbox, self._head)
            self._head += 28
            if magic != wire.REQUEST_MAGIC:
                raise ProtocolError(f"wrong magic {magic:#010x} where a request was to begin")
            refused = refusal(command, flags, offset, length)
            if self._stopping and command != _DISC:
                refused = self._judge_while_stopping(command, length) or refused
            ahead = BOX if length <= SMALL else 28
            if refused:
                if command == _DISC:
                    self._send()
                    raise Hangup("disconnected")
                self._refuse(command, cookie, length, refused)
            elif command == _READ:
                read[0] += length
                if length > SMALL:
                    self._read_bulk(cookie, offset, length, flags)
                    continue
                if self._out + head_size + length > BOX:
                    self._send()
                begin = self._out + head_size
                end = begin + length
                try:
                    if preadv(fd, (outbox[begin:end],), start + offset) != length:
                        backend.read_into(outbox[begin:end], offset)
                except OSError as error:
                    self._fail(command, cookie, offset, length, error)
                    continue
                if structured:
                    pack_chunk(outbox, self._out, wire.STRUCTURED_REPLY_MAGIC, 1, 1, cookie, 8 + length, offset)
                else:
                    pack_simple(outbox, self._out, wire.SIMPLE_REPLY_MAGIC, 0, cookie)
                self._out = end
            elif command == _WRITE:
                if not self._may_write and not self._begin_writing(command, cookie, length):
                    continue
                self.dirty = True
                failure: OSError | None = None
                if length > SMALL:
                    failure = self._write_bulk(offset, length, flags)
                else:
                    if self._tail - self._head < length:
                        self._receive(length, length + 28)
                    head = self._head
                    self._head = head + length
                    view = inbox[head : head + length]
                    try:
                        if flags & _FUA:
                            backend.write(view, offset, fua=True)
                        elif pwrite(fd, view, start + offset) != length:
                            backend.write(view, offset)
                    except OSError as error:
                        failure = error
                if failure is not None:
                    self._fail(command, cookie, offset, length, failure)
                    continue
                written[0] += length
                if self._out + 16 > BOX:
                    self._send()
                pack_simple(outbox, self._out, wire.SIMPLE_REPLY_MAGIC, 0, cookie)
                self._out += 16
            else:
                self._other(command, flags, cookie, offset, length)

    # --- Receiving and sending ---

    def _receive(self, need: int, most: int) -> None:
        """Have at least `need` bytes in the inbox, receiving at most `most` of them; replies go out before any wait."""
        self._send()
        have = self._tail - self._head
        if have:
            self._inbox[:have] = self._inbox[self._head : self._tail]
        self._head, self._tail = 0, have
        spins = most > need
        while have < need:
            room = self._inbox[have : max(most, need)]
            count = self._spin(room) if spins else 0
            count = count or self._sock.recv_into(room)
            if count == 0:
                raise Hangup("client closed the connection" + (" inside a request" if have else ""))
            have += count
            self._tail = have

    def _spin(self, room: memoryview) -> int:
        """Look for input for a while before sleeping, 0 if none comes; other processes get the processor in between."""
        deadline = time.monotonic_ns() + SPIN_NS
        while time.monotonic_ns() < deadline:
            try:
                count = self._sock.recv_into(room, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
            else:
                return count
        return 0

    def _send(self) -> None:
        """Send the replies that have gathered."""
        if self._out:
            self._sock.sendall(self._outbox[: self._out])
            self._out = 0

    def _reply(self, data: bytes, flags: int = 0) -> None:
        """Send one reply, or its beginning, behind those that have gathered."""
        self._send()
        self._sock.sendall(data, flags)

    def _drain(self, length: int) -> None:
        """Discard a payload so that the stream stays in step."""
        buffered = min(length, self._tail - self._head)
        self._head += buffered
        length -= buffered
        scrap = bytearray(min(length, SMALL))
        while length:
            count = self._sock.recv_into(scrap, min(length, SMALL))
            if count == 0:
                raise Hangup("client closed the connection inside a request")
            length -= count

    def _queued(self) -> int:
        """Bytes that the client has sent and that were not looked at yet."""
        (queued,) = struct.unpack("i", fcntl.ioctl(self._sock, termios.FIONREAD, bytes(4)))
        return int(queued) + self._tail - self._head

    def _judge_while_stopping(self, command: int, length: int) -> int:
        """Carry out what was sent before the stop was noticed, refuse what comes later, and come to an end."""
        if self._grace is None:
            self._grace = REQUEST.size + self._queued()
        self._limit_waits(STOP_QUIET)
        if time.monotonic() > self._stop_at:
            raise Hangup(STOPPED)
        self._grace -= REQUEST.size + (length if command == _WRITE else 0)
        return Error.ESHUTDOWN if self._grace < 0 else 0

    def _limit_waits(self, seconds: float) -> None:
        """Let every wait for the client end in `BlockingIOError` that lasts this long, or past the time to stop.

        A signal begins a wait anew, so that a limit alone would never be reached where signals come more often.
        """
        seconds = max(min(seconds, self._stop_at - time.monotonic()), STOP_IDLE)
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    # --- Bulk data ---

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # the user's pipe quota is used up; a small pipe works, in more steps
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return self._pipe

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None

    def _write_bulk(self, offset: int, length: int, flags: int) -> OSError | None:
        """Splice a WRITE's payload from the socket to the file; the whole payload is consumed, error or not."""
        self._send()
        source, sink = self._open_pipe()
        sock, fd = self._sock.fileno(), self._backend.fd
        position = self._backend.start + offset
        if buffered := min(length, self._tail - self._head):
            view = self._inbox[self._head : self._head + buffered]
            self._head += buffered
            length -= buffered
            try:
                self._backend.write(view, offset)
            except OSError as error:
                self._drain(length)
                return error
            position += buffered
        left = length
        while left:
            count = os.splice(sock, sink, left, flags=_SPLICE_MOVE)
            if count == 0:
                raise Hangup("client closed the connection inside a request")
            left -= count
            while count:
                try:
                    done = os.splice(source, fd, count, offset_dst=position, flags=_SPLICE_MOVE)
                    if done == 0:
                        raise OSError(errno.ENOSPC, "the device ends here")
                except OSError as error:
                    self._close_pipe()  # with what is left in it
                    self._drain(left)
                    return error
                position += done
                count -= done
        self._write_back(position - self._backend.start - length, length)
        if flags & _FUA:
            try:
                self._backend.flush()
            except OSError as error:
                return error
        return None

    def _write_back(self, offset: int, length: int) -> None:
        """Take note of bulk data that were written, and have the disk begin with them when they are many."""
        start, end = self._behind
        if offset != end:
            start = offset
        end = offset + length
        if end - start >= WRITE_BACK:
            self._backend.begin_write_back(start, end - start)
            start = end
        self._behind = (start, end)

    def _read_bulk(self, cookie: int, offset: int, length: int, flags: int) -> None:
        if not self._structured:
            self._reply(simple_reply(cookie), _MORE)
            failure, _ = self._send_file(offset, length)
            if failure is not None:
                # "the server MUST immediately initiate a hard disconnect": the reply has begun as a success.
                self._observer.failed("READ", offset, length, failure)
                raise Hangup(f"a READ failed after its reply had begun: {failure.strerror}")
            return
        try:
            extents = [(length, False)] if flags & _DF else [(e.length, e.zero) for e in self._runs(offset, length)]
        except OSError as error:
            self._fail(_READ, cookie, offset, length, error)
            return
        position = offset
        for size, zero in extents:
            if zero:
                self._reply(hole_chunk(cookie, position, size, done=False), _MORE)
            else:
                self._reply(data_chunk(cookie, position, size, done=False), _MORE)
                failure, sent = self._send_file(position, size)
                if failure is not None:
                    self._pad(size - sent)  # the chunk's length stands; an error chunk follows it
                    self._fail(_READ, cookie, position + sent, size - sent, failure)
                    return
            position += size
        self._reply(done_chunk(cookie))

    def _runs(self, offset: int, length: int) -> list[Extent]:
        return list(self._backend.extents(offset, length))

    def _send_file(self, offset: int, length: int) -> tuple[OSError | None, int]:
        """Send a range from the file by the kernel; an error of the file is returned with the bytes sent before it."""
        sock, fd, position, sent = self._sock.fileno(), self._backend.fd, self._backend.start + offset, 0
        while sent < length:
            try:
                count = os.sendfile(sock, fd, position + sent, length - sent)
            except (ConnectionError, TimeoutError, BlockingIOError):
                raise
            except OSError as error:
                return error, sent
            if count == 0:
                return OSError(errno.EIO, "the device ends here"), sent
            sent += count
        return None, sent

    def _pad(self, length: int) -> None:
        zeroes = bytes(min(length, SMALL))
        while length:
            piece = zeroes[:length]
            self._reply(piece, _MORE)
            length -= len(piece)

    # --- Everything else ---

    def _other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        backend, fua = self._backend, bool(flags & _FUA)
        modifies = command in (_TRIM, _ZEROES)
        if modifies and not self._may_write and not self._begin_writing(command, cookie, 0):
            return
        reply = b""
        try:
            self.dirty = self.dirty or modifies
            if command == _FLUSH:
                backend.flush()
                self.dirty = False
                self._observer.flushed()
            elif command == _TRIM:
                backend.trim(offset, length, fua=fua)
            elif command == _ZEROES:
                backend.zero(offset, length, may_trim=not flags & _NO_HOLE, fast=bool(flags & _FAST), fua=fua)
                self._observer.written[0] += length
            elif command == _CACHE:
                backend.cache(offset, length)
            elif command == _STATUS:
                reply = self._status(cookie, offset, length, one=bool(flags & _REQ_ONE))
        except OSError as error:
            self._fail(command, cookie, offset, length, error)
            return
        self._reply(reply or simple_reply(cookie))

    def _status(self, cookie: int, offset: int, length: int, *, one: bool) -> bytes:
        extents: list[tuple[int, int]] = []
        limit = 1 if one else MAX_EXTENTS
        for extent in self._backend.extents(offset, length):
            state = (StateFlag.HOLE if extent.hole else 0) | (StateFlag.ZERO if extent.zero else 0)
            extents.append((extent.length, state))
            if len(extents) == limit:
                break
        return status_chunk(cookie, self._contexts[0], extents)

    def _begin_writing(self, command: int, cookie: int, payload: int) -> bool:
        """Ask whether this connection may write; if not, the request's payload is drained and it is answered."""
        refusal = self._observer.begin_writing()
        if refusal is None:
            self._may_write = True
            return True
        self._drain(payload)
        self._send_error(command, cookie, Error.EPERM, refusal)
        return False

    def _refuse(self, command: int, cookie: int, length: int, error: int) -> None:
        if command == _WRITE:
            if length > 2 * wire.MAX_PAYLOAD:
                raise ProtocolError(f"a WRITE of {length} bytes")
            self._drain(length)
        self._send_error(command, cookie, error, "")

    def _fail(self, command: int, cookie: int, offset: int, length: int, error: OSError) -> None:
        if not (command == _ZEROES and error.errno == errno.ENOTSUP):
            self._observer.failed(Command(command).name, offset, length, error)
        self._send_error(command, cookie, wire.error_from_errno(error.errno or errno.EIO), error.strerror or "")

    def _send_error(self, command: int, cookie: int, error: int, message: str) -> None:
        """An error reply: structured where that was negotiated, which a READ insists on and a person can read."""
        reply = error_chunk(cookie, error, message) if self._structured else simple_reply(cookie, error)
        self._reply(reply)
