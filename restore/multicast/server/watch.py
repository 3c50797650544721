"""Looks at a stream that runs: a `View` of this moment, made once however many ask for it."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from restore.multicast.layout import Lengths
from restore.multicast.server.room import Room
from restore.multicast.server.sending import Sender
from restore.multicast.server.view import View, view
from restore.multicast.session import Session

FRESH: Final = 0.5  # seconds that a view is used again, at least
_SHARE: Final = 0.05  # of the time, that making views may take: it grows with the clients, and the stream goes before
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
        self._due = 0.0  # when the next one is to be made

    def sample(self, now: float) -> None:
        """Note how much has been sent by now; called a few times a second."""
        self._samples.append((now, self._sender.sent))

    def view(self, now: float, *, fresh: bool = False) -> View:
        """What is to be seen now, or unless it has to be `fresh`, was just now."""
        if self._view is None or fresh or now >= self._due:
            began = time.perf_counter()
            self._view = view(
                self._room, self._session, self._lengths, now,
                sent=self._sender.sent, rate=self._rate(), limit=self._sender.pace.rate,
            )  # fmt: skip
            self._due = now + max(FRESH, (time.perf_counter() - began) / _SHARE)
        return self._view

    def _rate(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / max(last - first, 0.001)
