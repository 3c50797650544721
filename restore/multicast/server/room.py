"""Who is being served: every client's state, and from it what the stream does next.

Its methods may be called from any thread. The time is told, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Final

from restore.multicast.carousel import Carousel, Turn
from restore.multicast.pacing import Regulator
from restore.multicast.repair import MOST_LOSS
from restore.multicast.session import MOST_CLIENTS, Counts, Directions, Join, Status, report_every

SLOW: Final = 1 / 3  # of the median's rate, below which a client is a straggler
SLOW_FOR: Final = 30.0  # seconds that it has to be
ENDS: Final = ("done", "failed", "left", "silent")  # how a client may end; whatever else it says counts as left
TAIL: Final = 32  # chunks: the rest of an image that a client fetches by itself, if it had to wait longer for them
_TAILS: Final = 4  # clients that do so at a time
_KEPT: Final = 10_000  # clients that have left, of which is known how they ended
_WINDOW: Final = 5.0  # seconds that a client's rate is told of
_MEASURED_BY: Final = 500  # datagrams, from which on their loss means anything
_WEIGHT: Final = 0.3  # of the last measurement in all of them
_MORE: Final = 1.25  # times what a lower rate did not help against: there is another cause now


class RoomFull(Exception):
    """There are as many clients as there may be; `str()` says so."""


@dataclass(slots=True)
class Guest:
    """One client.

    Attributes:
        id: what it is called here.
        name: what its machine is called.
        address: of its machine.
        targets: what it restores onto.
        joined: when it began.
        needed: chunks that it lacked then.
        lacking: chunks that it lacks now.
        filled: which part of its memory for chunks is taken, 0 to 1.
        counts: what it has done, as it says.
        heard: when it spoke last.
        alone: it fetches by itself.
        tail: that is because it lacks little, and the stream is elsewhere.
        end: how it ended, in a word; None while it has not.
        ended: when.
    """

    id: str
    name: str
    address: str
    targets: list[str]
    joined: float
    needed: int
    lacking: int
    filled: float = 0.0
    counts: Counts = field(default_factory=Counts)
    heard: float = 0.0
    alone: bool = False
    tail: bool = False
    end: str | None = None
    ended: float = 0.0
    _history: deque[tuple[float, Counts]] = field(default_factory=lambda: deque(maxlen=256), repr=False)
    _slow_since: float | None = None
    _sequence: int = 0
    _measured_from: int = 0  # the sequence number from which on `_let_go` is measured
    _let_go: float = 0.0  # which part of what was sent lately it could not take
    _loss: float = 0.0  # which part of what was sent lately got lost on the way to it
    _measured: Counts = field(default_factory=Counts, repr=False)  # when that was found out
    _lost_from: int = 0  # the sequence number from which on `_loss` was measured last
    _lost_to: int = 0
    _lately: float = 0.0  # the last measurement alone
    _slowed: tuple[float, float] | None = None  # when the rate was lowered: that, and which part is left of it
    _bears: float = 0.0  # loss that a lower rate did not lessen: a bad line or radio, not a stream too fast for it

    def rate(self, window: float = _WINDOW) -> float:
        """Bytes per second that came whole and right lately."""
        return self.speed(lambda counts: counts.received, window)

    def speed(self, count: Callable[[Counts], int], window: float = _WINDOW) -> float:
        """How much one of the counts has grown lately, per second."""
        if len(self._history) < 2:
            return 0.0
        newest_first = reversed(self._history)
        last, counts = next(newest_first)
        first, before = next(newest_first)
        for at, older in newest_first:
            if last - at > window:
                break
            first, before = at, older
        return (count(counts) - count(before)) / max(last - first, 0.001)

    @property
    def slow(self) -> bool:
        """Whether it is a straggler, or about to be one."""
        return self.alone or self._slow_since is not None

    def loss(self) -> float:
        """Which part of the datagrams got lost on the way, 0 to 1."""
        return _part(self.counts.lost, self.counts.segments + self.counts.lost)

    def let_go(self) -> float:
        """Which part of what was sent lately was too fast for it, or for the way to it, 0 to 1."""
        return max(self._let_go, self._loss if self._loss > max(MOST_LOSS, _MORE * self._bears) else 0.0)

    def measure(self, counts: Counts, as_of: int) -> None:
        """It has done so much, and has seen all that was sent before `as_of`."""
        before, self.counts = self.counts, counts
        if as_of > self._sequence:
            missed = counts.passed_over - before.passed_over + counts.overflowed - before.overflowed
            self._let_go = min(_part(missed, as_of - self._sequence), 1.0)
            self._measured_from, self._sequence = self._sequence, as_of
        came, lost = counts.segments - self._measured.segments, counts.lost - self._measured.lost
        if came + lost >= _MEASURED_BY:
            on_the_way = lost - (counts.overflowed - self._measured.overflowed)
            self._lately = _part(on_the_way, came + lost)
            self._loss += _WEIGHT * (self._lately - self._loss)
            self._measured = counts
            self._lost_from, self._lost_to = self._lost_to, as_of

    def weigh(self, slowed_from: int) -> None:
        """See whether its loss has become less by a rate that was lowered at that sequence number.

        As much as before comes through a port that was too slow, and as much less as is sent where the rate is not to
        blame; what is nearer decides.
        """
        if self._slowed is None or self._lost_from < slowed_from:
            return
        before, rest = self._slowed
        by_rate = max(1 - (1 - before) / rest, 0.0)
        if self._lately > (before + by_rate) / 2:
            self._bears = self._lately
        self._slowed = None

    def rate_changed(self, before: int, now: int) -> None:
        """The rate is another one from now on."""
        self._slowed = (self._lately, now / before) if now < before and self._lately > MOST_LOSS / 2 else None


@dataclass(slots=True)
class Room:
    """The clients of one stream.

    Attributes:
        carousel: what is sent next.
        regulator: how fast.
        start_when: clients that have to be there before the stream starts.
        start_wait: seconds after the first client, when it starts all the same; None is never.
        loop_suspend: passes without a client after which a stream that sends everything stops; 0 is never.
        most: clients that there may be at a time.
        ends: how many have ended in each of the ways that `ENDS` has.
    """

    carousel: Carousel
    regulator: Regulator
    start_when: int = 1
    start_wait: float | None = None
    loop_suspend: int = 0
    most: int = MOST_CLIENTS
    ends: Counter[str] = field(default_factory=Counter)
    _guests: dict[str, Guest] = field(default_factory=dict)
    _left: deque[Guest] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _started: bool = False
    _first: float | None = None  # when the first client came
    _last_pass: int = 0  # that anybody was there in
    _rated_from: int = 0  # the sequence number from which on the rate is what it is
    _slowed_from: int = 0  # likewise, from which on it has not been lowered
    _closed: bool = False

    # --- What clients do ---

    def join(self, join: Join, address: str, now: float) -> Directions:
        """A client begins.

        Raises:
            RoomFull: it has to wait until another one has ended.
        """
        guest = Guest(secrets.token_hex(8), join.name, address, join.targets, now, len(join.lacking), len(join.lacking))
        guest.heard = now
        with self._changed:
            if len(self._guests) >= self.most:
                raise RoomFull(f"{self.most} clients take part, and no more may: try again when one of them has ended")
            self._guests[guest.id] = guest
            self._first = now if self._first is None else self._first
            guest._sequence = self.carousel.sequence
            self.carousel.join(guest.id, join.lacking, now)
            self._start_if_due(now)
            self._changed.notify_all()
            return self._directions(guest)

    def report(self, name: str, status: Status, now: float) -> Directions:
        """A client says how far it is.

        Raises:
            KeyError: there is none of that name.
        """
        with self._changed:
            guest = self._guests[name]
            guest.measure(status.counts, status.as_of)
            guest.lacking, guest.filled = len(status.lacking), status.filled
            guest._history.append((now, status.counts))
            guest.heard = now
            self.carousel.report(name, status.lacking, status.as_of, now, status.missing)
            self._start_if_due(now)
            self._changed.notify_all()
            return self._directions(guest)

    def leave(self, name: str, end: str, now: float) -> None:
        """A client has ended, well or badly.

        Raises:
            KeyError: there is none of that name.
        """
        with self._changed:
            self._end(name, end, now)
            self.carousel.leave(name)
            self._changed.notify_all()

    # --- What the stream asks ---

    def next(self, patience: float) -> Turn | None:
        """What to send now; None when there was nothing for so many seconds."""
        with self._changed:
            found = self._next()
            if found is None and not self._closed:
                self._changed.wait(patience)
                found = self._next()
            return found

    def close(self) -> None:
        """Nothing is sent any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def look_after(self, now: float) -> list[str]:
        """See to what time brings, a few times a second: who is gone, who is too slow; a line for each."""
        lines = []
        with self._changed:
            for name in self.carousel.expire(now):
                guest = self._end(name, "silent", now)
                lines.append(f"{guest.name} ({guest.address}) says nothing any more, and counts as gone")
            self.carousel.refresh()
            self._start_if_due(now)
            rates = {guest.id: guest.rate(SLOW_FOR) for guest in self._guests.values() if guest.lacking}
            middle = median(rates.values()) if len(rates) > 1 else 0.0
            for guest in self._guests.values():
                slow = guest.id in rates and rates[guest.id] < SLOW * middle and now - guest.joined > SLOW_FOR
                if not slow:
                    guest._slow_since = None
                elif guest._slow_since is None:
                    guest._slow_since = now
                elif now - guest._slow_since > SLOW_FOR and not guest.alone:
                    guest.alone = True
                    self.carousel.set_alone(guest.id, alone=True)
                    lines.append(
                        f"{guest.name} ({guest.address}) is slower than a third of the others: it fetches by itself now"
                    )
            self._see_to_tails()
        return lines

    def regulate(self, sent: float) -> int:
        """The rate from now on, in bytes per second; `sent` is the one of late."""
        with self._changed:
            followers = [guest for guest in self._guests.values() if guest.lacking and not guest.alone]
            self.carousel.loss = max((guest._loss for guest in followers if guest._loss <= MOST_LOSS), default=0.0)
            # What was sent before the rate was changed last says nothing about the rate that there is now, but that a
            # lower one was too much already.
            telling = [guest for guest in followers if guest._measured_from >= self._slowed_from]
            before = self.regulator.rate
            for guest in telling:
                guest.weigh(self._slowed_from)
            if 2 * len(telling) > len(followers):
                fresh = sum(guest._measured_from >= self._rated_from for guest in telling)
                self.regulator.regulate(
                    [guest.let_go() for guest in telling],
                    [guest.filled for guest in telling],
                    sent,
                    may_rise=2 * fresh > len(followers),
                )
            if self.regulator.rate != before:
                self._rated_from = self.carousel.sequence
            if self.regulator.rate < before:
                self._slowed_from = self.carousel.sequence
            if self.regulator.rate != before:
                for guest in self._guests.values():
                    guest.rate_changed(before, self.regulator.rate)
            return self.regulator.rate

    def guests(self) -> list[Guest]:
        """Those that are there, in the order in which they came."""
        with self._changed:
            return list(self._guests.values())

    def left(self, most: int | None = None) -> list[Guest]:
        """Those that are not any more, the last ones last; of them the last so many."""
        with self._changed:
            if most is None:
                return list(self._left)
            return list(islice(reversed(self._left), most))[::-1]

    @property
    def started(self) -> bool:
        """Whether those who are to be waited for have come."""
        return self._started

    @property
    def all_done(self) -> bool:
        """Whether there was a client, and all have ended."""
        with self._changed:
            return bool(self._left) and not self._guests

    def _end(self, name: str, end: str, now: float) -> Guest:
        guest = self._guests.pop(name)
        guest.end, guest.ended = end, now
        self._left.append(guest)
        self.ends[end if end in ENDS else "left"] += 1
        return guest

    def _see_to_tails(self) -> None:
        """Have those fetch the rest that lack little, and would have to wait long for it while others lack much."""
        at_it = sum(guest.tail for guest in self._guests.values())
        for guest in self._guests.values():
            if at_it >= _TAILS:
                return
            if not guest.alone and 0 < guest.lacking <= TAIL and self.carousel.wait(guest.id) > 2 * TAIL:
                guest.alone = guest.tail = True
                self.carousel.set_alone(guest.id, alone=True)
                at_it += 1

    def _directions(self, guest: Guest) -> Directions:
        return Directions(guest.id, guest.alone, self._started, report_every(len(self._guests)))

    def _next(self) -> Turn | None:
        if self._closed or not (self._started or self.carousel.everything):
            return None
        carousel = self.carousel
        if self._guests:
            self._last_pass = carousel.passes
        lonely = carousel.passes - self._last_pass
        if carousel.everything and carousel.at_end and 0 < self.loop_suspend <= lonely:
            return None
        return carousel.next()

    def _start_if_due(self, now: float) -> None:
        if self._started or self._first is None:
            return
        waited = self.start_wait is not None and now - self._first >= self.start_wait
        self._started = waited or len(self._guests) >= self.start_when


def _part(part: int, whole: int) -> float:
    return max(part / whole, 0.0) if whole > 0 else 0.0
