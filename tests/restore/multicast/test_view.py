"""What is to be seen of a room: states, percentages, stragglers, time left; and the table that is made of it."""

from __future__ import annotations

import io
import json
import random

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from restore.multicast.carousel import SILENCE, Carousel, Turn
from restore.multicast.chunkset import ChunkSet
from restore.multicast.layout import CHUNK, Lengths
from restore.multicast.pacing import Regulator
from restore.multicast.server.metrics import MOST_LISTED, metrics
from restore.multicast.server.room import SLOW_FOR, Room, RoomFull
from restore.multicast.server.table import table
from restore.multicast.server.view import ENDED, QUIET, Row, State, View, format_left, view
from restore.multicast.session import Counts, Join, Session, Status
from tests.restore.multicast.images import image, layout

COUNT = 8
LAST = 4096
LAYOUT = layout(image(COUNT, LAST))
SIZE = (COUNT - 1) * CHUNK + LAST
LENGTHS = Lengths(LAYOUT)
SESSION = Session(7, "lab.img", SIZE, COUNT, "0" * 64, "239.192.1.2", 7800, 1444)


def room(**how: int) -> Room:
    return Room(Carousel(COUNT), Regulator(None), **how)  # type: ignore[arg-type]


def join(to: Room, name: str = "a", now: float = 0.0, lacking: ChunkSet | None = None, target: str = "/dev/sda") -> str:
    full = ChunkSet.full(COUNT) if lacking is None else lacking
    return to.join(Join(name, [target], full), "10.0.0.1", now).client


def tell(to: Room, client: str, now: float, lacking: range | tuple[int, ...] = range(COUNT), **counts: int) -> None:
    to.report(client, Status(ChunkSet(COUNT, lacking), 0, Counts(**counts)), now)


def look(at: Room, now: float, **how: int) -> View:
    return view(at, SESSION, LENGTHS, now, **how)


def only(at: Room, now: float) -> Row:
    (row,) = look(at, now).rows
    return row


def test_lengths_of_sets_of_chunks() -> None:
    odd = layout(image(5, 12345), 3 * 4096)
    lengths = Lengths(odd)
    for seed in range(20):
        dice = random.Random(seed)
        members = [chunk for chunk in range(len(odd)) if dice.random() < seed / 19]
        assert lengths.of(ChunkSet(len(odd), members)) == sum(odd.length(chunk) for chunk in members)
    assert LENGTHS.of(ChunkSet.full(COUNT)) == SIZE == LAYOUT.size


def test_nobody_is_there() -> None:
    seen = look(room(), 0.0)
    assert (seen.rows, seen.clients, seen.least, seen.median, seen.stragglers) == ([], 0, None, None, [])
    assert (seen.stream, seen.summary) == ("the stream has not begun", "0 clients")


def test_a_client_from_its_first_report_to_its_end() -> None:
    here = room(start_when=2)
    client = join(here)
    assert only(here, 0.0).state is State.WAITING
    tell(here, client, 1.0)
    assert (only(here, 1.0).state, only(here, 1.0).left) == (State.WAITING, None)
    other = join(here, "b", 1.0)
    assert here.next(0) == Turn(0, 0, 1)
    here.leave(other, "left", 1.0)

    def row(now: float) -> Row:
        (found,) = (row for row in look(here, now).rows if row.here)
        return found

    tell(here, client, 2.0, range(4, COUNT), received=4 * CHUNK, written=2 * CHUNK, segments=90, lost=10)
    seen = row(2.0)
    assert (seen.state, seen.received, seen.rate, seen.loss) == (State.RECEIVING, 57.1, 4 * CHUNK, 0.1)
    assert (seen.written, seen.verified) == (33.3, 0.0)  # of all but the first MiB, which is written last
    assert seen.left == 2  # 4 MiB more to be written, at 2 MiB/s; 3 to be received at 4
    tell(here, client, 3.0, (), received=SIZE, written=5 * CHUNK, verified=2 * CHUNK)
    assert (row(3.0).state, row(3.0).received) == (State.WRITING, 100.0)
    tell(here, client, 4.0, (), received=SIZE, written=SIZE - CHUNK, verified=4 * CHUNK)
    seen = row(4.0)
    assert (seen.state, seen.written, seen.left) == (State.VERIFYING, 100.0, 2)
    tell(here, client, 5.0, (), received=SIZE, written=SIZE - CHUNK, verified=SIZE)
    assert (row(5.0).state, row(5.0).verified) == (State.FINISHING, 100.0)
    here.leave(client, "done", 6.0)
    seen = next(row for row in look(here, 9.0).rows if row.name == "a")
    assert (seen.state, seen.here, seen.seconds, seen.rate) == (State.DONE, False, 6, 0)
    assert look(here, 9.0).summary == "0 clients; 1 done; 1 left"


def test_one_that_does_not_verify_is_never_verifying() -> None:
    here = room()
    client = join(here)
    tell(here, client, 1.0, (), received=SIZE, written=SIZE - CHUNK)
    assert only(here, 1.0).state is State.FINISHING


def test_percent_received_is_of_bytes() -> None:
    """Of an image with many small chunks and a large one, the small ones are little of it."""
    data = image(1, 8 * 4096)
    small = layout(data, 4096)
    here = Room(Carousel(len(small)), Regulator(None))
    client = here.join(Join("a", ["x"], ChunkSet.full(len(small))), "10.0.0.1", 0.0).client
    here.report(client, Status(ChunkSet(len(small), (6, 7)), 0, Counts(received=6 * 4096)), 1.0)
    assert view(here, SESSION, Lengths(small), 1.0).rows[0].received == 75.0
    here = room()
    client = join(here)
    tell(here, client, 1.0, range(COUNT - 1), received=LAST)  # one chunk of eight, and the shortest
    assert only(here, 1.0).received == 0.0


def test_percent_received_is_of_what_it_lacked() -> None:
    here = room()
    client = join(here, lacking=ChunkSet(COUNT, (2, 3)))
    assert only(here, 0.0).received == 0.0
    tell(here, client, 1.0, (3,), received=CHUNK)
    assert only(here, 1.0).received == 50.0
    nothing = room()
    join(nothing, lacking=ChunkSet(COUNT))
    assert only(nothing, 0.0).received == 100.0


def test_one_that_had_begun_with_another_run_of_the_server() -> None:
    here = room()
    client = join(here, lacking=ChunkSet(COUNT, (6,)))
    tell(here, client, 1.0, (6,), received=3 * CHUNK)
    assert only(here, 1.0).received == 75.0


def test_one_that_says_nothing() -> None:
    here = room()
    client = join(here, "bench-7")
    tell(here, client, 1.0, range(4, COUNT), received=4 * CHUNK)
    assert not only(here, 1.0 + QUIET).straggler
    seen = look(here, 1.1 + QUIET)
    assert (seen.rows[0].state, seen.rows[0].left, seen.stragglers) == (State.SILENT, None, ["bench-7"])
    assert seen.states == {"silent": 1}
    here.look_after(2 + SILENCE)
    seen = look(here, 2 + SILENCE)
    assert (seen.clients, seen.ends, seen.rows[0].here, seen.stragglers) == (0, {"silent": 1}, False, [])
    assert seen.rows[0].received == 50.0
    join(here, "bench-7", 3 + SILENCE)  # it is back: there is one of it
    assert [row.state for row in look(here, 3 + SILENCE).rows] == [State.WAITING]
    join(here, "bench-7", 3 + SILENCE, target="/dev/sdb")
    assert look(here, 3 + SILENCE).clients == 2


def test_stragglers_are_named() -> None:
    here = room()
    names = ["a", "b", "c", *(f"slow{number}" for number in range(1, 3))]
    clients = {name: join(here, name) for name in names}
    for second in range(1, int(2 * SLOW_FOR) + 3):
        for name, client in clients.items():
            rate = 1000 if name.startswith("slow") else 100_000
            tell(here, client, second, received=rate * second, segments=1)
        here.look_after(second)
        seen = look(here, second)
        if second == int(SLOW_FOR) + 2:
            assert seen.stragglers == ["slow1", "slow2"]
            assert {row.state for row in seen.rows} == {State.RECEIVING}
    assert [row.name for row in seen.rows] == ["slow1", "slow2", "a", "b", "c"]
    assert seen.rows[0].state is State.FETCHING
    assert seen.summary == (
        "5 clients (3 receiving, 2 by unicast); received 0 % at least, 45 % median; stragglers: slow1, slow2"
    )


def test_how_others_end() -> None:
    here = room()
    for end in ("failed", "done", "\x1b[2Jwhatever", "left", "x" * 80):
        client = join(here, end)
        tell(here, client, 1.0, range(4, COUNT), received=4 * CHUNK)
        here.leave(client, end, 1.0)
    seen = look(here, 2.0)
    assert seen.ends == {"done": 1, "failed": 1, "left": 3}
    assert [row.state for row in seen.rows] == [State.FAILED, *[State.LEFT] * 3, State.DONE]
    assert [row.received for row in seen.rows] == [50.0, 50.0, 50.0, 50.0, 100.0]


def test_only_the_last_that_have_ended_are_kept() -> None:
    here = room()
    for number in range(ENDED + 5):
        here.leave(join(here, f"{number:03}"), "done", 1.0)
    seen = look(here, 2.0)
    assert [row.name for row in seen.rows] == [f"{number:03}" for number in range(5, ENDED + 5)]
    assert seen.ends == {"done": ENDED + 5}
    assert [guest.name for guest in here.left(2)] == [f"{ENDED + 3:03}", f"{ENDED + 4:03}"]


def test_a_room_may_be_full() -> None:
    here = room(most=2)
    first = join(here)
    join(here)
    with pytest.raises(RoomFull, match="2 clients take part, and no more may: try again when one of them has ended"):
        join(here)
    here.leave(first, "done", 1.0)
    join(here)


def test_what_clients_say_is_safe_to_show() -> None:
    here = room()
    join(here, "\x1b[2J\ud800\u202e\n", target="nbd://joe:secret@10.0.0.9/sda")
    (row,) = look(here, 0.0).rows
    assert row.name == "\\x1b[2J\\ud800\\u202e\\n"
    assert row.targets == ["nbd://10.0.0.9/sda"]
    json.dumps(look(here, 0.0).to_json()).encode()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7, "0:07"), (754, "12:34"), (12345, "3:25:45")])
def test_time_left(seconds: int, text: str) -> None:
    assert format_left(seconds) == text


# --- The table ---


def drawn(seen: View, width: int = 120, height: int = 24) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=False).print(table(seen, width, height))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    assert len(lines) < height
    return lines


def many(count: int) -> Room:
    here = room()
    clients = [join(here, f"bench-{number:02}", target=f"/dev/sd{number}") for number in range(count)]
    for number, client in enumerate(clients):
        had = number % COUNT
        tell(here, client, 1.0, range(had, COUNT), received=had * CHUNK, segments=1)
    return here


def test_the_table() -> None:
    here = many(3)
    here.next(0)
    lines = drawn(look(here, 1.0, sent=5, rate=3 * CHUNK, limit=100 * CHUNK))
    assert lines[0] == "lab.img: pass 1, 3.0 MiB/s of at most 100.0 MiB/s"
    assert lines[1] == "3 clients (3 receiving); received 0 % at least, 14 % median"
    titles = ["Client", "Address", "Targets", "State", "Received", "Written", "Verified", "Rate", "Loss", "Left"]
    assert lines[2].split() == titles
    assert lines[4].split() == [
        "bench-01", "10.0.0.1", "/dev/sd1", "receiving", "14", "%", "0", "%", "0", "%", "0", "bytes/s", "0.0", "%",
    ]  # fmt: skip
    assert len(lines) == 6


def test_a_table_on_a_small_terminal_has_who_needs_attention() -> None:
    here = many(50)
    here.leave(next(guest.id for guest in here.guests() if guest.name == "bench-31"), "failed", 1.0)
    lines = drawn(look(here, 1.0), width=80, height=15)
    assert "Targets" not in lines[2]
    shown = [line.split()[0] for line in lines[3:-1]]
    assert shown[0] == "bench-31"
    assert set(shown[1:]) <= {f"bench-{number:02}" for number in range(50) if number % COUNT < 2}
    assert lines[-1] == "and 40 more"
    assert len(drawn(look(here, 1.0), width=40, height=3)) == 2
    for width in (50, 56, 64, 72, 80, 100, 120):
        head = drawn(look(here, 1.0), width)[2]
        assert "…" not in head, head


def test_markup_in_a_name_is_only_text() -> None:
    here = room()
    join(here, "[bold]x[/bold]")
    assert drawn(look(here, 0.0))[3].startswith("[bold]x[/bold] ")


# --- Metrics ---


def samples(seen: View) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(metrics(seen).decode())
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_metrics() -> None:
    here = many(3)
    client = join(here, 'a"\\b\n<c>')
    here.leave(join(here, "gone"), "failed", 1.0)
    found = samples(look(here, 1.0, sent=12345, limit=99))
    assert found["asr_sent_bytes_total",] == 12345
    assert found["asr_rate_limit_bytes",] == 99
    assert found["asr_image_size_bytes", "lab.img"] == SIZE
    assert found["asr_clients", "receiving"] == 3
    assert found["asr_clients", "waiting"] == 1
    assert found["asr_ended_clients_total", "failed"] == 1
    assert found["asr_client_received_ratio", "10.0.0.1", 'a"\\b\\n<c>', client] == 0
    ratios = [value for name, value in found.items() if name[0] == "asr_client_received_ratio"]
    assert sorted(ratios) == [0.0, 0.0, 0.142, 0.285]


def test_metrics_of_many_clients_are_of_all_of_them() -> None:
    here = many(MOST_LISTED)
    assert len([name for name in samples(look(here, 1.0)) if name[0] == "asr_client_loss_ratio"]) == MOST_LISTED
    join(here, "one more")
    found = samples(look(here, 1.0))
    assert not [name for name in found if name[0].startswith("asr_client_")]
    assert found["asr_clients", "receiving"] == MOST_LISTED
