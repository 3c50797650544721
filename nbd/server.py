"""A server: one process that accepts, and one process for each connection.

No two connections share an interpreter; one that crashes takes nobody with it. The listener starts no thread and no
event loop, so that it may fork at any time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, Protocol

from nbd.backend import FileBackend
from nbd.errors import NBDError
from nbd.negotiation import Aborted, BlockSizes, Catalog, ExportInfo, Ready, ServerNegotiation
from nbd.responder import STOP_LIMIT, Observer, Responder
from nbd.wire import TransmissionFlag

HANDSHAKE_TIMEOUT: Final = 15.0  # seconds a client has for the whole handshake
MAX_CONNECTIONS: Final = 64
_NUDGE: Final = 0.2  # seconds between reminders to connections that have to stop
_SERVED, _NOT_SERVED = 0, 1  # exit statuses of a connection's process
_PR_SET_PDEATHSIG: Final = 1


_FLAGS: Final = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.CAN_MULTI_CONN
    | TransmissionFlag.SEND_CACHE
)
_WRITE_FLAGS: Final = TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO


def export_info(backend: FileBackend, name: str, *, description: str = "", contexts: Sequence[str] = ()) -> ExportInfo:
    """What a handshake says of a backend: all that this server can do with it.

    A FLUSH on one connection covers the writes completed on all, since all write to the same inode: CAN_MULTI_CONN.
    """
    flags = _FLAGS | (TransmissionFlag.READ_ONLY if backend.read_only else _WRITE_FLAGS)
    if backend.geometry.rotational:
        flags |= TransmissionFlag.ROTATIONAL
    sizes = BlockSizes(backend.geometry.logical_sector, backend.geometry.preferred)
    return ExportInfo(name, backend.size, flags, sizes, description, tuple(contexts))


class Session(Catalog, Observer, Protocol):
    """One connection's view of what is offered, and whom to tell what happens."""

    def open(self) -> FileBackend:
        """The backend of the export that was last found with `opening`; the caller closes it."""
        ...

    def opened(self, ready: Ready) -> None:
        """The handshake is over, requests follow."""
        ...

    def closed(self, reason: str) -> None:
        """The connection is over; always the last call."""
        ...


class Server:
    """Accepts connections on sockets that listen already, until it is told to stop.

    Attributes:
        connections: pids of the connections' processes, by slot.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        make_session: Callable[[str, int], Session],
        *,
        max_connections: int = MAX_CONNECTIONS,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        """Prepare to serve.

        Args:
            listeners: listening sockets, TCP or Unix.
            make_session: called in a connection's own process with the peer's address and the connection's slot, a
                number below `max_connections` that no other connection has at that time.
            max_connections: a client beyond this number is hung up on.
            handshake_timeout: seconds a client has until its requests may begin.
        """
        self._listeners = list(listeners)
        self._make_session = make_session
        self._max_connections = max_connections
        self._handshake_timeout = handshake_timeout
        self._stopping = False
        self.connections: dict[int, int] = {}

    def stop(self) -> None:
        """Take no more connections and let those that there are finish what they were sent."""
        self._stopping = True

    def run(self) -> None:
        """Accept until `stop` is called or SIGTERM or SIGINT arrives; then wait for the connections' processes."""
        wake, alarm = socket.socketpair()
        wake.setblocking(False)
        alarm.setblocking(False)
        signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})  # as a cautious parent leaves them
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            for listener in self._listeners:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            while not self._stopping:
                for key, _ in selector.select():
                    if key.fileobj is wake:
                        with contextlib.suppress(BlockingIOError):
                            wake.recv(4096)
                        self._reap()
                    else:
                        self._accept(key.fileobj)  # type: ignore[arg-type]
        for listener in self._listeners:
            listener.close()
        self._stop_connections()
        signal.set_wakeup_fd(-1)
        wake.close()
        alarm.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except OSError:
            return  # the client has left already, or descriptors are short for the moment
        slot = next((s for s in range(self._max_connections) if s not in self.connections), None)
        if slot is None:
            sock.close()
            return
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no memory, or too many processes: this client has to come back later
            sock.close()
            return
        if pid == 0:
            self._connection(parent, sock, address, slot)
        sock.close()
        self.connections[slot] = pid

    def _reap(self) -> None:
        for slot, pid in list(self.connections.items()):
            done, _ = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.connections[slot]

    def _stop_connections(self) -> None:
        deadline = time.monotonic() + STOP_LIMIT + 2
        while self.connections:
            number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
            for pid in self.connections.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(_NUDGE if len(self.connections) else 0)
            self._reap()

    def _connection(self, parent: int, sock: socket.socket, address: Any, slot: int) -> NoReturn:
        """The life of a connection's process."""
        status = _NOT_SERVED
        try:
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the listener tells us when
            signal.signal(signal.SIGTERM, lambda *_: os._exit(_NOT_SERVED))
            for listener in self._listeners:
                listener.close()
            status = serve_connection(sock, self._make_session(peer_name(sock, address), slot), self._handshake_timeout)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def serve_connection(sock: socket.socket, session: Session, handshake_timeout: float = HANDSHAKE_TIMEOUT) -> int:
    """Serve one connected socket to its end, in this process.

    Returns:
        An exit status: 0 when the client got as far as sending requests.
    """
    reason, status = "crashed", _NOT_SERVED
    try:
        outcome = _negotiate(sock, session, handshake_timeout)
        if isinstance(outcome, Aborted):
            reason = outcome.reason
            return status
        backend = session.open()
        try:
            status = _SERVED
            responder = Responder(sock, backend, outcome, session)
            # Before anybody is told: from then on requests may come, none of which is lost by a signal.
            signal.signal(signal.SIGTERM, lambda *_: responder.stop())
            session.opened(outcome)
            try:
                reason = responder.run()
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if responder.dirty:
                    _flush(backend, session)
        finally:
            backend.close()
    except NBDError as error:
        reason = f"protocol error: {error}"
    except TimeoutError:
        reason = f"no complete handshake within {handshake_timeout:g} seconds"
    except OSError as error:
        reason = f"connection lost: {error.strerror or error}"
    finally:
        sock.close()
        session.closed(reason)
    return status


def _flush(backend: FileBackend, session: Session) -> None:
    """What a client wrote and did not flush is flushed when it is gone: nobody else will."""
    try:
        backend.flush()
    except OSError as error:
        session.failed("FLUSH", 0, 0, error)


def _negotiate(sock: socket.socket, session: Session, timeout: float) -> Ready | Aborted:
    deadline = time.monotonic() + timeout
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
    negotiation = ServerNegotiation(session)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        if outgoing := negotiation.bytes_to_send():  # even an empty send fails when the client has said its last
            sock.sendall(outgoing)
        if negotiation.outcome is not None:
            sock.settimeout(None)
            return negotiation.outcome
        data = sock.recv(negotiation.missing())
        if not data:
            return Aborted("client left during the handshake")
        negotiation.receive(data)


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel find out within about a minute that the other side of an idle TCP connection is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def peer_name(sock: socket.socket, address: Any) -> str:
    """A client's address for people: `192.0.2.7:50312`, `[2001:db8::7]:50312`, `unix pid 4711`."""
    if sock.family == socket.AF_UNIX:
        (pid, _, _) = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"unix pid {pid}"
    host, port = str(address[0]).removeprefix("::ffff:"), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGTERM when the process `parent` ends, however it ends; end now if it has already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(_NOT_SERVED)
