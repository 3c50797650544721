"""Looks at a stream that runs: a `View` of this moment, made once however many ask for it."""

from __future__ import annotations

from collections import deque
from typing import Final

from restore.multicast.layout import Lengths
from restore.multicast.server.room import Room
from restore.multicast.server.sending import Sender
from restore.multicast.server.view import View, view
from restore.multicast.session import Session

FRESH: Final = 0.5  # seconds that a view is used again
_SAMPLES: Final = 6  # looks that the rate is told of


class Watch:
    """Looks at one stream."""

    def __init__(self, session: Session, room: Room, sender: Sender, lengths: Lengths) -> None:
        """Look at what `sender` sends to `room`."""
        self._session = session
        self._room = room
        self._sender = sender
        self._lengths = lengths
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)
        self._view: View | None = None
        self._made = 0.0

    def sample(self, now: float) -> None:
        """Note how much has been sent by now; called a few times a second."""
        self._samples.append((now, self._sender.sent))

    def view(self, now: float) -> View:
        """What is to be seen now, or was just now."""
        if self._view is None or now - self._made >= FRESH:
            self._view = view(
                self._room, self._session, self._lengths, now,
                sent=self._sender.sent, rate=self._rate(), limit=self._sender.pace.rate,
            )  # fmt: skip
            self._made = now
        return self._view

    def _rate(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / max(last - first, 0.001)
