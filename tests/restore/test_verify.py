from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from restore.plan import UNIT, Kind, Piece
from restore.verify import BATCH, RANGE, Feed, _joined
from tests.support import examples

MIB = 1 << 20

kinds = st.sampled_from(Kind)
pieces = st.lists(st.tuples(st.integers(0, 2), st.integers(1, UNIT), kinds), max_size=40)


@given(pieces, st.randoms(use_true_random=False))
@examples(300)
def test_joined(given: list[tuple[int, int, Kind]], order: random.Random) -> None:
    position, before = 0, []
    for gap, length, kind in given:
        before.append(Piece(position + gap, length, kind))
        position += gap + length
    mixed = list(before)
    order.shuffle(mixed)
    after = _joined(mixed)
    assert bounds(after) == bounds(before)
    assert [p for p in after if p.kind is not Kind.DATA] == [p for p in before if p.kind is not Kind.DATA]
    assert all(piece.length <= max(RANGE, UNIT) for piece in after)
    assert after == sorted(after, key=lambda piece: piece.offset)


def bounds(pieces: list[Piece]) -> list[tuple[int, int]]:
    """The runs of data: neighbours as one."""
    runs: list[tuple[int, int]] = []
    for piece in pieces:
        if piece.kind is Kind.DATA:
            if runs and runs[-1][1] == piece.offset:
                runs[-1] = (runs[-1][0], piece.offset + piece.length)
            else:
                runs.append((piece.offset, piece.offset + piece.length))
    return runs


def test_whole_units_become_whole_ranges() -> None:
    units = [Piece(number * UNIT, UNIT, Kind.DATA) for number in range(20)]
    assert [piece.length // MIB for piece in _joined(units)] == [8, 8, 4]


def test_feed_gives_batches_and_then_the_rest() -> None:
    async def run() -> None:
        feed = Feed()
        for number in range(BATCH + 1):
            feed.put(Piece(2 * number, 1, Kind.DATA))
        assert len(await feed.take()) == BATCH
        waiting = asyncio.create_task(feed.take())
        await asyncio.sleep(0.05)
        assert not waiting.done()  # one is no batch while there may be more
        feed.close()
        assert len(await waiting) == 1
        assert await feed.take() == []
        assert await Feed.of([]).take() == []

    asyncio.run(run())
