from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source import SourceError
from restore.source.storage.ahead import ReadAhead
from tests.serving import pattern
from tests.support import assert_same_bytes, examples

PIECE = 10_000
DATA = pattern(123_456, seed=2)


class Server:
    """What is asked for, and how many at once."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.failing = False

    def fetch(self, offset: int, length: int) -> bytes:
        assert 0 <= offset < offset + length <= len(self.data)
        self.asked.append((offset, length))
        if self.failing:
            raise SourceError("failing")
        return self.data[offset : offset + length]

    def ahead(self, *, head: int = 0) -> ReadAhead:
        return ReadAhead(self.fetch, len(self.data), 3, head=self.data[:head], piece=PIECE)


places = st.tuples(st.integers(0, 210_000), st.integers(0, 30_000))


@given(st.integers(1, 200_000), st.integers(0, 20_000), st.lists(places))
@examples(60)
def test_any_reads(size: int, head: int, reads: list[tuple[int, int]]) -> None:
    data = DATA * 2
    server = Server(data[:size])
    with closing(server.ahead(head=min(head, size))) as ahead:
        for offset, length in reads:
            assert ahead.read(offset, length) == server.data[offset : offset + length]
        assert_same_bytes(b"".join(ahead.stream()), server.data)


def test_reads_that_follow_one_another_are_had_ahead() -> None:
    server = Server()
    with closing(server.ahead()) as ahead:
        for offset in range(0, 50_000, 500):
            assert ahead.read(offset, 500) == DATA[offset : offset + 500]
    assert len(server.asked) < 15
    assert max(offset for offset, _ in server.asked) <= 50_000 + 6 * PIECE


def test_reads_here_and_there_are_not() -> None:
    server = Server()
    with closing(server.ahead()) as ahead:
        for offset in (5_000, 45_000, 25_000):
            ahead.read(offset, 500)
    assert server.asked == [(5_000, 500), (45_000, 500), (25_000, 500)]


def test_the_end_is_had_once() -> None:
    server = Server()
    with closing(server.ahead()) as ahead:
        for length in (512, 22, 4096):
            assert ahead.read(len(DATA) - length, length) == DATA[-length:]
        assert ahead.read(len(DATA) - 5, 100) == DATA[-5:]
    assert server.asked == [(len(DATA) - (64 << 10), 64 << 10)]


def test_a_piece_that_failed_is_asked_for_again() -> None:
    server = Server()
    with closing(server.ahead()) as ahead:
        ahead.read(0, 100)
        server.failing = True
        with pytest.raises(SourceError):
            ahead.read(100, 100)
        server.failing = False
        assert ahead.read(100, 100) == DATA[100:200]
        server.failing = True
        with pytest.raises(SourceError):
            for _ in ahead.stream():
                pass


def test_streaming_goes_only_so_far_ahead() -> None:
    server = Server()
    with closing(server.ahead()) as ahead:
        stream: Iterator[bytes] = ahead.stream()
        next(stream)
        assert len(server.asked) <= 7
        next(stream)
        assert len(server.asked) <= 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
