"""Any requests to a server with real sockets, against a model of what has to be answered and stored."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd import wire
from nbd.wire import Command, CommandFlag, Error
from tests.nbd.peers import Answer, Exporting, RawClient, exporting, random_bytes, request
from tests.support import examples, loop_device, small_filesystem

MIB = 1 << 20
KIB = 1 << 10
SMALL = 64 * KIB
SIZE = 3 * MIB
NOISE = random_bytes(4 * MIB, seed=7)


@dataclass(frozen=True)
class Request:
    command: int
    flags: int
    offset: int
    length: int
    seed: int = 0

    @property
    def data(self) -> bytes:
        return NOISE[self.seed : self.seed + self.length] if self.command == Command.WRITE else b""


class Model:
    """What an export has to be like after some requests. A trimmed byte may be anything until it is written again."""

    def __init__(self, data: bytes, *, structured: bool, context: bool) -> None:
        self.data = bytearray(data)
        self.known = bytearray(b"\1") * len(data)
        self.structured = structured
        self.context = context

    def error(self, asked: Request) -> int:
        allowed = {
            Command.READ: CommandFlag.FUA | CommandFlag.DF,
            Command.WRITE_ZEROES: CommandFlag.FUA | CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
            Command.BLOCK_STATUS: CommandFlag.FUA | CommandFlag.REQ_ONE,
        }
        if asked.command > Command.BLOCK_STATUS or asked.command == Command.DISC:
            return Error.EINVAL
        if asked.flags & ~int(allowed.get(Command(asked.command), CommandFlag.FUA)):
            return Error.EINVAL
        if asked.command == Command.FLUSH:
            return Error.EINVAL if asked.offset or asked.length else 0
        if not asked.length:
            return Error.EINVAL
        if asked.offset + asked.length > len(self.data):
            return Error.ENOSPC if asked.command in (Command.WRITE, Command.WRITE_ZEROES) else Error.EINVAL
        if asked.flags & CommandFlag.DF and not self.structured:
            return Error.EINVAL
        if asked.command == Command.BLOCK_STATUS and not self.context:
            return Error.EINVAL
        return 0

    def check(self, asked: Request, answer: Answer, behind: Sequence[Request] = ()) -> None:
        """Compare an answer with what it has to be, and do what was asked.

        Bulk data are sent without a copy: what a READ gets may be as new as the requests that were in flight behind it.
        """
        expected = self.error(asked)
        if not expected and asked.flags & CommandFlag.FAST_ZERO and answer.error == Error.ENOTSUP:
            return
        assert answer.error == expected, asked
        if answer.error:
            return
        end = asked.offset + asked.length
        match asked.command:
            case Command.READ:
                known = bytes(self.known)
                for later in behind:
                    if later.command in (Command.WRITE, Command.WRITE_ZEROES, Command.TRIM) and not self.error(later):
                        self.known[later.offset : later.offset + later.length] = bytes(later.length)
                self.compare(asked.offset, answer.data)
                self.known[:] = known
            case Command.WRITE:
                self.data[asked.offset : end] = asked.data
                self.known[asked.offset : end] = b"\1" * asked.length
            case Command.WRITE_ZEROES:
                self.data[asked.offset : end] = bytes(asked.length)
                self.known[asked.offset : end] = b"\1" * asked.length
            case Command.TRIM:
                self.known[asked.offset : end] = bytes(asked.length)
            case Command.BLOCK_STATUS:
                self.check_extents(asked, answer.extents)

    def check_extents(self, asked: Request, extents: list[tuple[int, int]]) -> None:
        total = sum(length for length, _ in extents)
        assert all(length > 0 for length, _ in extents)
        if asked.flags & CommandFlag.REQ_ONE:
            assert len(extents) == 1
            assert total <= asked.length
        else:
            assert total == asked.length
        position = asked.offset
        for length, state in extents:
            assert state in (0, 2, 3)  # a hole that does not read as zeroes is of no use to anybody
            if state & wire.StateFlag.ZERO:
                self.compare(position, bytes(length))
            position += length

    def compare(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if data == self.data[offset:end]:
            return
        for position, (ours, theirs, known) in enumerate(
            zip(self.data[offset:end], data, self.known[offset:end], strict=True), offset
        ):
            assert ours == theirs or not known, f"byte {position} of the export"


EDGES = [0, 1, 27, 28, 511, 512, 4095, 4096, SMALL - 1, SMALL, SMALL + 1, SMALL + 28, MIB - 1, MIB, MIB + 1, SIZE - 1]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    command = draw(st.sampled_from([0, 0, 0, 1, 1, 1, 1, 3, 4, 5, 6, 6, 7, 7, 8]))
    flags = draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 8, 16, 18, 32]))
    if command == Command.FLUSH and draw(st.integers(0, 3)):
        return Request(command, 0, 0, 0)
    offset = draw(st.one_of(st.sampled_from([*EDGES, SIZE, 1 << 63]), st.integers(0, SIZE)))
    length = draw(
        st.one_of(
            st.sampled_from(EDGES),
            st.integers(0, 3 * SMALL),
            st.integers(1, 64).map(lambda sectors: sectors * 512),
            st.just(max(SIZE - offset, 0)),
        )
    )
    if draw(st.integers(0, 2)):
        offset = max(0, min(offset, SIZE - length))
    return Request(command, flags, offset, length, draw(st.integers(0, MIB - 4096)))


BACKINGS = ["file", "sparse file", "tmpfs", "window", "loop 512", "loop 4096", "claimed loop", "window of a loop"]


@dataclass
class Backed:
    """A server and the file or device that it exports a part of."""

    server: Exporting
    path: Path
    start: int
    total: int


@pytest.fixture(scope="module", params=BACKINGS)
def backed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backed]:
    """An export of 3 MiB in one of many guises."""
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices and mounts")
    directory = tmp_path_factory.mktemp("server")
    kind = str(request.param)
    with ExitStack() as cleanup:
        place = cleanup.enter_context(small_filesystem(directory / "tmpfs", 8 * MIB)) if kind == "tmpfs" else directory
        path = place / "disk.img"
        start = MIB + 4096 if "window" in kind else 0
        total = SIZE + 2 * start
        path.write_bytes(b"")
        os.truncate(path, total)
        if "loop" in kind:
            path = cleanup.enter_context(loop_device(path, sector=4096 if kind == "loop 4096" else 512))
        export = {"path": str(path), "start": start, "size": SIZE, "claim": kind == "claimed loop"}
        yield Backed(cleanup.enter_context(exporting(directory, {"": export})), path, start, total)


@examples(12)
@given(
    st.lists(requests(), min_size=1, max_size=25),
    st.sampled_from([(True, True), (True, True), (True, False), (False, False)]),
    st.booleans(),
    st.integers(0, 1 << 32),
    st.sampled_from(["noise", "holes"]),
)
def test_any_requests(
    backed: Backed, asked: list[Request], agreed: tuple[bool, bool], pipelined: bool, seed: int, before: str
) -> None:
    structured, context = agreed
    with backed.path.open("r+b", buffering=0) as file:
        if backed.path.is_file():
            file.truncate(0)
            file.truncate(backed.total)
        if before == "noise" or not backed.path.is_file():
            file.write(NOISE[: backed.total])
        file.seek(0)
        initial = file.read(backed.total)
    model = Model(initial[backed.start : backed.start + SIZE], structured=structured, context=context)
    with backed.server.client() as client:
        client.go(structured=structured, context=context)
        assert client.size == SIZE
        if pipelined:
            pipeline(client, asked, model, random.Random(seed))
        else:
            for one in asked:
                model.check(one, client.ask(one.command, one.offset, one.length, flags=one.flags, data=one.data))
        model.check(Request(Command.FLUSH, 0, 0, 0), client.ask(Command.FLUSH))
        client.send(Command.DISC)
        assert client.at_end()
    with backed.path.open("rb", buffering=0) as file:
        after = file.read(backed.total)
    model.compare(0, after[backed.start : backed.start + SIZE])
    assert after[: backed.start] == initial[: backed.start]
    assert after[backed.start + SIZE :] == initial[backed.start + SIZE :]


def pipeline(client: RawClient, asked: list[Request], model: Model, chance: random.Random) -> None:
    """Send all requests without waiting, cut at odd places; the answers come in order, as the model has it."""
    stream = b"".join(
        request(one.command, one.offset, one.length, flags=one.flags, cookie=number) + one.data
        for number, one in enumerate(asked)
    )

    def send() -> None:
        position = 0
        with suppress(OSError):
            while position < len(stream):
                size = chance.choice([1, 27, 28, 29, 100, 5000, 70_000, len(stream)])
                client.sock.sendall(stream[position : position + size])
                position += size

    sender = threading.Thread(target=send)
    sender.start()
    try:
        cookies = {number: (one.command, one.offset, one.length) for number, one in enumerate(asked)}
        for number, one in enumerate(asked):
            cookie, answer = client.answer(cookies)
            assert cookie == number
            model.check(one, answer, asked[number + 1 :] if one.length > SMALL else ())
    finally:
        sender.join()
