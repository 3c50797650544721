from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nbd.connection import FileRange
from restore.blocks.plan import UNIT, Kind, Piece
from restore.blocks.verify import BATCH, BATCH_BYTES, RANGE, Expected, Feed, Hasher
from tests.support import examples

MIB = 1 << 20


DATA = random.Random(1).randbytes(40 * MIB)


def payload(piece: Piece) -> memoryview | None:
    return memoryview(DATA)[piece.offset :][: piece.length] if piece.kind is Kind.DATA else None


pieces = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1]), st.integers(1, UNIT), st.sampled_from(Kind)), max_size=40)


async def everything(feed: Feed) -> list[Expected]:
    found: list[Expected] = []
    while batch := await feed.take():
        found += batch
    return found


@given(pieces, st.randoms(use_true_random=False))
@examples(150)
def test_hasher_feeds_every_byte_once_and_with_its_digest(
    given: list[tuple[int, int, Kind]], order: random.Random
) -> None:
    position, todo = 0, []
    for gap, length, kind in given:
        todo.append(Piece(position + gap, length, kind))
        position += gap + length

    async def run() -> list[Expected]:
        feed = Feed()
        hasher = Hasher("memory", feed)
        unanswered: list[Piece] = []
        for piece in todo:
            hasher.sending(piece, payload(piece))
            unanswered.append(piece)
            while len(unanswered) > order.randrange(8):  # answers come in any order
                hasher.written(unanswered.pop(order.randrange(len(unanswered))))
        hasher.close()
        order.shuffle(unanswered)
        for piece in unanswered:
            hasher.written(piece)
        return await everything(feed)

    found = asyncio.run(run())
    assert bounds([item.piece for item in found]) == bounds(todo)
    assert sum(item.data for item in found) == sum(piece.length for piece in todo if piece.kind is Kind.DATA)
    others = [item.piece for item in found if item.piece.kind is not Kind.DATA]
    assert sorted(others, key=str) == sorted((p for p in todo if p.kind is not Kind.DATA), key=str)
    for item in found:
        at, length = item.piece.offset, item.piece.length
        assert item.data <= RANGE
        content = DATA[at : at + length] if item.data else bytes(length)
        assert item.digest == xxhash.xxh3_128_hexdigest(content)


def bounds(pieces: list[Piece]) -> list[tuple[int, int]]:
    """The runs of data, in order: neighbours as one."""
    runs: list[tuple[int, int]] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.kind is Kind.DATA:
            if runs and runs[-1][1] == piece.offset:
                runs[-1] = (runs[-1][0], piece.offset + piece.length)
            else:
                runs.append((piece.offset, piece.offset + piece.length))
    return runs


def test_whole_units_become_whole_ranges() -> None:
    async def run() -> list[int]:
        feed = Feed()
        hasher = Hasher("memory", feed)
        for number in range(40):
            piece = Piece(number * UNIT, UNIT, Kind.DATA)
            hasher.sending(piece, payload(piece))
            hasher.written(piece)
        hasher.close()
        return [item.piece.length // MIB for item in await everything(feed)]

    assert asyncio.run(run()) == [16, 16, 8]


def test_a_range_is_fed_only_when_all_of_it_is_written() -> None:
    async def run() -> None:
        feed = Feed()
        hasher = Hasher("memory", feed)
        first, second = Piece(0, UNIT, Kind.DATA), Piece(UNIT, UNIT, Kind.DATA)
        hasher.sending(first, payload(first))
        hasher.sending(second, payload(second))
        hasher.written(second)
        hasher.sending(Piece(2 * UNIT, UNIT, Kind.ZERO), None)
        waiting = asyncio.create_task(feed.take())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        hasher.written(first)
        assert [item.piece for item in await waiting] == [Piece(0, 2 * UNIT, Kind.DATA)]

    asyncio.run(run())


def test_a_file_is_hashed_as_memory_is(tmp_path: Path) -> None:
    async def run() -> list[Expected]:
        feed = Feed()
        hasher = Hasher(str(path), feed)
        with path.open("rb") as file:
            hasher.sending(Piece(0, UNIT, Kind.DATA), FileRange(file.fileno(), 12345))
            hasher.written(Piece(0, UNIT, Kind.DATA))
            with pytest.raises(OSError, match=f"ends at byte {2 * UNIT}, earlier than it did at the start"):
                hasher.sending(Piece(5 * UNIT, UNIT, Kind.DATA), FileRange(file.fileno(), UNIT + 1))
        hasher.close()
        return await everything(feed)

    path = tmp_path / "image"
    path.write_bytes(DATA[: 2 * UNIT])
    (item,) = asyncio.run(run())
    assert item.digest == xxhash.xxh3_128_hexdigest(DATA[12345 : 12345 + UNIT])


def expected(length: int, kind: Kind = Kind.DATA) -> Expected:
    return Expected(Piece(0, length, kind), "")


def test_feed_gives_batches_and_then_the_rest() -> None:
    async def run() -> None:
        feed = Feed()
        for _ in range(BATCH + 1):
            feed.put(expected(1, Kind.ZERO))
        assert len(await feed.take()) == BATCH
        waiting = asyncio.create_task(feed.take())
        await asyncio.sleep(0.02)
        assert not waiting.done()  # one is no batch while more may come soon
        assert len(await waiting) == 1
        for _ in range(2 * BATCH_BYTES // RANGE + 1):
            feed.put(expected(RANGE))
        feed.close()
        assert [len(await feed.take()) for _ in range(4)] == [BATCH_BYTES // RANGE, BATCH_BYTES // RANGE, 1, 0]

    asyncio.run(run())


def test_feed_takes_from_other_threads() -> None:
    async def run() -> None:
        feed = Feed()

        def work() -> None:
            for _ in range(1000):
                feed.put(expected(1))

        threads = [threading.Thread(target=work) for _ in range(4)]
        takers = [asyncio.create_task(everything(feed)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        feed.close()
        assert sum(map(len, await asyncio.gather(*takers))) == 4000

    asyncio.run(run())


def test_feed_gives_nothing_only_at_its_end() -> None:
    """Of two who wait for the same item one goes on waiting."""

    async def run() -> None:
        feed = Feed()
        takers = [asyncio.create_task(feed.take()) for _ in range(2)]
        await asyncio.sleep(0)
        feed.put(expected(1))
        await asyncio.sleep(0.3)
        assert [taker.done() for taker in takers].count(True) == 1
        feed.put(expected(2))
        assert [len(batch) for batch in await asyncio.gather(*takers)] == [1, 1]
        waiting = asyncio.create_task(feed.take())
        await asyncio.sleep(0)
        feed.close()
        assert await waiting == []

    asyncio.run(run())
