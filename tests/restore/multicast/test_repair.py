"""Repair segments: any as many as a chunk has make it whole."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.repair import RepairMaker, on_demand, parity, solve
from tests.support import examples


@examples(40)
@given(
    seed=st.integers(0, 1 << 30),
    count=st.sampled_from([1, 2, 3, 10, 100, 729]),
    size=st.sampled_from([512, 1184, 1440, 1448]),
    first=st.sampled_from([0, 1, 300]),
    part=st.floats(0, 1),
)
def test_any_segments_will_do(seed: int, count: int, size: int, first: int, part: float) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(count * size)
    maker = RepairMaker(size)
    maker.learn(7, memoryview(data))
    lost = round(part * count)
    kept = chance.sample(range(count), count - lost)
    made = maker.make(7, first, lost + 3)
    segments = [(at, data[at * size : (at + 1) * size]) for at in kept]
    segments += [(count + first + at, bytes(each)) for at, each in enumerate(made)]
    chance.shuffle(segments)
    assert solve(len(data), size, segments) == data
    assert solve(len(data), size, segments[: count - 1]) is None


def test_the_chunks_that_were_asked_for_last_are_known() -> None:
    maker = RepairMaker(512)
    for chunk in range(30):
        assert not maker.knows(chunk)
        maker.learn(chunk, memoryview(bytes(5120)))
        maker.make(0 if maker.knows(0) else chunk, 0, 1)
    assert maker.knows(0)
    assert maker.knows(29)
    assert not maker.knows(5)
    with pytest.raises(KeyError):
        maker.make(5, 0, 1)


def test_how_many() -> None:
    assert parity(0, 729) == parity(0.05, 0) == 0
    assert [parity(loss, 729) for loss in (0.005, 0.01, 0.05, 0.2, 0.9)] == [11, 17, 58, 224, 224]
    assert [on_demand(missing, 0.05) for missing in (1, 10, 100)] == [3, 12, 109]


def test_hardly_anybody_needs_more() -> None:
    chance = random.Random(1)
    short = 0
    for _ in range(500):
        total = 729 + parity(0.05, 729)
        short += sum(chance.random() >= 0.05 for _ in range(total)) < 729
    assert short <= 5
