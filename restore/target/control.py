"""Digests of an exported disk from the target itself, over its control API: only they cross the network."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Final

from nbd.errors import one_line
from restore.errors import RestoreError, say
from restore.target import ALGORITHM, Verifier
from targetmode import api

_ATTEMPTS: Final = 5  # to get the digests of one request
_CONNECT_TIMEOUT: Final = 10.0  # seconds
_MOST: Final = 1 << 20  # bytes of an answer


class ControlLost(RestoreError):
    """The control API was there and no longer is."""


class ControlVerifier:
    """A client of one export's digests."""

    def __init__(self, host: str, address: api.ControlAddress, export: str, timeout: float) -> None:
        """Prepare; `open` has to be called first."""
        self._host = host
        self._address = address
        self._path = api.digests_path(export)
        self._timeout = timeout
        self._base = f"http://{f'[{host}]' if ':' in host else host}:{address.port}"
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._busy: set[HTTPConnection] = set()
        self._closed = False

    async def open(self) -> None:
        """Make sure that the control API is there and belongs to the server that we write to.

        Raises:
            RestoreError: it is not.
        """
        try:
            body, _ = await asyncio.to_thread(self._ask, "GET", api.EXPORTS)
            answer = api.ExportsAnswer.from_json(json.loads(body))
        except (HTTPException, OSError, ValueError, RecursionError) as error:
            raise RestoreError(f"the control API at {self._base} cannot be used ({_say(error)})") from None
        if answer.session != self._address.session:
            raise RestoreError(f"the control API at {self._base} belongs to another server")

    async def digests(self, ranges: Sequence[tuple[int, int]]) -> list[str]:
        """Ask for ranges, and check that the answers are for them, in order."""
        body = json.dumps(api.DigestRequest(ALGORITHM, list(ranges)).to_json()).encode()
        try:
            answer, session = await asyncio.to_thread(self._ask, "POST", self._path, body)
            told = [api.DigestLine.from_json(json.loads(line)) for line in answer.splitlines()]
        except (TimeoutError, ValueError, RecursionError) as error:
            raise RestoreError(f"{self._base}: the target's digests cannot be had: {_say(error)}") from None
        except (HTTPException, OSError) as error:
            raise ControlLost(f"the control API at {self._base} is gone ({_say(error)})") from None
        if session != self._address.session:
            raise ControlLost(f"the control API at {self._base} belongs to another server now")
        if [(line.offset, line.length) for line in told] != list(ranges):
            raise RestoreError(f"{self._base}: the digests of other ranges than were asked for")
        return [line.digest for line in told]

    async def close(self) -> None:
        """Hang up, also on what another thread waits for."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            for connection in self._busy:
                if connection.sock is not None:
                    with suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, str | None]:
        """One request, on a connection that is kept for the next; the answer's body, and which session it is from.

        Raises:
            HTTPException, OSError: there is no answer.
            ValueError: it is too long, or no success.
        """
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("closed")
            fresh = not self._idle
            connection = self._idle.pop() if self._idle else HTTPConnection(self._host, self._address.port)
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
            answer = response.read(_MOST)
            if len(answer) == _MOST:
                raise ValueError("the answer is longer than it may be")
            kept = not response.will_close
            if response.status != 200:
                raise ValueError(_refusal(response.status, answer))
            return answer, response.getheader(api.SESSION_HEADER)
        finally:
            with self._lock:
                self._busy.discard(connection)
                if kept and not self._closed:
                    self._idle.append(connection)
                else:
                    connection.close()


class LastingVerifier:
    """Goes on with another verifier when the control API is lost, as when the server was started again."""

    def __init__(self, find: Callable[[bool], Awaitable[Verifier]], note: Callable[[str], None]) -> None:
        """Prepare; `open` has to be called first.

        Args:
            find: makes a verifier; True if one was lost.
            note: told in one line when that happens.
        """
        self._find = find
        self._note = note
        self._verifiers: list[Verifier] = []  # all so far; the last is in use
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Find the first verifier; raises what `find` raises."""
        self._verifiers.append(await self._find(False))

    async def digests(self, ranges: Sequence[tuple[int, int]]) -> list[str]:
        """The digests of ranges, from whoever can tell them now."""
        for _ in range(_ATTEMPTS - 1):
            verifier = self._verifiers[-1]
            try:
                return await verifier.digests(ranges)
            except ControlLost as error:
                await self._replace(verifier, error)
        return await self._verifiers[-1].digests(ranges)

    async def close(self) -> None:
        """Leave them all."""
        for verifier in self._verifiers:
            await verifier.close()

    async def _replace(self, lost: Verifier, error: ControlLost) -> None:
        async with self._lock:
            if self._verifiers[-1] is lost:  # and no other task has been here before
                self._note(f"{error}; looking for it again")
                self._verifiers.append(await self._find(True))


def _refusal(status: int, body: bytes) -> str:
    """Why a request was refused, in the server's own words if it has any."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"HTTP status {status}"


def _say(error: BaseException) -> str:
    """One line; what the other side has sent may be in it."""
    return one_line(say(error)) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
