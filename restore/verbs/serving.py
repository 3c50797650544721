"""`asr server`: an image streamed to a room."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from restore.errors import RestoreError
from restore.manifest.checked import Prepared
from restore.multicast import config as configuration
from restore.multicast.server import manifest as manifests
from restore.multicast.server.serving import Running, ServerSettings, serving
from restore.report import Report, put
from restore.report.shown import shown
from restore.source import Source, SourceSettings
from restore.verbs.opening import open_prepared
from targetmode.disks.text import format_size

_LOOK: Final = 0.2  # seconds between looks whether there is something to tell
_SCANNING: Final = "Block checksum:"


async def serve(options: argparse.Namespace, report: Report) -> int:
    """Stream an image until it is interrupted, or with `--once` until every client is done.

    Raises:
        RestoreError: it was refused, or failed.
    """
    config = _config(options)
    image = await asyncio.to_thread(open_prepared, options.source, options, report)
    async with AsyncExitStack() as stack:
        source: Source = stack.enter_context(closing(image.source))
        if source.sequential:  # and a stream needs it in any order
            directory = stack.enter_context(TemporaryDirectory(prefix="asr-"))
            source = stack.enter_context(closing(await _spilled(source, Path(directory), report)))
        if isinstance(source, Prepared):  # chunks are checked as they are sent
            source = source.source
        manifest = await _manifest(source, image.path, options.source, report)
        settings = ServerSettings(
            interface=options.interface,
            carousel=options.carousel,
            start_when=options.start_when,
            start_wait=options.start_wait,
            notify=report.note,
        )
        running = await stack.enter_async_context(serving(_name(options.source), source, manifest, config, settings))
        if config.discovery:
            from restore.multicast.discovery import announced

            await stack.enter_async_context(announced(running.session, running.interface, config.port, report.note))
        board = _Board(running, as_json=options.json)
        board.ready()
        try:
            return await board.run(once=options.once)
        except asyncio.CancelledError:  # which is how a server ends
            board.stopped()
            return 0


async def _spilled(source: Source, directory: Path, report: Report) -> Source:
    """An image that can only be decoded from its start, as a file of its own."""
    from restore.source.detect import open_image
    from restore.source.spill import spill

    path = await spill(source, directory, report)
    opened = await asyncio.to_thread(open_image, str(path), SourceSettings(format="raw"))
    opened.source.name = source.name
    return opened.source


def _name(place: str) -> str:
    """What clients are told that the image is called."""
    return shown(place.rstrip("/").rpartition("/")[2] or place)[:255]


def _config(options: argparse.Namespace) -> configuration.Config:
    config = configuration.load(options.config) if options.config is not None else configuration.Config()
    given = {
        "data_rate": options.data_rate,
        "address": options.address,
        "client_data_rate": options.client_data_rate,
        "loop_suspend": options.loop_suspend,
        "ttl": options.ttl,
        "port": options.port,
    }
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    return replace(config, discovery=False) if options.no_discovery else config


async def _manifest(source: Source, path: Path | None, place: str, report: Report) -> manifests.Manifest:
    """The scan beside an image, or a new one."""
    found = None if path is None else await asyncio.to_thread(manifests.beside, path)
    if found is not None:
        return found
    report.note(f"{place} has no scan that can be streamed by, so it is scanned now")
    stopped = False

    def advance(done: int, total: int) -> None:
        if stopped:
            raise RestoreError("interrupted")
        report.progress(_SCANNING, done, total)

    scanning = asyncio.create_task(asyncio.to_thread(manifests.made, source, advance))
    try:
        made = await asyncio.shield(scanning)
    except asyncio.CancelledError:
        stopped = True
        await asyncio.wait([scanning])
        scanning.exception()  # it does not matter any more
        raise
    report.progress(_SCANNING, made.bmap.image_size, made.bmap.image_size)
    return made


class _Board:
    """What is told while a server runs."""

    def __init__(self, running: Running, *, as_json: bool) -> None:
        self._running = running
        self._as_json = as_json
        self._passes = 0
        self._told = 0

    def ready(self) -> None:
        session, interface = self._running.session, self._running.interface
        rate = self._running.sender.pace.rate
        self._say(
            f"{session.image}: {format_size(session.size)} to {session.group} port {session.port} by {interface.name} "
            f"({interface.address}), at most {format_size(rate) + '/s' if rate else 'as fast as it goes'}",
            "ready", image=session.image, size=session.size, group=session.group, port=session.port,
            interface=interface.name, rate=rate, session=f"{session.id:016x}",
        )  # fmt: skip
        self._say("Ready to start accepting clients", None)

    def stopped(self) -> None:
        self._tell_ended()
        there = len(self._running.room.guests())
        clients = "nobody took part" if not there else f"{there} client{'s' if there > 1 else ''} took part"
        sent = self._running.sender.sent  # bytes, headers included
        self._say(f"The stream has ended; at that moment {clients}", "stopped", clients=there, sent=sent)

    async def run(self, *, once: bool) -> int:
        running = self._running
        while not running.failed.is_set():
            carousel = running.room.carousel
            if carousel.passes > self._passes:
                self._passes = carousel.passes
                self._say(f"Starting stream {time.ctime()}", "stream", loop=self._passes)
            self._tell_ended()
            if once and running.room.all_done:
                return 0
            try:
                async with asyncio.timeout(_LOOK):
                    await running.failed.wait()
            except TimeoutError:
                continue
        failure = running.sender.failure
        assert failure is not None
        raise failure

    def _tell_ended(self) -> None:
        left = self._running.room.left()
        for guest in left[self._told :]:
            took = guest.ended - guest.joined
            self._say(
                f"{guest.name} ({guest.address}): {guest.end} after {took:.1f} s, "
                f"{format_size(guest.counts.received)} received, {guest.loss():.1%} lost",
                "left", client=guest.name, address=guest.address, targets=guest.targets, end=guest.end,
                seconds=round(took, 3), received=guest.counts.received, loss=round(guest.loss(), 4),
            )  # fmt: skip
        self._told = len(left)

    def _say(self, text: str, event: str | None, **facts: Any) -> None:
        if not self._as_json:
            put(sys.stdout, f"{shown(text)}\n")
        elif event is not None:
            put(sys.stdout, json.dumps({"event": event, **facts}) + "\n")
