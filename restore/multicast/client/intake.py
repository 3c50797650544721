"""Takes what is wanted of a stream, until nothing is; tells the server how far it is; and fetches what does not come.

socket ──▶ Assembly ──whole──▶ digest compared ──right──▶ Shelf ──▶ targets
              ▲                      │ wrong: wanted again
              └──────────────────────┘
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from blake3 import blake3

from restore.multicast.assembly import Assembly, Counters, Whole
from restore.multicast.chunkset import ChunkSet
from restore.multicast.client.server import NotThere, Server, ServerGone
from restore.multicast.client.shelf import CAPACITY, Place, Shelf
from restore.multicast.layout import Layout
from restore.multicast.session import MOST_MISSING, REPORT_EVERY, Counts, Directions, Join, Session, Status
from restore.multicast.sockets import Interface, overflowed, receiving_socket
from restore.source import SourceError

PARTIAL: Final = 48  # chunks that may be incomplete at once
SILENCE: Final = 5.0  # seconds after which a stream that should arrive does not
_LOOK: Final = 0.1  # seconds after which a thread that waits looks whether it is to end
_JUDGES: Final = 2
_ENDING: Final = 2.0  # seconds that threads may take to end, one of which may wait for a server that is gone
_REPORT_AGAIN: Final = 0.02  # seconds between reports that have cause, where there are few clients
_PAUSE: Final = 1.0  # seconds between attempts to reach a server that is gone


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """How a stream is to be taken.

    Attributes:
        name: what this machine is called.
        targets: what is restored onto, for people.
        timeout: seconds without any data after which it is given up; 0 is never.
        multicast_only: nothing is fetched by unicast.
        notify: told in one line what is worth one; from any thread.
        missed: told that data got lost, which will come again; likewise.
    """

    name: str
    targets: list[str]
    timeout: float = 0.0
    multicast_only: bool = False
    notify: Callable[[str], None] = lambda text: None
    missed: Callable[[], None] = lambda: None


class Intake:
    """One client's part in one stream."""

    def __init__(
        self, server: Server, session: Session, layout: Layout, interface: Interface, settings: IntakeSettings
    ) -> None:
        """Prepare; nothing is received before something is wanted.

        Args:
            server: to talk to.
            session: what it streams.
            layout: the image's chunks.
            interface: where the stream is to arrive.
            settings: how.
        """
        self._server = server
        self._session = session
        self._layout = layout
        self._interface = interface
        self._settings = settings
        self._lock = threading.Lock()
        self._assembly = self._assemble(ChunkSet(len(layout)))
        self._shelf = Shelf()
        self._counts = Counts()
        self._progress: dict[object, tuple[int, int]] = {}  # of each target
        self._judging = 0
        self._targets = self._targets_done = 0
        self._judges = ThreadPoolExecutor(_JUDGES, thread_name_prefix="judge")
        self._threads: list[threading.Thread] = []
        self._directions: Directions | None = None
        self._closing = threading.Event()
        self._hurry = threading.Event()
        self._moved = time.monotonic()  # when anything came last
        self._arrived = 0.0  # when a datagram came last, or could have come first
        self._reported = -1  # sequence number that the last report was as of
        self._reported_at = 0.0  # when that was
        self._missed = 0  # datagrams, by then
        self._socket: socket.socket | None = None
        self._lost = False  # the server did not answer the last time
        self._told = False  # that nothing arrives

    def want(self, wanted: ChunkSet) -> Place:
        """Have chunks brought; where they will wait.

        Raises:
            ServerGone: the server cannot be asked for them.
            Refused: nothing can be received.
        """
        place = self._shelf.join(wanted)
        with self._lock:
            self._targets += 1
            self._assembly.wanted.update(wanted)
            if self._threads:
                self._hurry.set()
                return place
            self._moved = self._arrived = time.monotonic()
            sock = self._open()
            try:
                self._directions = self._join()
            except BaseException:
                sock.close()
                raise
            self._threads = [
                threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
                for name, work in (
                    ("stream-receive", lambda: self._receive(sock)),
                    ("stream-report", self._report),
                    ("stream-fetch", self._fetch),
                )
            ]
        for thread in self._threads:
            thread.start()
        return place

    def fetch(self, chunk: int) -> memoryview:
        """A chunk from the server, by unicast; right.

        Raises:
            ServerGone: it cannot be had.
            SourceError: it is wrong, twice.
        """
        for _ in range(2):
            data = memoryview(self._server.chunk(chunk))
            if self._is_right(chunk, data):
                return data
        start, end = self._layout.span(chunk)
        raise SourceError(f"{self._server.base}: bytes {start} to {end - 1} of the image do not match its manifest")

    def finished(self) -> None:
        """One of the targets has all of it, and is right."""
        with self._lock:
            self._targets_done += 1

    def progressed(self, who: object, restored: int, verified: int) -> None:
        """One of the targets has so many bytes, and compared so many of them."""
        with self._lock:
            self._progress[who] = (restored, verified)

    def close(self) -> None:
        """Take no more, and tell the server how it has ended."""
        end = "done" if self._targets_done == self._targets else "failed"
        self._closing.set()
        self._hurry.set()
        deadline = time.monotonic() + _ENDING
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        self._judges.shutdown(cancel_futures=True)
        waiting = self._lost or any(thread.is_alive() for thread in self._threads)
        if self._directions is not None and not waiting:
            with suppress(ServerGone):
                self._server.report(self._directions.client, self._status())  # the last counts
                self._server.leave(self._directions.client, end)

    # --- Threads ---

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._shelf.fail(error)

    def _receive(self, sock: socket.socket) -> None:
        while not self._closing.is_set():
            session = self._session
            with sock:
                self._socket = sock
                while not self._closing.is_set() and session is self._session:
                    self._receive_batch(sock)
            if not self._closing.is_set():  # the server is another run of it
                sock = self._open()
        sock.close()

    def _receive_batch(self, sock: socket.socket) -> None:
        with self._lock:
            assembly = self._assembly
            landing = assembly.landing()
        try:
            received, _, flags, _ = sock.recvmsg_into(landing)
        except BlockingIOError:
            self._check_patience()
            return
        now = time.monotonic()
        with self._lock:
            assembly.room = min(PARTIAL, self._shelf.free - self._judging)
            segments = assembly.counters.segments
            whole = assembly.landed(0 if flags & socket.MSG_TRUNC else received)
            self._judging += len(whole)
            came, ticked = assembly.counters.segments > segments, assembly.ticked
            late = (
                ((ticked and bool(assembly.wanted)) or assembly.incomplete > PARTIAL // 2)
                and assembly.sequence != self._reported
                and now - self._reported_at > self._soonest
            )
        if came or ticked:
            self._arrived = now
        if late:
            self._hurry.set()  # what was sent and did not come can be sent again at once, and room is made
        for each in whole:
            self._moved = now
            self._judges.submit(self._judge, each)

    def _open(self) -> socket.socket:
        sock = receiving_socket(self._interface, self._session.group, self._session.port)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(_LOOK * 1e6)))
        return sock

    def _judge(self, whole: Whole) -> None:
        right = self._is_right(whole.chunk, whole.data)
        taken = right and self._shelf.put(whole.chunk, whole.data)
        with self._lock:
            self._judging -= 1
            if right:
                self._counts = replace(self._counts, received=self._counts.received + len(whole.data))
            else:
                self._counts = replace(self._counts, damaged=self._counts.damaged + 1)
            if not taken:
                self._assembly.wanted.add(whole.chunk)

    def _report(self) -> None:
        while not self._closing.is_set():
            every = REPORT_EVERY if self._directions is None else self._directions.report_every
            self._hurry.wait(_PAUSE if self._lost else every)
            self._hurry.clear()
            if self._closing.is_set():
                return
            try:
                if self._directions is None:
                    self._begin_again()
                else:
                    self._directions = self._server.report(self._directions.client, self._status())
            except NotThere:
                self._directions = None
                self._hurry.set()
            except ServerGone as error:
                if not self._lost:
                    self._settings.notify(f"{error}; it is asked again and again")
                self._lost = True
            else:
                if self._lost:
                    self._settings.notify(f"{self._server.base}: it answers again")
                self._lost = False

    def _fetch(self) -> None:
        """Fetch what is wanted by unicast, while the stream is not for this client or does not arrive."""
        while not self._closing.wait(_LOOK):
            while not self._closing.is_set() and self._has_to_fetch():
                with self._lock:
                    chunk = self._assembly.wanted.next(0) if self._shelf.free > self._judging else None
                    if chunk is None:
                        break
                    self._assembly.forget(chunk)
                try:
                    data = self.fetch(chunk)
                except ServerGone:
                    with self._lock:
                        self._assembly.wanted.add(chunk)
                    self._closing.wait(_PAUSE)
                    continue
                self._moved = time.monotonic()
                taken = self._shelf.put(chunk, data)
                with self._lock:
                    self._counts = replace(self._counts, received=self._counts.received + len(data))
                    if not taken:
                        self._assembly.wanted.add(chunk)

    def _has_to_fetch(self) -> bool:
        directions = self._directions
        if self._settings.multicast_only or directions is None:
            return False
        if directions.alone:
            return True
        if not directions.streaming or not self._assembly.wanted:
            return False
        silent = time.monotonic() - self._arrived > SILENCE
        if silent and not self._told:
            self._told = True
            self._settings.notify(
                f"nothing of the stream to {self._session.group} port {self._session.port} has arrived by "
                f"{self._interface.name} for {SILENCE:g} seconds, so the image is fetched by unicast: look at the "
                "interface (--interface), an IGMP querier in this network, the server's TTL, and the firewall"
            )
        return silent

    # --- Smaller things ---

    @property
    def _soonest(self) -> float:
        """Seconds from a report to one that has cause."""
        every = REPORT_EVERY if self._directions is None else self._directions.report_every
        return every / 2 if every > REPORT_EVERY else _REPORT_AGAIN

    def _join(self) -> Directions:
        return self._server.join(Join(self._settings.name, self._settings.targets, self._assembly.wanted.copy()))

    def _begin_again(self) -> None:
        """The server does not know this client any more: it may be another run of it, with the same image."""
        session = self._server.session()
        if session.manifest != self._session.manifest:
            self._shelf.fail(SourceError(f"{self._server.base} serves another image now: {session.image}"))
            return
        with self._lock:
            if session != self._session:
                self._session = session
                self._assembly = self._assemble(self._assembly.wanted)
        self._directions = self._join()

    def _assemble(self, wanted: ChunkSet) -> Assembly:
        return Assembly(self._layout, self._session.segment_size, self._session.id, wanted, PARTIAL)

    def _status(self) -> Status:
        with self._lock:
            assembly = self._assembly
            came = assembly.counters
            progress = self._progress.values() or ((0, 0),)
            self._count_overflow(came)
            if came.lost > self._missed:
                self._settings.missed()
            self._missed = came.lost
            counts = replace(
                self._counts,
                written=min(restored for restored, _ in progress),
                verified=min(verified for _, verified in progress),
                segments=came.segments,
                lost=came.lost,
                duplicates=came.duplicates,
                passed_over=came.passed_over,
                repaired=came.repaired,
            )
            self._reported, self._reported_at = assembly.sequence, time.monotonic()
            filled = round(min(self._shelf.filled + self._judging / CAPACITY, 1.0), 3)
            return Status(assembly.wanted.copy(), assembly.sequence, counts, assembly.missing(MOST_MISSING), filled)

    def _count_overflow(self, came: Counters) -> None:
        """Tell what was lost here from what was lost on the way: the kernel counts batches, each of many datagrams."""
        try:
            dropped = 0 if self._socket is None else overflowed(self._socket)
        except OSError:
            return  # it is being closed
        self._counts = replace(self._counts, overflowed=min(dropped * self._assembly.batch, came.lost))

    def _check_patience(self) -> None:
        limit = self._settings.timeout
        if limit and self._assembly.wanted and self._shelf.free and time.monotonic() - self._moved > limit:
            self._shelf.fail(ServerGone(f"{self._server.base}: no data have come for {limit:g} seconds"))

    def _is_right(self, chunk: int, data: memoryview) -> bool:
        return len(data) == self._layout.length(chunk) and blake3(data).digest() == self._layout.digest(chunk)
