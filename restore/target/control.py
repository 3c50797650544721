"""Digests of an exported disk from the target itself, over its control API: only they cross the network."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from restore.errors import RestoreError
from restore.target import Verifier
from targetmode import api

if TYPE_CHECKING:
    import aiohttp

_ATTEMPTS: Final = 5  # to get the digests of one request


class ControlLost(RestoreError):
    """The control API was there and no longer is."""


class ControlVerifier:
    """A client of one export's digests."""

    algorithm = "xxh3-128"

    def __init__(self, host: str, address: api.ControlAddress, export: str, timeout: float) -> None:
        """Prepare; `open` has to be called first."""
        self._base = f"http://{f'[{host}]' if ':' in host else host}:{address.port}"
        self._address = address
        self._export = export
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make sure that the control API is there and belongs to the server that we write to.

        Raises:
            RestoreError: it is not.
        """
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=min(self._timeout, 10.0), sock_read=self._timeout)
        self._session = aiohttp.ClientSession(timeout=limits, trust_env=False)
        try:
            async with self._session.get(self._base + api.EXPORTS) as response:
                answer = api.ExportsAnswer.from_json(await response.json())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            await self.close()
            raise RestoreError(f"the control API at {self._base} cannot be used ({_say(error)})") from None
        if answer.session != self._address.session:
            await self.close()
            raise RestoreError(f"the control API at {self._base} belongs to another server")

    async def digests(self, ranges: Sequence[tuple[int, int]]) -> AsyncIterator[str]:
        """Ask for ranges, and check that the answers are for them, in order."""
        import aiohttp

        assert self._session is not None
        body = api.DigestRequest(self.algorithm, list(ranges)).to_json()
        expected = iter(ranges)
        try:
            async with self._session.post(self._base + api.digests_path(self._export), json=body) as response:
                async for line in response.content:
                    told = api.DigestLine.from_json(json.loads(line))
                    if (told.offset, told.length) != next(expected, None):
                        raise RestoreError(f"{self._base}: a digest of another range than was asked for")
                    yield told.digest
        except (TimeoutError, ValueError) as error:
            raise RestoreError(f"{self._base}: the target's digests cannot be had: {_say(error)}") from None
        except aiohttp.ClientError as error:
            raise ControlLost(f"the control API at {self._base} is gone ({_say(error)})") from None
        if next(expected, None) is not None:
            raise RestoreError(f"{self._base}: fewer digests than were asked for")

    async def close(self) -> None:
        """Hang up."""
        if self._session is not None:
            await self._session.close()


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

    @property
    def algorithm(self) -> str:
        """That of the verifier in use."""
        return self._verifiers[-1].algorithm

    async def open(self) -> None:
        """Find the first verifier; raises what `find` raises."""
        self._verifiers.append(await self._find(False))

    async def digests(self, ranges: Sequence[tuple[int, int]]) -> AsyncIterator[str]:
        """The digests of ranges; those that were not answered are asked for again."""
        left = deque(ranges)
        for attempt in range(_ATTEMPTS):
            verifier = self._verifiers[-1]
            try:
                async for digest in verifier.digests(tuple(left)):
                    left.popleft()
                    yield digest
                return
            except ControlLost as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                await self._replace(verifier, error)

    async def close(self) -> None:
        """Leave them all."""
        for verifier in self._verifiers:
            await verifier.close()

    async def _replace(self, lost: Verifier, error: ControlLost) -> None:
        async with self._lock:
            if self._verifiers[-1] is lost:  # and no other task has been here before
                self._note(f"{error}; looking for it again")
                self._verifiers.append(await self._find(True))


def _say(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
