"""The client that outlives its connections: against real servers, bad networks, and servers that forget."""

from __future__ import annotations

import errno
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nbd import client as client_module
from nbd import wire
from nbd.backend import Extent
from nbd.client import Client, Operation
from nbd.connection import FileRange, PayloadError
from nbd.errors import ConnectionLost, OptionRefused, ProtocolError, RequestFailed, Stalled
from nbd.transmission import error_chunk
from nbd.uri import NBDURI
from nbd.wire import Command, CommandFlag, Option, Rep, TransmissionFlag
from tests.nbd.peers import (
    Exporting,
    MemoryDisk,
    Proxy,
    admit,
    exporting,
    greet,
    next_option,
    next_request,
    option_reply,
    random_bytes,
    scripted,
)
from tests.support import assert_same_bytes, free_port, listens, running

MIB = 1 << 20
KIB = 1 << 10
SIZE = 4 * MIB


def connect(uri: str, **options: Any) -> Client:
    return Client(NBDURI.parse(uri), **{"timeout": 10, **options})


def simple(cookie: int, error: int = 0) -> bytes:
    return bytes(wire.SimpleReply.build({"cookie": cookie, "error": error}))


def writes(data: bytes, size: int = 64 * KIB) -> Iterator[Operation]:
    for offset in range(0, len(data), size):
        piece = memoryview(data)[offset : offset + size]
        yield Operation(Command.WRITE, offset, len(piece), data=piece)


# --- Real servers ---


@contextmanager
def nbdkit(directory: Path, *arguments: str) -> Iterator[str]:
    path = directory / "nbdkit.sock"
    with running(
        ["nbdkit", "--foreground", "--exit-with-parent", "--unix", path, *arguments], ready=lambda: listens(str(path))
    ):
        yield f"nbd+unix:///?socket={path}"


@contextmanager
def qemu_nbd(directory: Path, image: Path) -> Iterator[str]:
    path = directory / "qemu.sock"
    options = ["--format=raw", "--persistent", "--shared=4", "--discard=unmap", "--export-name=disk"]
    with running(["qemu-nbd", *options, f"--socket={path}", str(image)], ready=lambda: listens(str(path))):
        yield f"nbd+unix:///disk?socket={path}"


@contextmanager
def nbd_server(directory: Path, image: Path) -> Iterator[str]:
    port = free_port()
    config = directory / "nbd-server.conf"
    config.write_text(
        f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n"
        f"[disk]\nexportname = {image}\nflush = true\nfua = true\ntrim = true\n"
    )
    command = ["nbd-server", "-d", "-C", str(config), "-p", str(directory / "pid")]  # -d: one client, no fork
    with (directory / "log").open("wb") as log, running(command, ready=lambda: listens(port), stderr=log):
        yield f"nbd://127.0.0.1:{port}/disk"


@pytest.fixture(params=["nbdkit file", "nbdkit memory", "qemu-nbd", "nbd-server", "ours"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path | None]]:
    """A server's URI, and its file of 4 MiB of zeroes if it has one."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    with ExitStack() as cleanup:
        match request.param:
            case "nbdkit file":
                yield cleanup.enter_context(nbdkit(tmp_path, "file", str(image))), image
            case "nbdkit memory":
                yield cleanup.enter_context(nbdkit(tmp_path, "memory", str(SIZE))), None
            case "qemu-nbd":
                yield cleanup.enter_context(qemu_nbd(tmp_path, image)), image
            case "nbd-server":
                yield cleanup.enter_context(nbd_server(tmp_path, image)), image
            case _:
                yield cleanup.enter_context(exporting(tmp_path, {"": {"path": str(image)}})).uri, image


def test_a_real_server(peer: tuple[str, Path | None], tmp_path: Path) -> None:
    uri, image = peer
    data = bytearray(random_bytes(SIZE))
    source = tmp_path / "source"
    source.write_bytes(data)
    client = connect(uri)
    assert client.export.size == SIZE
    with source.open("rb") as file:
        done: list[int] = []
        operations = (
            Operation(Command.WRITE, offset, 256 * KIB, data=FileRange(file.fileno(), offset))
            for offset in range(0, SIZE, 256 * KIB)
        )
        client.run(operations, done=lambda operation: done.append(operation.offset))
        assert sorted(done) == list(range(0, SIZE, 256 * KIB))
    client.write(b"hello", 1000)
    data[1000:1005] = b"hello"
    client.write(b"stable" * 100_000, MIB, fua=bool(client.export.flags & TransmissionFlag.SEND_FUA))
    data[MIB : MIB + 600_000] = b"stable" * 100_000
    if client.export.flags & TransmissionFlag.SEND_WRITE_ZEROES:
        for offset, length, no_hole in [(0, 512, True), (2 * MIB, MIB, False), (70_000, 30_000, True)]:
            client.zero(offset, length, no_hole=no_hole)
            data[offset : offset + length] = bytes(length)
    if client.export.flags & TransmissionFlag.SEND_TRIM:
        client.trim(3 * MIB, MIB)
        client.write(b"x" * MIB, 3 * MIB)
        data[3 * MIB :] = b"x" * MIB
    client.flush()
    assert_same_bytes(client.read(0, SIZE), data)
    assert client.read(999, 7) == data[999:1006]
    position = 0
    for extent in client.extents(0, SIZE):
        if extent.zero:
            assert not any(data[position : position + extent.length])
        position += extent.length
    assert position == SIZE
    assert sum(extent.length for extent in client.extents(4096, 12_288)) == 12_288
    client.disconnect()
    if image is not None:
        assert_same_bytes(image.read_bytes(), data)


def test_errors_of_a_real_server_are_told_with_their_place(tmp_path: Path) -> None:
    operations: dict[str, Callable[[Client], object]] = {
        "pread": lambda client: client.read(1024, 512),
        "pwrite": lambda client: client.write(b"x" * 512, 1024),
        "zero": lambda client: client.zero(1024, 512),
    }
    for command, operate in operations.items():
        directory = tmp_path / command
        directory.mkdir()
        arguments = ["--filter=error", "memory", "1M", f"error-{command}=ENOSPC", f"error-{command}-rate=100%"]
        with nbdkit(directory, *arguments) as uri:
            client = connect(uri)
            with pytest.raises(RequestFailed) as caught:
                operate(client)
            assert caught.value.errno == errno.ENOSPC
            assert (caught.value.offset, caught.value.length) == (1024, 512)
            client.flush()
            client.disconnect()


def test_some_errors_among_many_requests(tmp_path: Path) -> None:
    """None is overlooked, whichever request it answers."""
    with nbdkit(tmp_path, "--filter=error", "memory", "4M", "error-pwrite-rate=10%") as uri:
        client = connect(uri)
        for seed in range(5):
            done: set[int] = set()
            with pytest.raises(RequestFailed) as caught:
                client.run(writes(random_bytes(SIZE, seed), 16 * KIB), depth=16, done=lambda o: done.add(o.offset))  # noqa: B023
            assert caught.value.errno == errno.EIO
            assert caught.value.offset not in done
            for offset in done:
                assert_same_bytes(client.read(offset, 16 * KIB), random_bytes(SIZE, seed)[offset : offset + 16 * KIB])
        client.disconnect()


def test_a_server_with_delays_answers_in_any_order(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "--filter=delay", "memory", "1M", "delay-write=20ms", "delay-read=5ms") as uri:
        client = connect(uri)
        started = time.monotonic()
        client.run(writes(random_bytes(MIB), 16 * KIB), depth=16)
        assert time.monotonic() - started < 64 * 0.02  # they were in flight together
        assert_same_bytes(client.read(0, MIB), random_bytes(MIB))
        client.disconnect()


def test_block_sizes_of_a_real_server(tmp_path: Path) -> None:
    arguments = ["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=512", "blocksize-preferred=8K"]
    with nbdkit(tmp_path, *arguments, "blocksize-maximum=64K", "blocksize-error-policy=error") as uri:
        client = connect(uri)
        sizes = client.export.sizes
        assert (sizes.minimum, sizes.preferred, sizes.maximum) == (512, 8192, 65536)
        client.write(b"x" * 512, 512)
        with pytest.raises(RequestFailed) as caught:
            client.write(b"x" * 100, 512)
        assert caught.value.errno == errno.EINVAL
        assert client.read(512, 512) == b"x" * 512
        client.disconnect()


def test_extents_of_a_real_server(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "sparse-random", "64M", "seed=1", "percent=20") as uri:
        client = connect(uri)
        extents = list(client.extents(0, 64 * MIB))
        assert len(extents) > 2
        assert sum(extent.length for extent in extents) == 64 * MIB
        position = 0
        for extent in extents:
            assert any(client.read(position, min(extent.length, MIB))) != extent.zero
            position += extent.length
        client.disconnect()


# --- A bad network ---


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


# --- The order of requests ---


def sent_before_the_first_reply(operations: list[Operation]) -> list[int]:
    """The commands that a client sends before it has got any reply."""
    seen: list[int] = []

    def serve(sock: socket.socket) -> None:
        admit(sock)
        sock.settimeout(0.2)
        waiting = []
        try:
            while True:
                waiting.append(next_request(sock))
                seen.append(waiting[-1].type)
        except TimeoutError:
            sock.settimeout(20)
        for one in waiting:
            if one.type == Command.READ:
                header = {"flags": 1, "type": 2, "cookie": one.cookie, "length": 12}
                hole = wire.OffsetHole.build({"offset": one.offset, "length": one.length})
                sock.sendall(wire.StructuredReplyHeader.build(header) + hole)
            else:
                sock.sendall(simple(one.cookie))
        while True:
            one = next_request(sock)
            sock.sendall(error_chunk(one.cookie, 5))

    with scripted(serve) as uri:
        client = connect(uri)
        with suppress(RequestFailed):
            client.run(operations, depth=8)
        client.close()
    return seen


def operation(command: Command, offset: int, length: int) -> Operation:
    data = memoryview(bytes(length)) if command == Command.WRITE else None
    buffer = memoryview(bytearray(length)) if command == Command.READ else None
    return Operation(command, offset, length, data=data, buffer=buffer)


@pytest.mark.parametrize(
    ("operations", "together"),
    [
        ([(Command.WRITE, 0, 512), (Command.WRITE, 512, 512), (Command.WRITE, 1024, 512)], 3),
        ([(Command.WRITE, 0, 512), (Command.WRITE, 512, 512), (Command.WRITE, 1000, 512)], 2),
        ([(Command.WRITE_ZEROES, 0, 4096), (Command.WRITE, 100, 1)], 1),
        ([(Command.WRITE, 0, 512), (Command.READ, 512, 512)], 2),
        ([(Command.WRITE, 0, 512), (Command.READ, 511, 512)], 1),
        ([(Command.READ, 0, 512), (Command.READ, 0, 512)], 2),
        ([(Command.READ, 0, 512), (Command.TRIM, 511, 512)], 1),
        ([(Command.READ, 0, 512), (Command.WRITE, 4096, 512)], 1),
        ([(Command.WRITE, 0, 512), (Command.FLUSH, 0, 0)], 1),
        ([(Command.FLUSH, 0, 0), (Command.WRITE, 0, 512)], 1),
    ],
)
def test_what_may_be_in_flight_together(operations: list[tuple[Command, int, int]], together: int) -> None:
    assert len(sent_before_the_first_reply([operation(*one) for one in operations])) == together


def test_bulk_reads_and_writes_together_do_not_lock_up(server: Exporting, disk: Path) -> None:
    buffers = [bytearray(MIB) for _ in range(8)]
    operations = []
    for buffer in buffers:
        operations.append(Operation(Command.READ, 0, MIB, buffer=memoryview(buffer)))
        operations.append(Operation(Command.WRITE, MIB, MIB, data=memoryview(b"y" * MIB)))
    client = connect(server.uri, timeout=5)
    client.run(operations, depth=8)
    client.disconnect()
    assert all(buffer == random_bytes(2 * MIB)[:MIB] for buffer in buffers)
    assert_same_bytes(disk.read_bytes()[MIB:], b"y" * MIB)


# --- Long ranges ---


def test_ranges_longer_than_a_request_can_be() -> None:
    size = 10 << 30
    seen: list[tuple[int, int, int, int]] = []

    def serve(sock: socket.socket) -> None:
        admit(sock, size)
        while True:
            one = next_request(sock)
            seen.append((one.type, one.flags, one.offset, one.length))
            if one.type == Command.BLOCK_STATUS:
                # One extent that goes past what was asked for, where it may.
                header = {"flags": 1, "type": 5, "cookie": one.cookie, "length": 12}
                extents = [{"length": 0xFFFFFFFF, "flags": 3}]
                reply = wire.StructuredReplyHeader.build(header)
                sock.sendall(reply + wire.BlockStatus.build({"context": 7, "extents": extents}))
            else:
                sock.sendall(simple(one.cookie))

    with scripted(serve) as uri:
        client = connect(uri)
        client.zero(512, size - 512, no_hole=True)
        client.trim(0, size)
        extents = list(client.extents(0, size))
        client.close()
    for command in (Command.WRITE_ZEROES, Command.TRIM):
        pieces = [(offset, length) for kind, _, offset, length in seen if kind == command]
        position = 512 if command == Command.WRITE_ZEROES else 0
        assert len(pieces) == 3
        for offset, length in pieces:
            assert offset == position
            position += length
        assert position == size
    assert {flags for kind, flags, _, _ in seen if kind == Command.WRITE_ZEROES} == {CommandFlag.NO_HOLE}
    assert sum(extent.length for extent in extents) == size
    assert all(extent.zero and extent.hole for extent in extents)


def test_extents_where_the_server_does_not_tell() -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock, 10 << 30, context=False)
        sock.recv(1)

    with scripted(serve) as uri:
        client = connect(uri)
        extents = list(client.extents(5, 5 << 30))
        assert sum(extent.length for extent in extents) == 5 << 30
        assert all(extent == Extent(extent.length, hole=False, zero=False) for extent in extents)
        client.close()


def test_flush_is_not_sent_where_the_server_has_none() -> None:
    seen: list[int] = []

    def serve(sock: socket.socket) -> None:
        admit(sock, flags=TransmissionFlag.HAS_FLAGS)
        while True:
            one = next_request(sock)
            seen.append(one.type)
            sock.sendall(simple(one.cookie))

    with scripted(serve) as uri:
        client = connect(uri)
        client.write(b"x", 0)
        client.flush()
        client.close()
    assert seen == [Command.WRITE]


def test_the_notes_of_a_reconnect(server: Exporting) -> None:
    notes: list[str] = []
    report: Callable[[str], None] = notes.append
    with Proxy(server.address, iter([None, None])) as proxy:
        client = connect(f"nbd://127.0.0.1:{proxy.port}/disk", notify=report)
        client.write(b"a", 0)
        proxy.cut()
        client.write(b"b", 1)
        assert client.read(0, 2) == b"ab"
        client.disconnect()
    assert len(notes) == 2
    assert "connecting again" in notes[0]
    assert "connected again" in notes[1]
