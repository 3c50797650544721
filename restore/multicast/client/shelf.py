"""Chunks that are right, until every target that wants them has taken them.

Bounded: a target that has no room for a chunk goes without it, and the chunk has to come again.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from restore.multicast.chunkset import ChunkSet

CAPACITY: Final = 96  # chunks that wait for all targets together
LEAST_CAPACITY: Final = 8  # chunks that wait for one of them

Item = tuple[int, memoryview]
"""A chunk's number, and its bytes."""


class Place:
    """What waits for one target.

    Attributes:
        wanted: chunks that it has not been given.
    """

    def __init__(self, shelf: Shelf, wanted: ChunkSet) -> None:
        """Of a shelf, for a target that wants these."""
        self.wanted = wanted
        self._shelf = shelf
        self._items: deque[Item] = deque()

    def take(self, patience: float) -> Item | None:
        """The next one, None if none comes within so many seconds.

        Raises:
            Exception: what the shelf failed with.
        """
        with self._shelf.changed:
            if not self._items and self._shelf.failure is None:
                self._shelf.changed.wait(patience)
            if self._items:
                item = self._items.popleft()
                self._shelf.count()
                return item
            if self._shelf.failure is not None:
                raise self._shelf.failure
            return None

    def leave(self) -> None:
        """Nothing is wanted any more."""
        with self._shelf.changed:
            self.wanted = ChunkSet(self.wanted.count)
            self._items.clear()
            self._shelf.places.remove(self)
            self._shelf.count()


class Shelf:
    """What waits for all of them.

    Attributes:
        changed: held while anything changes, and told of it.
        places: one for each target that takes part.
        free: how many more chunks there is room for with the one that has most.
        filled: which part of the room is taken with the one that has least of it, 0 to 1.
        failure: why nothing will come any more; None while something may.
    """

    def __init__(self) -> None:
        """Nobody takes part."""
        self.changed = threading.Condition()
        self.places: list[Place] = []
        self.free = 0
        self.filled = 0.0
        self._each = CAPACITY
        self.failure: Exception | None = None

    def join(self, wanted: ChunkSet) -> Place:
        """There is a target more."""
        with self.changed:
            place = Place(self, wanted)
            self.places.append(place)
            self.count()
            return place

    def count(self) -> None:
        """Something has changed: see what room there is. To be called with `changed` held."""
        each = max(CAPACITY // max(len(self.places), 1), LEAST_CAPACITY)
        waiting = [len(place._items) for place in self.places if place.wanted]
        self.free = max(each - min(waiting), 0) if waiting else 0
        self.filled = max((len(place._items) / each for place in self.places), default=0.0)
        self._each = each

    def put(self, chunk: int, data: memoryview) -> bool:
        """A chunk that is right; whether all who want it have it now."""
        with self.changed:
            wanting = [place for place in self.places if chunk in place.wanted]
            for place in wanting:
                if len(place._items) < self._each:
                    place._items.append((chunk, data))
                    place.wanted.discard(chunk)
            self.count()
            self.changed.notify_all()
            return not any(chunk in place.wanted for place in wanting)

    def fail(self, error: Exception) -> None:
        """Nothing will come any more."""
        with self.changed:
            self.failure = self.failure or error
            self.changed.notify_all()
