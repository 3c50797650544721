"""A control API that plays tricks: honest for a while, then whatever a test wants it to do."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias

from targetmode.api import SESSION_HEADER
from targetmode.disks.media import ALGORITHMS
from targetmode.disks.text import format_size

SESSION = "0123456789abcdef"


class Control(ThreadingHTTPServer):
    """Answers for one disk, as its one export.

    Attributes:
        disk: what it tells digests of.
        asked: requests for digests so far.
        honest: as many of them are answered as they should be; the others by `trick`.
        over: the test has ended.
    """

    daemon_threads = True

    def __init__(self, disk: Path, honest: int, trick: Trick | None, first: Trick | None, session: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.disk = disk
        self.honest = honest
        self.trick = trick
        self.first = first
        self.session = session
        self.asked = 0
        self.over = threading.Event()
        self._open: list[socket.socket] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def description(self) -> str:
        """What an export's description has to say so that `asr` comes here."""
        return f"targetmode:control={self.port} targetmode:session={SESSION}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no matter."""

    def vanish(self) -> None:
        """Listen no more, and hang up."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Answer(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Control

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002 - the name is the base class's
        """Nobody reads it."""

    def do_GET(self) -> None:
        if self.server.first is not None:
            self.server.first(self, [])
            return
        size = self.server.disk.stat().st_size
        export = {"name": "", "size": size, "read_only": False, "model": format_size(size), "contents": ""}
        answer = {"session": self.server.session, "name": "here", "exports": [{**export, "connections": []}]}
        self.answer(json.dumps(answer))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        lines = []
        with self.server.disk.open("rb") as file:
            for offset, length in asked["ranges"]:
                file.seek(offset)
                digest = ALGORITHMS[asked["algorithm"]]()
                digest.update(file.read(length))
                line = {"offset": offset, "length": length, "digest": digest.hexdigest()}
                lines.append(json.dumps(line) + "\n")
        if self.server.trick is None or self.server.asked <= self.server.honest:
            self.answer("".join(lines))
        else:
            self.server.trick(self, lines)

    def answer(
        self, body: str, status: int = 200, *, length: int | None = None, kind: str = "application/json"
    ) -> None:
        """Send an answer; one that says it is longer than it is ends the connection."""
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.send_header(SESSION_HEADER, self.server.session)
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = length is not None


Trick: TypeAlias = Callable[[Answer, list[str]], None]


@contextmanager
def control(
    disk: Path, *, honest: int = 0, trick: Trick | None = None, first: Trick | None = None, session: str = SESSION
) -> Iterator[Control]:
    """Run one until the block is left.

    Args:
        disk: what it tells digests of.
        honest: how many requests for digests are answered as they should be.
        trick: answers the others, given the honest lines.
        first: answers the request for the exports.
        session: what it says to be.
    """
    server = Control(disk, honest, trick, first, session)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.vanish()
        thread.join(10)


# --- Tricks ---


def hang_up(answer: Answer, lines: list[str]) -> None:
    answer.close_connection = True


def vanish(answer: Answer, lines: list[str]) -> None:
    answer.server.vanish()


def silence(answer: Answer, lines: list[str]) -> None:
    answer.server.over.wait(30)


def no_http(answer: Answer, lines: list[str]) -> None:
    answer.wfile.write(b"\x00\xffSSH-2.0-Something\r\n\r\n" * 10)
    answer.close_connection = True


def broken(answer: Answer, lines: list[str]) -> None:
    answer.answer("<h1>Internal Server Error</h1>", 500, kind="text/html")


def refusal(answer: Answer, lines: list[str]) -> None:
    answer.answer('{"error": "out of memory"}', 500)


def right_but_broken(answer: Answer, lines: list[str]) -> None:
    """What would be right, with a status that says it is not."""
    answer.answer("".join(lines), 500)


def no_json(answer: Answer, lines: list[str]) -> None:
    answer.answer("yes\nyes\n\n")


def deep(answer: Answer, lines: list[str]) -> None:
    answer.answer("[" * 50_000)


def odd_charset(answer: Answer, lines: list[str]) -> None:
    answer.answer("00", kind="application/json; charset=hex")


def other_json(answer: Answer, lines: list[str]) -> None:
    answer.answer('{"offset": "0", "length": null}\n' * len(lines))


def nothing(answer: Answer, lines: list[str]) -> None:
    answer.answer("")


def too_few(answer: Answer, lines: list[str]) -> None:
    answer.answer("".join(lines[:-1]))


def too_many(answer: Answer, lines: list[str]) -> None:
    answer.answer("".join([*lines, lines[-1]]))


def out_of_order(answer: Answer, lines: list[str]) -> None:
    answer.answer("".join([*lines[1:], lines[0]]) if len(lines) > 1 else lines[0].replace('"length": ', '"length": 1'))


def cut_off(answer: Answer, lines: list[str]) -> None:
    """In the middle of the last line, and the connection with it."""
    body = "".join(lines)
    answer.answer(body[:-20], length=len(body))


def cut_line(answer: Answer, lines: list[str]) -> None:
    """In the middle of the last line, as if that were all."""
    answer.answer("".join(lines)[:-20])


def endless_line(answer: Answer, lines: list[str]) -> None:
    answer.answer('{"offset": 0, "digest": "' + "0" * (4 << 20))


def elsewhere(answer: Answer, lines: list[str]) -> None:
    """Sends the client to another port, where nobody is."""
    answer.send_response(307)
    answer.send_header("Location", "http://127.0.0.1:9/v1/exports")
    answer.send_header("Content-Length", "0")
    answer.end_headers()


def of_another_server(answer: Answer, lines: list[str]) -> None:
    """What would be right, but another server has the port now."""
    answer.server.session = "another"
    answer.answer("".join(lines))


def of_another_disk(answer: Answer, lines: list[str]) -> None:
    answer.answer("".join(line.replace('"digest": "', '"digest": "0') for line in lines))
