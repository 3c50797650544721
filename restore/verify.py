"""Comparing what is on a target with the source, behind a copy that is still going on, or by itself."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

from restore.plan import UNIT, Kind, Piece, split
from restore.source import Source
from restore.target import Target, Verifier
from targetmode.disks.media import zero_digest

RANGE: Final = 8 << 20  # bytes of data of which one digest is made; where one differs, it is looked at more closely
BATCH: Final = 64  # pieces taken at once
WORKERS: Final = 2  # batches under way: while one is being compared, the target works on the next
_POLL: Final = 0.01  # seconds between two looks for pieces that have been written


class Feed:
    """Pieces on their way from a copy, which runs in threads, to a verification, which does not."""

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        """Begin with these pieces."""
        self._pieces = deque(pieces)
        self._closed = False

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Self:
        """A feed of just these pieces."""
        feed = cls(pieces)
        feed.close()
        return feed

    def put(self, piece: Piece) -> None:
        """Add a piece that is on the target now."""
        self._pieces.append(piece)

    def close(self) -> None:
        """There will be no more."""
        self._closed = True

    async def take(self) -> list[Piece]:
        """The next batch, a small one only at the end, neighbours joined; an empty list when there is nothing left."""
        while len(self._pieces) < BATCH and not self._closed:
            await asyncio.sleep(_POLL)
        return _joined([self._pieces.popleft() for _ in range(min(BATCH, len(self._pieces)))])


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same bytes in order, data of up to `RANGE` bytes as one piece."""
    joined: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.kind is piece.kind is Kind.DATA
            and last.offset + last.length == piece.offset
            and last.length + piece.length <= RANGE
        ):
            joined[-1] = Piece(last.offset, last.length + piece.length, Kind.DATA)
        else:
            joined.append(piece)
    return joined


class Verification:
    """Compares pieces by their digests; the source's are made here, the target's by the target.

    An asynchronous context manager. The target is asked how it can be verified when there is something to compare, so
    that a copy need not wait for that.
    """

    def __init__(
        self, source: Source, target: Target, advance: Callable[[int], None], note: Callable[[str], None]
    ) -> None:
        """Compare.

        Args:
            source: what is right.
            target: tells what is there.
            advance: told of bytes compared.
            note: told in one line when the target does not verify itself.
        """
        self._source = source
        self._target = target
        self._advance = advance
        self._note = note
        self._verifier: Verifier | None = None
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="digest")

    async def compare(self, feed: Feed) -> list[Piece]:
        """Compare all that a feed brings; the pieces that differ, each at most `UNIT` long.

        Raises:
            RestoreError, NBDError, OSError: the target's or the source's digests cannot be had; in an exception group.
        """
        if self._verifier is None:
            self._verifier = await self._target.verifier(self._note)
        different: list[Piece] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(self._verifier, feed, different))
        return await self._narrow(self._verifier, different)

    async def __aenter__(self) -> Self:
        """Nothing to do yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the threads, hang up."""
        self._pool.shutdown(cancel_futures=True)
        if self._verifier is not None:
            await self._verifier.close()

    async def _work(self, verifier: Verifier, feed: Feed, different: list[Piece]) -> None:
        while batch := await feed.take():
            different += await self._compare(verifier, batch)

    async def _compare(self, verifier: Verifier, batch: Sequence[Piece]) -> list[Piece]:
        loop = asyncio.get_running_loop()
        ours = loop.run_in_executor(self._pool, self._digests, verifier.algorithm, batch)
        theirs: list[str] = []
        try:
            async for digest in verifier.digests([(piece.offset, piece.length) for piece in batch]):
                self._advance(batch[len(theirs)].length)
                theirs.append(digest)
        finally:
            expected = await ours
        return [piece for piece, have, want in zip(batch, theirs, expected, strict=True) if have != want]

    def _digests(self, algorithm: str, batch: Sequence[Piece]) -> list[str]:
        return [
            self._source.digest(algorithm, piece.offset, piece.length)
            if piece.kind is Kind.DATA
            else zero_digest(algorithm, piece.length)
            for piece in batch
        ]

    async def _narrow(self, verifier: Verifier, different: Sequence[Piece]) -> list[Piece]:
        """Say more exactly, to the `UNIT` that it lies in, what differs."""
        exact: list[Piece] = []
        for piece in different:
            parts = list(split(piece.offset, piece.offset + piece.length, UNIT, piece.kind))
            exact += parts if len(parts) == 1 else await self._compare(verifier, parts)
        return exact
