from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.connection import FileRange
from restore.blocks.plan import Kind, cut
from restore.source import Source, SourceError, Zeroes
from restore.source.stream import AHEAD, BEHIND, UNIT, StreamSource
from tests.support import assert_same_bytes, examples, wait_until

MIB = 1 << 20
DATA = random.Random(3).randbytes(4 * MIB)
Pieces = list[tuple[int, bool]]


class Tape:
    """Bytes and zeroes, that can be run from the start only."""

    name = "tape"

    def __init__(self, pieces: Pieces, size: int | None = None) -> None:
        self.pieces = pieces
        self.size = size
        self.starts = self.decoded = 0
        self.closed = False

    def decode(self) -> Iterator[bytes | Zeroes]:
        self.starts += 1
        self.decoded = 0
        for length, data in self.pieces:
            yield DATA[:length] if data else Zeroes(length)
            self.decoded += length

    def content(self) -> bytes:
        return b"".join(DATA[:length] if data else bytes(length) for length, data in self.pieces)

    def fraction(self) -> float:
        return self.decoded / max(sum(length for length, _ in self.pieces), 1)

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def memory(source: Source, offset: int, length: int) -> memoryview:
    payload = source.payload(offset, length)
    assert not isinstance(payload, FileRange)
    return payload


lengths = st.one_of(st.integers(1, 3 * MIB), st.sampled_from([1, 512, 64 << 10, MIB, 2 * MIB, 3 * MIB]))
tapes = st.lists(st.tuples(lengths, st.booleans()), min_size=1, max_size=12)


@given(tapes, st.booleans())
@examples(80)
def test_read_as_a_restore_reads_it(pieces: Pieces, told: bool) -> None:
    tape = Tape(pieces, sum(length for length, _ in pieces) if told else None)
    content = tape.content()
    source = StreamSource(tape)
    found = bytearray(len(content))
    head = list(cut(source.extents(), 0, min(MIB, source.least_size)))
    for piece in [*cut(source.extents(), MIB), *head]:
        if piece.kind is Kind.DATA:
            found[piece.offset :][: piece.length] = bytes(piece.length)
            found[piece.offset : piece.offset + piece.length] = memory(source, piece.offset, piece.length)
    assert_same_bytes(found, content)
    assert source.size == len(content) == source.least_size == source.expected_size
    assert tape.starts == 1 or len(content) > BEHIND * MIB
    source.close()
    assert tape.closed


@given(tapes, st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, MIB)), max_size=30))
@examples(60)
def test_any_range_at_any_time(pieces: Pieces, reads: list[tuple[int, int]]) -> None:
    tape = Tape(pieces)
    content = tape.content()
    source = StreamSource(tape)
    readers = [source, source.reader()]
    for number, (offset, length) in enumerate(reads):
        offset %= len(content)
        length = min(length, len(content) - offset)
        assert_same_bytes(memory(readers[number % 2], offset, length), content[offset : offset + length])
    with pytest.raises(SourceError, match="tape ends before byte"):
        source.payload(len(content) - 1, 2)
    for reader in reversed(readers):
        reader.close()


def test_one_decoding_serves_readers_that_are_near() -> None:
    tape = Tape([(MIB, True)] * 200)
    source = StreamSource(tape)
    other = source.reader()
    for index in range(200):
        memory(source, index * MIB, MIB)
        if index >= BEHIND:
            memory(other, (index - BEHIND) * MIB, MIB)
    assert tape.starts == 1
    other.close()
    source.close()


def test_who_is_left_behind_has_a_decoding_of_its_own() -> None:
    tape = Tape([(MIB, True)] * 200)
    source = StreamSource(tape)
    other = source.reader()
    memory(source, 199 * MIB, MIB)
    for index in range(1, 20):
        assert_same_bytes(memory(other, index * MIB, MIB), DATA[:MIB])
    assert tape.starts == 2
    memory(source, 198 * MIB, MIB)
    assert tape.starts == 2
    other.close()
    source.close()


def test_a_look_back_does_not_stop_the_thread_that_goes_on() -> None:
    """As when a range that differs is compared more closely far behind the copy, by two threads at once."""
    tape = Tape([(MIB, True)] * 300)
    source = StreamSource(tape)
    failed: list[BaseException] = []
    copied, stop = threading.Event(), threading.Event()

    def copy() -> None:
        for index in range(300):
            memory(source, index * MIB, MIB)
            time.sleep(0.001)
        copied.set()

    def look_back(first: int) -> None:
        try:
            while not stop.is_set():
                for index in range(first, first + 16):
                    assert_same_bytes(memory(source, index * MIB, MIB), DATA[:MIB])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=copy)]
    threads[0].start()
    wait_until(lambda: tape.decoded >= 150 * MIB, "the copy")
    threads += [threading.Thread(target=look_back, args=(first,)) for first in (5, 40)]
    for thread in threads[1:]:
        thread.start()
    assert copied.wait(30)
    stop.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed
    source.close()


def test_what_is_ahead_is_bounded_and_the_first_unit_is_kept() -> None:
    tape = Tape([(MIB, True)] * 300)
    source = StreamSource(tape)
    wait_until(lambda: tape.decoded >= AHEAD * MIB, "read-ahead")
    time.sleep(0.1)
    assert tape.decoded <= (AHEAD + 2) * UNIT
    for index in range(1, 300):
        memory(source, index * MIB, MIB)
        assert tape.decoded <= (index + AHEAD + 2) * UNIT
    memory(source, 0, MIB)
    assert tape.starts == 1
    source.close()


@pytest.mark.parametrize("offset", [0, 5 * MIB])
def test_what_is_forgotten_is_decoded_anew(offset: int) -> None:
    tape = Tape([(MIB, True)] * 8)
    source = StreamSource(tape)
    other = source.reader()
    assert_same_bytes(memory(source, offset, MIB), DATA[:MIB])
    tape.pieces = [(MIB, False)] * 8
    assert_same_bytes(memory(source, offset, MIB), DATA[:MIB])
    source.forget(offset, MIB)
    assert_same_bytes(memory(source, offset, MIB), bytes(MIB))
    assert tape.starts == 2
    other.close()
    source.close()


def test_zeroes_cost_nothing() -> None:
    started = time.monotonic()
    source = StreamSource(Tape([(5, True), (50 << 30, False), (5, True)]))
    kinds = [piece.kind for piece in cut(source.extents(), 0)]
    assert kinds.count(Kind.DATA) == 2
    assert time.monotonic() - started < 10
    assert source.size == (50 << 30) + 10
    source.close()


def test_zeroes_among_the_bytes_are_found() -> None:
    tape = Tape([(MIB, True), (5 * MIB, False), (100, True)])
    plain = tape.content()

    class Plain(Tape):
        def decode(self) -> Iterator[bytes | Zeroes]:
            for at in range(0, len(plain), 99_999):
                yield plain[at : at + 99_999]

    source = StreamSource(Plain([]))
    pieces = [(piece.offset, piece.length, piece.kind) for piece in cut(source.extents(), 0)]
    assert pieces == [(0, MIB, Kind.DATA), (MIB, 5 * MIB, Kind.ZERO), (6 * MIB, 100, Kind.DATA)]
    source.close()


def test_a_failure_comes_after_what_was_decoded_before_it() -> None:
    class Damaged(Tape):
        def decode(self) -> Iterator[bytes | Zeroes]:
            yield from super().decode()
            raise SourceError("tape is torn")

    source = StreamSource(Damaged([(MIB, True)] * 3))
    assert_same_bytes(memory(source, 2 * MIB, MIB), DATA[:MIB])
    for _ in range(2):
        with pytest.raises(SourceError, match="tape is torn"):
            source.payload(3 * MIB, 1)
    with pytest.raises(SourceError, match="tape is torn"):
        list(source.extents())
    assert source.size is None
    source.close()
    with pytest.raises(SourceError, match="tape is torn"):
        StreamSource(Damaged([(5, True)]))


@pytest.mark.parametrize("told", [3 * MIB - 1, 3 * MIB + 1])
def test_another_size_than_it_said(told: int) -> None:
    source = StreamSource(Tape([(MIB, True)] * 3, told))
    with pytest.raises(SourceError, match=f"tape holds {3 * MIB} bytes, and says that it has {told}"):
        list(source.extents())
    source.close()


def test_leaving_early_ends_the_decoder() -> None:
    before = threading.active_count()
    source = StreamSource(Tape([(MIB, True)] * 1000))
    assert threading.active_count() == before + 1
    source.close()
    assert threading.active_count() == before
