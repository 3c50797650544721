"""Connections that are lost: trying again with growing pauses, until there was no movement for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from restore.errors import RestoreError

_PAUSE: Final = 0.1  # seconds before the second attempt, doubled for each further one
_LONGEST: Final = 5.0
_LEAST: Final = 1 << 10  # bytes a second, over the time that a server has: less is no movement
_ENOUGH: Final = 60 << 10  # bytes that always are one
_QUIET: Final = 10.0  # seconds between two lines about lost connections


class Outages:
    """What is told of a server's absence, by all who read from it."""

    def __init__(self, name: str, timeout: float, notify: Callable[[str], None], closed: threading.Event) -> None:
        """Prepare.

        Args:
            name: of what is read, for people.
            timeout: seconds without movement that are too long.
            notify: told when a connection is back.
            closed: set when nobody wants to go on.
        """
        self.name = name
        self.timeout = timeout
        self.closed = closed
        self._notify = notify
        self._lock = threading.Lock()
        self._told: float | None = None

    def begin(self) -> Outage:
        """For one range or stream."""
        return Outage(self)

    def over(self, reason: str, seconds: float) -> None:
        """A connection that was lost is back; say that, now and then."""
        with self._lock:
            now = time.monotonic()
            if self._told is not None and now - self._told < _QUIET:
                return
            self._told = now
        self._notify(f"{self.name}: the connection was lost ({reason}), and is back after {seconds:.1f} seconds")


class Outage:
    """What is known of it by one who reads."""

    def __init__(self, outages: Outages) -> None:
        """It begins now."""
        self._all = outages
        self._moved = time.monotonic()
        self._lost: tuple[str, float] | None = None  # why, and when
        self._pause = 0.0
        self._arrived = 0  # bytes since it moved

    def arrived(self, count: int) -> None:
        """So many bytes have arrived; only as many as are worth mentioning are a movement."""
        self._arrived += count
        if self._arrived >= min(_LEAST * self._all.timeout, _ENOUGH):
            self.moved()

    @property
    def overdue(self) -> bool:
        """There was no movement for too long."""
        return time.monotonic() - self._moved >= self._all.timeout

    def resume(self) -> None:
        """It was not waited for until now."""
        self._moved = time.monotonic()

    def moved(self) -> None:
        """All that was asked for has arrived, or enough of it."""
        self._moved, self._arrived = time.monotonic(), 0
        if self._lost is not None:
            reason, since = self._lost
            self._lost, self._pause = None, 0.0
            self._all.over(reason, self._moved - since)

    def failed(self, reason: object) -> None:
        """The connection was lost; wait before the next attempt.

        Raises:
            RestoreError: nothing has arrived for too long, or nobody wants to go on.
        """
        if self._all.closed.is_set():
            raise RestoreError(f"{self._all.name} was closed")
        now = time.monotonic()
        left = self._moved + self._all.timeout - now
        if left <= 0:
            raise RestoreError(
                f"{self._all.name}: nothing has come for {now - self._moved:.0f} seconds ({reason}); "
                "see whether the server is there"
            )
        if self._lost is None:
            self._lost = (str(reason), now)
        self._all.closed.wait(min(self._pause, left))
        self._pause = min(max(2 * self._pause, _PAUSE), _LONGEST)
