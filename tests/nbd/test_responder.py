"""One connection's transmission phase over a socket pair, with disks that misbehave."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nbd import responder as responder_module
from nbd import wire
from nbd.backend import FileBackend
from nbd.errors import ProtocolError
from nbd.negotiation import BlockSizes, ExportInfo, Ready
from nbd.responder import SMALL, Responder
from nbd.wire import Command, CommandFlag, Error, ReplyType, TransmissionFlag
from tests.nbd.peers import Answer, RawClient, random_bytes, request
from tests.support import assert_same_bytes, loop_device, small_filesystem, wait_until

MIB = 1 << 20


@dataclass
class Notes:
    """An observer that writes down what it is told."""

    refusals: list[str] = field(default_factory=list)
    asked: int = 0
    flushes: int = 0
    failures: list[tuple[str, int, int, int | None]] = field(default_factory=list)
    read: memoryview = field(default_factory=lambda: memoryview(bytearray(8)).cast("Q"))
    written: memoryview = field(default_factory=lambda: memoryview(bytearray(8)).cast("Q"))

    def begin_writing(self) -> str | None:
        self.asked += 1
        return self.refusals.pop(0) if self.refusals else None

    def flushed(self) -> None:
        self.flushes += 1

    def failed(self, command: str, offset: int, length: int, error: OSError) -> None:
        self.failures.append((command, offset, length, error.errno))


@dataclass
class Served:
    """A client whose requests a responder answers in a thread."""

    client: RawClient
    responder: Responder
    notes: Notes
    thread: threading.Thread
    ends: list[str | BaseException]

    def end(self) -> str | BaseException:
        """Why the responder came to its end."""
        self.client.sock.close()
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.ends[0]


Serve = Callable[..., Served]


@contextmanager
def served(
    backend: FileBackend, *, structured: bool = True, context: bool = True, read_only: bool = False
) -> Iterator[Served]:
    near, far = socket.socketpair()
    flags = TransmissionFlag.READ_ONLY if read_only else TransmissionFlag(0)
    export = ExportInfo("disk", backend.size, flags, BlockSizes())
    notes = Notes()
    ready = Ready(export, structured, {wire.BASE_ALLOCATION: 0} if context else {})
    responder = Responder(far, backend, ready, notes)
    ends: list[str | BaseException] = []

    def run() -> None:
        with far:
            try:
                ends.append(responder.run())
            except BaseException as error:
                ends.append(error)

    client = RawClient(near)
    client.structured, client.context = structured, context
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Served(client, responder, notes, thread, ends)
    finally:
        near.close()
        thread.join(20)
        backend.close()
        assert not thread.is_alive()


@pytest.fixture
def serve(disk: Path) -> Iterator[Serve]:
    """Serves 2 MiB of random bytes, or another file."""
    with ExitStack() as cleanup:

        def serve(path: Path = disk, kind: type[FileBackend] = FileBackend, **options: bool) -> Served:
            fd = os.open(path, os.O_RDWR)
            backend = kind(fd, read_only=options.get("read_only", False))
            return cleanup.enter_context(served(backend, **options))

        yield serve


BULK = SMALL + 4096


# --- Errors of the disk ---


class Failing(FileBackend):
    """A disk on which everything fails with EIO that does not go past Python."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        raise OSError(errno.EIO, "a bad sector")

    def write(self, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    def flush(self) -> None:
        raise OSError(errno.EIO, "lost pages")

    def trim(self, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, "a bad sector")

    def zero(self, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "write-protected")

    def cache(self, *_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    def extents(self, *_: object) -> Iterator[object]:  # type: ignore[override]
        raise OSError(errno.ENXIO, "gone")


@pytest.mark.parametrize("structured", [True, False])
def test_every_error_is_told_and_the_stream_stays_in_step(serve: Serve, structured: bool) -> None:
    it = serve(kind=Failing, structured=structured, context=structured)
    ask = it.client.ask
    failures = [
        ask(Command.WRITE, 0, flags=CommandFlag.FUA, data=b"x" * 512),
        ask(Command.FLUSH),
        ask(Command.TRIM, 0, 512),
        ask(Command.WRITE_ZEROES, 0, 512),
        ask(Command.CACHE, 0, 512),
    ]
    if structured:
        failures.append(ask(Command.BLOCK_STATUS, 0, 512))
        failures.append(ask(Command.READ, 0, BULK))
    expected = [Error.ENOSPC, Error.EIO, Error.EIO, Error.EPERM, Error.ENOMEM, Error.EIO, Error.EIO]
    assert [answer.error for answer in failures] == expected[: len(failures)]
    if structured:
        assert [answer.message for answer in failures[:2]] == ["full", "lost pages"]
        assert failures[-1].kinds == [ReplyType.ERROR]
    assert [command for command, *_ in it.notes.failures][:5] == ["WRITE", "FLUSH", "TRIM", "WRITE_ZEROES", "CACHE"]
    assert ask(Command.READ, 512, 512).data == random_bytes(2 * MIB)[512:1024]


def test_a_fast_zero_that_is_not_fast_is_nobodys_failure(serve: Serve) -> None:
    class Slow(FileBackend):
        def zero(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOTSUP, "slow")

    it = serve(kind=Slow)
    assert it.client.ask(Command.WRITE_ZEROES, 0, 512, flags=CommandFlag.FAST_ZERO).error == Error.ENOTSUP
    assert it.notes.failures == []


@pytest.fixture
def bad_disk(tmp_path: Path, requires_root: None) -> Iterator[Path]:
    """A loop device of 2 MiB, of which everything behind the first MiB gives EIO."""
    image = tmp_path / "bad.img"
    image.write_bytes(random_bytes(2 * MIB))
    with loop_device(image, sector=4096) as device:
        os.truncate(image, MIB)
        yield device


@pytest.fixture
def serve_bad_disk(bad_disk: Path) -> Iterator[Serve]:
    with ExitStack() as cleanup:
        yield lambda **options: cleanup.enter_context(
            served(FileBackend(os.open(bad_disk, os.O_RDWR), read_only=False), **options)
        )


def test_eio_in_a_bulk_read_pads_the_chunk_and_goes_on(serve_bad_disk: Serve) -> None:
    it = serve_bad_disk()
    for flags in (0, CommandFlag.DF):
        answer = it.client.ask(Command.READ, MIB - 512 * 1024, MIB, flags=flags)
        assert answer.error == Error.EIO
        assert answer.kinds == [ReplyType.OFFSET_DATA, ReplyType.ERROR]
    command, offset, length, number = it.notes.failures[0]
    assert (command, number) == ("READ", errno.EIO)
    assert MIB - 512 * 1024 < offset <= MIB
    assert offset + length == MIB + 512 * 1024
    assert it.client.ask(Command.READ, 0, 1000).data == random_bytes(MIB)[:1000]
    assert_same_bytes(it.client.ask(Command.READ, 0, BULK).data, random_bytes(MIB)[:BULK])


def test_eio_in_a_small_read(serve_bad_disk: Serve) -> None:
    it = serve_bad_disk(structured=False, context=False)
    assert it.client.ask(Command.READ, MIB + 4096, 4096).error == Error.EIO
    assert it.client.ask(Command.READ, 0, 1000).data == random_bytes(MIB)[:1000]


def test_eio_in_a_simple_bulk_read_ends_the_connection(serve_bad_disk: Serve) -> None:
    """The reply has begun as a success, and a simple reply has no other way to say that it is none."""
    it = serve_bad_disk(structured=False, context=False)
    it.client.send(Command.READ, MIB - 4096, MIB)
    with pytest.raises(EOFError):
        it.client.take(16 + MIB)
    assert "READ failed" in str(it.end())


def test_lost_writes_are_told_by_every_later_flush(tmp_path: Path, requires_root: None) -> None:
    """A disk that takes more than it can hold: the kernel notices when it writes its cache back."""
    with small_filesystem(tmp_path / "small", MIB // 2) as directory:
        image = directory / "disk.img"
        image.touch()
        os.truncate(image, 2 * MIB)
        with loop_device(image) as device, served(FileBackend(os.open(device, os.O_RDWR), read_only=False)) as it:
            assert it.client.ask(Command.FLUSH).error == 0
            assert it.client.ask(Command.WRITE, 0, data=random_bytes(2 * MIB)).error == 0
            for _ in range(2):
                assert it.client.ask(Command.FLUSH).error == Error.EIO
            assert it.client.ask(Command.WRITE, 0, data=b"x" * BULK, flags=CommandFlag.FUA).error == Error.EIO
            assert_same_bytes(it.client.ask(Command.READ, 0, BULK).data, b"x" * BULK)
            assert it.notes.flushes == 1
            it.end()


def test_a_file_that_shrank(serve: Serve, disk: Path) -> None:
    it = serve()
    os.truncate(disk, MIB)
    for length in (4096, BULK):
        assert it.client.ask(Command.READ, MIB, length).error == Error.EIO
    answer = it.client.ask(Command.READ, MIB - BULK, 2 * BULK, flags=CommandFlag.DF)
    assert (answer.error, answer.kinds) == (Error.EIO, [ReplyType.OFFSET_DATA, ReplyType.ERROR])
    assert it.client.ask(Command.READ, 0, 10).data == random_bytes(2 * MIB)[:10]


# --- Flushing ---


def test_fua_and_flush_reach_stable_storage(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    pwritev = os.pwritev

    def noting(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        calls.append("DSYNC" if flags & os.RWF_DSYNC else "write")
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", noting)
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("fdatasync"))
    it = serve()
    fua = CommandFlag.FUA
    for command, flags, length, expected in [
        (Command.WRITE, 0, 512, []),
        (Command.WRITE, fua, 512, ["DSYNC"]),
        (Command.WRITE, 0, BULK, []),
        (Command.WRITE, fua, BULK, ["fdatasync"]),
        (Command.WRITE_ZEROES, 0, 512, []),
        (Command.WRITE_ZEROES, fua, 512, ["fdatasync"]),
        (Command.TRIM, 0, 512, []),
        (Command.TRIM, fua, 512, ["fdatasync"]),
        (Command.FLUSH, 0, 0, ["fdatasync"]),
        (Command.READ, fua, 512, []),
    ]:
        data = b"x" * length if command == Command.WRITE else b""
        assert it.client.ask(command, 0, length, flags=flags, data=data).error == 0
        assert calls == expected
        calls.clear()
    assert it.notes.flushes == 1


@pytest.mark.parametrize("command", [Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
@pytest.mark.parametrize("length", [512, BULK])
def test_dirty_from_a_write_to_the_next_flush(serve: Serve, command: Command, length: int) -> None:
    it = serve()
    data = b"x" * length if command == Command.WRITE else b""
    assert it.client.ask(Command.READ, 0, 512).error == 0
    assert not it.responder.dirty
    for _ in range(2):
        assert it.client.ask(command, 0, length, data=data).error == 0
        assert it.responder.dirty
        assert it.client.ask(Command.FLUSH).error == 0
        assert not it.responder.dirty


# --- Asked before writing ---


@pytest.mark.parametrize("length", [512, BULK, 2 * MIB])
def test_a_refused_writer_is_told_and_may_ask_again(serve: Serve, disk: Path, length: int) -> None:
    it = serve()
    it.notes.refusals = ["somebody writes to sda1"] * 3
    answers = [
        it.client.ask(Command.WRITE, 0, data=b"x" * length),
        it.client.ask(Command.TRIM, 0, length),
        it.client.ask(Command.WRITE_ZEROES, 0, length),
    ]
    assert [(a.error, a.message) for a in answers] == [(Error.EPERM, "somebody writes to sda1")] * 3
    assert_same_bytes(disk.read_bytes(), random_bytes(2 * MIB))
    assert not it.responder.dirty
    assert it.client.ask(Command.WRITE, 0, data=b"x" * length).error == 0
    assert it.client.ask(Command.WRITE, 0, data=b"x" * length).error == 0
    assert it.notes.asked == 4


def test_reading_asks_nobody(serve: Serve) -> None:
    it = serve()
    for command in (Command.READ, Command.FLUSH, Command.CACHE, Command.BLOCK_STATUS):
        assert it.client.ask(command, 0, 0 if command == Command.FLUSH else 512).error == 0
    assert it.notes.asked == 0


def test_bytes_are_counted(serve: Serve) -> None:
    it = serve()
    it.client.ask(Command.READ, 0, 100)
    it.client.ask(Command.READ, 0, BULK)
    it.client.ask(Command.WRITE, 0, data=b"x" * 200)
    it.client.ask(Command.WRITE, 0, data=b"x" * BULK)
    it.client.ask(Command.WRITE_ZEROES, 0, 300)
    it.client.ask(Command.WRITE, 2 * MIB, data=b"x" * 400)
    assert (it.notes.read[0], it.notes.written[0]) == (100 + BULK, 200 + BULK + 300)


# --- Shapes of replies ---


def test_a_bulk_read_of_a_sparse_file_has_hole_chunks(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(MIB)
        file.seek(256 * 1024)
        file.write(b"x" * 4096)
    it = serve(path)
    answer = it.client.ask(Command.READ, 0, MIB)
    assert answer.kinds == [ReplyType.OFFSET_HOLE, ReplyType.OFFSET_DATA, ReplyType.OFFSET_HOLE, ReplyType.NONE]
    assert_same_bytes(answer.data, path.read_bytes())
    whole = it.client.ask(Command.READ, 0, MIB, flags=CommandFlag.DF)
    assert whole.kinds == [ReplyType.OFFSET_DATA, ReplyType.NONE]
    assert_same_bytes(whole.data, path.read_bytes())


def test_block_status_is_bounded(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder_module, "MAX_EXTENTS", 3)
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        for number in range(10):
            file.seek(number * 131072)
            file.write(b"x" * 4096)
        file.truncate(2 * MIB)
    it = serve(path)
    answer = it.client.ask(Command.BLOCK_STATUS, 0, 2 * MIB)
    assert answer.extents == [(4096, 0), (126976, 3), (4096, 0)]
    assert it.client.ask(Command.BLOCK_STATUS, 4096, MIB, flags=CommandFlag.REQ_ONE).extents == [(126976, 3)]
    assert it.client.ask(Command.BLOCK_STATUS, 5000, 10, flags=CommandFlag.REQ_ONE).extents == [(10, 3)]


# --- Being stopped ---


class Interrupted(socket.socket):
    """A socket at which a signal arrives whenever data do."""

    interrupt: Callable[[], None] | None = None

    def recv_into(self, *arguments: Any) -> int:
        count = super().recv_into(*arguments)
        if count and self.interrupt is not None:
            self.interrupt()
        return count


@pytest.mark.parametrize("length", [512, SMALL, BULK])
def test_a_stop_at_the_moment_of_a_receive_loses_no_request(disk: Path, length: int) -> None:
    near, far = socket.socketpair()
    backend = FileBackend(os.open(disk, os.O_RDWR), read_only=False)
    with near, Interrupted(fileno=far.detach()) as sock, closing(backend):
        ready = Ready(ExportInfo("disk", backend.size, TransmissionFlag(0)), structured=False, contexts={})
        responder = Responder(sock, backend, ready, Notes())
        sock.interrupt = responder.stop
        near.sendall(
            request(Command.WRITE, 0, length, cookie=1) + b"x" * length + request(Command.READ, 0, 4, cookie=2)
        )
        assert responder.run() == "the server stopped"
        client = RawClient(near)
        asked = {1: (Command.WRITE, 0, length), 2: (Command.READ, 0, 4)}
        assert client.answer(asked) == (1, Answer())
        assert client.answer(asked) == (2, Answer(data=b"xxxx"))


# --- Clients that go ---


def test_disc_ends_after_the_replies_to_what_was_asked(serve: Serve) -> None:
    it = serve()
    it.client.sock.sendall(
        request(Command.READ, 0, 512, cookie=1) + request(Command.READ, 512, 512, cookie=2) + request(Command.DISC)
    )
    asked = {1: (Command.READ, 0, 512), 2: (Command.READ, 512, 512)}
    assert [it.client.answer(asked)[0] for _ in range(2)] == [1, 2]
    assert it.client.at_end()
    assert it.end() == "disconnected"


def test_half_a_connection_is_enough_for_the_replies(serve: Serve) -> None:
    it = serve()
    it.client.sock.sendall(request(Command.READ, 0, 512))
    it.client.sock.shutdown(socket.SHUT_WR)
    assert it.client.answer({1: (Command.READ, 0, 512)})[1].data == random_bytes(2 * MIB)[:512]
    assert it.client.at_end()
    assert it.end() == "client closed the connection"


@pytest.mark.parametrize(
    "start",
    [
        request(Command.READ, 0, 512)[:5],
        request(Command.WRITE, 0, 512) + b"x" * 511,
        request(Command.WRITE, 0, BULK) + b"x" * (BULK - 1),
        request(Command.WRITE, 0, MIB),
        request(Command.WRITE, 2 * MIB, MIB) + b"x" * 1000,
    ],
)
def test_a_client_that_hangs_up_inside_a_request(serve: Serve, start: bytes) -> None:
    it = serve()
    it.client.sock.sendall(start)
    assert it.end() == "client closed the connection inside a request"


def test_a_client_that_hangs_up_with_replies_queued(serve: Serve) -> None:
    it = serve()
    for cookie in range(20):
        it.client.send(Command.READ, 0, MIB, cookie=cookie)
    wait_until(lambda: it.notes.read[0] > 0, "the first request")
    assert "connection lost" in str(it.end())


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: target\r\n\r\n", bytes(28), b"\xff" * 28])
def test_no_magic_no_service(serve: Serve, data: bytes) -> None:
    it = serve()
    assert it.client.ask(Command.READ, 0, 512).error == 0
    it.client.sock.sendall(data)
    assert it.client.at_end()
    assert isinstance(it.end(), ProtocolError)


def test_a_write_far_too_long_is_not_drained(serve: Serve) -> None:
    it = serve()
    it.client.send(Command.WRITE, 0, 0xFFFFFFFF)
    assert it.client.at_end()
    assert isinstance(it.end(), ProtocolError)


def test_pipes_are_closed(disk: Path, descriptors: Callable[[], int]) -> None:
    before = descriptors()
    for _ in range(3):
        with served(FileBackend(os.open(disk, os.O_RDWR), read_only=False)) as it:
            assert it.client.ask(Command.WRITE, 0, data=b"x" * BULK).error == 0
            it.end()
    assert descriptors() == before


def test_a_small_pipe_is_enough(serve: Serve, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user's quota for pipes is used up."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, "quota")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    it = serve()
    data = random_bytes(2 * MIB, seed=2)
    assert it.client.ask(Command.WRITE, 0, data=data).error == 0
    assert_same_bytes(disk.read_bytes(), data)
