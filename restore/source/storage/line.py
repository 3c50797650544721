"""A connection to a web server, as `http.client` wants one: what it waits for comes by a deadline, or not at all."""

from __future__ import annotations

import io
import select
import socket
import time
from contextlib import suppress
from typing import Final

_BUFFER: Final = 16 << 10  # bytes; larger reads go past the buffer


class Line:
    """A connection, made to look like a socket for `HTTPResponse`.

    Attributes:
        used: something was answered over it already.
        deadline: monotonic; nothing is waited for longer.
        body: the answer's fields are over: what fails then ends the data that came before it, and is kept here.
        failure: that.
        ended: the server has closed it.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected socket."""
        self.sock = sock
        self.used = self.body = self.ended = self.dry = False
        self.deadline = 0.0
        self.failure: Exception | None = None

    def makefile(self, mode: str) -> io.BufferedReader[_Incoming]:
        """What the next answer is read from."""
        self.body = self.dry = False
        self.reader = io.BufferedReader(_Incoming(self), _BUFFER)
        return self.reader

    def send(self, data: bytes, patience: float) -> None:
        """Send a request's head; what it waits for then has to come within so many seconds. Raises `OSError`."""
        self.deadline = time.monotonic() + patience
        self.sock.settimeout(patience)
        self.sock.sendall(data)

    def receive(self, buffer: memoryview) -> int | None:
        """Bytes as they come; None: not by the deadline."""
        left = self.deadline - time.monotonic()
        if self.dry or left <= 0:
            return None
        try:
            self.sock.settimeout(left)
            count = self.sock.recv_into(buffer)
        except TimeoutError:
            return None
        self.ended = not count
        return count

    def quiet(self) -> bool:
        """Whether the server has neither closed it nor sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def cut(self) -> None:
        """End what waits for it, in whatever thread."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        with suppress(OSError):
            self.sock.close()


class _Incoming(io.RawIOBase):
    """A line's bytes."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        line = self._line
        if line.body:
            if line.failure is not None:
                return None
            try:
                return line.receive(buffer)
            except OSError as error:
                line.failure = error
                return None
        count = line.receive(buffer)
        if count is None and not line.dry:
            raise TimeoutError("no answer")
        return count
