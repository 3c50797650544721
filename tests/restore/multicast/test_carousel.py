"""What is sent next."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.carousel import SILENCE, Carousel, Turn
from restore.multicast.chunkset import ChunkSet
from tests.support import examples

COUNT = 10


def sent(carousel: Carousel, most: int = 1000) -> list[int]:
    """What it sends until there is nothing more."""
    found: list[int] = []
    while len(found) < most and (turn := carousel.next()) is not None:
        found.append(turn.chunk)
    return found


def lacking(*members: int) -> ChunkSet:
    return ChunkSet(COUNT, members)


def test_nobody_is_there() -> None:
    carousel = Carousel(COUNT)
    assert carousel.next() is None
    assert carousel.sequence == carousel.passes == 0


def test_one_client_gets_all_of_it_once() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", ChunkSet.full(COUNT), 0)
    assert sent(carousel) == list(range(COUNT))
    carousel.report("a", lacking(), COUNT, 1)
    assert sent(carousel) == []
    assert carousel.sequence == COUNT


def test_what_somebody_has_from_elsewhere_is_not_sent() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", ChunkSet.full(COUNT), 0)
    assert sent(carousel, 2) == [0, 1]
    carousel.report("a", lacking(8), 2, 1)
    carousel.refresh()
    assert sent(carousel) == [8]


def test_a_late_comer_gets_what_comes_next_and_then_the_rest() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", ChunkSet.full(COUNT), 0)
    assert sent(carousel, 4) == [0, 1, 2, 3]
    carousel.join("b", ChunkSet.full(COUNT), 0)
    assert sent(carousel) == [4, 5, 6, 7, 8, 9, 0, 1, 2, 3]
    assert carousel.passes == 2


def test_what_is_on_its_way_is_not_sent_again() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", ChunkSet.full(COUNT), 0)
    sent(carousel, 6)
    carousel.report("a", lacking(3, 4, 5, 6, 7, 8, 9), 3, 1)  # it has seen 0 to 2
    assert sent(carousel) == [6, 7, 8, 9]
    carousel.report("a", lacking(4), 10, 2)  # now it has seen all, and 4 is lost
    assert sent(carousel) == [4]
    carousel.report("a", lacking(4), 10, 3)  # and has not seen that
    assert sent(carousel) == []
    carousel.report("a", lacking(4), 11, 3)
    assert sent(carousel) == [4]


def test_the_union_of_what_they_lack() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", lacking(1, 2, 3), 0)
    carousel.join("b", lacking(3, 8), 0)
    assert sent(carousel) == [1, 2, 3, 8]


def test_what_only_one_lacked_who_left_is_not_sent() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", lacking(1, 2, 3), 0)
    carousel.join("b", lacking(3, 8), 0)
    carousel.leave("a")
    carousel.leave("nobody")
    assert sent(carousel) == [3, 8]


def test_who_is_alone_is_not_sent_to() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", lacking(1, 2, 3), 0)
    carousel.join("b", lacking(3, 8), 0)
    carousel.set_alone("a", alone=True)
    carousel.report("a", lacking(1, 2), 0, 0)
    assert sent(carousel) == [3, 8]
    carousel.set_alone("a", alone=False)
    assert sent(carousel) == [1, 2]


def test_who_says_nothing_is_gone() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", lacking(1), 0)
    carousel.join("b", lacking(2), 5)
    assert carousel.expire(SILENCE) == []
    assert carousel.expire(SILENCE + 1) == ["a"]
    assert sent(carousel) == [2]
    with pytest.raises(KeyError):
        carousel.report("a", lacking(1), 0, 6)


def test_everything_round_and_round() -> None:
    carousel = Carousel(3, everything=True)
    carousel.join("a", ChunkSet(3), 0)
    assert sent(carousel, 5) == [0, 1, 2, 0, 1]
    carousel.leave("a")
    assert sent(carousel, 3) == [2, 0, 1]
    assert carousel.passes == 3


def test_a_report_from_the_future_is_not_believed() -> None:
    carousel = Carousel(COUNT)
    carousel.join("a", lacking(1), 0)
    carousel.report("a", lacking(1), 1 << 40, 0)
    assert sent(carousel) == [1]
    carousel.report("a", lacking(1), 0, 0)
    assert sent(carousel) == []


def test_a_client_that_misses_little_is_sent_little() -> None:
    """At once, before all else, with other repair segments each time, and nobody else loses the chunk by it."""
    carousel = Carousel(COUNT, segments=lambda chunk: 100)
    carousel.join("a", ChunkSet.full(COUNT), 0)
    carousel.join("b", ChunkSet.full(COUNT), 0)
    assert sent(carousel, 3) == [0, 1, 2]
    carousel.report("a", lacking(1, 2, 3, 4, 5, 6, 7, 8, 9), 200, 1, {1: 5})  # it is amid 2
    carousel.report("b", lacking(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), 200, 1, {0: 3, 1: 2})
    assert [carousel.next() for _ in range(2)] == [Turn(300, 1, 0, 0, 6), Turn(306, 0, 0, 0, 4)]
    assert carousel.next() == Turn(310, 3, 100)
    carousel.report("a", lacking(1, 4, 5, 6, 7, 8, 9), 310, 2, {1: 2})
    assert carousel.next() == Turn(410, 1, 0, 6, 3)
    assert sent(carousel) == [4, 5, 6, 7, 8, 9]


def test_repair_segments_on_their_way_are_not_sent_again() -> None:
    carousel = Carousel(COUNT, segments=lambda chunk: 100)
    carousel.join("a", lacking(0), 0)
    carousel.join("b", lacking(0), 0)
    assert sent(carousel) == [0]
    carousel.report("a", lacking(0), 100, 1, {0: 5})
    assert carousel.next() == Turn(100, 0, 0, 0, 6)
    carousel.report("b", lacking(0), 100, 1, {0: 4})
    carousel.refresh()
    assert carousel.next() is None
    carousel.report("b", lacking(0), 100, 2, {0: 9})  # three more than are on their way
    assert carousel.next() == Turn(106, 0, 0, 6, 4)
    carousel.report("a", lacking(0), 106, 2)  # it has given up what it had
    assert carousel.next() == Turn(110, 0, 100)


def test_repairs_go_by_the_loss() -> None:
    carousel = Carousel(COUNT, segments=lambda chunk: 700, loss=0.05)
    carousel.join("a", lacking(0, 1), 0)
    turn = carousel.next()
    assert turn is not None
    assert 0.05 * 700 < turn.repairs < 0.1 * 700
    carousel.report("a", lacking(0, 1), turn.segments + turn.repairs, 1, {0: 100})
    on_demand = carousel.next()
    assert on_demand is not None
    assert (on_demand.segments, on_demand.first_repair) == (0, turn.repairs)
    assert 105 < on_demand.repairs < 115
    carousel.loss, carousel.fec = 0.001, 0.02
    assert carousel.next() == Turn(on_demand.sequence + on_demand.repairs, 1, 700, 0, 14)


@examples(60)
@given(seed=st.integers(0, 1 << 30), clients=st.integers(1, 8), loss=st.floats(0, 0.9))
def test_everyone_gets_everything_whatever_is_lost(seed: int, clients: int, loss: float) -> None:
    """Clients come at any time, lose any part, report late, and all end; nothing is sent that nobody lacks."""
    chance = random.Random(seed)
    carousel = Carousel(COUNT)
    lacks = {str(number): ChunkSet.full(COUNT) for number in range(clients)}
    coming = list(lacks)
    seen: dict[str, int] = {}
    for now in range(100_000):
        if coming and (now == 0 or chance.random() < 0.05):
            name = coming.pop()
            carousel.join(name, lacks[name].copy(), 0)
            seen[name] = carousel.sequence
        turn = carousel.next()
        if turn is not None:
            assert any(turn.chunk in lacks[name] for name in seen)
            for name in seen:
                if chance.random() >= loss:
                    lacks[name].discard(turn.chunk)
        for name in list(seen):
            if turn is None or chance.random() < 0.2:
                seen[name] = carousel.sequence
                carousel.report(name, lacks[name].copy(), seen[name], 0)
                if not lacks[name]:
                    carousel.leave(name)
                    del seen[name]
        if not coming and not seen:
            return
    raise AssertionError(f"{ {name: list(left) for name, left in lacks.items() if left} } never came")
