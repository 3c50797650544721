"""One connection of the client's: how it begins, what is in flight, and how it can end."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nbd import wire
from nbd.connection import Connection, FileRange, PayloadError, list_exports
from nbd.errors import ConnectionLost, OptionRefused, ProtocolError, RequestFailed, Stalled
from nbd.transmission import Pending
from nbd.uri import NBDURI
from nbd.wire import Command, Rep
from tests.nbd.peers import (
    Exporting,
    admit,
    exporting,
    greet,
    next_option,
    next_request,
    option_reply,
    random_bytes,
    scripted,
)
from tests.support import assert_same_bytes, free_port

MIB = 1 << 20


def connect(uri: str, *, timeout: float = 10, queries: tuple[str, ...] = ()) -> Connection:
    return Connection(NBDURI.parse(uri), timeout=timeout, queries=queries)


def simple(cookie: int, error: int = 0) -> bytes:
    return bytes(wire.SimpleReply.build({"cookie": cookie, "error": error}))


def failure_of(pending: Pending) -> RequestFailed:
    assert pending.failure is not None
    return pending.failure


# --- The beginning ---


def test_a_connection_to_our_server(server: Exporting) -> None:
    connection = connect(server.uri)
    try:
        assert connection.ready.export.size == 2 * MIB
        assert connection.ready.structured
        assert set(connection.ready.contexts) == {wire.BASE_ALLOCATION}
    finally:
        connection.disconnect()
    assert server.wait_for("closed")[0]["reason"] == "disconnected"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(tmp_path: Path, disk: Path, host: str) -> None:
    with exporting(tmp_path, {"": {"path": str(disk)}}, host=host) as server:
        connection = connect(server.uri)
        buffer = bytearray(100)
        connection.send(Command.READ, 7, 100, buffer=memoryview(buffer))
        assert connection.receive().failure is None
        assert bytes(buffer) == random_bytes(2 * MIB)[7:107]
        connection.disconnect()


def test_an_abstract_socket() -> None:
    name = f"\0targetmode-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                admit(sock, 4711)

        thread = threading.Thread(target=serve)
        thread.start()
        connection = Connection(NBDURI.parse(f"nbd+unix:///?socket=%00{name[1:]}"), timeout=10)
        thread.join()
        assert connection.ready.export.size == 4711
        connection.close()


@pytest.mark.parametrize(
    ("uri", "cause"),
    [
        ("nbd://127.0.0.1:PORT/", ConnectionRefusedError),
        ("nbd+unix:///?socket=/nowhere/sock", FileNotFoundError),
        ("nbd+unix:///?socket=/" + "x" * 200, OSError),
        ("nbd://a..b/", UnicodeError),
        ("nbd://" + "x" * 70 + "/", Exception),
    ],
)
def test_there_is_no_connection_to_be_had(uri: str, cause: type[Exception]) -> None:
    with pytest.raises(ConnectionLost, match="cannot connect") as caught:
        connect(uri.replace("PORT", str(free_port())))
    assert isinstance(caught.value.__cause__, cause)


def test_tls_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConnectionLost, match="TLS"):
        connect(f"nbds://127.0.0.1:{free_port()}/")


def test_an_unknown_export(server: Exporting, descriptors: Callable[[], int]) -> None:
    before = descriptors()
    with pytest.raises(OptionRefused, match="no such export") as caught:
        Connection(NBDURI.parse(server.uri).with_export("nowhere"))
    assert caught.value.reply == Rep.ERR_UNKNOWN
    del caught
    assert descriptors() == before


def test_list_exports(server: Exporting) -> None:
    assert set(list_exports(NBDURI.parse(server.uri))) == {"", "disk", "frozen"}


def test_another_protocol() -> None:
    server = scripted(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"))
    with server as uri, pytest.raises(ProtocolError, match="not an NBD server"):
        connect(uri)


def test_a_server_that_hangs_up_in_the_handshake() -> None:
    def hang_up(sock: socket.socket) -> None:
        greet(sock)
        next_option(sock)

    with scripted(hang_up) as uri, pytest.raises(ConnectionLost):
        connect(uri)


def test_the_last_words_of_a_server_are_heard() -> None:
    """It says why, and hangs up, before the client has read all of it."""

    def refuse_and_go(sock: socket.socket) -> None:
        greet(sock)
        for reply in (Rep.ERR_UNSUP, Rep.ERR_POLICY):
            option, _ = next_option(sock)
            sock.sendall(option_reply(option, reply, b"not for you"))

    for _ in range(5):
        with scripted(refuse_and_go) as uri, pytest.raises(OptionRefused, match="not for you"):
            connect(uri)


@pytest.mark.parametrize("drip", [False, True])
def test_a_handshake_without_end_is_given_up(drip: bool) -> None:
    def stall(sock: socket.socket) -> None:
        greet(sock)
        option, _ = next_option(sock)
        reply = option_reply(option, 77, bytes(4000))
        while drip:
            for byte in reply:
                sock.sendall(bytes([byte]))
                time.sleep(0.0005)
        sock.recv(1)

    with scripted(stall) as uri:
        started = time.monotonic()
        with pytest.raises(Stalled):
            connect(uri, timeout=0.3)
        assert time.monotonic() - started < 2


# --- Requests in flight ---


def test_replies_out_of_order() -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        requests = [next_request(sock) for _ in range(3)]
        for one in reversed(requests):
            sock.sendall(simple(one.cookie, 5 if one.cookie == 2 else 0))

    with scripted(serve) as uri:
        connection = connect(uri)
        cookies = [connection.send(Command.WRITE, 0, 4, data=memoryview(b"data")) for _ in range(3)]
        assert list(connection.pending) == cookies == [1, 2, 3]
        answered = [connection.receive() for _ in range(3)]
        assert [one.cookie for one in answered] == [3, 2, 1]
        assert [one.failure is None for one in answered] == [True, False, True]
        assert failure_of(answered[1]).errno == errno.EIO
        assert connection.pending == {}
        connection.close()


def test_a_file_goes_out_without_a_copy(server: Exporting, disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(random_bytes(2 * MIB, seed=3))
    connection = connect(server.uri)
    with source.open("rb") as file:
        for offset in range(0, 2 * MIB, MIB // 2):
            connection.send(Command.WRITE, offset, MIB // 2, data=FileRange(file.fileno(), offset))
            assert connection.receive().failure is None
        assert file.tell() == 0
    connection.disconnect()
    assert_same_bytes(disk.read_bytes(), source.read_bytes())


def test_a_source_that_shrinks(server: Exporting, disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 1000)
    connection = connect(server.uri)
    with source.open("rb") as file, pytest.raises(PayloadError, match="ends at offset 1000"):
        connection.send(Command.WRITE, 0, 4096, data=FileRange(file.fileno(), 0))
    assert server.wait_for("closed")[0]["reason"] == "client closed the connection inside a request"
    assert_same_bytes(disk.read_bytes(), random_bytes(2 * MIB))  # what is not complete is not written


def test_a_source_that_cannot_be_read(server: Exporting, tmp_path: Path) -> None:
    connection = connect(server.uri)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PayloadError, match="reading the source at offset 5"):
            connection.send(Command.WRITE, 0, 4096, data=FileRange(fd, 5))
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EPIPE])
def test_a_network_that_fails_is_no_fault_of_the_source(
    server: Exporting, disk: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def sendfile(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    connection = connect(server.uri)
    monkeypatch.setattr(os, "sendfile", sendfile)
    with disk.open("rb") as file, pytest.raises(ConnectionLost, match=os.strerror(number)):
        connection.send(Command.WRITE, 0, 4096, data=FileRange(file.fileno(), 0))


# --- The end ---


def test_a_server_that_stalls() -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        sock.recv(28)
        sock.recv(1)

    with scripted(serve) as uri:
        connection = connect(uri, timeout=0.3)
        connection.send(Command.FLUSH, 0, 0)
        started = time.monotonic()
        with pytest.raises(Stalled, match=r"0\.3 seconds"):
            connection.receive()
        assert 0.2 < time.monotonic() - started < 2


def test_a_server_that_stalls_in_a_reply() -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        one = next_request(sock)
        sock.sendall(simple(one.cookie)[:7])
        sock.recv(1)

    with scripted(serve) as uri:
        connection = connect(uri, timeout=0.3)
        connection.send(Command.FLUSH, 0, 0)
        with pytest.raises(Stalled):
            connection.receive()


def test_a_server_that_does_not_read() -> None:
    ended = threading.Event()

    def serve(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        admit(sock, 1 << 30)
        ended.wait(10)

    with scripted(serve) as uri:
        connection = connect(uri, timeout=0.3)
        with pytest.raises(Stalled):
            for _ in range(10):
                connection.send(Command.WRITE, 0, 8 * MIB, data=memoryview(bytes(8 * MIB)))
        ended.set()


def test_a_slow_server_does_not_stall() -> None:
    """Something moves, even though the whole takes longer than the time allowed."""

    def serve(sock: socket.socket) -> None:
        admit(sock)
        one = next_request(sock)
        header = {"flags": 1, "type": 1, "cookie": one.cookie, "length": 108}
        for byte in wire.StructuredReplyHeader.build(header) + bytes(8) + bytes(range(100)):
            sock.sendall(bytes([byte]))
            time.sleep(0.01)

    with scripted(serve) as uri:
        connection = connect(uri, timeout=0.5)
        buffer = bytearray(100)
        connection.send(Command.READ, 0, 100, buffer=memoryview(buffer))
        assert connection.receive().failure is None
        assert bytes(buffer) == bytes(range(100))
        connection.close()


def test_abort_from_another_thread() -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        sock.recv(28)
        sock.recv(1)

    with scripted(serve) as uri:
        connection = connect(uri, timeout=30)
        connection.send(Command.FLUSH, 0, 0)
        timer = threading.Timer(0.2, connection.abort)
        timer.start()
        started = time.monotonic()
        with pytest.raises(ConnectionLost):
            connection.receive()
        assert time.monotonic() - started < 5
        timer.join()
        connection.abort()  # it may be too late


def test_a_protocol_error_closes_the_connection() -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        one = next_request(sock)
        sock.sendall(simple(one.cookie + 1))
        assert sock.recv(1) == b""

    with scripted(serve) as uri:
        connection = connect(uri)
        connection.send(Command.FLUSH, 0, 0)
        with pytest.raises(ProtocolError, match="cookie"):
            connection.receive()
        with pytest.raises(ConnectionLost):
            connection.send(Command.FLUSH, 0, 0)
