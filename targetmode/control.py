"""The control API's HTTP server: what is exported, digests of it, what happens, and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from targetmode import api
from targetmode.digest import Digester
from targetmode.offer import Export
from targetmode.session import Event, Session

PULSE: Final = 1.0  # seconds between messages of how much was moved, while something moves
HEARTBEAT: Final = 10.0  # seconds between signs of life on an event stream
EVENT_BACKLOG: Final = 1000  # events a slow reader may fall behind before it is hung up on
BODY_TIMEOUT: Final = 10.0  # seconds a client has to send a request's body


_log: Final = logging.getLogger(__name__)
_FAULTS_OF_CLIENTS: Final = (HttpProcessingError, web.RequestPayloadError)  # they are answered, that is enough
_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], _FAULTS_OF_CLIENTS)))


class ControlServer:
    """Serves the control API for one session."""

    def __init__(self, session: Session) -> None:
        """Prepare; `start` begins to listen."""
        self._session = session
        self._digester = Digester()
        self._collector = _SessionCollector(session)
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        app = web.Application(client_max_size=api.MAX_BODY)
        app.router.add_get(api.EXPORTS, self._exports)
        app.router.add_post(api.DIGESTS, self._digests)
        app.router.add_get(api.EVENTS, self._events)
        app.router.add_get(api.METRICS, self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, logger=_log, shutdown_timeout=1.0)

    async def start(self, sockets: Iterable[Any]) -> None:
        """Begin to answer on sockets that listen already."""
        await self._runner.setup()
        for sock in sockets:
            await web.SockSite(self._runner, sock).start()

    async def stop(self) -> None:
        """Hang up on everyone."""
        await self._runner.cleanup()
        self._digester.close()

    async def _exports(self, request: web.Request) -> web.Response:
        exports = await asyncio.to_thread(self._describe)
        answer = api.ExportsAnswer(self._session.id, self._session.name, exports)
        return web.json_response(answer.to_json())

    def _describe(self) -> list[api.ExportDescription]:
        described = []
        exports = self._session.offer.exports()
        for disk in self._session.offer.disks:
            contents = disk.contents()
            parts = {p.partition.number: p for p in contents.partitions} if contents else {}
            for export in (export for export in exports if export.disk is disk):
                if export.number is None:
                    text = str(contents) if contents else "unreadable"
                else:
                    part = parts.get(export.number)
                    text = str(part.signature) if part and part.signature else "no known file system"
                users = [c.peer for c in self._session.connected.values() if c.export == export.name]
                described.append(
                    api.ExportDescription(export.name, export.size, disk.read_only, disk.model, text, users)
                )
        return described

    async def _digests(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        export = await asyncio.to_thread(self._session.offer.find, name)
        if export is None or export.name != name:
            return _refusal(404, f"there is no export {name!r:.100}")
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                asked = api.DigestRequest.from_json(json.loads(await request.read()), export.size)
        except (ValueError, web.RequestPayloadError) as error:  # a MessageError, no JSON, no UTF-8, or no gzip
            return _refusal(400, " ".join(str(error).split()))
        except RecursionError:
            return _refusal(400, "the body is nested too deeply")
        except ConnectionError:
            return _refusal(400, "the body ends early")  # whoever asked has gone
        except TimeoutError:
            return _refusal(408, f"the body did not come within {BODY_TIMEOUT:g} seconds")
        response = web.StreamResponse(
            headers={"Content-Type": "application/jsonl", api.SESSION_HEADER: self._session.id}
        )
        await response.prepare(request)
        try:
            await self._stream_digests(response, export, asked)
        except ConnectionError:
            return response  # whoever asked has gone
        except OSError as error:
            await response.write(_line({"error": f"{name}: {error.strerror or error}"}))
        await response.write_eof()
        return response

    async def _stream_digests(self, response: web.StreamResponse, export: Export, asked: api.DigestRequest) -> None:
        lines = self._digester.digests(export.disk.fd, export.start, asked.algorithm, asked.ranges)
        try:
            async for some in lines:
                await response.write(b"".join(_line(line.to_json()) for line in some))
        finally:
            await lines.aclose()  # type: ignore[attr-defined]

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: first the clients that are there, then everything that happens, and a pulse of bytes."""
        queue: asyncio.Queue[Event] = asyncio.Queue(EVENT_BACKLOG)
        unsubscribe = self._session.subscribe(lambda event: None if queue.full() else queue.put_nowait(event))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        try:
            await response.prepare(request)
            clock = asyncio.get_running_loop().time
            told = self._pulse()
            await response.write(_sse(told))
            look, alive = clock() + PULSE, clock() + HEARTBEAT
            while not queue.full():
                event = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(look):
                        event = await queue.get()
                if event is not None:
                    await response.write(_sse(event))
                if clock() < look:
                    continue
                pulse = self._pulse()
                if pulse != told or clock() >= alive:
                    await response.write(_sse(pulse))
                    told, alive = pulse, clock() + HEARTBEAT
                look = clock() + PULSE
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            unsubscribe()
        return response

    def _pulse(self) -> Event:
        clients = []
        for client in self._session.connected.values():
            read, written = self._session.moved(client)
            clients.append({"peer": client.peer, "export": client.export, "read": read, "written": written})
        return {"event": "connections", "connections": clients}

    async def _metrics(self, request: web.Request) -> web.Response:
        self._collector.exports = await asyncio.to_thread(lambda: {e.name for e in self._session.offer.exports()})
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": "text/plain; version=0.0.4"})


class _SessionCollector(Collector):
    """What Prometheus asks for, taken from the session when it asks.

    Attributes:
        exports: the names of those there are now.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.exports: set[str] = set()

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        session = self._session
        live = GaugeMetricFamily("targetmode_connections", "Clients connected now", labels=["export"])
        counters = {
            name: CounterMetricFamily(f"targetmode_{name}", text, labels=["export"])
            for name, text in (
                ("accepted_connections", "Clients that got through the handshake"),
                ("read_bytes", "Bytes read by clients"),
                ("written_bytes", "Bytes written or zeroed by clients"),
                ("flushes", "Flushes asked for by clients that reached stable storage"),
                ("errors", "Requests that could not be carried out"),
            )
        }
        for name in sorted(self.exports | set(session.totals)):
            clients = [client for client in session.connected.values() if client.export == name]
            moved = [session.moved(client) for client in clients]
            live.add_metric([name], len(clients))
            total = session.totals.get(name)
            counters["accepted_connections"].add_metric([name], total.connections if total else 0)
            counters["read_bytes"].add_metric([name], (total.read if total else 0) + sum(m[0] for m in moved))
            counters["written_bytes"].add_metric([name], (total.written if total else 0) + sum(m[1] for m in moved))
            counters["flushes"].add_metric([name], total.flushes if total else 0)
            counters["errors"].add_metric([name], total.errors if total else 0)
        return [live, *counters.values()]


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _sse(event: Event) -> bytes:
    return f"event: {event['event']}\ndata: {json.dumps(event)}\n\n".encode()
