"""One image served to one group, from its manifest to the end of the stream."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from restore.errors import Refused
from restore.multicast.carousel import Carousel
from restore.multicast.config import Config
from restore.multicast.layout import Layout, Lengths
from restore.multicast.pacing import Pace, Regulator
from restore.multicast.packet import HEADER_SIZE, segment_size, segments_of
from restore.multicast.server.chunks import ChunkReader
from restore.multicast.server.control import ControlServer, Served
from restore.multicast.server.manifest import Manifest
from restore.multicast.server.room import Room
from restore.multicast.server.sending import Sender
from restore.multicast.server.watch import Watch
from restore.multicast.session import Session
from restore.multicast.sockets import BatchSender, Interface, find_interface, sending_socket
from restore.source import Source
from targetmode.listening import ListenError, listen_tcp

SHARE: Final = 0.9  # of an interface's speed, where no rate is told
LOOK_EVERY: Final = 0.2  # seconds between looks at the clients
_ANYWHERE: Final = "239.192.0.0"  # RFC 2365, section 6.2: the organization-local scope


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How an image is served, beyond what a configuration has.

    Attributes:
        interface: name or address; None has the routes tell.
        listen: where the control API listens; None is everywhere.
        carousel: send all round and round, for clients that say nothing.
        fec: repair segments that are sent along with each chunk at least, as a part of its own.
        start_when: clients to wait for before the stream starts.
        start_wait: seconds after the first one, when it starts all the same.
        notify: told in one line what is worth one.
    """

    interface: str | None = None
    listen: str | None = None
    carousel: bool = False
    fec: float = 0.0
    start_when: int = 1
    start_wait: float | None = None
    notify: Callable[[str], None] = lambda text: None


@dataclass(slots=True)
class Running:
    """A server that runs.

    Attributes:
        session: what it streams.
        room: to whom.
        sender: how.
        interface: by which interface.
        limit: bytes per second that are never exceeded; None where nothing tells.
        watch: looks at all of it.
        failed: set when the stream has failed; `sender.failure` says why.
    """

    session: Session
    room: Room
    sender: Sender
    interface: Interface
    limit: int | None
    watch: Watch
    failed: asyncio.Event


@asynccontextmanager
async def serving(
    name: str, source: Source, manifest: Manifest, config: Config, settings: ServerSettings
) -> AsyncIterator[Running]:
    """Serve an image for as long as the context lasts.

    Args:
        name: of the image.
        source: the image; closed by the caller.
        manifest: of it.
        config: how it is streamed.
        settings: likewise.

    Raises:
        Refused: that cannot be done here.
    """
    loop = asyncio.get_running_loop()
    group = config.address or derived_group(name)
    interface = find_interface(settings.interface, group)
    try:
        size = segment_size(interface.mtu)
    except ValueError as error:
        raise Refused(f"{interface.name}: {error}") from None
    layout = Layout(manifest.bmap)
    session = Session(
        secrets.randbits(64), name, manifest.bmap.image_size, len(layout),
        blake3(manifest.data).hexdigest(), group, config.port, size,
    )  # fmt: skip
    limit = rate_limit(config, interface)
    regulator = Regulator(limit, *([config.client_data_rate] if config.client_data_rate else []))
    room = Room(
        Carousel(
            len(layout),
            everything=settings.carousel,
            segments=lambda chunk: segments_of(layout.length(chunk), size),
            fec=settings.fec,
        ),
        regulator,
        start_when=settings.start_when,
        start_wait=settings.start_wait,
        loop_suspend=config.loop_suspend,
    )
    chunks = ChunkReader(source, layout)
    failed = asyncio.Event()
    with closing(sending_socket(interface, group, config.port, config.ttl)) as sock:
        batches = BatchSender(sock, HEADER_SIZE + size)

        def ended() -> None:
            loop.call_soon_threadsafe(failed.set)

        sender = Sender(room, chunks, session.id, size, batches, Pace(regulator.rate), ended)
        watch = Watch(session, room, sender, Lengths(layout))
        control = ControlServer(Served(session, manifest.data, manifest.signature, chunks, room, watch.view))
        try:
            sockets = listen_tcp(settings.listen or "0.0.0.0", config.port)  # noqa: S104 - it is for the room
        except ListenError as error:
            raise Refused(str(error)) from None
        await control.start(sockets)
        looking = asyncio.create_task(_look_after(room, sender, watch, settings.notify))
        sender.start()
        try:
            yield Running(session, room, sender, interface, limit, watch, failed)
        finally:
            looking.cancel()
            await asyncio.to_thread(sender.stop)
            await control.stop()


def derived_group(name: str) -> str:
    """An administratively scoped group for an image (RFC 2365), so that two images rarely share one."""
    digest = hashlib.sha256(name.encode()).digest()
    first, second, *_ = _ANYWHERE.split(".")
    return f"{first}.{int(second) + digest[0] % 4}.{digest[1]}.{max(digest[2], 1)}"


def rate_limit(config: Config, interface: Interface) -> int | None:
    """Bytes per second that are never exceeded; None where neither a configuration nor an interface tells."""
    if config.data_rate is not None:
        return config.data_rate
    return None if interface.speed is None else int(interface.speed / 8 * SHARE)


async def _look_after(room: Room, sender: Sender, watch: Watch, notify: Callable[[str], None]) -> None:
    before, sent = time.monotonic(), 0
    while True:
        await asyncio.sleep(LOOK_EVERY)
        now, total = time.monotonic(), sender.sent
        for line in room.look_after(now):
            notify(line)
        watch.sample(now)
        sender.pace.rate = room.regulate((total - sent) / (now - before))
        before, sent = now, total
