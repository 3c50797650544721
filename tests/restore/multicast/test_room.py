"""The clients as a server sees them."""

from __future__ import annotations

import threading
import time

import pytest

from restore.multicast.carousel import SILENCE, Carousel, Turn
from restore.multicast.chunkset import ChunkSet
from restore.multicast.pacing import Regulator
from restore.multicast.server.room import SLOW_FOR, Room
from restore.multicast.session import Counts, Join, Status, report_every

COUNT = 20
MB = 1_000_000


def room(**how: float) -> Room:
    everything = bool(how.pop("everything", False))
    return Room(Carousel(COUNT, everything=everything), Regulator(100 * MB), **how)  # type: ignore[arg-type]


def join(to: Room, name: str = "a", now: float = 0.0, lacking: ChunkSet | None = None) -> str:
    full = ChunkSet.full(COUNT) if lacking is None else lacking
    return to.join(Join(name, ["/dev/sda"], full), "10.0.0.1", now).client


def status(received: int = 0, lacking: ChunkSet | None = None, as_of: int = 0, passed_over: int = 0) -> Status:
    counts = Counts(received=received, passed_over=passed_over)
    return Status(ChunkSet.full(COUNT) if lacking is None else lacking, as_of, counts)


def test_from_the_first_client_to_the_last() -> None:
    here = room()
    assert here.next(0) is None
    assert not here.all_done
    client = join(here)
    assert [here.next(0) for _ in range(3)] == [Turn(0, 0, 1), Turn(1, 1, 1), Turn(2, 2, 1)]
    assert here.report(client, status(received=3, lacking=ChunkSet(COUNT), as_of=3), 1.0).streaming
    here.look_after(1.0)  # what it had from elsewhere is not sent
    assert here.next(0) is None
    here.leave(client, "done", 2.0)
    (guest,) = here.left()
    assert (guest.name, guest.address, guest.end, guest.ended, guest.counts.received) == (
        "a",
        "10.0.0.1",
        "done",
        2.0,
        3,
    )
    assert here.all_done
    assert here.guests() == []
    for call in (lambda: here.report(client, status(), 3.0), lambda: here.leave(client, "done", 3.0)):
        with pytest.raises(KeyError):
            call()


def test_it_waits_for_all_to_be_there() -> None:
    here = room(start_when=2)
    first = join(here, "a")
    assert here.next(0) is None
    assert not here.report(first, status(), 1.0).streaming
    join(here, "b")
    assert here.report(first, status(), 1.0).streaming
    assert here.next(0) == Turn(0, 0, 1)


def test_it_does_not_wait_for_ever() -> None:
    here = room(start_when=2, start_wait=5.0)
    first = join(here, "a", 100.0)
    here.look_after(104.9)
    assert here.next(0) is None
    here.look_after(105.0)
    assert here.next(0) == Turn(0, 0, 1)
    assert here.report(first, status(), 105.0).streaming


def test_who_says_nothing_is_gone() -> None:
    here = room()
    join(here, "bench-7")
    assert here.look_after(SILENCE) == []
    assert here.look_after(SILENCE + 1) == ["bench-7 (10.0.0.1) says nothing any more, and counts as gone"]
    assert here.left()[0].end == "silent"
    assert here.next(0) is None


def test_a_straggler_is_on_its_own() -> None:
    here = room()
    clients = [join(here, name) for name in ("a", "b", "slow")]
    lines: list[str] = []
    for second in range(1, int(2 * SLOW_FOR) + 3):
        for client in clients:
            rate = MB if client == clients[2] else 4 * MB
            alone = here.report(client, status(received=rate * second), second).alone
            assert alone == (client == clients[2] and bool(lines))
        lines += here.look_after(second)
    assert lines == ["slow (10.0.0.1) is slower than a third of the others: it fetches by itself now"]
    here.carousel.leave(clients[0])
    here.carousel.leave(clients[1])
    assert here.next(0) is None  # what only it lacks is not sent


def test_the_rest_is_fetched_where_the_stream_is_elsewhere() -> None:
    """By no more than a few at a time, and not where it comes soon anyway."""
    count = 1000
    here = Room(Carousel(count), Regulator(100 * MB))
    clients = [here.join(Join(str(at), ["/dev/sda"], ChunkSet.full(count)), "10.0.0.1", 0.0).client for at in range(8)]
    for _ in range(500):
        here.next(0)
    here.join(Join("late", ["/dev/sda"], ChunkSet.full(count)), "10.0.0.1", 1.0)
    for _ in range(500):
        here.next(0)
    for at, client in enumerate(clients):
        lacks = ChunkSet(count, [1, 2] if at == 0 else [400, 401])
        assert not here.report(client, Status(lacks, count, Counts()), 2.0).alone
    assert here.look_after(2.0) == []
    said = [here.report(client, Status(ChunkSet(count, [400]), count, Counts()), 3.0).alone for client in clients]
    assert said == [False, True, True, True, True, False, False, False]
    here.leave(clients[1], "done", 4.0)
    here.look_after(4.0)
    assert [guest.alone for guest in here.guests()] == [True, True, True, True, False, False, False, False]


def test_the_more_clients_the_fewer_reports_of_each() -> None:
    assert [report_every(clients) for clients in (1, 100, 500, 1000, 100_000)] == [0.2, 0.2, 1.0, 2.0, 5.0]


def test_who_is_slow_for_a_while_only_is_not_left_alone() -> None:
    here = room()
    clients = [join(here, name) for name in ("a", "b", "c")]
    for second in range(1, int(3 * SLOW_FOR)):
        for client in clients:
            received = 4 * MB * second
            if client == clients[2] and second % 20 < 10:
                received -= 4 * MB * (second % 20)
            here.report(client, status(received=received), second)
        assert here.look_after(second) == []


def test_the_rate_follows_those_who_let_chunks_go_by() -> None:
    here = room()
    clients = [join(here, name) for name in ("a", "b", "c")]
    assert here.regulate(100 * MB) == 100 * MB
    for client in clients[:2]:
        here.report(client, status(as_of=10, passed_over=5), 1.0)
    assert here.regulate(100 * MB) == 47.5 * MB
    for client in clients[:2]:
        here.report(client, status(as_of=20, passed_over=5), 2.0)
    assert here.regulate(47.5 * MB) == 47.5 * MB * 1.25


def test_lost_on_the_way_or_only_here() -> None:
    """The stream is repaired for what gets lost on the way; for what a client did not take in time it is slowed."""
    here = room()
    client = join(here)
    for second in range(1, 20):
        counts = Counts(segments=950 * second, lost=50 * second)
        here.report(client, Status(ChunkSet.full(COUNT), 1000 * second, counts), second)
    assert here.regulate(50 * MB) == 100 * MB
    assert 0.049 < here.carousel.loss < 0.051
    for second in range(20, 40):
        counts = Counts(segments=950 * second, lost=50 * second, overflowed=50 * (second - 19) * 20)
        here.report(client, Status(ChunkSet.full(COUNT), 1000 * second, counts), second)
    assert here.regulate(50 * MB) < 50 * MB
    assert here.carousel.loss < 0.005


@pytest.mark.parametrize("port", [None, 40 * MB])
def test_loss_that_a_lower_rate_lessens_and_other_loss(port: float | None) -> None:
    """A port that is too slow has the stream go as fast as it can; a line that loses a quarter at any rate does not."""
    here = room()
    client = join(here)
    segments = lost = 0
    rates: list[float] = []
    for second in range(1, 200):
        rate = rates[-1] if rates else 100 * MB
        loss = 0.25 if port is None else max(1 - port / rate, 0.0)
        segments, lost = segments + round(1000 * (1 - loss)), lost + round(1000 * loss)
        here.carousel.sequence = 1000 * second  # all of that has been sent
        here.report(client, Status(ChunkSet.full(COUNT), 1000 * second, Counts(segments=segments, lost=lost)), second)
        rates.append(here.regulate(rate))
    if port is None:
        assert min(rates) > 50 * MB
        assert rates[-100:] == [100 * MB] * 100
    else:
        assert max(rates[-100:]) < 1.4 * port


def test_all_of_it_round_and_round_until_nobody_is_there() -> None:
    here = room(everything=True, loop_suspend=2)
    sent = [here.next(0) for _ in range(5 * COUNT)]
    assert sent[: 2 * COUNT] == [Turn(at, at % COUNT, 1) for at in range(2 * COUNT)]
    assert sent[-1] is None
    client = join(here)
    assert all(here.next(0) is not None for _ in range(3 * COUNT))
    here.leave(client, "done", 1.0)
    assert [here.next(0) for _ in range(5 * COUNT)][-1] is None


def test_who_waits_for_something_to_send_is_woken() -> None:
    here = room()
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(here.next(30)))
    waiting.start()
    time.sleep(0.05)
    join(here)
    waiting.join(10)
    assert found == [Turn(0, 0, 1)]
    here.carousel.report(next(iter(here.carousel.members)), ChunkSet(COUNT), 1, 0)
    while here.next(0) is not None:
        pass
    waiting = threading.Thread(target=lambda: found.append(here.next(30)))
    waiting.start()
    time.sleep(0.05)
    here.close()
    waiting.join(10)
    assert found[1:] == [None]
