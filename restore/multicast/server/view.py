"""What there is to see of a room at one moment: for the table on a terminal, the web page, JSON and metrics alike.

Pure: the time is told, in seconds of the clock that the room is told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import lru_cache
from statistics import median
from typing import Any, Final

from restore.multicast.layout import CHUNK, Lengths
from restore.multicast.server.room import Guest, Room
from restore.multicast.session import Session
from restore.report.shown import shown
from targetmode.disks.text import format_size

QUIET: Final = 3.0  # seconds without a report, of which there are two a second, after which that is to be seen
ENDED: Final = 100  # clients that have ended and are shown still, the last ones
_NAMED: Final = 5  # stragglers that a line names


class State(StrEnum):
    """What a client does."""

    WAITING = "waiting"
    RECEIVING = "receiving"
    FETCHING = "by unicast"
    WRITING = "writing"
    VERIFYING = "verifying"
    FINISHING = "finishing"
    SILENT = "silent"
    DONE = "done"
    FAILED = "failed"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Row:
    """One client. All its texts are safe to show, whatever the client said.

    Attributes:
        id: what it is called here.
        name: what its machine is called.
        address: of its machine.
        targets: what it restores onto.
        here: it takes part.
        state: what it does.
        straggler: it is far slower than the others, or says nothing.
        received: percent of the bytes that it lacked when it began.
        written: percent of the image that is on its target, zeroes included.
        verified: likewise, of what was compared.
        rate: bytes per second that come.
        loss: which part of the datagrams got lost on the way, 0 to 1.
        left: seconds until it has all, at the speed of now; None where that cannot be told.
        seconds: since it began; of one that has ended, until then.
    """

    id: str
    name: str
    address: str
    targets: list[str]
    here: bool
    state: State
    straggler: bool
    received: float
    written: float
    verified: float
    rate: int
    loss: float
    left: int | None
    seconds: int

    @property
    def order(self) -> tuple[int, str]:
        """Who needs attention comes first; after that by name, so that rows stay where they are."""
        return _ORDER.get(self.state, 1 if self.straggler else 2), self.name


_ORDER: Final = {State.SILENT: 0, State.FAILED: 0, State.LEFT: 3, State.DONE: 4}


@dataclass(frozen=True, slots=True)
class View:
    """A room at one moment.

    Attributes:
        image: what is streamed.
        size: its bytes.
        group: multicast address.
        port: UDP port.
        session: names this run of the server.
        streaming: the stream has begun.
        loop: which pass it is in, from 1; 0 before the first.
        sent: bytes that were sent so far, headers included.
        rate: of those per second, lately.
        limit: bytes per second at most, at this moment; None as fast as it goes.
        clients: how many take part.
        states: how many of them are in each state.
        ends: how many have ended in each way, since the server runs.
        least: the smallest percentage received of those that take part; None if nobody does.
        median: the one in the middle.
        stragglers: the names of those who are far slower than the others, or say nothing.
        rows: those that take part and the last ones that have ended; who needs attention first.
    """

    image: str
    size: int
    group: str
    port: int
    session: str
    streaming: bool
    loop: int
    sent: int
    rate: int
    limit: int | None
    clients: int
    states: dict[str, int]
    ends: dict[str, int]
    least: float | None
    median: float | None
    stragglers: list[str]
    rows: list[Row]

    def to_json(self) -> dict[str, Any]:
        """As the control API has it."""
        return asdict(self) | {"stream": self.stream, "summary": self.summary}

    def pressing(self, most: int) -> list[Row]:
        """The rows that there is room for: who needs attention, then the slowest."""
        if len(self.rows) <= most:
            return self.rows
        return sorted(self.rows, key=lambda row: (row.order[0], row.received + row.written + row.verified))[:most]

    @property
    def stream(self) -> str:
        """How it is streamed, for people."""
        if not self.streaming and not self.loop:
            return "the stream has not begun"
        limit = "" if self.limit is None else f" of at most {format_size(self.limit)}/s"
        return f"pass {self.loop}, {format_size(self.rate)}/s{limit}"

    @property
    def summary(self) -> str:
        """How far the clients are, for people: how many, minimum, median, stragglers."""
        states = ", ".join(f"{count} {state}" for state, count in self.states.items())
        parts = [f"{self.clients} client{'' if self.clients == 1 else 's'}{f' ({states})' if states else ''}"]
        if self.least is not None and self.median is not None:
            parts.append(f"received {int(self.least)} % at least, {int(self.median)} % median")
        parts += [f"{count} {end}" for end, count in self.ends.items() if count]
        if self.stragglers:
            more = len(self.stragglers) - _NAMED
            named = ", ".join(self.stragglers[:_NAMED])
            parts.append(f"stragglers: {named}{f' and {more} more' if more > 0 else ''}")
        return "; ".join(parts)


def view(
    room: Room, session: Session, lengths: Lengths, now: float, *, sent: int = 0, rate: float = 0.0,
    limit: int | None = None,
) -> View:  # fmt: skip
    """What is to be seen now.

    Args:
        room: who takes part.
        session: what is streamed.
        lengths: of its chunks.
        now: the time.
        sent: bytes that were sent.
        rate: of those per second, lately.
        limit: of that, at this moment.
    """
    there = [_row(guest, room, session, lengths, now) for guest in room.guests()]
    again = {(row.name, row.address, *row.targets) for row in there}
    gone = (_row(guest, room, session, lengths, now) for guest in room.left(ENDED))
    rows = there + [row for row in gone if (row.name, row.address, *row.targets) not in again]
    states = Counter(row.state.value for row in there)
    received = [row.received for row in there]
    return View(
        image=shown(session.image),
        size=session.size,
        group=session.group,
        port=session.port,
        session=f"{session.id:016x}",
        streaming=room.started or room.carousel.everything,
        loop=room.carousel.passes,
        sent=sent,
        rate=round(rate),
        limit=limit,
        clients=len(there),
        states={state.value: states[state.value] for state in State if states[state.value]},
        ends={end: room.ends[end] for end in sorted(room.ends)},
        least=min(received, default=None),
        median=round(median(received), 1) if received else None,
        stragglers=sorted(row.name for row in there if row.straggler),
        rows=sorted(rows, key=lambda row: row.order),
    )


def _row(guest: Guest, room: Room, session: Session, lengths: Lengths, now: float) -> Row:
    counts = guest.counts
    member = room.carousel.members.get(guest.id)
    lacking = 0 if member is None else lengths.of(member.lacking)
    if guest.end == "done":
        received = written = 100.0
    else:
        if member is None:
            received = _percent(max(guest.needed - guest.lacking, 0), guest.needed)
        else:  # which is right also where it had begun with another run of the server
            received = _percent(counts.received, counts.received + lacking)
        written = _percent(counts.written, session.size - CHUNK)  # its start is written last and not counted
    verified = _percent(counts.verified, session.size)
    state = _state(guest, room, received, written, verified, now)
    here = guest.end is None
    silent = state is State.SILENT
    left = _left(guest, lacking, session.size) if here and not silent else None
    return Row(
        guest.id, _safe(guest.name), guest.address, [_safe(target) for target in guest.targets],
        here, state, here and (guest.slow or silent), received, written, verified,
        round(guest.rate()) if here else 0, round(guest.loss(), 4), left,
        round((now if here else guest.ended) - guest.joined),
    )  # fmt: skip


def _state(guest: Guest, room: Room, received: float, written: float, verified: float, now: float) -> State:
    if guest.end is not None:
        return State(guest.end) if guest.end in ("done", "failed", "silent") else State.LEFT
    if now - guest.heard > QUIET:
        return State.SILENT
    if guest.lacking:
        if guest.alone:
            return State.FETCHING
        began = room.started and (guest.counts.received or guest.counts.segments)
        return State.RECEIVING if began else State.WAITING
    if written < 100:
        return State.WRITING
    return State.VERIFYING if 0 < verified < 100 else State.FINISHING


def _left(guest: Guest, lacking: int, size: int) -> int | None:
    """Seconds until the slowest of what it does is done; the rate of what is done already does not matter."""
    counts = guest.counts
    unwritten = size - CHUNK - counts.written
    todo = [
        (lacking, guest.rate()),
        (unwritten, guest.speed(lambda counts: counts.written)),
    ]
    if lacking <= 0 and unwritten <= 0 and counts.verified:  # until then it follows, by leaps; or there is none
        todo.append((size - counts.verified, guest.speed(lambda counts: counts.verified)))
    longest = 0.0
    for rest, speed in todo:
        if rest > 0:
            if speed <= 0:
                return None
            longest = max(longest, rest / speed)
    return round(longest)


def _percent(part: int, whole: int) -> float:
    return 100.0 if part >= whole else int(part * 1000 / whole) / 10


@lru_cache(maxsize=1 << 14)
def _safe(text: str) -> str:
    return shown(text)


# --- For people ---

COLUMNS: Final = ("Client", "Address", "Targets", "State", "Received", "Written", "Verified", "Rate", "Loss", "Left")


def cells(row: Row) -> Sequence[str]:
    """What a table has in each of `COLUMNS`."""
    return (
        row.name,
        row.address,
        ", ".join(row.targets),
        row.state.value,
        *(f"{int(percent)} %" for percent in (row.received, row.written, row.verified)),
        f"{format_size(row.rate)}/s" if row.here else "",
        f"{100 * row.loss:.1f} %",
        "" if row.left is None else format_left(row.left),
    )


def format_left(seconds: int) -> str:
    """A time as `0:07`, `12:34` or `3:25:45`."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
