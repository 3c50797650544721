"""The stream: one thread reads and checks chunks, a few ahead; another one sends them, as fast as it may."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from restore.multicast.assembly import TICK
from restore.multicast.pacing import Pace
from restore.multicast.packet import Header
from restore.multicast.repair import RepairMaker
from restore.multicast.server.chunks import ChunkReader, Prepared
from restore.multicast.server.room import Room
from restore.multicast.sockets import BatchSender

AHEAD: Final = 4  # chunks that are ready to be sent
TICK_EVERY: Final = 0.05  # seconds between signs of life when there is nothing to send
IP_UDP: Final = 28  # bytes of headers that the network adds to a datagram, which a rate covers


class Sender:
    """Sends what a room asks for, until it is told to stop.

    Attributes:
        sent: bytes that were sent, headers included.
        failure: what ended it; None while it goes well.
    """

    def __init__(
        self,
        room: Room,
        chunks: ChunkReader,
        session: int,
        segment_size: int,
        sender: BatchSender,
        pace: Pace,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; `ended` is called from a thread of this when something failed."""
        self._room = room
        self._chunks = chunks
        self._session = session
        self._segment_size = segment_size
        self._sender = sender
        self.pace = pace
        self.sent = 0
        self.failure: Exception | None = None
        self._ended = ended
        self._stopping = threading.Event()
        self._free: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        for _ in range(AHEAD):
            self._free.put(Prepared(session, segment_size))
        self._ready: queue.SimpleQueue[Prepared | None] = queue.SimpleQueue()
        self._padding = bytes(segment_size)
        self._sequence = 0  # of the turn that is sent next
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("stream-read", self._read), ("stream-send", self._send))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End soon, and wait for that."""
        self._stopping.set()
        self._room.close()
        self._free.put(None)
        self._ready.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.failure = self.failure or error
            self._stopping.set()
            self._free.put(None)
            self._ready.put(None)
            self._ended()

    def _read(self) -> None:
        repairs = RepairMaker(self._segment_size)
        while (prepared := self._free.get()) is not None and not self._stopping.is_set():
            while (found := self._room.next(TICK_EVERY)) is None:
                if self._stopping.is_set():
                    return
            prepared.fill(self._chunks, repairs, found)
            self._ready.put(prepared)

    def _send(self) -> None:
        while not self._stopping.is_set():
            prepared = None
            with suppress(queue.Empty):
                prepared = self._ready.get(timeout=TICK_EVERY)
                if prepared is None:
                    return
            if prepared is None:
                self._tick()
                continue
            size = prepared.datagram_size
            burst = self.pace.burst(size + IP_UDP, self._sender.most)
            for parts, count in prepared.batches(burst):
                self._wait(count * (size + IP_UDP))
                self._sender.send(parts, count)
            self._sequence = prepared.end
            self._free.put(prepared)

    def _tick(self) -> None:
        """Say that all that was sent so far has been sent."""
        header = Header(self._session, self._sequence, TICK, 0).pack()
        self._sender.send([header, self._padding], 1)

    def _wait(self, size: int) -> None:
        self.sent += size
        pause = self.pace.wait(time.monotonic(), size)
        if pause > 0:
            time.sleep(pause)
