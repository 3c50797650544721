"""The client when the network or the server fails: cuts, stalls, servers that forget, change or never come back."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbd import client as client_module
from nbd.client import Operation
from nbd.connection import FileRange, PayloadError
from nbd.errors import ConnectionLost, OptionRefused, ProtocolError, RequestFailed, Stalled
from nbd.uri import NBDURI
from nbd.wire import Command, Option, Rep
from tests.nbd.peers import (
    Exporting,
    MemoryDisk,
    Proxy,
    admit,
    connect,
    greet,
    next_option,
    next_request,
    option_reply,
    random_bytes,
    scripted,
    simple,
    writes,
)
from tests.support import assert_same_bytes

MIB = 1 << 20
KIB = 1 << 10
SIZE = 4 * MIB


@pytest.mark.parametrize("seed", range(4))
def test_cuts_at_random_do_no_harm(server: Exporting, disk: Path, seed: int) -> None:
    chance = random.Random(seed)
    budgets = iter([chance.choice([50, 900, 100_000]) + chance.randrange(700_000) for _ in range(12)])

    def budget() -> Iterator[int | None]:
        yield from budgets
        while True:
            yield None

    notes: list[str] = []
    data = random_bytes(2 * MIB, seed + 100)
    with Proxy(server.address, budget()) as proxy:
        client = None
        while client is None:
            try:
                client = connect(f"nbd://127.0.0.1:{proxy.port}/disk", notify=notes.append)
            except ConnectionLost:
                continue
        done: list[int] = []
        client.run(writes(data), done=lambda operation: done.append(operation.offset))
        assert sorted(done) == list(range(0, 2 * MIB, 64 * KIB))
        client.flush()
        got = bytearray(2 * MIB)
        view = memoryview(got)
        offsets = range(0, 2 * MIB, 128 * KIB)
        client.run(Operation(Command.READ, o, 128 * KIB, buffer=view[o : o + 128 * KIB]) for o in offsets)
        client.disconnect()
        assert proxy.connections > 2
        assert len(notes) % 2 == 0
        assert len(notes) >= 2
    assert_same_bytes(bytes(got), data)
    assert_same_bytes(disk.read_bytes(), data)


@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_forgets_what_was_not_flushed(seed: int) -> None:
    """It acknowledged writes, lost them at the cut, and gets them again."""
    chance = random.Random(seed)
    disk = MemoryDisk(2 * MIB)
    data = random_bytes(2 * MIB, seed)
    cuts = [chance.randrange(12, 40) for _ in range(4)]
    scripts = [lambda sock, n=n: disk.serve(sock, n) for n in cuts]
    with scripted(*scripts, disk.serve) as uri:
        client = connect(uri)
        client.zero(0, 2 * MIB)
        client.write(b"old" * 1000, 5000)
        client.run(writes(data))
        client.flush()
        client.disconnect()
    assert_same_bytes(disk.stable, data)


def test_the_order_of_overlapping_writes_survives_a_cut() -> None:
    """Each is sent again only when those before it are answered: a server may carry out in any order."""
    disk = MemoryDisk(64 * KIB)

    def shuffling(sock: socket.socket) -> None:
        """Take what comes within a moment, and do the last of it first."""
        with disk.lock:
            admit(sock, 64 * KIB)
            while True:
                batch = [next_request(sock)]
                sock.settimeout(0.02)
                try:
                    while True:
                        batch.append(next_request(sock))
                except TimeoutError:
                    sock.settimeout(20)
                for asked in reversed(batch):
                    if asked.type == Command.DISC:
                        return
                    if asked.type == Command.WRITE:
                        disk.cache[asked.offset : asked.offset + asked.length] = asked.data
                    sock.sendall(simple(asked.cookie))

    with scripted(lambda sock: disk.serve(sock, 7), shuffling) as uri:
        client = connect(uri)
        for number in range(8):
            client.write(bytes([number]) * 4096, number * 1000)
        expected = bytearray(64 * KIB)
        for number in range(8):
            expected[number * 1000 : number * 1000 + 4096] = bytes([number]) * 4096
        client.disconnect()
    assert_same_bytes(disk.cache, expected)


def test_a_caller_may_use_its_buffer_again() -> None:
    disk = MemoryDisk(64 * KIB)
    with scripted(lambda sock: disk.serve(sock, 4), disk.serve) as uri:
        client = connect(uri)
        buffer = bytearray(4096)
        for number in range(8):
            buffer[:] = bytes([number]) * 4096
            client.write(memoryview(buffer), number * 4096)
        client.flush()
        client.disconnect()
    assert disk.stable[: 8 * 4096] == b"".join(bytes([number]) * 4096 for number in range(8))


def test_payloads_in_memory_are_flushed_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "UNFLUSHED_MEMORY", 256 * KIB)
    disk = MemoryDisk(2 * MIB)
    with scripted(disk.serve) as uri:
        client = connect(uri)
        client.run(writes(random_bytes(2 * MIB)))
        assert client._unflushed_memory <= 256 * KIB
        assert_same_bytes(disk.stable[: 2 * MIB - 512 * KIB], random_bytes(2 * MIB)[: 2 * MIB - 512 * KIB])
        client.disconnect()


def test_an_error_is_not_forgotten_when_the_connection_is_lost_after_it() -> None:
    def fail_and_hang_up(sock: socket.socket) -> None:
        admit(sock)
        first, _ = next_request(sock), next_request(sock)
        sock.sendall(simple(first.cookie, 5))

    disk = MemoryDisk(MIB)
    with scripted(fail_and_hang_up, disk.serve) as uri:
        client = connect(uri)
        with pytest.raises(RequestFailed) as caught:
            client.run(writes(random_bytes(128 * KIB)))
        assert (caught.value.errno, caught.value.offset) == (errno.EIO, 0)
        client.flush()
        client.disconnect()


def test_a_failure_during_the_resend_leaves_nothing_out_of_the_next() -> None:
    """Writes that were still to be sent again when one of them failed are sent before the next flush."""
    disk = MemoryDisk(64 * KIB)

    def fail_the_first(sock: socket.socket) -> None:
        admit(sock, 64 * KIB)
        requests = [next_request(sock) for _ in range(4)]
        sock.sendall(simple(requests[0].cookie, 28))

    with scripted(lambda sock: disk.serve(sock, 8), fail_the_first, disk.serve) as uri:
        client = connect(uri)
        for number in range(8):
            client.write(bytes([number + 1]) * 4096, number * 4096)
        with pytest.raises(RequestFailed) as caught:
            client.read(0, 512)
        assert (caught.value.errno, caught.value.command, caught.value.offset) == (errno.ENOSPC, "WRITE", 0)
        client.flush()
        client.disconnect()
    for number in range(1, 8):
        assert disk.stable[number * 4096 : (number + 1) * 4096] == bytes([number + 1]) * 4096


def take_all(sock: socket.socket) -> None:
    """Say nothing more until the client has gone."""
    while sock.recv(65536):
        pass


def test_a_server_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REFUSED_LIMIT", 0.5)
    disk = MemoryDisk(MIB)
    with scripted(disk.serve) as upstream:
        port = NBDURI.parse(upstream).port
        with Proxy(("127.0.0.1", port), iter([200_000])) as proxy:
            client = connect(f"nbd://127.0.0.1:{proxy.port}/disk")
            proxy.__exit__()
            started = time.monotonic()
            with pytest.raises(ConnectionLost):
                client.run(writes(random_bytes(MIB)))
            assert 0.4 < time.monotonic() - started < 3


def test_a_server_that_hangs_up_again_and_again_is_given_up() -> None:
    seen: list[int] = []

    def hang_up(sock: socket.socket) -> None:
        admit(sock)
        seen.append(1)
        next_request(sock)

    with scripted(hang_up) as uri:
        client = connect(uri)
        with pytest.raises(ConnectionLost):
            client.flush()
    assert len(seen) == client_module.FRUITLESS_LIMIT + 1


def test_a_server_that_stalls_is_given_up() -> None:
    def stall(sock: socket.socket) -> None:
        admit(sock)
        take_all(sock)

    with scripted(stall) as uri:
        client = connect(uri, timeout=0.4)
        started = time.monotonic()
        with pytest.raises(Stalled):
            client.write(b"x", 0)
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("size", "flags"),
    [(2 * MIB, 0x1ED), (MIB, 0x1EF), (MIB, 0x1AD)],
    ids=["another size", "read-only", "no zeroes"],
)
def test_a_different_export_after_the_cut_is_refused(size: int, flags: int) -> None:
    def hang_up(sock: socket.socket) -> None:
        admit(sock, MIB)
        next_request(sock)

    def another(sock: socket.socket) -> None:
        admit(sock, size, flags=flags)
        assert sock.recv(1) == b""

    with scripted(hang_up, another) as uri:
        client = connect(uri)
        with pytest.raises(ConnectionLost, match="a different one"):
            client.write(b"x", 0)


def test_an_export_that_is_refused_for_a_while_after_the_cut() -> None:
    """As by a server that has not noticed yet that the old connection is gone."""
    disk = MemoryDisk(MIB)

    def refuse(sock: socket.socket) -> None:
        greet(sock)
        while True:
            option, _ = next_option(sock)
            sock.sendall(option_reply(option, Rep.ERR_POLICY if option == Option.GO else Rep.ERR_UNSUP))

    with scripted(lambda sock: disk.serve(sock, 1), refuse, refuse, disk.serve) as uri:
        client = connect(uri)
        client.run(writes(random_bytes(256 * KIB)))
        client.flush()
        client.disconnect()
        assert_same_bytes(disk.stable[: 256 * KIB], random_bytes(256 * KIB))
        with scripted(refuse) as refusing, pytest.raises(OptionRefused):
            connect(refusing)


def test_abort_from_another_thread() -> None:
    def stall(sock: socket.socket) -> None:
        admit(sock)
        take_all(sock)

    with scripted(stall) as uri:
        client = connect(uri, timeout=30)
        timer = threading.Timer(0.2, client.abort)
        timer.start()
        started = time.monotonic()
        with pytest.raises(ConnectionLost):
            client.flush()
        assert time.monotonic() - started < 2
        timer.join()


def test_abort_while_connecting_again() -> None:
    """The thread that aborts knows the old connection alone."""
    release = threading.Event()

    def hang_up(sock: socket.socket) -> None:
        admit(sock)
        next_request(sock)

    def slow_to_admit(sock: socket.socket) -> None:
        client.abort()
        release.wait(5)
        admit(sock)
        take_all(sock)

    with scripted(hang_up, slow_to_admit) as uri:
        client = connect(uri, timeout=30)
        threading.Timer(0.3, release.set).start()
        started = time.monotonic()
        with pytest.raises(ConnectionLost):
            client.flush()
        assert time.monotonic() - started < 3


def test_operations_that_fail_to_come_leave_the_client_in_step(server: Exporting, disk: Path) -> None:
    def failing() -> Iterator[Operation]:
        yield from itertools.islice(writes(b"w" * MIB), 5)
        raise OSError(errno.EIO, "the source is gone")

    done: list[int] = []
    client = connect(server.uri)
    with pytest.raises(OSError, match="the source is gone"):
        client.run(failing(), done=lambda operation: done.append(operation.offset))
    assert sorted(done) == [number * 64 * KIB for number in range(5)]
    client.zero(0, 64 * KIB)
    assert client.read(0, 128 * KIB) == bytes(64 * KIB) + b"w" * 64 * KIB
    client.disconnect()


def test_a_source_that_shrinks(server: Exporting, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    client = connect(server.uri)
    with source.open("rb") as file, pytest.raises(PayloadError):
        client.run(
            Operation(Command.WRITE, offset, 64 * KIB, data=FileRange(file.fileno(), offset))
            for offset in range(0, MIB, 64 * KIB)
        )
    assert client.read(0, 10) == b"x" * 10
    client.disconnect()


def test_what_a_server_says_that_breaks_the_protocol_is_not_tried_again() -> None:
    def lie(sock: socket.socket) -> None:
        admit(sock)
        one = next_request(sock)
        sock.sendall(simple(one.cookie))  # to a READ, though structured replies were negotiated

    with scripted(lie) as uri:
        client = connect(uri)
        with pytest.raises(ProtocolError):
            client.read(0, 512)
