"""Comparing what is on a target with the source, behind a copy that is still going on, or by itself."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

from restore.blocks.plan import UNIT, Kind, Piece, split
from restore.source import Payload, Source
from restore.source.payload import add_to
from restore.target import ALGORITHM, Target, Verifier
from targetmode.disks.media import ALGORITHMS, zero_digest

RANGE: Final = 16 << 20  # bytes of data of which one digest is made; where one differs, it is looked at more closely
BATCH: Final = 64  # most ranges asked for at once
BATCH_BYTES: Final = 64 << 20  # the same in bytes of data; each batch takes the interpreter away from the copy
WORKERS: Final = 2  # batches under way: while one is being compared, the target works on the next
_MOST_AT_ONCE: Final = 1024  # ranges in one request
_PATIENCE: Final = 0.1  # seconds that a batch is waited for to become a full one


@dataclass(frozen=True, slots=True)
class Expected:
    """A piece that is on the target now, up to `RANGE` bytes of data or zeroes, and the digest that it has to have."""

    piece: Piece
    digest: str

    @property
    def data(self) -> int:
        """Bytes of data."""
        return self.piece.length if self.piece.kind is Kind.DATA else 0


class Feed:
    """What is to be compared, on its way from the threads of a copy to a verification."""

    def __init__(self) -> None:
        """An empty one, for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._lock = threading.Lock()
        self._items: deque[Expected] = deque()
        self._data = 0  # bytes, of all items
        self._closed = False

    def put(self, item: Expected) -> None:
        """Add one; from any thread."""
        with self._lock:
            self._items.append(item)
            self._data += item.data
        self._loop.call_soon_threadsafe(self._changed.set)

    def close(self) -> None:
        """There will be no more; from any thread."""
        self._closed = True
        self._loop.call_soon_threadsafe(self._changed.set)

    @property
    def exhausted(self) -> bool:
        """Whether everything was taken and nothing will come."""
        return self._closed and not self._items

    async def take(self) -> list[Expected]:
        """A batch, a small one only if no more comes soon; an empty list when there is nothing left."""
        batch: list[Expected] = []
        closed = False
        while not batch and not closed:  # another task may have taken all that this one has been waiting for
            await self._until(lambda: bool(self._items))
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._until(lambda: len(self._items) >= BATCH or self._data >= BATCH_BYTES)
            closed = self._closed
            data = 0
            with self._lock:
                while self._items and len(batch) < BATCH and data < BATCH_BYTES:
                    batch.append(self._items.popleft())
                    data += batch[-1].data
                self._data -= data
        return batch

    async def _until(self, satisfied: Callable[[], bool]) -> None:
        while not (satisfied() or self._closed):
            self._changed.clear()
            if not (satisfied() or self._closed):  # nor between the last look and `clear`
                await self._changed.wait()


@dataclass(slots=True)
class _Run:
    """Neighbouring pieces of data that get one digest."""

    offset: int
    length: int = 0
    digest: Any = field(default_factory=ALGORITHMS[ALGORITHM])
    unanswered: int = 0  # pieces that are not on the target yet
    complete: bool = False  # there will be no more pieces


class Hasher:
    """Hashes the pieces of an image just before they are sent, and feeds what is on the target to a verification.

    Just before, since then the kernel sends bytes that are in the processor's cache.
    """

    def __init__(self, name: str, feed: Feed) -> None:
        """Hash pieces of the image called `name`."""
        self._name = name
        self._feed = feed
        self._lock = threading.Lock()
        self._run = _Run(0)
        self._runs: dict[int, _Run] = {}  # of every piece that is not on the target yet, by its offset

    def sending(self, piece: Piece, payload: Payload | None) -> None:
        """A piece is about to be sent, with its payload if it is of data; by one thread at a time.

        Raises:
            OSError: the source failed.
        """
        run = self._run
        if piece.kind is not Kind.DATA or piece.offset != run.offset + run.length:
            self._complete(run)
            run = self._run = _Run(piece.offset)
        if payload is not None:
            add_to(run.digest, payload, piece.length, self._name)
            with self._lock:
                run.length += piece.length
                run.unanswered += 1
                self._runs[piece.offset] = run
            if run.length + UNIT > RANGE:
                self._complete(run)
                self._run = _Run(piece.offset + piece.length)

    def written(self, piece: Piece) -> None:
        """A piece is on the target now; from any thread."""
        if piece.kind is not Kind.DATA:
            self._feed.put(expected(piece, None, self._name))
            return
        with self._lock:
            run = self._runs.pop(piece.offset)
            run.unanswered -= 1
            self._put(run)

    def close(self) -> None:
        """There will be no more pieces."""
        self._complete(self._run)
        self._feed.close()

    def _complete(self, run: _Run) -> None:
        with self._lock:
            run.complete = True
            self._put(run)

    def _put(self, run: _Run) -> None:
        if run.complete and run.length and not run.unanswered:
            self._feed.put(Expected(Piece(run.offset, run.length, Kind.DATA), str(run.digest.hexdigest())))


class Verification:
    """Compares pieces by their digests; the source's come with them, the target's are made by the target.

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
        self._finding = asyncio.Lock()

    async def compare(self, feed: Feed) -> list[Piece]:
        """Compare all that a feed brings; the pieces that differ, each at most `UNIT` long.

        Raises:
            RestoreError, NBDError, OSError: the target's or the source's digests cannot be had; in an exception group.
        """
        verifier = await self._ready()
        different: list[Piece] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(verifier, feed, different))
        if not feed.exhausted:
            raise AssertionError("the comparison ended before the copy")
        return different

    async def compare_all(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Compare pieces that nobody is writing; as `compare`."""
        feed = Feed()
        hasher = Hasher(self._source.name, feed)
        stopping = threading.Event()

        def hash_all() -> None:
            for piece in pieces:
                if stopping.is_set():
                    return
                hasher.sending(piece, payload_of(piece, self._source))
                hasher.written(piece)
            hasher.close()

        hashing = asyncio.create_task(asyncio.to_thread(hash_all))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_result(hashing))
                comparing = group.create_task(self.compare(feed))
        finally:
            stopping.set()
            await asyncio.wait([hashing])  # it uses the source
        return comparing.result()

    async def compare_again(self, items: Iterable[Expected]) -> list[Piece]:
        """Compare what is known to be expected; as `compare`."""
        feed = Feed()
        for item in items:
            feed.put(item)
        feed.close()
        return await self.compare(feed)

    async def digests(self, ranges: Sequence[tuple[int, int]], algorithm: str = ALGORITHM) -> list[str]:
        """The digests of what the target has in ranges of (offset, length); see `Verifier.digests`.

        Raises:
            RestoreError, NBDError, OSError: they cannot be had.
        """
        verifier = await self._ready()
        found: list[str] = []
        for start in range(0, len(ranges), _MOST_AT_ONCE):
            found += await verifier.digests(ranges[start : start + _MOST_AT_ONCE], algorithm)
        return found

    async def __aenter__(self) -> Self:
        """Nothing to do yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up."""
        if self._verifier is not None:
            await self._verifier.close()

    async def _ready(self) -> Verifier:
        async with self._finding:
            if self._verifier is None:
                self._verifier = await self._target.verifier(self._note)
            return self._verifier

    async def _work(self, verifier: Verifier, feed: Feed, different: list[Piece]) -> None:
        while batch := await feed.take():
            for piece in await self._compare(verifier, batch):
                different += await self._narrow(verifier, piece)
            self._advance(sum(item.piece.length for item in batch))

    async def _compare(self, verifier: Verifier, batch: Sequence[Expected]) -> list[Piece]:
        digests = await verifier.digests([(item.piece.offset, item.piece.length) for item in batch])
        return [item.piece for item, digest in zip(batch, digests, strict=True) if digest != item.digest]

    async def _narrow(self, verifier: Verifier, piece: Piece) -> list[Piece]:
        """Say more exactly, to the `UNIT` that it lies in, what differs."""
        parts = list(split(piece.offset, piece.offset + piece.length, UNIT, piece.kind))
        if len(parts) == 1:
            return parts
        items = await asyncio.to_thread(lambda: [self._expected(part) for part in parts])
        return await self._compare(verifier, items)

    def _expected(self, piece: Piece) -> Expected:
        return expected(piece, payload_of(piece, self._source), self._source.name)


def payload_of(piece: Piece, source: Source) -> Payload | None:
    """What a piece of data is written from; None for zeroes. Raises as `Source.payload`."""
    return source.payload(piece.offset, piece.length) if piece.kind is Kind.DATA else None


def expected(piece: Piece, payload: Payload | None, name: str) -> Expected:
    """What has to be found on the target where a piece was written; raises as `add_to`."""
    if payload is None:
        return Expected(piece, zero_digest(ALGORITHM, piece.length))
    digest = ALGORITHMS[ALGORITHM]()
    add_to(digest, payload, piece.length, name)
    return Expected(piece, str(digest.hexdigest()))


async def _result(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)
