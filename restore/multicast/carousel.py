"""What to send next: the union of what the clients lack, from where the stream stands, round and round.

A client's report is as of a sequence number: it has seen all that was sent before. What was sent since may be on its
way, and is not sent again until a later report lacks it. Nobody waits for anybody, and what nobody lacks is not sent.

Pure: the time is told, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from restore.multicast.chunkset import ChunkSet

SILENCE: Final = 10.0  # seconds after which a client that says nothing counts as gone
_REMEMBERED: Final = 1 << 16  # chunks sent that may still be on their way: 64 GiB of them


@dataclass(slots=True)
class Member:
    """A client, as the carousel sees it.

    Attributes:
        lacking: chunks that it did not have when it had seen all before `as_of`.
        as_of: a sequence number.
        heard: when it spoke last.
        alone: it gets what it lacks by itself, not from the stream.
    """

    lacking: ChunkSet
    as_of: int
    heard: float
    alone: bool = False


@dataclass(slots=True)
class Carousel:
    """The order of a stream of `count` chunks.

    Attributes:
        count: chunks of the image.
        everything: all chunks are sent round and round, whether anybody said to lack them or not.
        members: clients by what they are called.
        sequence: how many chunks were sent so far.
        passes: how often the stream has begun: with its first chunk, and whenever it went back.
    """

    count: int
    everything: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    sequence: int = 0
    passes: int = 0
    _position: int = 0
    _needed: ChunkSet = field(init=False)
    _sent: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def __post_init__(self) -> None:
        """Nobody lacks anything yet."""
        self._needed = ChunkSet(self.count)

    @property
    def needed(self) -> int:
        """How many chunks are to be sent as far as is known now."""
        return len(self._needed)

    @property
    def at_end(self) -> bool:
        """Whether the stream will begin again with the next chunk, if there is one."""
        return self._needed.next(self._position) is None

    def join(self, name: str, lacking: ChunkSet, now: float) -> None:
        """There is a client more, or one begins again: what was sent before, it has not seen."""
        self.members[name] = Member(lacking, self.sequence, now)
        self._needed.update(lacking)

    def report(self, name: str, lacking: ChunkSet, as_of: int, now: float) -> None:
        """A client has seen all that was sent before `as_of`, and lacks this.

        Raises:
            KeyError: there is none of that name.
        """
        member = self.members[name]
        member.lacking, member.as_of, member.heard = lacking, min(as_of, self.sequence), now
        if not member.alone:
            self._needed.update(self._due(member))

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

    def next(self) -> int | None:
        """The chunk to send now, None when nobody lacks any; it counts as sent with `sequence` as it was before."""
        chunk = self._needed.next(self._position)
        if chunk is None:
            self._position = 0
            self.refresh()
            chunk = self._needed.next(0)
            if chunk is None:
                return None
        if not self._position:
            self.passes += 1
        self._needed.discard(chunk)
        self._position = chunk + 1
        self._sent.append(chunk)
        self.sequence += 1
        return chunk

    def refresh(self) -> None:
        """Find out anew what is to be sent: what was lacking when somebody said so may not be any more."""
        if self.everything:
            self._needed = ChunkSet(self.count, range(self._position, self.count))
            return
        self._needed = ChunkSet(self.count)
        on_its_way = ChunkSet(self.count)
        known = self.sequence
        for member in sorted(self.members.values(), key=lambda member: member.as_of, reverse=True):
            for chunk in self._since(member.as_of, known):
                on_its_way.add(chunk)
            known = min(known, member.as_of)
            if not member.alone:
                due = member.lacking.copy()
                due.remove_all(on_its_way)
                self._needed.update(due)

    def _due(self, member: Member) -> ChunkSet:
        """What a client lacks and is not on its way."""
        due = member.lacking.copy()
        due.remove_all(ChunkSet(self.count, self._since(member.as_of, self.sequence)))
        return due

    def _since(self, first: int, end: int) -> list[int]:
        """The chunks that were sent as numbers `first` to `end` - 1, as far as that is remembered."""
        oldest = self.sequence - len(self._sent)
        return [self._sent[at - oldest] for at in range(max(first, oldest), end)]
