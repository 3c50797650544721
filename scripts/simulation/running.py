"""One room from its first client to its last, in virtual time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from restore.multicast.carousel import Carousel, Turn
from restore.multicast.client.intake import _REPORT_AGAIN, PARTIAL
from restore.multicast.layout import CHUNK
from restore.multicast.pacing import Regulator
from restore.multicast.packet import HEADER_SIZE, segment_size, segments_of
from restore.multicast.server.room import Room
from restore.multicast.server.sending import AHEAD, IP_UDP, TICK_EVERY
from restore.multicast.server.serving import LOOK_EVERY
from restore.multicast.session import REPORT_EVERY, Join, Status
from scripts.simulation.clients import Arrived, Clients, Floats

SEGMENT: Final = segment_size(1500)
SEGMENTS: Final = segments_of(CHUNK, SEGMENT)
DATAGRAM: Final = SEGMENT + HEADER_SIZE + IP_UDP  # bytes that a rate covers
RATE: Final = 112_500_000  # bytes per second: nine tenths of 1 Gbit/s, which is what a server keeps below by itself
LINK: Final = 125_000_000  # bytes per second; what the stream leaves of it, those share who fetch by themselves
DISKS: Final = (150e6, 500e6)  # bytes per second of most disks, drawn evenly
_IDLE: Final = 0.005  # seconds between looks while nothing is sent
_TOO_LONG: Final = 100  # stream lengths after which a room is not going to end


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens in a room.

    Attributes:
        starts: when each client comes, in seconds; the stream starts with the last one that comes at 0 or before.
        loss: which part of the datagrams gets lost on the way to each, 0 to 1.
        chunks: of the image.
        disks: bytes per second that each client writes; None draws them from `DISKS`.
        port: bytes per second that reach each of them; the rest of what is sent is lost. None is all.
        seed: of all chance.
    """

    starts: list[float]
    loss: list[float]
    chunks: int = 10_240
    disks: list[float] | None = None
    port: float | None = None
    seed: int = 1


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        length: seconds that the image takes at the highest rate, once and without repair segments.
        times: seconds from each client's start, or the stream's if that was later, until all of it was on its disk.
        chunks: that were sent.
        again: of those, as many as were sent after the last client came beyond the one time that it needs each.
        datagrams: that were sent, repair segments included.
        fetched: chunks that clients fetched by themselves.
        rates: bytes per second, a few times a second.
        lines: what the server said.
    """

    length: float
    times: list[float]
    chunks: int = 0
    again: int = 0
    datagrams: int = 0
    fetched: int = 0
    rates: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def lengths(self) -> list[float]:
        """`times` in stream lengths."""
        return [time / self.length for time in self.times]

    @property
    def sent(self) -> float:
        """How many times the image was sent, repair segments included."""
        return self.datagrams * DATAGRAM / (self.length * RATE)


def together(clients: int, loss: float, chunks: int) -> Scenario:
    """Clients that have all come, in the course of a second, before the stream starts."""
    return Scenario([-number / clients for number in range(clients)], [loss] * clients, chunks)


def stream_length(chunks: int) -> float:
    """Seconds that so many chunks take at the highest rate."""
    return chunks * SEGMENTS * DATAGRAM / RATE


def run(scenario: Scenario) -> Outcome:
    """Have a room restored.

    Raises:
        RuntimeError: it does not end.
    """
    return _Run(scenario).run()


class _Run:
    def __init__(self, scenario: Scenario) -> None:
        chance = self._chance = np.random.default_rng(scenario.seed)
        count = len(scenario.starts)
        drawn = chance.uniform(*DISKS, count)
        disks: Floats = drawn if scenario.disks is None else np.array(scenario.disks)
        self._loss = np.array(scenario.loss)
        self._port = scenario.port
        self._clients = Clients(count, scenario.chunks, SEGMENTS, disks, chance)
        carousel = Carousel(scenario.chunks, segments=lambda chunk: SEGMENTS)
        early = sum(start <= 0 for start in scenario.starts)
        self._room = Room(carousel, Regulator(RATE), start_when=max(early, 1))
        self._coming = deque(sorted((start, client) for client, start in enumerate(scenario.starts)))
        self._now = self._coming[0][0]
        self._chunks = scenario.chunks
        self._names = [""] * count
        self._alone = np.zeros(count, bool)
        self._credit = np.zeros(count)  # chunks of what each has fetched by itself
        self._every = np.full(count, REPORT_EVERY)
        self._next = np.full(count, np.inf)  # when each reports in any case
        self._reported = np.full(count, -1)  # the sequence number that was as of
        self._reported_at = np.zeros(count)
        self._began = np.array([max(start, 0.0) for start in scenario.starts])
        self._outcome = Outcome(stream_length(scenario.chunks), [0.0] * count)
        self._rate = self._room.regulator.rate
        self._look = self._now
        self._sent_before = 0

    def run(self) -> Outcome:
        ready: deque[Turn] = deque()
        idle = 0.0
        last = self._coming[-1][0] + _TOO_LONG * self._outcome.length
        while self._coming or self._clients.here.any():
            if self._now > last:
                raise RuntimeError(f"{self._clients.here.sum()} clients are not done after {self._now:.0f} s")
            self._meanwhile()
            while len(ready) < AHEAD and (turn := self._room.next(0)) is not None:
                ready.append(turn)
            if ready:
                self._send(ready.popleft())
                idle = 0.0
            else:
                self._pass(_IDLE, 0.0)
                idle += _IDLE
                if idle >= TICK_EVERY:
                    idle = 0.0
                    self._clients.tick(self._room.carousel.sequence)
                    self._hurry(ticked=True)
        self._outcome.again -= self._chunks
        return self._outcome

    def _send(self, turn: Turn) -> None:
        datagrams = turn.segments + turn.repairs
        self._outcome.datagrams += datagrams
        self._outcome.chunks += turn.segments > 0
        self._outcome.again += turn.segments > 0 and not self._coming
        self._pass(datagrams * DATAGRAM / self._rate, self._rate)
        useful = self._clients.useful(turn)
        come = 1.0 if self._port is None else min(self._port / self._rate, 1.0)
        self._clients.take(turn, Arrived.by_chance(self._chance, turn, useful, 1 - (1 - self._loss) * come))
        self._hurry(ticked=False)

    def _pass(self, seconds: float, rate: float) -> None:
        """Time passes, in which the stream goes at a rate."""
        self._now += seconds
        self._clients.write(seconds)
        fetching = np.flatnonzero(self._alone & self._clients.here & (self._clients.left > 0))
        self._credit[fetching] += seconds * (LINK - rate) / CHUNK / max(len(fetching), 1)
        for client in fetching[self._credit[fetching] >= 1].tolist():
            while self._credit[client] >= 1 and self._clients.fetched(client):
                self._credit[client] -= 1
                self._outcome.fetched += 1
            self._credit[client] = min(self._credit[client], 1.0)  # waiting for a disk is no credit

    def _meanwhile(self) -> None:
        """All that is due by now, but for what is sent."""
        while self._coming and self._coming[0][0] <= self._now:
            start, client = self._coming.popleft()
            lacking = self._clients.status(client).lacking
            self._heed(client, Join(f"pc{client}", ["/dev/sda"], lacking), start)
        for client in np.flatnonzero(self._next <= self._now).tolist():
            self._report(client)
        clients = self._clients
        for client in np.flatnonzero(clients.here & (clients.left == 0) & (clients.waiting <= 0)).tolist():
            self._report(client)
            self._room.leave(self._names[client], "done", self._now)
            clients.here[client] = False
            self._next[client] = np.inf
            self._outcome.times[client] = self._now - float(self._began[client])
        if self._now >= self._look + LOOK_EVERY:
            sent = (self._outcome.datagrams - self._sent_before) * DATAGRAM / (self._now - self._look)
            self._look, self._sent_before = self._now, self._outcome.datagrams
            self._outcome.lines += self._room.look_after(self._now)
            self._rate = self._room.regulate(sent)
            self._outcome.rates.append(self._rate)

    def _hurry(self, *, ticked: bool) -> None:
        """Those who have cause report at once."""
        clients = self._clients
        soonest = np.where(self._every > REPORT_EVERY, self._every / 2, _REPORT_AGAIN)
        cause = (clients.left > 0) & ticked | (clients.incomplete > PARTIAL // 2)
        may = (clients.sequence != self._reported) & (self._now - self._reported_at > soonest)
        for client in np.flatnonzero(clients.here & cause & may).tolist():
            self._report(client)

    def _report(self, client: int) -> None:
        status = self._clients.status(client)
        self._reported[client], self._reported_at[client] = status.as_of, self._now
        self._heed(client, status, self._now)

    def _heed(self, client: int, said: Join | Status, now: float) -> None:
        if isinstance(said, Join):
            directions = self._room.join(said, f"10.0.{client >> 8}.{client & 255}", now)
            self._names[client] = directions.client
            self._clients.here[client] = True
        else:
            directions = self._room.report(self._names[client], said, now)
        self._alone[client] = directions.alone
        self._every[client] = directions.report_every
        self._next[client] = now + directions.report_every
