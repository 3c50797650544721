"""Clients of a stream as numbers: what `Assembly`, `Intake` and `Shelf` do with each turn, for all of them at once.

Of a turn it is known how many of its datagrams came to each client, not which: a chunk of which as many segments came
as it has is whole. Digests take no time here. A test holds this against the real `Assembly`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from restore.multicast.carousel import Turn
from restore.multicast.chunkset import ChunkSet
from restore.multicast.client.intake import PARTIAL
from restore.multicast.client.shelf import CAPACITY
from restore.multicast.layout import CHUNK
from restore.multicast.session import Counts, Status

UNSOLVED: Final = 0.01  # cases in which as many segments as a chunk has do not solve it; with each more, of those

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Arrived:
    """How many datagrams of a turn came to each client.

    Attributes:
        useful: segments of the chunk that it did not have.
        others: segments that it had, or of a chunk that it does not want.
        repairs: repair segments.
    """

    useful: Ints
    others: Ints
    repairs: Ints

    @classmethod
    def by_chance(cls, chance: np.random.Generator, turn: Turn, useful: Ints, loss: Floats) -> Self:
        """Each datagram is lost by itself: `useful` of each client would be of use if they came."""
        if not loss.any():
            return cls(useful, turn.segments - useful, np.full_like(useful, turn.repairs))
        others = turn.segments - useful
        come = 1 - loss
        return cls(
            chance.binomial(useful, come),
            chance.binomial(others, come) if others.any() else others,
            chance.binomial(turn.repairs, come) if turn.repairs else np.zeros_like(useful),
        )


class Clients:
    """Clients that restore one image.

    Attributes:
        here: which of them have joined and not left.
        wanted: chunks that each has not got, by client and chunk.
        left: how many those are.
        waiting: chunks that each has and has not written yet; fractions are partly written.
        sequence: all datagrams before it have been seen.
        incomplete: chunks that each has begun.
        received: chunks that came whole.
        segments, lost, passed_over: datagrams, as `Counters` has them.
    """

    def __init__(
        self,
        count: int,
        chunks: int,
        segments: int,
        disks: Floats,
        chance: np.random.Generator,
        *,
        unsolved: float = UNSOLVED,
        partial: int = PARTIAL,
    ) -> None:
        """None of them is there yet.

        Args:
            count: of clients.
            chunks: of the image, of `CHUNK` bytes each.
            segments: of each chunk.
            disks: bytes per second that each client writes.
            chance: for the repair codec's luck.
            unsolved: of how many chunks as many segments as it has are not enough, 0 to 1.
            partial: chunks that each may have begun.
        """
        self._segments = segments
        self._speed = disks / CHUNK
        self._chance = chance
        self._unsolved = unsolved
        self._partial = partial
        self.here = np.zeros(count, bool)
        self.wanted = np.ones((count, chunks), bool)
        self._told = np.ones((count, chunks), bool)  # `wanted`, as of the last report
        self._lacking = [ChunkSet.full(chunks) for _ in range(count)]  # the same
        self.left = np.full(count, chunks)
        self.waiting = np.zeros(count)
        self.sequence = np.zeros(count, np.int64)
        self._joined = np.zeros(count, bool)
        self._seen = np.zeros(count, np.int64)
        self.received = np.zeros(count, np.int64)
        self.segments = np.zeros(count, np.int64)
        self.lost = np.zeros(count, np.int64)
        self.passed_over = np.zeros(count, np.int64)
        # The chunks that each client has begun: number, or -1 for none; segments missing, but for repair segments;
        # repair segments there; segments more than it has that it takes; when it was begun.
        self._begun = np.full((count, partial), -1)
        self._missing = np.zeros((count, partial), np.int64)
        self._repairs = np.zeros((count, partial), np.int64)
        self._more = np.zeros((count, partial), np.int64)
        self._since = np.zeros((count, partial), np.int64)
        self.incomplete = np.zeros(count, np.int64)

    # --- What comes ---

    def useful(self, turn: Turn) -> Ints:
        """How many segments of a turn's chunk, repair segments aside, each client can use."""
        if not turn.segments:
            return np.zeros(len(self.here), np.int64)
        found = np.where(self.wanted[:, turn.chunk], turn.segments, 0)
        rows, slots = np.nonzero(self._begun == turn.chunk)
        found[rows] = self._missing[rows, slots]
        return found

    def take(self, turn: Turn, arrived: Arrived) -> None:
        """A turn has been sent."""
        self._note(turn, arrived)
        rows, slots = np.nonzero(self._begun == turn.chunk)
        begun = np.zeros(len(self.here), bool)
        begun[rows] = True
        self._missing[rows, slots] -= arrived.useful[rows]
        self._repairs[rows, slots] += arrived.repairs[rows]
        touched = self.here[rows]
        self._complete(turn.chunk, rows[touched], slots[touched])
        if turn.segments:
            self._begin(turn, arrived, self.here & ~begun & self.wanted[:, turn.chunk] & (arrived.useful > 0))

    def tick(self, sequence: int) -> None:
        """All datagrams before a sequence number have been sent."""
        self._pass_to(sequence, self.here & self._joined)

    def write(self, seconds: float) -> None:
        """So much time has passed for the disks."""
        np.maximum(self.waiting - self._speed * seconds, 0.0, out=self.waiting)

    def fetched(self, client: int) -> bool:
        """A client has fetched the first chunk that it wants; False where it has no room or wants none."""
        if not self.left[client] or self.free[client] <= 0:
            return False
        chunk = int(self.wanted[client].argmax())
        for slot in np.flatnonzero(self._begun[client] == chunk):
            self._drop(np.array([client]), np.array([slot]))
        self._shelve(chunk, np.array([client]))
        return True

    # --- What it says ---

    @property
    def free(self) -> Ints:
        """How many more chunks each has room for."""
        return (CAPACITY - np.ceil(self.waiting)).astype(np.int64)

    def missing(self, client: int) -> dict[int, int]:
        """Of the chunks that a client has begun and that are worth repairing, how many segments more they take."""
        slots = np.flatnonzero(self._begun[client] >= 0)
        lacks = self._lacks(client, slots)
        worth = 2 * lacks <= self._segments
        return dict(zip(self._begun[client, slots[worth]].tolist(), lacks[worth].tolist(), strict=True))

    def status(self, client: int) -> Status:
        """What a client reports."""
        got = np.flatnonzero(self._told[client] != self.wanted[client])
        if len(got):
            self._told[client, got] = False
            self._lacking[client].remove_all(ChunkSet(self.wanted.shape[1], got.tolist()))
        counts = Counts(
            received=int(self.received[client]) * CHUNK,
            segments=int(self.segments[client]),
            lost=int(self.lost[client]),
            passed_over=int(self.passed_over[client]),
        )
        filled = round(min(float(np.ceil(self.waiting[client])) / CAPACITY, 1.0), 3)
        return Status(self._lacking[client].copy(), int(self.sequence[client]), counts, self.missing(client), filled)

    # --- Smaller things ---

    def _note(self, turn: Turn, arrived: Arrived) -> None:
        came = np.where(self.here, arrived.useful + arrived.others + arrived.repairs, 0)
        heard = came > 0
        first = heard & ~self._joined
        self.sequence[first] = turn.sequence
        self._joined |= first
        self._pass_to(turn.sequence, heard)
        self._seen += came
        self.segments += came

    def _pass_to(self, sequence: int, who: Bools) -> None:
        on = who & (self.sequence < sequence)
        self.lost[on] += np.maximum(sequence - self.sequence[on] - self._seen[on], 0)
        self._seen[on] = 0
        self.sequence[on] = sequence

    def _begin(self, turn: Turn, arrived: Arrived, who: Bools) -> None:
        room = np.minimum(self._partial, self.free)
        self.passed_over[who & (room <= 0)] += turn.segments
        who &= room > 0
        while len(rows := np.flatnonzero(who & (self.incomplete >= room))):
            lacks = np.where(self._begun[rows] >= 0, self._lacks(rows), -1)
            worst = lacks == lacks.max(axis=1, keepdims=True)
            self._drop(rows, np.where(worst, self._since[rows], np.iinfo(np.int64).max).argmin(axis=1))
        rows = np.flatnonzero(who)
        whole = rows[arrived.useful[rows] == turn.segments]
        self._shelve(turn.chunk, whole)
        rows = rows[arrived.useful[rows] < turn.segments]
        slots = (self._begun[rows] < 0).argmax(axis=1)
        self._begun[rows, slots] = turn.chunk
        self._missing[rows, slots] = turn.segments - arrived.useful[rows]
        self._repairs[rows, slots] = arrived.repairs[rows]
        self._more[rows, slots] = 0
        self._since[rows, slots] = turn.sequence
        self.incomplete[rows] += 1
        self._complete(turn.chunk, rows, slots)

    def _complete(self, chunk: int, rows: Ints, slots: Ints) -> None:
        """Put what is whole of chunks that have just grown on the shelf."""
        missing, lacks = self._missing[rows, slots], self._lacks(rows, slots)
        solvable = (missing > 0) & (lacks <= 0)
        beyond = np.where(solvable, -lacks, 0)
        unlucky = solvable & (self._chance.random(len(rows)) < self._unsolved ** (beyond + 1.0))
        self._more[rows[unlucky], slots[unlucky]] += beyond[unlucky] + 1
        whole = (missing == 0) | (solvable & ~unlucky)
        self._drop(rows[whole], slots[whole])
        self._shelve(chunk, rows[whole])

    def _lacks(self, rows: Ints | int, slots: Ints | slice = slice(None)) -> Ints:
        found: Ints = self._missing[rows, slots] - self._repairs[rows, slots] + self._more[rows, slots]
        return found

    def _drop(self, rows: Ints, slots: Ints) -> None:
        self._begun[rows, slots] = -1
        self.incomplete[rows] -= 1

    def _shelve(self, chunk: int, rows: Ints) -> None:
        self.received[rows] += 1
        rows = rows[self.waiting[rows] <= CAPACITY - 1]  # the others have to have it once more
        self.waiting[rows] += 1
        self.wanted[rows, chunk] = False
        self.left[rows] -= 1
