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
    OFFSET_DATA,
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
PIPE_SIZE: Final = 1 << 20
SPIN_NS: Final = 50_000  # how long to look for the next request before sleeping: a wake-up costs more than a request
STOP_QUIET: Final = 1  # seconds of silence after which a stopping connection is over
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

    Attributes:
        stopping: `stop` was called.
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
        self._may_write = False
        self._buffer = memoryview(mmap.mmap(-1, SMALL + _CHUNK_HEAD.size))
        self._pipe: tuple[int, int] | None = None
        self._idle = False
        self._grace: int | None = None
        self._stop_at = 0.0
        self.dirty = False

    def stop(self) -> None:
        """End soon: what the client has sent so far is carried out, later requests get `ESHUTDOWN`.

        To be called from a signal handler in the thread that runs `run`; may be called again.
        """
        if self._grace is None:
            (queued,) = struct.unpack("i", fcntl.ioctl(self._sock, termios.FIONREAD, bytes(4)))
            self._grace = queued
            self._stop_at = time.monotonic() + STOP_LIMIT
            timeout = struct.pack("ll", STOP_QUIET, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        if self._idle and not self._grace:
            raise Hangup(STOPPED)

    def run(self) -> str:
        """Serve until the end; the return value says how it came.

        Raises:
            ProtocolError: the client broke the protocol.
        """
        try:
            self._loop()
        except Hangup as reason:
            return str(reason)
        except BlockingIOError:  # only a stopping connection has a receive timeout
            return STOPPED
        except (ConnectionError, TimeoutError) as error:
            return f"connection lost: {error.strerror}"
        finally:
            self._close_pipe()

    def _loop(self) -> NoReturn:
        """The hot path: reads, judges and dispatches; small reads and writes are carried out in place."""
        receive, send = self._sock.recv_into, self._sock.sendall
        unpack, refusal = REQUEST.unpack_from, self._rules.refusal
        pack_simple, pack_chunk = SIMPLE_REPLY.pack_into, _CHUNK_HEAD.pack_into
        backend, buffer, structured = self._backend, self._buffer, self._structured
        fd, start = backend.fd, backend.start
        read, written = self._observer.read, self._observer.written
        head_size = _CHUNK_HEAD.size if structured else SIMPLE_REPLY.size
        header = memoryview(bytearray(REQUEST.size))
        spin = False
        while True:
            self._idle = True
            if spin:
                self._receive_header_spinning(header)
            elif (count := receive(header, 28, socket.MSG_WAITALL)) != 28:
                self._receive_rest(header, count)
            self._idle = False
            magic, flags, command, cookie, offset, length = unpack(header)
            if magic != wire.REQUEST_MAGIC:
                raise ProtocolError(f"wrong magic {magic:#010x} where a request was to begin")
            if command == _DISC:
                raise Hangup("disconnected")
            refused = refusal(command, flags, offset, length)
            if self._grace is not None:
                refused = self._judge_while_stopping(command, length) or refused
            spin = length <= SMALL
            if refused:
                self._refuse(command, cookie, length, refused)
            elif command == _READ:
                if length > SMALL:
                    self._read_bulk(cookie, offset, length, flags)
                else:
                    end = head_size + length
                    try:
                        if os.preadv(fd, (buffer[head_size:end],), start + offset) != length:
                            backend.read_into(buffer[head_size:end], offset)
                    except OSError as error:
                        self._fail(command, cookie, offset, length, error)
                        continue
                    if structured:
                        size = OFFSET_DATA.size + length
                        pack_chunk(buffer, 0, wire.STRUCTURED_REPLY_MAGIC, 1, 1, cookie, size, offset)
                    else:
                        pack_simple(buffer, 0, wire.SIMPLE_REPLY_MAGIC, 0, cookie)
                    send(buffer[:end])
                read[0] += length
            elif command == _WRITE:
                if not self._may_write and not self._begin_writing(command, cookie, length):
                    continue
                failure: OSError | None = None
                if length > SMALL:
                    failure = self._write_bulk(offset, length, flags)
                else:
                    view = buffer[:length]
                    if (count := receive(view, length, socket.MSG_WAITALL)) != length:
                        self._receive_rest(view, count)
                    try:
                        if flags & _FUA:
                            backend.write(view, offset, fua=True)
                        elif os.pwrite(fd, view, start + offset) != length:
                            backend.write(view, offset)
                    except OSError as error:
                        failure = error
                if failure is None:
                    send(simple_reply(cookie))
                    written[0] += length
                else:
                    self._fail(command, cookie, offset, length, failure)
            else:
                self._other(command, flags, cookie, offset, length)

    # --- Receiving ---

    def _receive_header_spinning(self, header: memoryview) -> None:
        """Look for the next header for a while before sleeping; other processes get the processor in between."""
        deadline = time.monotonic_ns() + SPIN_NS
        while True:
            try:
                count = self._sock.recv_into(header, 28, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if time.monotonic_ns() > deadline:
                    count = self._sock.recv_into(header, 28, socket.MSG_WAITALL)
                else:
                    os.sched_yield()
                    continue
            if count != 28:
                self._receive_rest(header, count)
            return

    def _receive_rest(self, view: memoryview, count: int) -> None:
        """Fill `view`, of which `count` bytes are there, after a short receive."""
        self._idle = self._idle and count == 0
        while count < len(view):
            more = self._sock.recv_into(view[count:], len(view) - count, socket.MSG_WAITALL) if count else 0
            if more == 0:
                raise Hangup("client closed the connection" + (" inside a request" if count else ""))
            count += more

    def _drain(self, length: int) -> None:
        """Discard a payload of the socket so that the stream stays in step."""
        while length:
            count = self._sock.recv_into(self._buffer, min(length, SMALL))
            if count == 0:
                raise Hangup("client closed the connection inside a request")
            length -= count

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
        source, sink = self._open_pipe()
        sock, fd = self._sock.fileno(), self._backend.fd
        position = self._backend.start + offset
        while length:
            count = os.splice(sock, sink, length, flags=_SPLICE_MOVE)
            if count == 0:
                raise Hangup("client closed the connection inside a request")
            length -= count
            while count:
                try:
                    done = os.splice(source, fd, count, offset_dst=position, flags=_SPLICE_MOVE)
                    if done == 0:
                        raise OSError(errno.ENOSPC, "the device ends here")
                except OSError as error:
                    self._close_pipe()  # with what is left in it
                    self._drain(length)
                    return error
                position += done
                count -= done
        if flags & _FUA:
            try:
                self._backend.flush()
            except OSError as error:
                return error
        return None

    def _read_bulk(self, cookie: int, offset: int, length: int, flags: int) -> None:
        if not self._structured:
            self._sock.sendall(simple_reply(cookie), _MORE)
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
                self._sock.sendall(hole_chunk(cookie, position, size, done=False), _MORE)
            else:
                self._sock.sendall(data_chunk(cookie, position, size, done=False), _MORE)
                failure, sent = self._send_file(position, size)
                if failure is not None:
                    self._pad(size - sent)  # the chunk's length stands; an error chunk follows it
                    self._fail(_READ, cookie, position + sent, size - sent, failure)
                    return
            position += size
        self._sock.sendall(done_chunk(cookie))

    def _runs(self, offset: int, length: int) -> list[Extent]:
        return list(self._backend.extents(offset, length))

    def _send_file(self, offset: int, length: int) -> tuple[OSError | None, int]:
        """Send a range from the file by the kernel; an error of the file is returned with the bytes sent before it."""
        sock, fd, position, sent = self._sock.fileno(), self._backend.fd, self._backend.start + offset, 0
        while sent < length:
            try:
                count = os.sendfile(sock, fd, position + sent, length - sent)
            except ConnectionError:
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
            self._sock.sendall(piece, _MORE)
            length -= len(piece)

    # --- Everything else ---

    def _other(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        backend, fua = self._backend, bool(flags & _FUA)
        modifies = command in (_TRIM, _ZEROES)
        if modifies and not self._may_write and not self._begin_writing(command, cookie, 0):
            return
        try:
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
                self._sock.sendall(self._status(cookie, offset, length, one=bool(flags & _REQ_ONE)))
                return
        except ConnectionError:
            raise
        except OSError as error:
            self._fail(command, cookie, offset, length, error)
            return
        self._sock.sendall(simple_reply(cookie))

    def _status(self, cookie: int, offset: int, length: int, *, one: bool) -> bytes:
        extents: list[tuple[int, int]] = []
        limit = 1 if one else wire.MAX_EXTENTS
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
            self._may_write = self.dirty = True
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

    def _judge_while_stopping(self, command: int, length: int) -> int:
        assert self._grace is not None
        if time.monotonic() > self._stop_at:
            raise Hangup(STOPPED)
        self._grace -= REQUEST.size + (length if command == _WRITE else 0)
        return Error.ESHUTDOWN if self._grace < 0 else 0

    def _fail(self, command: int, cookie: int, offset: int, length: int, error: OSError) -> None:
        if not (command == _ZEROES and error.errno == errno.ENOTSUP):
            self._observer.failed(Command(command).name, offset, length, error)
        self._send_error(command, cookie, wire.error_from_errno(error.errno or errno.EIO), error.strerror or "")

    def _send_error(self, command: int, cookie: int, error: int, message: str) -> None:
        """An error reply: structured where that was negotiated, which a READ insists on and a person can read."""
        reply = error_chunk(cookie, error, message) if self._structured else simple_reply(cookie, error)
        self._sock.sendall(reply)
