"""Datagrams into chunks: in order, out of order, some twice, some never, some forged."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.assembly import BATCH, TICK, Assembly
from restore.multicast.chunkset import ChunkSet
from restore.multicast.layout import CHUNK
from restore.multicast.packet import HEADER_SIZE, Header
from restore.multicast.repair import MOST_REPAIRS
from tests.restore.multicast.images import SEGMENT, SESSION, datagrams, image, layout, repairs
from tests.support import examples

LAST = 5000
UNIT = 64 << 10  # bytes of a chunk, where many are sent


def assembly(data: bytes, room: int = 8, wanted: Iterable[int] | None = None, size: int = SEGMENT) -> Assembly:
    chunks = layout(data)
    lacking = ChunkSet.full(len(chunks)) if wanted is None else ChunkSet(len(chunks), wanted)
    return Assembly(chunks, size, SESSION, lacking, room)


def land(to: Assembly, batch: bytes) -> dict[int, bytes]:
    """As a socket fills buffers; the chunks that are whole then."""
    at = 0
    for view in to.landing():
        part = batch[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    return {whole.chunk: bytes(whole.data) for whole in to.landed(len(batch))}


def receive(to: Assembly, stream: Iterable[bytes], most: int = 44) -> dict[int, bytes]:
    """Datagrams by batches of up to so many."""
    found: dict[int, bytes] = {}
    batch: list[bytes] = []
    most = min(most, to.batch)
    for datagram in stream:
        batch.append(datagram)
        if len(batch) == most:
            found |= land(to, b"".join(batch))
            batch = []
    return found | land(to, b"".join(batch)) if batch else found


def chunk_of(data: bytes, chunk: int) -> bytes:
    return data[chunk * CHUNK : (chunk + 1) * CHUNK]


def stream(data: bytes, chunks: Iterable[int], first: int = 0) -> Iterator[bytes]:
    """As it is sent when so many datagrams were before it."""
    sequence = first
    for chunk in chunks:
        sent = datagrams(data, chunk, sequence)
        sequence += len(sent)
        yield from sent


@pytest.mark.parametrize("most", [1, 7, 44, BATCH])
def test_in_order(most: int) -> None:
    """Batches that end where chunks end, and others."""
    data = image(4, LAST)
    to = assembly(data)
    found = receive(to, stream(data, range(4)), most)
    assert found == {chunk: chunk_of(data, chunk) for chunk in range(4)}
    assert not to.wanted
    assert to.incomplete == 0
    assert (to.counters.lost, to.counters.duplicates, to.counters.foreign) == (0, 0, 0)
    assert to.sequence == sum(len(datagrams(data, chunk, 0)) for chunk in range(3))


def test_nothing_is_copied_where_all_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path: a batch that lies where it belongs is not sorted."""
    data = image(3, LAST)
    to = assembly(data)
    monkeypatch.setattr(to, "_sort", None)  # it would fail
    for chunk in range(3):
        receive(to, datagrams(data, chunk, 1000 * chunk))
    assert not to.wanted


def test_what_is_not_wanted_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = image(3, LAST)
    to = assembly(data, wanted=[2])
    monkeypatch.setattr(to, "_sort", None)  # it would fail
    found: dict[int, bytes] = {}
    for chunk in range(3):
        found |= receive(to, datagrams(data, chunk, chunk))
    assert found == {2: chunk_of(data, 2)}
    assert to.counters.duplicates == to.counters.segments - len(datagrams(data, 2, 0))


def test_out_of_order() -> None:
    data = image(3, LAST)
    to = assembly(data)
    mixed = list(stream(data, range(3)))
    random.Random(1).shuffle(mixed)
    assert receive(to, mixed) == {chunk: chunk_of(data, chunk) for chunk in range(3)}
    assert to.counters.duplicates == 0


def test_what_is_missing_comes_with_the_next_pass() -> None:
    data = image(3, LAST)
    to = assembly(data)
    kept = [datagram for at, datagram in enumerate(stream(data, range(3))) if at % 100 != 5]
    sent = len(list(stream(data, range(3))))
    assert receive(to, kept) == {2: chunk_of(data, 2)}
    assert to.incomplete == 2
    assert list(to.wanted) == [0, 1]
    again = receive(to, stream(data, [0, 1], sent))
    assert again == {0: chunk_of(data, 0), 1: chunk_of(data, 1)}
    assert to.counters.lost == sent - len(kept)


def test_a_chunk_joined_in_its_middle() -> None:
    """What was sent before is not lost; the rest is kept for when the chunk comes again."""
    data = image(2, LAST)
    to = assembly(data)
    first = datagrams(data, 0, 9000)
    assert receive(to, [*first[300:], *datagrams(data, 1, 9000 + len(first))]) == {1: chunk_of(data, 1)}
    assert to.counters.lost == 0
    assert receive(to, datagrams(data, 0, 10000)[:300]) == {0: chunk_of(data, 0)}


def test_whole_chunks_that_are_lost_are_counted() -> None:
    data = image(6)
    to = assembly(data)
    each = len(datagrams(data, 0, 0))
    receive(to, stream(data, [0]))
    receive(to, datagrams(data, 4, 4 * each))
    assert to.counters.lost == 3 * each


def test_forged_is_for_the_digest_to_find() -> None:
    data = image(2, LAST)
    to = assembly(data)
    first = datagrams(data, 0, 0)
    first[10] = first[10][:HEADER_SIZE] + bytes(SEGMENT)
    ((chunk, wrong),) = receive(to, first).items()
    assert blake3(wrong).digest() != to._layout.digest(chunk)
    to.wanted.add(chunk)
    assert receive(to, datagrams(data, 0, 1)) == {0: chunk_of(data, 0)}


@pytest.mark.parametrize(
    "batch",
    [
        b"",
        b"x",
        bytes(HEADER_SIZE + SEGMENT),
        bytes(HEADER_SIZE + SEGMENT - 1),
        Header(SESSION ^ 1, 0, 0, 0).pack() + bytes(SEGMENT),
        Header(SESSION, 0, 3, 0).pack() + bytes(SEGMENT),
        Header(SESSION, 0, 0, 1 << 20).pack() + bytes(SEGMENT),
        Header(SESSION, 0, 2, 4 + MOST_REPAIRS).pack() + bytes(SEGMENT),  # the last chunk has four segments
        Header(SESSION, 1 << 40, 2, 0).pack() + bytes(SEGMENT),
        b"".join(Header(SESSION, 0, 2, at).pack() + bytes(SEGMENT) for at in range(44)),
    ],
)
def test_foreign(batch: bytes) -> None:
    data = image(3, LAST)
    to = assembly(data)
    receive(to, datagrams(data, 0, 0)[:1])
    found = land(to, batch)
    assert to.counters.foreign or found == {2: bytes(LAST)}
    assert receive(to, stream(data, [0, 1])) == {chunk: chunk_of(data, chunk) for chunk in range(2)}


def test_a_tick_says_how_far_it_is() -> None:
    data = image(3, LAST)
    to = assembly(data)
    receive(to, datagrams(data, 0, 0))
    assert not to.ticked
    assert land(to, Header(SESSION, 3000, TICK, 0).pack() + bytes(SEGMENT)) == {}
    assert to.ticked
    assert to.sequence == 3000
    assert to.counters.lost == 3000 - len(datagrams(data, 0, 0))
    assert receive(to, datagrams(data, 1, 3000)) == {1: chunk_of(data, 1)}
    assert not to.ticked


@pytest.mark.parametrize("most", [1, 44])
def test_repaired_with_what_is_sent_along(most: int) -> None:
    """A chunk of which less is lost than is sent along with it is whole at once."""
    data = image(2, LAST)
    to = assembly(data)
    first = datagrams(data, 0, 0)
    lost = [3, 4, 5, 400, 728]
    sent = [each for at, each in enumerate(first) if at not in lost] + repairs(data, 0, 0, 7, 8)
    assert receive(to, sent, most) == {0: chunk_of(data, 0)}
    assert receive(to, datagrams(data, 1, len(first) + 8)) == {1: chunk_of(data, 1)}
    counters = to.counters
    assert (counters.repaired, counters.lost, counters.duplicates, counters.foreign) == (1, 5, 3, 0)


def test_repaired_on_demand() -> None:
    """It says how many segments it misses, not which: any others will do, in any order and whatever comes twice."""
    data = image(2)
    to = assembly(data)
    sent = list(stream(data, range(2)))
    kept = [each for at, each in enumerate(sent) if at % 100]
    assert receive(to, kept) == {}
    assert to.missing(10) == {0: 8, 1: 7}
    assert to.missing(1) == {0: 8}
    batch = repairs(data, 1, len(sent), 0, 5)
    assert receive(to, [*batch, *batch]) == {}
    assert to.missing(10) == {0: 8, 1: 2}
    again = [*repairs(data, 0, len(sent) + 5, 90, 9), *repairs(data, 1, len(sent) + 14, 5, 3)]
    random.Random(2).shuffle(again)
    assert receive(to, again) == {chunk: chunk_of(data, chunk) for chunk in range(2)}
    assert to.missing(10) == {}
    assert to.counters.repaired == 2


def test_what_repairs_others_begins_nothing() -> None:
    data = image(2)
    to = assembly(data)
    assert receive(to, repairs(data, 0, 0, 0, 10)) == {}
    assert to.incomplete == 0
    assert to.counters.duplicates == 10


def test_a_forged_repair_is_for_the_digest_to_find() -> None:
    data = image(1)
    to = assembly(data)
    first = datagrams(data, 0, 0)
    forged = Header(SESSION, 0, 0, len(first) + 5).pack() + bytes(SEGMENT)
    ((chunk, wrong),) = receive(to, [*first[1:], forged, *repairs(data, 0, 0, 0, 1)]).items()
    assert blake3(wrong).digest() != to._layout.digest(chunk)


def test_the_rest_of_the_chunk_after_its_repair() -> None:
    """What is received where the rest of a chunk belonged does not end up in what was handed out."""
    data = image(2)
    to = assembly(data)
    first = datagrams(data, 0, 0)
    wanted = [first[:40], repairs(data, 0, 0, 0, len(first) - 80), first[40:80], first[80:120]]
    held = []
    for batch in wanted:
        for at in range(0, len(batch), 40):
            views = to.landing()
            for view, part in zip(
                views, [part for each in batch[at : at + 40] for part in (each[:28], each[28:])], strict=False
            ):
                view[:] = part
            held += to.landed(len(b"".join(batch[at : at + 40])))
    (whole,) = held
    receive(to, [Header(SESSION, 9000, 1, at).pack() + b"x" * SEGMENT for at in range(300)])
    assert whole.data == chunk_of(data, 0)


def test_memory_is_bounded() -> None:
    """With room for two, the one that lacks most makes room; without any, chunks go by."""
    data = image(6)
    to = assembly(data, room=2)
    for chunk, kept in enumerate((500, 100, 300)):
        receive(to, datagrams(data, chunk, 1000 * chunk)[:kept])
    assert sorted(to._partials) == [0, 2]
    to.room = 0
    assert receive(to, datagrams(data, 5, 5000)) == {}
    assert to.incomplete <= 2
    assert to.counters.passed_over == len(datagrams(data, 5, 0))
    assert len(to.wanted) == 6


def test_forgotten_while_it_is_received() -> None:
    """A batch that was to land in a chunk that came by another way in between goes where it belongs."""
    data = image(3, LAST)
    to = assembly(data)
    first = datagrams(data, 0, 0)
    receive(to, first[:44])
    views = to.landing()
    batch = b"".join(datagrams(data, 1, 1)[:44])
    to.forget(0)
    at = 0
    for view in views:
        part = batch[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    assert to.landed(len(batch)) == []
    assert receive(to, datagrams(data, 1, 1)[44:]) == {1: chunk_of(data, 1)}
    assert 0 not in to.wanted


@examples(100)
@given(
    seed=st.integers(0, 1 << 30),
    loss=st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    repeats=st.sampled_from([0.0, 0.05]),
    swaps=st.sampled_from([0.0, 0.05, 0.5]),
    room=st.integers(1, 5),
    size=st.sampled_from([SEGMENT, 8000, 32768]),
)
def test_whatever_the_network_does(seed: int, loss: float, repeats: float, swaps: float, room: int, size: int) -> None:
    """Loss, repeats, reordering and joins in the middle: every chunk that is told as whole is the image's."""
    chance = random.Random(seed)
    data = image(1, 3 * UNIT + LAST)
    to = Assembly(layout(data, UNIT), size, SESSION, ChunkSet.full(4), room)
    found: dict[int, bytes] = {}
    sequence = 0
    start = chance.randrange(10)
    while to.wanted and sequence < 200:
        chunk = chance.choice(list(to.wanted)) if chance.random() < 0.9 else chance.randrange(4)
        sent = datagrams(data, chunk, 1000 * sequence, size, UNIT)[start:]
        sequence, start = sequence + 1, 0
        sent = [each for each in sent if chance.random() >= loss]
        sent += [each for each in sent if chance.random() < repeats]
        for at in range(len(sent) - 1):
            if chance.random() < swaps:
                other = min(at + chance.randrange(1, 20), len(sent) - 1)
                sent[at], sent[other] = sent[other], sent[at]
        found |= receive(to, sent, chance.choice([1, 5, 44, BATCH]))
        assert to.incomplete <= room
    assert found == {chunk: data[chunk * UNIT : (chunk + 1) * UNIT] for chunk in range(4)}
