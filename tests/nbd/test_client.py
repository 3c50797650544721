"""The client that outlives its connections: against real servers, bad networks, and servers that forget."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nbd import wire
from nbd.backend import Extent
from nbd.client import Client, Operation
from nbd.connection import FileRange
from nbd.errors import RequestFailed
from nbd.transmission import error_chunk
from nbd.wire import Command, CommandFlag, TransmissionFlag
from tests.nbd.peers import (
    Exporting,
    Proxy,
    admit,
    connect,
    exporting,
    next_request,
    random_bytes,
    scripted,
    simple,
    writes,
)
from tests.support import assert_same_bytes, free_port, listens, running

MIB = 1 << 20
KIB = 1 << 10
SIZE = 4 * MIB


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
