"""Digests of an exported disk from the target itself, over its control API: only they cross the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPException
from typing import Final

from restore.asking import Asker, say_fault
from restore.errors import RestoreError
from restore.target import ALGORITHM, Verifier
from targetmode import api

_ATTEMPTS: Final = 5  # to get the digests of one request


class ControlLost(RestoreError):
    """The control API was there and no longer is."""


class ControlVerifier:
    """A client of one export's digests."""

    def __init__(self, host: str, address: api.ControlAddress, export: str, timeout: float) -> None:
        """Prepare; `open` has to be called first."""
        self._address = address
        self._path = api.digests_path(export)
        self._asker = Asker(host, address.port, timeout)

    async def open(self) -> None:
        """Make sure that the control API is there and belongs to the server that we write to.

        Raises:
            RestoreError: it is not.
        """
        try:
            said = await asyncio.to_thread(self._asker.ask, "GET", api.EXPORTS)
            answer = api.ExportsAnswer.from_json(json.loads(said.body))
        except (HTTPException, OSError, ValueError, RecursionError) as error:
            raise RestoreError(f"the control API at {self._asker.base} cannot be used ({say_fault(error)})") from None
        if answer.session != self._address.session:
            raise RestoreError(f"the control API at {self._asker.base} belongs to another server")

    async def digests(self, ranges: Sequence[tuple[int, int]], algorithm: str = ALGORITHM) -> list[str]:
        """Ask for ranges, and check that the answers are for them, in order."""
        body = json.dumps(api.DigestRequest(algorithm, list(ranges)).to_json()).encode()
        try:
            answer = await asyncio.to_thread(self._asker.ask, "POST", self._path, body)
            told = [api.DigestLine.from_json(json.loads(line)) for line in answer.body.splitlines()]
        except (TimeoutError, ValueError, RecursionError) as error:
            raise RestoreError(f"{self._asker.base}: the target's digests cannot be had: {say_fault(error)}") from None
        except (HTTPException, OSError) as error:
            raise ControlLost(f"the control API at {self._asker.base} is gone ({say_fault(error)})") from None
        if answer.headers.get(api.SESSION_HEADER) != self._address.session:
            raise ControlLost(f"the control API at {self._asker.base} belongs to another server now")
        if [(line.offset, line.length) for line in told] != list(ranges):
            raise RestoreError(f"{self._asker.base}: the digests of other ranges than were asked for")
        return [line.digest for line in told]

    async def close(self) -> None:
        """Hang up, also on what another thread waits for."""
        self._asker.close()


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

    async def digests(self, ranges: Sequence[tuple[int, int]], algorithm: str = ALGORITHM) -> list[str]:
        """The digests of ranges, from whoever can tell them now."""
        for _ in range(_ATTEMPTS - 1):
            verifier = self._verifiers[-1]
            try:
                return await verifier.digests(ranges, algorithm)
            except ControlLost as error:
                await self._replace(verifier, error)
        return await self._verifiers[-1].digests(ranges, algorithm)

    async def close(self) -> None:
        """Leave them all."""
        for verifier in self._verifiers:
            await verifier.close()

    async def _replace(self, lost: Verifier, error: ControlLost) -> None:
        async with self._lock:
            if self._verifiers[-1] is lost:  # and no other task has been here before
                self._note(f"{error}; looking for it again")
                self._verifiers.append(await self._find(True))
