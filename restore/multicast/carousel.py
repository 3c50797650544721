"""What to send next: the union of what the clients lack, from where the stream stands, round and round.

A client's report is as of a sequence number: it has seen all that was sent before. What was sent since may be on its
way, and is not sent again until a later report lacks it. Of a chunk that lacks little somewhere, a few repair segments
are sent, at once and before all else; they serve everyone who lost anything of it. Nobody waits for anybody, and what
nobody lacks is not sent.

Pure: the time is told, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from restore.multicast import repair
from restore.multicast.chunkset import ChunkSet

SILENCE: Final = 10.0  # seconds after which a client that says nothing counts as gone
_REMEMBERED: Final = 1 << 16  # turns that may still be on their way: 64 GiB of chunks


@dataclass(frozen=True, slots=True)
class Turn:
    """What is sent at one go: a chunk, repair segments of it, or the one and then the other.

    Attributes:
        sequence: how many datagrams were sent before it.
        chunk: its number.
        segments: of the chunk itself that are sent: all, or 0.
        first_repair: of the chunk's repair segments, the first one that is sent; they count from 0.
        repairs: how many of them.
    """

    sequence: int
    chunk: int
    segments: int
    first_repair: int = 0
    repairs: int = 0


@dataclass(slots=True)
class Member:
    """A client, as the carousel sees it.

    Attributes:
        lacking: chunks that it did not have when it had seen all before `as_of`.
        missing: of those of them that it has begun, how many segments it needs still.
        as_of: a sequence number.
        heard: when it spoke last.
        alone: it gets what it lacks by itself, not from the stream.
    """

    lacking: ChunkSet
    as_of: int
    heard: float
    missing: Mapping[int, int] = field(default_factory=dict)
    alone: bool = False


@dataclass(slots=True)
class Carousel:
    """The order of a stream of `count` chunks.

    Attributes:
        count: chunks of the image.
        everything: all chunks are sent round and round, whether anybody said to lack them or not.
        segments: how many segments a chunk has.
        fec: which part of a chunk's segments is sent along with it as repair segments, at least.
        loss: which part of all datagrams gets lost on the way to those who lose most; repair segments go by that.
        members: clients by what they are called.
        sequence: how many datagrams were sent so far.
        passes: how often the stream has begun: with its first chunk, and whenever it went back.
    """

    count: int
    everything: bool = False
    segments: Callable[[int], int] = lambda chunk: 1
    fec: float = 0.0
    loss: float = 0.0
    members: dict[str, Member] = field(default_factory=dict)
    sequence: int = 0
    passes: int = 0
    _position: int = 0
    _needed: ChunkSet = field(init=False)
    _repairs: dict[int, int] = field(default_factory=dict)  # repair segments that are to be sent of chunks
    _repaired: array[int] = field(init=False)  # repair segments of each chunk that have been
    _sent: deque[Turn] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def __post_init__(self) -> None:
        """Nobody lacks anything yet."""
        self._needed = ChunkSet(self.count)
        self._repaired = array("H", bytes(2 * self.count))

    @property
    def needed(self) -> int:
        """How many chunks are to be sent as far as is known now."""
        return len(self._needed)

    @property
    def at_end(self) -> bool:
        """Whether the stream will begin again with the next chunk, if there is one."""
        return not self._repairs and self._needed.next(self._position) is None

    def join(self, name: str, lacking: ChunkSet, now: float) -> None:
        """There is a client more, or one begins again: what was sent before, it has not seen."""
        self.members[name] = Member(lacking, self.sequence, now)
        self._needed.update(lacking)

    def report(
        self, name: str, lacking: ChunkSet, as_of: int, now: float, missing: Mapping[int, int] | None = None
    ) -> None:
        """A client has seen all that was sent before `as_of`, and lacks this.

        Raises:
            KeyError: there is none of that name.
        """
        member = self.members[name]
        member.lacking, member.as_of, member.heard = lacking, min(as_of, self.sequence), now
        member.missing = missing or {}
        if not member.alone:
            on_its_way = _OnItsWay(ChunkSet(self.count))
            for turn in self._since(member.as_of):
                on_its_way.add(turn)
            self._take_in(member, on_its_way)

    def leave(self, name: str) -> None:
        """A client is gone, or was never there."""
        if self.members.pop(name, None) is not None:
            self.refresh()

    def set_alone(self, name: str, *, alone: bool) -> None:
        """Have a client get what it lacks by itself, or from the stream again.

        Raises:
            KeyError: there is none of that name.
        """
        if self.members[name].alone != alone:
            self.members[name].alone = alone
            self.refresh()

    def expire(self, now: float, silence: float = SILENCE) -> list[str]:
        """Have those leave that have not spoken for so long; who they were."""
        gone = [name for name, member in self.members.items() if now - member.heard > silence]
        for name in gone:
            del self.members[name]
        if gone:
            self.refresh()
        return gone

    def next(self) -> Turn | None:
        """What to send now, None when nobody lacks anything; it counts as sent."""
        if self._repairs:
            chunk = next(iter(self._repairs))
            return self._send(chunk, 0, self._repairs.pop(chunk))
        found = self._needed.next(self._position)
        if found is None:
            self._position = 0
            self.refresh()
            if self._repairs:
                return self.next()
            found = self._needed.next(0)
            if found is None:
                return None
        if not self._position:
            self.passes += 1
        self._needed.discard(found)
        self._position = found + 1
        segments = self.segments(found)
        return self._send(found, segments, self._parity(segments))

    def wait(self, name: str) -> int:
        """How many chunks will be sent before a client has got the last one that it lacks and has not begun.

        Raises:
            KeyError: there is none of that name.
        """
        member = self.members[name]
        behind = ahead = None
        for chunk in member.lacking:
            if chunk in self._needed and chunk not in member.missing:
                behind, ahead = (chunk, ahead) if chunk < self._position else (behind, chunk)
        if behind is not None:
            return len(self._needed.between(self._position, self.count)) + len(self._needed.between(0, behind))
        return 0 if ahead is None else len(self._needed.between(self._position, ahead))

    def refresh(self) -> None:
        """Find out anew what is to be sent: what was lacking when somebody said so may not be any more."""
        self._needed = ChunkSet(self.count)
        self._repairs = {}
        on_its_way = _OnItsWay(ChunkSet(self.count))
        turns = iter(reversed(self._sent))
        turn = next(turns, None)
        for member in sorted(self.members.values(), key=lambda member: member.as_of, reverse=True):
            while turn is not None and turn.sequence >= member.as_of:
                on_its_way.add(turn)
                turn = next(turns, None)
            if not member.alone:
                self._take_in(member, on_its_way)
        if self.everything:
            self._needed = ChunkSet.full(self.count, self._position)

    def _take_in(self, member: Member, on_its_way: _OnItsWay) -> None:
        """Have what a client lacks, and what is not on its way to it, be sent."""
        due = member.lacking.copy()
        due.remove_all(on_its_way.chunks)
        for chunk, missing in member.missing.items():
            if chunk in due:
                due.discard(chunk)  # what it has of it is worth more than the pass that brings it again
                left = missing - on_its_way.repairs.get(chunk, 0)
                if left > 0:
                    count = repair.on_demand(left, self.loss)
                    self._repairs[chunk] = max(self._repairs.get(chunk, 0), count)
        self._needed.update(due)

    def _parity(self, segments: int) -> int:
        wanted = repair.parity(self.loss, segments) if self.loss >= repair.LEAST_LOSS else 0
        return max(wanted, round(self.fec * segments + 0.499))

    def _send(self, chunk: int, segments: int, repairs: int) -> Turn:
        first = self._repaired[chunk] if repairs else 0
        if first + repairs > repair.MOST_REPAIRS:
            first = 0
        turn = Turn(self.sequence, chunk, segments, first, repairs)
        if repairs:
            self._repaired[chunk] = first + repairs
        self._sent.append(turn)
        self.sequence += segments + repairs
        return turn

    def _since(self, sequence: int) -> Iterator[Turn]:
        """What was sent from a sequence number on, as far as that is remembered; the last first."""
        for turn in reversed(self._sent):
            if turn.sequence < sequence:
                return
            yield turn


@dataclass(slots=True)
class _OnItsWay:
    """What has been sent and may not have been seen.

    Attributes:
        chunks: those that were sent whole.
        repairs: repair segments of others.
    """

    chunks: ChunkSet
    repairs: dict[int, int] = field(default_factory=dict)

    def add(self, turn: Turn) -> None:
        """This as well."""
        if turn.segments:
            self.chunks.add(turn.chunk)
        self.repairs[turn.chunk] = self.repairs.get(turn.chunk, 0) + turn.repairs
