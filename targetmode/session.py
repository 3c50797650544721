"""Who is connected, what they have moved, and what has happened: the main process's view of one run of `serve`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from targetmode.offer import Offer

Event = dict[str, Any]


@dataclass(slots=True)
class Connected:
    """A client that is there.

    Attributes:
        peer: its address.
        export: what it uses.
        since: seconds since the epoch.
        slot: its place among the counters.
    """

    peer: str
    export: str
    since: float
    slot: int


@dataclass(slots=True)
class Totals:
    """What has happened on one export since the start, connections that are over included."""

    connections: int = 0
    read: int = 0
    written: int = 0
    flushes: int = 0
    errors: int = 0


@dataclass(slots=True)
class Session:
    """One run of `targetmode serve`.

    Attributes:
        offer: the disks.
        name: what this machine calls itself.
        counters: 64-bit integers shared with the connections' processes, two for each slot: bytes read and written.
        id: names this run.
        connected: the clients that are there, by slot.
        totals: by export name.
    """

    offer: Offer
    name: str
    counters: memoryview
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    connected: dict[int, Connected] = field(default_factory=dict)
    totals: dict[str, Totals] = field(default_factory=dict)
    _listeners: list[Callable[[Event], None]] = field(default_factory=list)
    _events: socket.socket | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Have `listener` called with every event from now on; the function returned ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def publish(self, event: str, **values: Any) -> None:
        """Tell everyone who listens."""
        message = {"event": event, "time": datetime.now().astimezone().isoformat(timespec="milliseconds"), **values}
        for listener in list(self._listeners):
            listener(message)

    def listen(self, events: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        """Take in the connections' events from a datagram socket, as they come."""
        events.setblocking(False)
        self._events, self._loop = events, loop
        loop.add_reader(events.fileno(), self.drain, events)

    def drain(self, events: socket.socket) -> None:
        """Take in every event that is there now."""
        while True:
            try:
                data = events.recv(1 << 16)
            except BlockingIOError:
                return
            if not data:
                return
            self._take(json.loads(data))

    def moved(self, connection: Connected) -> tuple[int, int]:
        """Bytes that a connection has read and written so far."""
        return self.counters[2 * connection.slot], self.counters[2 * connection.slot + 1]

    def lost(self, client: Connected, reason: str) -> None:
        """A client's connection has ended without a word."""
        if self.connected.get(client.slot) is client:
            read, written = self.moved(client)
            message = {"event": "disconnect", "slot": client.slot, "export": client.export}
            self._take({**message, "reason": reason, "read": read, "written": written})

    def _watch(self, client: Connected, pid: int) -> None:
        """Notice the end of the process that serves a client, which a process that is killed does not tell of."""
        assert self._loop is not None
        try:
            process = os.pidfd_open(pid)
        except OSError:
            self._loop.call_soon(self._ended, client, None)
        else:
            self._loop.add_reader(process, self._ended, client, process)

    def _ended(self, client: Connected, process: int | None) -> None:
        assert self._loop is not None
        assert self._events is not None
        if process is not None:
            self._loop.remove_reader(process)
            os.close(process)
        self.drain(self._events)  # what it told before comes first
        self.lost(client, "its process was killed")

    def _take(self, message: Event) -> None:
        kind, slot, export = message.pop("event"), message.pop("slot"), message["export"]
        pid = message.pop("pid", None)
        if kind == "rejected":
            self.publish(kind, **message)
            return
        totals = self.totals.setdefault(export, Totals())
        client = self.connected.get(slot)
        if client is not None:
            message.setdefault("peer", client.peer)
        if kind == "connect":
            totals.connections += 1
            client = self.connected[slot] = Connected(message["peer"], export, time.time(), slot)
            if pid is not None:
                self._watch(client, pid)
        elif kind == "disconnect":
            totals.read += message["read"]
            totals.written += message["written"]
            self.connected.pop(slot, None)
        elif kind == "flush":
            totals.flushes += 1
        elif kind == "error":
            totals.errors += 1
        self.publish(kind, **message)
