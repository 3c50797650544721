"""`asr server`: an image streamed to a room."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from restore.errors import RestoreError
from restore.manifest.checked import Prepared
from restore.multicast import config as configuration
from restore.multicast.server import manifest as manifests
from restore.multicast.server.serving import ServerSettings, serving
from restore.report import Report
from restore.report.shown import shown
from restore.source import Source, SourceSettings
from restore.verbs.board import Board
from restore.verbs.opening import open_prepared

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
        report.begin("Starting server")  # which ends the bar of the scan, if there was one
        terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        board = Board(report, as_json=options.json, table=terminal and not options.puppetstrings)
        stack.callback(board.close)
        settings = ServerSettings(
            interface=options.interface,
            carousel=options.carousel,
            fec=options.fec,
            start_when=options.start_when,
            start_wait=options.start_wait,
            notify=board.note,
        )
        running = await stack.enter_async_context(serving(_name(options.source), source, manifest, config, settings))
        report.done()
        if config.discovery:
            from restore.multicast.discovery import announced

            await stack.enter_async_context(announced(running.session, running.interface, config.port, board.note))
        board.ready(running)
        try:
            return await board.run(running, once=options.once)
        except asyncio.CancelledError:  # which is how a server ends
            board.stopped(running)
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
