"""The control API of a multicast server: what is streamed, who takes part, and chunks for those the stream misses."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from restore.errors import say
from restore.multicast import session as messages
from restore.multicast.server.chunks import ChunkReader
from restore.multicast.server.metrics import CONTENT_TYPE, metrics
from restore.multicast.server.page import HEADERS, PAGE
from restore.multicast.server.room import Room, RoomFull
from restore.multicast.server.view import View
from restore.source import SourceError

AT_ONCE: Final = 4  # chunks that are read for clients at the same time; more of them wait
BODY_TIMEOUT: Final = 10.0  # seconds a client has to send a request's body
_UNKEPT: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_log: Final = logging.getLogger(__name__)
_FAULTS_OF_CLIENTS: Final = (HttpProcessingError, web.RequestPayloadError)
_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], _FAULTS_OF_CLIENTS)))


@dataclass(frozen=True, slots=True)
class Served:
    """What a server has to give.

    Attributes:
        session: what is streamed.
        manifest: the block map, as it is in its file.
        signature: of that, None where it has none.
        chunks: reads the image.
        room: who takes part.
        view: what is to be seen at a time.
    """

    session: messages.Session
    manifest: bytes
    signature: bytes | None
    chunks: ChunkReader
    room: Room
    view: Callable[[float], View]


class ControlServer:
    """Serves the control API of one session."""

    def __init__(self, served: Served) -> None:
        """Prepare; `start` begins to listen."""
        self._served = served
        self._told: View | None = None  # and what was said of it, once for all who ask
        self._status_body = b""
        self._reading = asyncio.Semaphore(AT_ONCE)
        app = web.Application(client_max_size=messages.MAX_BODY, middlewares=[_refused_in_json])
        app.router.add_get(messages.SESSION, self._session)
        app.router.add_get(messages.MANIFEST, self._manifest)
        app.router.add_get(messages.SIGNATURE, self._signature)
        app.router.add_post(messages.CLIENTS, self._join)
        app.router.add_post(messages.CLIENTS + "/{id}", self._report)
        app.router.add_delete(messages.CLIENTS + "/{id}", self._leave)
        app.router.add_get(messages.CHUNKS + "/{number}", self._chunk)
        app.router.add_get(messages.STATUS, self._status)
        app.router.add_get(messages.PAGE, self._page)
        app.router.add_get(messages.METRICS, self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=_log, shutdown_timeout=1.0)

    async def start(self, sockets: Iterable[Any]) -> None:
        """Begin to answer on sockets that listen already."""
        await self._runner.setup()
        for sock in sockets:
            await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Hang up on everyone."""
        await self._runner.cleanup()

    async def _session(self, request: web.Request) -> web.Response:
        return web.json_response(self._served.session.to_json())

    async def _manifest(self, request: web.Request) -> web.Response:
        return web.Response(body=self._served.manifest, content_type="application/xml")

    async def _signature(self, request: web.Request) -> web.Response:
        if self._served.signature is None:
            return _refusal(404, "the manifest is not signed")
        return web.Response(body=self._served.signature, content_type="application/octet-stream")

    async def _join(self, request: web.Request) -> web.Response:
        try:
            join = messages.Join.from_json(await _body(request), self._served.session.chunks)
        except _Refused as refused:
            return refused.response
        except messages.MessageError as error:
            return _refusal(400, str(error))
        try:
            directions = self._served.room.join(join, request.remote or "", time.monotonic())
        except RoomFull as error:
            return _refusal(503, str(error))
        return web.json_response(directions.to_json())

    async def _report(self, request: web.Request) -> web.Response:
        try:
            status = messages.Status.from_json(await _body(request), self._served.session.chunks)
            directions = self._served.room.report(request.match_info["id"], status, time.monotonic())
        except _Refused as refused:
            return refused.response
        except messages.MessageError as error:
            return _refusal(400, str(error))
        except KeyError:
            return _refusal(404, "no such client takes part; begin again")
        return web.json_response(directions.to_json())

    async def _leave(self, request: web.Request) -> web.Response:
        end = request.query.get("end", "left")
        try:
            self._served.room.leave(request.match_info["id"], end[:80], time.monotonic())
        except KeyError:
            return _refusal(404, "no such client takes part")
        return web.json_response({})

    async def _chunk(self, request: web.Request) -> web.Response:
        text = request.match_info["number"]
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < self._served.session.chunks):
            return _refusal(404, f"there is no chunk {text!r:.20}; there are {self._served.session.chunks}")
        try:
            async with self._reading:
                data = await asyncio.to_thread(self._served.chunks.read, int(text))
        except (SourceError, OSError) as error:
            return _refusal(500, say(error))
        return web.Response(body=data, content_type="application/octet-stream")

    async def _status(self, request: web.Request) -> web.Response:
        view = self._served.view(time.monotonic())
        if view is not self._told:
            self._told, self._status_body = view, json.dumps(view.to_json()).encode()
        return web.Response(body=self._status_body, content_type="application/json", headers=_UNKEPT)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(body=PAGE, headers=HEADERS)

    async def _metrics(self, request: web.Request) -> web.Response:
        view = self._served.view(time.monotonic())
        return web.Response(body=metrics(view), headers={"Content-Type": CONTENT_TYPE})


@web.middleware
async def _refused_in_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """What aiohttp refuses by itself, such as a path that is not there, is refused as all else is."""
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(413, f"the body has more than {messages.MAX_BODY} bytes")
    except web.HTTPClientError as error:
        refusal = _refusal(error.status, error.reason)
        if "Allow" in error.headers:
            refusal.headers["Allow"] = error.headers["Allow"]
        return refusal


class _Refused(Exception):
    """A request's body cannot be had."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.response = _refusal(status, message)


async def _body(request: web.Request) -> Any:
    """What a request brings, of whatever shape.

    Raises:
        _Refused: it brings no JSON, or not in time.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return json.loads(await request.read())
    except (ValueError, web.RequestPayloadError) as error:
        raise _Refused(400, " ".join(str(error).split())) from None
    except RecursionError:
        raise _Refused(400, "the body is nested too deeply") from None
    except ConnectionError:
        raise _Refused(400, "the body ends early") from None
    except TimeoutError:
        raise _Refused(408, f"the body did not come within {BODY_TIMEOUT:g} seconds") from None


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
