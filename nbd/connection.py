"""The client's side of one connection: requests go out, replies come in, nothing is done twice.

Blocking, for one thread; `abort` alone may be called from another. What outlives a lost connection is in `client.py`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nbd import wire
from nbd.errors import ConnectionLost, NBDError, ProtocolError, Stalled
from nbd.negotiation import Aborted, ClientNegotiation, Ready
from nbd.transmission import REQUEST, Pending, read_reply
from nbd.uri import NBDURI
from nbd.wire import Command

_NETWORK: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENETRESET, errno.ENOTCONN}
)
TIMEOUT: Final = 60.0  # seconds without any movement after which the peer counts as gone


class PayloadError(NBDError):
    """The file that a WRITE takes its data from failed or came to its end; the connection is out of step and closed."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of an open file, to be sent without reading them.

    Attributes:
        fd: descriptor of a regular file or block device.
        offset: first byte in it.
    """

    fd: int
    offset: int


class Connection:
    """One connection in the transmission phase.

    Attributes:
        ready: what the handshake agreed on.
        pending: requests in flight, by cookie, in the order they were sent.
    """

    def __init__(
        self, uri: NBDURI, *, timeout: float = TIMEOUT, queries: Sequence[str] = (), patience: float | None = None
    ) -> None:
        """Connect and go through the handshake.

        Args:
            uri: the server and its export.
            timeout: seconds without movement after which the connection is given up, now and later.
            queries: metadata context queries to list; the answers are in `ready.export.contexts`.
            patience: seconds to connect in, and again for the handshake, where that is not `timeout`.

        Raises:
            ConnectionLost: there is no connection to be had.
            OptionRefused: the server does not give this export to us.
            ProtocolError: the other side does not speak the protocol.
        """
        self.uri = uri
        self.timeout = timeout
        self.pending: dict[int, Pending] = {}
        self._cookie = 0
        patience = timeout if patience is None else patience
        self._sock = open_socket(uri, timeout, patience)
        try:
            self.ready = self._negotiate(ClientNegotiation(uri.export, queries=queries), patience)
        except BaseException:
            self._sock.close()
            raise
        seconds = struct.pack("ll", int(timeout), int(math.modf(timeout)[0] * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def send(
        self,
        command: Command,
        offset: int,
        length: int,
        *,
        flags: int = 0,
        data: memoryview | FileRange | None = None,
        buffer: memoryview | None = None,
    ) -> int:
        """Send one request.

        Args:
            command: what to do.
            offset: first byte in the export.
            length: bytes.
            flags: command flags.
            data: the payload of a WRITE.
            buffer: where the data of a READ go; must live until the reply is there.

        Returns:
            The request's cookie.

        Raises:
            ConnectionLost, Stalled: the connection is gone.
            PayloadError: the payload's file failed.
        """
        self._cookie += 1
        cookie = self._cookie
        self.pending[cookie] = Pending(cookie, int(command), flags, offset, length, buffer)
        header = REQUEST.pack(wire.REQUEST_MAGIC, flags, command, cookie, offset, length)
        try:
            if data is None:
                self._sock.sendall(header)
            elif isinstance(data, FileRange):
                self._sock.sendall(header, socket.MSG_MORE)
                self._send_file(data, length)
            else:
                self._sock.sendall(header, socket.MSG_MORE)
                self._sock.sendall(data)
        except OSError as error:
            raise self._lost(error) from None
        return cookie

    def receive(self) -> Pending:
        """Wait until one request in flight is answered in full, successfully or not.

        Returns:
            It, with its data, extents or failure; no longer in `pending`.

        Raises:
            ConnectionLost, Stalled: the connection is gone.
            ProtocolError: the server broke the protocol; the connection is closed.
        """
        structured = self.ready.structured
        try:
            while True:
                steps = read_reply(self.pending, structured=structured)
                want = next(steps)
                try:
                    while True:
                        if isinstance(want, int):
                            piece = bytearray(want)
                            self._fill(memoryview(piece))
                            want = steps.send(bytes(piece))
                        else:
                            self._fill(want)
                            want = steps.send(b"")
                except StopIteration as done:
                    if done.value is not None:
                        return self.pending.pop(done.value)
        except OSError as error:
            raise self._lost(error) from None
        except ProtocolError:
            self.close()
            raise

    def disconnect(self) -> None:
        """Leave in good order; requests in flight are abandoned."""
        with contextlib.suppress(OSError):
            self._sock.sendall(REQUEST.pack(wire.REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
        self.close()

    def close(self) -> None:
        """Drop the connection."""
        self._sock.close()

    def abort(self) -> None:
        """Make whatever waits in another thread fail with `ConnectionLost`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _negotiate(self, negotiation: ClientNegotiation, patience: float) -> Ready:
        run_handshake(self._sock, negotiation, self.uri, patience)
        outcome = negotiation.outcome
        if outcome is None or isinstance(outcome, Aborted):
            raise ConnectionLost(f"{self.uri}: the handshake ended early")
        return outcome

    def _send_file(self, source: FileRange, length: int) -> None:
        sock, position, end = self._sock.fileno(), source.offset, source.offset + length
        while position < end:
            try:
                count = os.sendfile(sock, source.fd, position, end - position)
            except (ConnectionError, BlockingIOError, TimeoutError):
                raise
            except OSError as error:
                if error.errno in _NETWORK:
                    raise
                self.close()
                raise PayloadError(f"reading the source at offset {position} failed: {error.strerror}") from None
            if count == 0:
                self.close()
                raise PayloadError(f"the source ends at offset {position}, earlier than it did at the start")
            position += count

    def _fill(self, view: memoryview) -> None:
        while len(view):
            count = self._sock.recv_into(view, 0, socket.MSG_WAITALL)
            if count == 0:
                raise ConnectionResetError(0, "the server closed the connection")
            view = view[count:]

    def _lost(self, error: OSError) -> ConnectionLost:
        self.close()
        if isinstance(error, BlockingIOError | TimeoutError):  # the latter where TCP has noticed it first
            return Stalled(f"{self.uri}: nothing moved for {self.timeout:g} seconds")
        if error.errno == errno.EBADF:
            return ConnectionLost(f"{self.uri}: the connection had been given up")
        return ConnectionLost(f"{self.uri}: {error.strerror or error}")


def list_exports(uri: NBDURI, *, timeout: float = TIMEOUT) -> dict[str, str]:
    """The names of a server's exports, with their descriptions.

    Raises:
        ConnectionLost, OptionRefused, ProtocolError: as for `Connection`.
    """
    negotiation = ClientNegotiation("", listing=True)
    with open_socket(uri, timeout) as sock:
        run_handshake(sock, negotiation, uri, timeout)
        with contextlib.suppress(OSError):
            sock.sendall(negotiation.bytes_to_send())
    return negotiation.names


def open_socket(uri: NBDURI, timeout: float, patience: float | None = None) -> socket.socket:
    """A connected socket to the URI's server; `patience` as for `Connection`.

    Raises:
        ConnectionLost: none could be made; `__cause__` is the OSError that says why.
    """
    if uri.tls:
        raise ConnectionLost(f"{uri}: TLS is not supported yet; use nbd:// on a network that you trust")
    patience = timeout if patience is None else patience
    try:
        if uri.socket is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.settimeout(patience)
                sock.connect(uri.socket)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection((uri.host, uri.port), patience)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout * 1000))
    except OSError as error:
        raise ConnectionLost(f"{uri}: cannot connect: {error.strerror or error}") from error
    except UnicodeError as error:
        raise ConnectionLost(f"{uri}: cannot connect: this is not a host name") from error
    return sock


def run_handshake(sock: socket.socket, negotiation: ClientNegotiation, uri: NBDURI, timeout: float) -> None:
    """Drive a client's negotiation over a socket to its outcome; the socket is blocking afterwards.

    Raises:
        ConnectionLost, Stalled, OptionRefused, ProtocolError: as for `Connection`.
    """
    deadline = time.monotonic() + timeout
    try:
        while negotiation.outcome is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            if outgoing := negotiation.bytes_to_send():  # even an empty send fails when the server has said its last
                sock.sendall(outgoing)
            data = sock.recv(negotiation.missing())
            if not data:
                raise ConnectionLost(f"{uri}: the server closed the connection during the handshake")
            negotiation.receive(data)
        sock.settimeout(None)
    except TimeoutError:
        raise Stalled(f"{uri}: no complete handshake within {timeout:.2g} seconds") from None
    except OSError as error:
        raise ConnectionLost(f"{uri}: {error.strerror or error}") from None
    except ProtocolError as error:
        raise ProtocolError(f"{uri}: {error}") from None
