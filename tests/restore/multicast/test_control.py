"""The control API from outside, on loopback: status, page, metrics, and requests that are refused.

Debian packages: chromium.
"""

from __future__ import annotations

import asyncio
import html
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from restore.multicast.carousel import Carousel
from restore.multicast.chunkset import ChunkSet
from restore.multicast.client.server import Address, Server, ServerGone
from restore.multicast.layout import Lengths
from restore.multicast.pacing import Pace, Regulator
from restore.multicast.packet import HEADER_SIZE
from restore.multicast.server.chunks import ChunkReader
from restore.multicast.server.control import ControlServer, Served
from restore.multicast.server.room import Room
from restore.multicast.server.sending import Sender
from restore.multicast.server.watch import FRESH, Watch
from restore.multicast.session import CLIENTS, MAX_BODY, Join, Session
from restore.multicast.sockets import BatchSender
from restore.source import SourceSettings
from restore.source.detect import open_image
from targetmode.listening import listen_tcp
from tests.restore.multicast.images import SEGMENT, image, layout

COUNT = 4
HOSTILE = "<script>document.title='taken'</script>"
MOST = 3


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[tuple[Served, Watch]]:
    """One that nobody has started yet."""
    data = image(COUNT)
    path = tmp_path / "lab.img"
    path.write_bytes(data)
    chunks = layout(data)
    session = Session(7, "lab.img", len(data), COUNT, "0" * 64, "239.192.1.2", 7800, SEGMENT)
    room = Room(Carousel(COUNT), Regulator(None), most=MOST)
    with closing(open_image(str(path), SourceSettings(format="raw")).source) as source:
        reader = ChunkReader(source, chunks)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sender = Sender(room, reader, session.id, SEGMENT, BatchSender(sock, HEADER_SIZE + SEGMENT), Pace(None))
            watch = Watch(session, room, sender, Lengths(chunks))
            yield Served(session, b"<bmap/>", None, reader, room, watch.view), watch


@pytest.fixture
def port(stream: tuple[Served, Watch]) -> Iterator[int]:
    """That of its control API."""
    with listening(stream[0]) as number:
        yield number


@contextmanager
def listening(served: Served) -> Iterator[int]:
    ready, ports = threading.Event(), []
    ending: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        server, end = ControlServer(served), asyncio.Event()
        sockets = listen_tcp("127.0.0.1", 0)
        ports.append(sockets[0].getsockname()[1])
        await server.start(sockets)
        ending.append((asyncio.get_running_loop(), end))
        ready.set()
        await end.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield ports[0]
    finally:
        for loop, end in ending:
            loop.call_soon_threadsafe(end.set)
        thread.join(10)


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()


@contextmanager
def joined(port: int, *names: str) -> Iterator[Server]:
    server = Server(Address("127.0.0.1", port), 10)
    try:
        for name in names:
            server.join(Join(name, [f"/dev/{name}"], ChunkSet.full(COUNT)))
        yield server
    finally:
        server.close()


def test_status(port: int) -> None:
    with joined(port, HOSTILE, "bench-7"):
        status, headers, body = ask(port, "/v1/status")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    found = json.loads(body)
    assert (found["image"], found["clients"], found["states"]) == ("lab.img", 2, {"waiting": 2})
    assert [row["name"] for row in found["rows"]] == [HOSTILE, "bench-7"]
    assert found["rows"][1] | {"id": ""} == {
        "id": "", "name": "bench-7", "address": "127.0.0.1", "targets": ["/dev/bench-7"], "here": True,
        "state": "waiting", "straggler": False, "received": 0.0, "written": 0.0, "verified": 0.0, "rate": 0,
        "loss": 0.0, "left": None, "seconds": 0,
    }  # fmt: skip
    assert found["summary"] == "2 clients (2 waiting); received 0 % at least, 0 % median"


def test_many_who_look_see_one_view(stream: tuple[Served, Watch]) -> None:
    served, watch = stream
    seen = watch.view(100.0)
    served.room.join(Join("a", ["/dev/sda"], ChunkSet.full(COUNT)), "10.0.0.1", 100.0)
    assert watch.view(100.0 + FRESH / 2) is seen
    assert watch.view(100.0 + FRESH / 2, fresh=True).clients == 1
    served.room.join(Join("b", ["/dev/sda"], ChunkSet.full(COUNT)), "10.0.0.1", 100.0)
    assert watch.view(110.0).clients == 2


def test_metrics(port: int) -> None:
    with joined(port, HOSTILE):
        status, headers, body = ask(port, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["asr_client_rate_bytes"].samples[0].labels["client"] == HOSTILE
    assert {sample.labels["state"]: sample.value for sample in families["asr_clients"].samples}["waiting"] == 1


def test_the_page_is_all_there_and_may_load_nothing_else(port: int) -> None:
    with joined(port, HOSTILE):
        status, headers, body = ask(port, "/")
    text = body.decode()
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(r"(?i)https?:|\bsrc=|href=|@import|url\(|innerHTML|document\.write|\son[a-z]+=", text)
    assert HOSTILE not in text
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy["style-src"])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_table(port: int, tmp_path: Path) -> None:
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2500", "--dump-dom", f"http://127.0.0.1:{port}/",
    ]  # fmt: skip
    with joined(port, HOSTILE, "bench-7"):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "<title>lab.img - asr server</title>" in done.stdout
    rows = re.findall(r"<tr class=\"([^\"]*)\">(.*?)</tr>", done.stdout)
    assert [kind for kind, _ in rows] == ["waiting", "waiting"]
    cells = [[html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in row.split("</td>")] for _, row in rows]
    assert cells[0][0] == HOSTILE
    assert cells[1] == ["bench-7", "127.0.0.1", "/dev/bench-7", "waiting", *[" 0 %"] * 3, "0 bytes/s", "0.0 %", "", ""]
    assert "2 clients (2 waiting); received 0 % at least, 0 % median" in done.stdout


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/nothing", 404, "Not Found"),
        ("PUT", "/v1/session", 405, "Method Not Allowed"),
        ("POST", "/", 405, "Method Not Allowed"),
        ("GET", "/v1/chunks/4", 404, "there is no chunk '4'; there are 4"),
    ],
)
def test_refusals_are_json(port: int, method: str, path: str, status: int, message: str) -> None:
    found, headers, body = ask(port, path, method)
    assert (found, json.loads(body)) == (status, {"error": message})
    assert headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("path", [CLIENTS, f"{CLIENTS}/0123456789abcdef"])
def test_a_body_that_is_too_long(port: int, path: str) -> None:
    status, headers, body = ask(port, path, "POST", b" " * (MAX_BODY + 1))
    assert (status, json.loads(body)) == (413, {"error": f"the body has more than {MAX_BODY} bytes"})
    assert headers["Content-Type"].startswith("application/json")
    assert ask(port, "/v1/session")[0] == 200


def test_one_client_more_than_there_may_be(port: int) -> None:
    join = Join("late", ["/dev/sda"], ChunkSet.full(COUNT))
    with joined(port, "a", "b") as server:
        first = server.join(join).client
        with pytest.raises(ServerGone) as caught:
            server.join(join)
        assert str(caught.value) == (
            f"http://127.0.0.1:{port}: 3 clients take part, and no more may: try again when one of them has ended"
        )
        assert ask(port, CLIENTS, "POST", json.dumps(join.to_json()).encode())[0] == 503
        server.leave(first, "left")
        assert server.join(join).client
