"""The simulated room: its clients are like the real ones, and what it shows of the stream."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from restore.multicast.assembly import TICK, Assembly
from restore.multicast.carousel import Turn
from restore.multicast.chunkset import ChunkSet
from restore.multicast.client.shelf import CAPACITY
from restore.multicast.layout import CHUNK
from restore.multicast.packet import HEADER_SIZE, Header, segments_of
from scripts.simulation.clients import Arrived, Clients
from scripts.simulation.figures import staggered, with_a_slow_disk
from scripts.simulation.others import plain_carousel, unicast
from scripts.simulation.running import RATE, Scenario, run, together
from tests.restore.multicast.images import SESSION, datagrams, image, layout, repairs
from tests.support import examples

UNIT = 32 << 10
SIZE = 1024
COUNT = 10
SEGMENTS = segments_of(UNIT, SIZE)
PARTIAL = 3
DATA = image(1, COUNT * UNIT)
LAYOUT = layout(DATA, UNIT)
MINUTE = 60.0


@cache
def data_of(chunk: int) -> list[bytes]:
    return [each[HEADER_SIZE:] for each in datagrams(DATA, chunk, 0, SIZE, UNIT)]


@cache
def repair_of(chunk: int, first: int, count: int) -> list[bytes]:
    return [each[HEADER_SIZE:] for each in repairs(DATA, chunk, 0, first, count, SIZE, UNIT)]


def land(to: Assembly, sent: list[bytes]) -> None:
    for start in range(0, len(sent), 11):
        joined, at = b"".join(sent[start : start + 11]), 0
        for view in to.landing():
            part = joined[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
        to.landed(len(joined))


def turns(chance: random.Random, count: int) -> list[Turn]:
    """Chunks, most of them once more later, some with repair segments, and repair segments alone."""
    found: list[Turn] = []
    sequence, first, last = 0, dict.fromkeys(range(COUNT), 0), 0
    for _ in range(count):
        alone = bool(found) and chance.random() < 0.4
        chunk = max(last - chance.randrange(PARTIAL + 1), 0) if alone else (last + chance.choice((0, 1, 1))) % COUNT
        several = chance.randint(1, 8) if alone or chance.random() < 0.5 else 0
        segments = 0 if alone else SEGMENTS
        found.append(Turn(sequence, chunk, segments, first[chunk] if several else 0, several))
        first[chunk] += several
        sequence += segments + several
        last = last if alone else chunk
    return found


@examples(60)
@given(seed=st.integers(0, 1 << 30), losses=st.lists(st.floats(0, 0.5), min_size=1, max_size=4))
def test_clients_are_like_the_real_ones(seed: int, losses: list[float]) -> None:
    """The same datagrams come to both: after each turn they have, lack and count the same."""
    chance = random.Random(seed)
    real = [Assembly(LAYOUT, SIZE, SESSION, ChunkSet.full(COUNT), PARTIAL) for _ in losses]
    disks = np.full(len(losses), 1e12)
    model = Clients(len(losses), COUNT, SEGMENTS, disks, np.random.default_rng(seed), unsolved=0.0, partial=PARTIAL)
    model.here[:] = True
    for number, turn in enumerate(turns(chance, 4 * COUNT)):
        outstanding = model.useful(turn).tolist()
        came: list[list[int]] = []
        for client, loss in enumerate(losses):
            begun = real[client]._partials.get(turn.chunk)
            has = begun.have if begun else bytearray(SEGMENTS)
            segments = [
                at for at in range(turn.segments) if chance.random() >= loss or (number == at == 0)
            ]  # where the first datagram of all is lost, the real one cannot know that it was sent
            extra = [at for at in range(turn.repairs) if chance.random() >= loss]
            useful = sum(not has[at] for at in segments) if outstanding[client] else 0
            came.append([useful, len(segments) - useful, len(extra)])
            whole = data_of(turn.chunk)
            repairing = repair_of(turn.chunk, turn.first_repair, turn.repairs) if turn.repairs else []
            numbered = [(at, whole[at]) for at in segments]
            numbered += [(SEGMENTS + turn.first_repair + at, repairing[at]) for at in extra]
            land(
                real[client],
                [Header(SESSION, turn.sequence, turn.chunk, at).pack() + data for at, data in numbered],
            )
            assume(not any(partial.unsolved for partial in real[client]._partials.values()))
        model.take(turn, Arrived(*(np.array(column) for column in zip(*came, strict=True))))
        model.write(MINUTE)
        compare(model, real, turn)
    land_tick(real, turn.sequence + turn.segments + turn.repairs)
    model.tick(turn.sequence + turn.segments + turn.repairs)
    compare(model, real, turn)


def land_tick(real: list[Assembly], sequence: int) -> None:
    for to in real:
        land(to, [Header(SESSION, sequence, TICK, 0).pack() + bytes(SIZE)])


def compare(model: Clients, real: list[Assembly], turn: Turn) -> None:
    for client, to in enumerate(real):
        status = model.status(client)
        assert status.lacking == to.wanted, turn
        assert status.missing == to.missing(COUNT), turn
        assert status.as_of == to.sequence
        assert model.incomplete[client] == to.incomplete
        assert model.left[client] == len(to.wanted)
        counts = (status.counts.segments, status.counts.lost, status.counts.passed_over)
        assert counts == (to.counters.segments, to.counters.lost, to.counters.passed_over)


def test_chunks_go_by_a_client_whose_disk_does_not_write() -> None:
    count = CAPACITY + 20
    model = Clients(2, count, SEGMENTS, np.array([0.0, 100 * CHUNK]), np.random.default_rng(1))
    model.here[:] = True
    for chunk in range(count):
        turn = Turn(chunk * SEGMENTS, chunk, SEGMENTS)
        model.take(turn, Arrived.by_chance(np.random.default_rng(1), turn, model.useful(turn), np.zeros(2)))
        model.write(0.1)
    assert model.left.tolist() == [20, 0]
    assert model.waiting.tolist() == [CAPACITY, 0]
    assert model.passed_over.tolist() == [20 * SEGMENTS, 0]
    assert model.status(0).filled == 1.0
    assert list(model.status(0).lacking) == list(range(CAPACITY, count))
    assert not model.fetched(0)


def test_a_plain_carousel_ends_with_the_last_segment() -> None:
    """By k passes are done those who lost none k times in a row, (1 - p ** k) ** n of them."""
    assert plain_carousel(3, 100, 0.0) == [1.0] * 3
    times = np.array(plain_carousel(4000, 50, 0.1))
    for passes in (1, 2, 3):
        assert abs((times <= passes).mean() - (1 - 0.1**passes) ** 50) < 0.03
    assert unicast(7) == 7


@pytest.mark.parametrize(
    ("clients", "loss", "most"), [(1, 0.0, 1.01), (30, 0.01, 1.05), (100, 0.05, 1.15), (1, 0.2, 1.4), (10, 0.2, 1.45)]
)
def test_a_room_takes_little_longer_than_the_stream(clients: int, loss: float, most: float) -> None:
    outcome = run(together(clients, loss, 1024))
    assert 1.0 <= max(outcome.lengths) < most
    assert outcome.chunks == 1024
    assert max(outcome.lengths) < min(plain_carousel(clients, 1024 * 729, loss)) + 0.01


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
def test_late_comers_have_little_sent_twice(loss: float) -> None:
    _, outcome, (again, more) = staggered(1024, loss)
    assert 0 <= again <= 0.01
    assert 0 <= more < 0.1
    assert max(outcome.lengths) < 1.15


@pytest.mark.parametrize("speed", [0.1, 0.5])
def test_a_slow_disk_costs_nobody_else_anything(speed: float) -> None:
    others, own, _ = with_a_slow_disk(1024, speed)
    even, _, _ = with_a_slow_disk(1024, 3.0)
    assert others < even + 0.05
    assert own < 1.2 / speed


def test_a_port_that_is_too_slow_slows_the_stream() -> None:
    room = together(20, 0.01, 1024)
    outcome = run(Scenario(room.starts, room.loss, 1024, port=RATE / 3))
    assert max(outcome.lengths) < 3 * 1.2
    assert np.median(outcome.rates) < RATE / 3 * 1.4


def test_the_same_chance_has_the_same_outcome() -> None:
    room = together(20, 0.05, 256)
    one, same = run(room), run(room)
    assert (one.times, one.datagrams, one.rates) == (same.times, same.datagrams, same.rates)
    assert run(Scenario(room.starts, room.loss, 256, seed=2)).times != one.times
