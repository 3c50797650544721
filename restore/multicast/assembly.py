"""Datagrams, in whatever order and state they come, into whole chunks.

    landing()    where the next batch should be received: header slots and places in a chunk's buffer, in turn
    landed(n)    what came: in a stream that mostly arrives in order it lies where it belongs already

One comparison of all headers of a batch with what they have to be tells whether it landed right. Then no byte is
copied and no segment is looked at; otherwise each is put where its header says. A chunk of which as many segments are
there as it has, repair segments included, is solved for those that are not. What was forged or damaged shows in the
chunk's digest, which is for the caller to compare before anything is done with it.

Pure: no socket and no clock. Memory is bounded by the number of chunks that may be incomplete.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

from restore.multicast import repair
from restore.multicast.chunkset import ChunkSet
from restore.multicast.layout import Layout
from restore.multicast.packet import HEADER_SIZE, Header, Headers, parse, segments_of

BATCH: Final = 128  # datagrams that the kernel hands over at once, at most
BATCH_BYTES: Final = 1 << 16  # the same in bytes
_NOT_COUNTED: Final = 1 << 40  # datagrams seen of a turn of which it is not known how many went before
_FAR: Final = 1 << 32  # datagrams that no stream is ahead of what came last: over 2 TiB
_LOOKED_AT: Final = 8  # buffers, for one that is free, before another one is made
TICK: Final = 0xFFFFFFFF  # the chunk of a datagram without data: all before its sequence number has been sent


@dataclass(slots=True)
class Whole:
    """A chunk of which all segments are there; whether they are right, its digest tells.

    Attributes:
        chunk: its number.
        data: its bytes.
    """

    chunk: int
    data: memoryview


@dataclass(slots=True)
class Counters:
    """What came so far.

    Attributes:
        segments: datagrams of this session, whether they were of use or not.
        duplicates: those of chunks that were not wanted, and those that were there already.
        lost: datagrams that were sent meanwhile and did not come, as far as that can be told.
        foreign: datagrams that are not of this session, or make no sense.
        passed_over: datagrams of chunks that were lacking, and were let go by for want of room.
        repaired: chunks that repair segments made whole.
    """

    segments: int = 0
    duplicates: int = 0
    lost: int = 0
    foreign: int = 0
    passed_over: int = 0
    repaired: int = 0


class _Buffer:
    """Memory of a chunk, and where each of its segments goes; it is used again when nobody looks at it any more."""

    def __init__(self, segments: int, size: int) -> None:
        self._memory = bytearray(segments * size)
        whole = memoryview(self._memory)
        self.places = [whole[at : at + size] for at in range(0, segments * size, size)]
        self._alone = sys.getrefcount(self._memory)

    def lend(self, length: int) -> memoryview:
        """The start of it, which stays as it is for as long as that is held."""
        return memoryview(self._memory)[:length]

    def fill(self, data: bytes) -> None:
        """Have its start be this."""
        self._memory[: len(data)] = data

    @property
    def is_free(self) -> bool:
        """Whether nobody holds what was lent of it."""
        return sys.getrefcount(self._memory) <= self._alone


class _Pool:
    """Buffers of one size."""

    def __init__(self, segments: int, size: int) -> None:
        self._size = segments, size
        self._lent: deque[_Buffer] = deque()

    def take(self) -> _Buffer:
        """One that nobody looks at, another one if need be."""
        for _ in range(min(len(self._lent), _LOOKED_AT)):
            buffer = self._lent.popleft()
            if buffer.is_free:
                return buffer
            self._lent.append(buffer)
        return _Buffer(*self._size)

    def put(self, buffer: _Buffer) -> None:
        """It may be used again when what was lent of it is let go."""
        self._lent.append(buffer)


@dataclass(slots=True)
class _Partial:
    """A chunk of which some segments are there; `missing` counts those that are not, repair segments aside."""

    chunk: int
    segments: int
    buffer: _Buffer
    missing: int
    have: bytearray = field(repr=False)
    repairs: dict[int, bytes] = field(default_factory=dict, repr=False)
    unsolved: int = 0  # segments more than it has that it takes

    @property
    def lacks(self) -> int:
        """How many more segments it takes, of whichever kind."""
        return self.missing - len(self.repairs) + self.unsolved if self.missing > 0 else 0


class Assembly:
    """Puts the chunks of one session together.

    Attributes:
        batch: datagrams that one `landing` has room for.
        wanted: chunks that are neither whole nor given up; the caller adds one again whose digest is wrong.
        counters: what came.
        room: how many chunks may be incomplete at once.
        sequence: that of the turn which came last, as the stream counts: all datagrams before it have been seen.
        ticked: the last batch said that there is nothing more to send for now.
    """

    def __init__(self, layout: Layout, segment_size: int, session: int, wanted: ChunkSet, room: int) -> None:
        """For the datagrams of one session; `room` is the number of chunks that may be incomplete at once."""
        self._layout = layout
        self._size = segment_size
        self._session = session
        self.room = room
        self.wanted = wanted
        self.counters = Counters()
        self.sequence = 0
        self.ticked = False
        self.batch = min(BATCH, BATCH_BYTES // self.datagram_size + 1)
        self._most = segments_of(max(layout.longest, 1), segment_size)
        self._partials: dict[int, _Partial] = {}
        self._header_bytes = bytearray(self.batch * HEADER_SIZE)
        whole = memoryview(self._header_bytes)
        self._headers = [whole[at : at + HEADER_SIZE] for at in range(0, len(whole), HEADER_SIZE)]
        self._due = Headers(session, self._most)  # what they have to be of the chunk that is being sent
        self._due_of = (-1, -1)  # its sequence number, and it
        self._pool = _Pool(self._most, segment_size)
        self._scratch = _Buffer(self.batch, segment_size)
        self._ignored = _Buffer(self._most, segment_size)  # where chunks go that are not wanted
        self._fresh = self._pool.take()
        self._landing: list[memoryview] = []
        self._places: list[memoryview] = []
        self._at: _Partial | None = None  # the chunk that is expected to go on, None for one that begins
        self._segment = 0  # of it, that is expected next
        self._landed_in: _Partial | None = None  # likewise, when `landing` was called last
        self._landed_at = 0
        self._run = 0  # segments of it that may land where they belong
        self._passed = -1  # the sequence number of the turn that was passed over last
        self._joined = False
        self._seen = 0  # datagrams of this turn that came

    @property
    def datagram_size(self) -> int:
        """Bytes of each datagram."""
        return HEADER_SIZE + self._size

    @property
    def incomplete(self) -> int:
        """Chunks of which some segments are there."""
        return len(self._partials)

    def missing(self, most: int) -> dict[int, int]:
        """Of chunks that have been begun and are worth repairing, how many more segments they take; up to so many."""
        worth = ((partial.chunk, partial.lacks) for partial in self._partials.values())
        found = ((chunk, lacks) for chunk, lacks in worth if 2 * lacks <= self._segments(chunk))
        return dict(islice(found, most))

    def landing(self) -> list[memoryview]:
        """Where to receive the next batch; the same list as before, with other contents."""
        at, segment = self._landed_in, self._landed_at = self._at, self._segment
        if at is None:
            places = self._fresh.places[: self.batch]
            self._run = len(places)
        else:
            end = min(at.segments, segment + self.batch)
            taken = at.have.find(1, segment, end)
            end = end if taken < 0 else taken
            places = at.buffer.places[segment:end]
            self._run = end - segment
            if end == at.segments and at.buffer is not self._ignored:
                places += self._fresh.places[: self.batch - len(places)]
        if len(places) < self.batch:
            places += self._scratch.places[: self.batch - len(places)]
        self._places = places
        if not self._landing:
            self._landing = [place for pair in zip(self._headers, places, strict=True) for place in pair]
        else:
            self._landing[1::2] = places
        return self._landing

    def landed(self, received: int) -> list[Whole]:
        """A batch of so many bytes was received where `landing` said; the chunks that have become whole by it."""
        self.ticked = False
        count, rest = divmod(received, self.datagram_size)
        if rest or not 0 < count <= self.batch:
            self.counters.foreign += 1
            return []
        first = self._parsed(self._headers[0])
        if first is not None and self._is_run(first, count):
            if self._as_expected(first, count):
                return self._take(first, count)
            return self._move(first, count)
        return self._sort(count)

    def forget(self, chunk: int) -> None:
        """A chunk is not wanted any more, or has come by another way."""
        self.wanted.discard(chunk)
        partial = self._partials.pop(chunk, None)
        if partial is not None and partial is self._at:
            self._expect(None, 0)
            self._run = 0  # what is being received lands in memory of it

    def _as_expected(self, first: Header, count: int) -> bool:
        """Whether a run lies where it belongs."""
        if count > self._run or first.segment != self._segment:
            return False
        return first.chunk not in self._partials if self._at is None else first.chunk == self._at.chunk

    def _is_run(self, first: Header, count: int) -> bool:
        """Whether a batch is so many segments of one chunk in their order."""
        if first.chunk >= len(self._layout) or first.segment + count > self._segments(first.chunk):
            return False
        if self._due_of != (first.sequence, first.chunk):
            self._due_of = (first.sequence, first.chunk)
            self._due.name(*self._due_of)
        start = first.segment * HEADER_SIZE
        size = count * HEADER_SIZE
        return self._header_bytes[:size] == self._due.whole[start : start + size]

    def _take(self, first: Header, count: int) -> list[Whole]:
        self._note(first, count)
        partial = self._at
        if partial is None:
            partial = self._open(first.chunk, self._fresh)
            if partial is None:  # it is not wanted
                segments = self._segments(first.chunk)
                partial = _Partial(first.chunk, segments, self._ignored, segments, bytearray(segments))
        if partial.buffer is self._ignored:
            self.counters.duplicates += count
        else:
            partial.have[first.segment : first.segment + count] = b"\1" * count
            partial.missing -= count
        end = first.segment + count
        self._expect(partial if end < partial.segments else None, end)
        return self._completed(partial)

    def _move(self, first: Header, count: int) -> list[Whole]:
        """Put a run where it belongs: something before it was lost."""
        self._note(first, count)
        partial = self._partials.get(first.chunk) or self._open(first.chunk, None)
        self._expect(None, 0)
        if partial is None:
            self.counters.duplicates += count
            return []
        end = first.segment + count
        moves = zip(range(first.segment, end), self._places[:count], strict=True)
        # It may lie in memory of the same chunk, before or behind where it belongs.
        further_on = partial is self._landed_in and first.segment > self._landed_at
        for segment, place in reversed(list(moves)) if further_on else moves:
            if partial.have[segment]:
                self.counters.duplicates += 1
                continue
            partial.buffer.places[segment][:] = place
            partial.have[segment] = 1
            partial.missing -= 1
        self._expect(partial if end < partial.segments else None, end)
        return self._completed(partial)

    def _sort(self, count: int) -> list[Whole]:
        """Put each datagram of a batch where it belongs."""
        arrived = [
            (header, bytes(place))
            for slot, place in zip(self._headers[:count], self._places[:count], strict=True)
            if (header := self._parsed(slot)) is not None
        ]
        self.counters.foreign += count - len(arrived)
        self._expect(None, 0)
        whole: list[Whole] = []
        for header, data in arrived:
            whole += self._put(header, data)
        return whole

    def _put(self, header: Header, data: bytes) -> list[Whole]:
        self._expect(None, 0)
        if header.chunk == TICK:
            self.ticked = True
            self._pass_to(header.sequence)
            return []
        segments = self._segments(header.chunk) if header.chunk < len(self._layout) else 0
        if header.segment >= segments + (repair.MOST_REPAIRS if segments else 0):
            self.counters.foreign += 1
            return []
        self._note(header, 1)
        partial = self._partials.get(header.chunk)
        if header.segment >= segments:
            if partial is None or header.segment in partial.repairs:  # none is begun with what repairs others
                self.counters.duplicates += 1
                return []
            partial.repairs[header.segment] = data
            return self._completed(partial)
        partial = partial or self._open(header.chunk, None)
        if partial is None or partial.have[header.segment]:
            self.counters.duplicates += 1
            return []
        partial.buffer.places[header.segment][:] = data
        partial.have[header.segment] = 1
        partial.missing -= 1
        end = header.segment + 1
        self._expect(partial if end < partial.segments else None, end)
        return self._completed(partial)

    def _parsed(self, slot: memoryview) -> Header | None:
        """A header of this session and of about this time."""
        header = parse(slot, self._session)
        if header is not None and self._joined and abs(header.sequence - self.sequence) > _FAR:
            return None
        return header

    def _expect(self, partial: _Partial | None, segment: int) -> None:
        self._at, self._segment = partial, segment if partial is not None else 0

    def _open(self, chunk: int, buffer: _Buffer | None) -> _Partial | None:
        """Begin a chunk, in memory where some of it may lie already; None if it is not wanted, or there is no room."""
        if chunk not in self.wanted:
            return None
        if self.room <= 0:
            if self._passed != self.sequence:
                self.counters.passed_over += self._segments(chunk)
            self._passed = self.sequence
            return None
        while len(self._partials) >= self.room:
            self._make_room()
        if buffer is None:
            buffer = self._pool.take()
        else:
            self._fresh = self._pool.take()
        segments = self._segments(chunk)
        partial = self._partials[chunk] = _Partial(chunk, segments, buffer, segments, bytearray(segments))
        return partial

    def _make_room(self) -> None:
        """Give up the chunk that lacks most."""
        most = max(self._partials.values(), key=lambda partial: partial.lacks)
        self._pool.put(self._partials.pop(most.chunk).buffer)

    def _completed(self, partial: _Partial) -> list[Whole]:
        """A chunk to which something was added, if it is whole now."""
        if partial.buffer is self._ignored or partial.lacks > 0:
            return []
        if partial.missing > 0:
            data = self._solved(partial)
            if data is None:
                partial.unsolved += 1
                return []
            partial.buffer.fill(data)
            self.counters.repaired += 1
            if partial is self._at:
                self._expect(None, 0)  # the rest of it must not land in what is whole
        self._partials.pop(partial.chunk, None)
        self.wanted.discard(partial.chunk)
        whole = Whole(partial.chunk, partial.buffer.lend(self._layout.length(partial.chunk)))
        self._pool.put(partial.buffer)
        return [whole]

    def _solved(self, partial: _Partial) -> bytes | None:
        there = ((at, partial.buffer.places[at]) for at, have in enumerate(partial.have) if have)
        return repair.solve(partial.segments * self._size, self._size, chain(there, partial.repairs.items()))

    def _segments(self, chunk: int) -> int:
        return segments_of(self._layout.length(chunk), self._size)

    # --- What was lost ---

    def _note(self, header: Header, count: int) -> None:
        """So many datagrams of one turn of a chunk have come."""
        self.counters.segments += count
        if not self._joined:
            self.sequence, self._joined = header.sequence, True
            is_repair = header.segment >= self._segments(header.chunk)
            self._seen = _NOT_COUNTED if is_repair else header.segment  # what was sent before that is not lost
        self._pass_to(header.sequence)
        if header.sequence == self.sequence:
            self._seen += count

    def _pass_to(self, sequence: int) -> None:
        """The stream is at another turn, so that what has not come of those before it is lost."""
        if self._joined and sequence > self.sequence:
            self.counters.lost += max(sequence - self.sequence - self._seen, 0)
            self._seen = 0
        self.sequence, self._joined = max(self.sequence, sequence), True
