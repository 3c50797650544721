"""What is told while a server runs: lines, a live table of its clients on a terminal, or JSON events."""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from restore.multicast.server.serving import Running
from restore.multicast.server.table import Lines, Table
from restore.multicast.server.view import View
from restore.report import Report, put
from restore.report.shown import shown
from targetmode.disks.text import format_size

_LOOK: Final = 0.2  # seconds between looks whether there is something to tell
_DRAW: Final = 0.5  # seconds between two drawings of the table
_STATUS: Final = 5.0  # seconds between two `status` events
_SUMMARY: Final = 30.0  # seconds between two lines of how far all are, where there is no table
_ENDING: Final = 2.0  # seconds that a terminal may take for the last lines; one that is held by Ctrl-S takes for ever


class Board:
    """Tells of one server. Lines are printed by a thread of their own: a terminal that is held does not hold a room."""

    def __init__(self, report: Report, *, as_json: bool, table: bool) -> None:
        """Tell by JSON events, or else by lines; `table` is whether there is a terminal for one."""
        self._report = report
        self._as_json = as_json
        self._lines = Table(sys.stdout) if table and not as_json else Lines(sys.stdout)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._printer = threading.Thread(target=self._print_all, name="board", daemon=True)
        self._failure: Exception | None = None
        self._drawing = False
        self._passes = self._told = 0
        self._due = 0.0  # when the next status is to be told
        self._clients = 0  # that the last one had
        self._printer.start()

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._print(lambda: self._lines.line(f"  {shown(text)}") if self._lines.live else self._report.note(text))

    def ready(self, running: Running) -> None:
        """The server runs."""
        session, interface = running.session, running.interface
        rate = running.limit
        self._say(
            f"{session.image}: {format_size(session.size)} to {session.group} port {session.port} by {interface.name} "
            f"({interface.address}), at most {format_size(rate) + '/s' if rate else 'as fast as it goes'}",
            "ready", image=session.image, size=session.size, group=session.group, port=session.port,
            interface=interface.name, rate=rate, session=f"{session.id:016x}",
        )  # fmt: skip
        self._say(f"Its clients: http://{interface.address}:{session.port}/", None)
        self._say("Ready to start accepting clients", None)

    def stopped(self, running: Running) -> None:
        """It was interrupted."""
        self._tell_ended(running)
        there = len(running.room.guests())
        clients = "nobody took part" if not there else f"{there} client{'s' if there > 1 else ''} took part"
        self._say(f"The stream has ended; at that moment {clients}", "stopped", clients=there, sent=running.sender.sent)

    async def run(self, running: Running, *, once: bool) -> int:
        """Tell what happens, with `once` until every client has ended; the exit status.

        Raises:
            Exception: what the stream has failed by.
        """
        while not running.failed.is_set():
            if self._failure is not None:
                raise self._failure
            carousel = running.room.carousel
            if carousel.passes > self._passes:
                self._passes = carousel.passes
                self._say(f"Starting stream {time.ctime()}", "stream", loop=self._passes)
            self._tell_ended(running)
            if once and running.room.all_done:
                return 0
            self._tell_status(running)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await running.failed.wait()
        failure = running.sender.failure
        assert failure is not None
        raise failure

    def close(self) -> None:
        """Have all be printed, and the terminal as it was."""
        self._work.put(self._lines.close)
        self._work.put(None)
        self._printer.join(_ENDING)

    def _tell_ended(self, running: Running) -> None:
        room = running.room
        ended = room.ends.total()
        for guest in room.left(ended - self._told):
            took = guest.ended - guest.joined
            self._say(
                f"{guest.name} ({guest.address}): {guest.end} after {took:.1f} s, "
                f"{format_size(guest.counts.received)} received, {guest.loss():.1%} lost",
                "left", client=guest.name, address=guest.address, targets=guest.targets, end=guest.end,
                seconds=round(took, 3), received=guest.counts.received, loss=round(guest.loss(), 4),
            )  # fmt: skip
        self._told = ended

    def _tell_status(self, running: Running) -> None:
        """The table, an event or a line, when it is time for that."""
        now = time.monotonic()
        there = len(running.room.guests())
        changed = bool(there) != bool(self._clients)
        if now < self._due and not changed:
            return
        if self._lines.live:
            self._due = now + _DRAW
            if not self._drawing:  # or else the terminal does not take more
                self._drawing = True
                view = running.watch.view(now)
                self._print(lambda: self._draw(view))
        elif there or self._clients:
            self._due = now + (_STATUS if self._as_json else _SUMMARY)
            view = running.watch.view(now, fresh=changed)
            if self._as_json or there:
                self._say(f"{view.stream}; {view.summary}", "status", **view.to_json())
        self._clients = there

    def _draw(self, view: View) -> None:
        self._lines.show(view)
        self._drawing = False

    def _say(self, text: str, event: str | None, **facts: Any) -> None:
        if not self._as_json:
            self._print(lambda: self._lines.line(shown(text)))
        elif event is not None:
            self._print(lambda: put(sys.stdout, json.dumps({"event": event, **facts}) + "\n"))

    def _print(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def _print_all(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                work()
        except Exception as error:
            self._failure = error
            with suppress(Exception):  # the first one is told
                self._lines.close()
