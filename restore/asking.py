"""Asking an HTTP API of ours, from any thread, on connections that are kept."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from typing import Final

from nbd.errors import one_line
from restore.errors import say

_CONNECT_TIMEOUT: Final = 10.0  # seconds
_MOST: Final = 1 << 20  # bytes of an answer


class Refusal(ValueError):
    """An answer that is no success; `str()` is the server's own words if it has any.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        """The answer had this status, and says `message`."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        body: of the answer.
        headers: likewise.
    """

    body: bytes
    headers: HTTPMessage


class Asker:
    """Asks one server.

    Attributes:
        base: the start of its URLs, for people.
    """

    def __init__(self, host: str, port: int, timeout: float) -> None:
        """Prepare; `timeout` is in seconds without movement."""
        self._host = host
        self._port = port
        self._timeout = timeout
        self.base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._busy: set[HTTPConnection] = set()
        self._closed = False

    def ask(self, method: str, path: str, body: bytes | None = None, most: int = _MOST) -> Answer:
        """One request, on a connection that is kept for the next.

        Args:
            method: of the request.
            path: likewise.
            body: JSON.
            most: bytes that an answer has less than.

        Raises:
            HTTPException, OSError: there is no answer.
            Refusal: it is no success.
            ValueError: it is too long.
        """
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("closed")
            fresh = not self._idle
            connection = self._idle.pop() if self._idle else HTTPConnection(self._host, self._port)
            self._busy.add(connection)
        kept = False
        try:
            if fresh:
                connection.timeout = min(self._timeout, _CONNECT_TIMEOUT)
                connection.connect()
                connection.sock.settimeout(self._timeout)
                with self._lock:
                    if self._closed:  # while there was nothing to hang up on
                        raise ConnectionAbortedError("closed")
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            answer = response.read(most)
            if len(answer) == most:
                raise ValueError("the answer is longer than it may be")
            kept = not response.will_close
            if response.status != 200:
                raise Refusal(response.status, _refusal(response.status, answer))
            return Answer(answer, response.headers)
        finally:
            with self._lock:
                self._busy.discard(connection)
                if kept and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self) -> None:
        """Hang up, also on what another thread waits for."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            for connection in self._busy:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)


def say_fault(error: BaseException) -> str:
    """What went wrong with a request, in one line; what the other side has sent may be in it."""
    return one_line(say(error)) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)


def _refusal(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"HTTP status {status}"
