"""Sending only what the target does not have: it is asked for its digests first, and so is its own seed.

    runs of 4 MiB ──differs──▶ pieces of 1 MiB ──differs──▶ parts of 64 KiB ──differs──▶ sent

A restore that was cut goes on in the same way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Final

from nbd.connection import FileRange
from restore.blocks.plan import GRAIN, Kind, Piece, split
from restore.blocks.verify import Verification
from restore.source import Described, Payload
from restore.source.payload import add_to
from restore.target import ALGORITHM
from targetmode.disks.media import ALGORITHMS, zero_digest

UNDER_WAY: Final = 4  # batches that the target is asked about, beside the one that is being sent
RUN: Final = 4 << 20  # bytes that are asked about first
BATCH_HELD: Final = 32 << 20  # bytes in a batch that are in memory meanwhile
BATCH_ALL: Final = 256 << 20  # bytes in a batch; each costs the target a few questions
_DESCRIBED: Final = 64  # pieces asked about at once, where what they have to be is known
_MANY: Final = 0.5  # of the things in a batch differ: next time it does not pay to ask about larger or smaller ones

Item = tuple[Piece, Payload | None]
Group = list[Item]  # neighbours that get one digest


class Delta:
    """Lets through what differs on the target. For one pass over an image, by one thread at a time."""

    def __init__(self, name: str, check: Verification, same: Callable[[Piece], None]) -> None:
        """Made within the event loop that `check` belongs to, and used from another thread.

        Args:
            name: the image's, for errors.
            check: asks the target.
            same: told of each piece that is on the target already; from any thread.
        """
        self._name = name
        self._check = check
        self._same = same
        self._loop = asyncio.get_running_loop()
        self._by_runs = True
        self._by_parts = True

    def filter(self, items: Iterable[Item]) -> Iterator[Item]:
        """What differs of pieces and their payloads, in order, some of it as smaller pieces.

        Raises:
            RestoreError, NBDError, OSError: digests cannot be had; also what `items` raises.
        """
        asked: deque[Future[list[Group]]] = deque()
        try:
            for batch in _batches(items):
                asked.append(asyncio.run_coroutine_threadsafe(self._judge(batch), self._loop))
                if len(asked) > UNDER_WAY:
                    yield from _members(asked.popleft().result())
            while asked:
                yield from _members(asked.popleft().result())
        finally:
            for future in asked:
                future.cancel()

    def unknown(self, pieces: Iterable[Piece], source: Described) -> Iterator[Piece]:
        """Those pieces that the target does not have, as far as that can be told without reading the image.

        Raises:
            RestoreError, NBDError, OSError: digests cannot be had; also what `pieces` raises.
        """
        asked: deque[Future[list[Piece]]] = deque()
        rest = iter(pieces)
        try:
            while batch := list(islice(rest, _DESCRIBED)):
                asked.append(asyncio.run_coroutine_threadsafe(self._unlike(batch, source), self._loop))
                if len(asked) > UNDER_WAY:
                    yield from asked.popleft().result()
            while asked:
                yield from asked.popleft().result()
        finally:
            for future in asked:
                future.cancel()

    async def _unlike(self, pieces: list[Piece], source: Described) -> list[Piece]:
        parts = {piece: source.described(piece.offset, piece.length) for piece in pieces if piece.kind is Kind.DATA}
        known = [part for found in parts.values() if found is not None for part in found]
        there = await self._check.digests([(part.offset, part.length) for part in known], "blake3")
        right = {part for part, digest in zip(known, there, strict=True) if digest == part.blake3}
        left = []
        for piece in pieces:
            found = parts.get(piece)
            if found is not None and right.issuperset(found):
                self._same(piece)
            else:
                left.append(piece)
        return left

    async def _judge(self, batch: Group) -> list[Group]:
        """The parts of a batch that differ, each a group of its own."""
        groups = [[item] for item in batch]
        if self._by_runs:
            groups = [[item] for item in _members(await self._differing(list(_runs(batch))))]
        if groups:
            differing = await self._differing(groups)
            self._by_runs = len(differing) < _MANY * len(batch)
            self._by_parts = self._by_parts or self._by_runs
            groups = differing
        if groups and self._by_parts:
            parts = [[part] for (item,) in groups for part in _parts(item)]
            groups = await self._differing(parts)
            self._by_parts = len(groups) < _MANY * len(parts)
        return groups

    async def _differing(self, groups: list[Group]) -> list[Group]:
        """Those that the target does not have; both sides are hashed at the same time."""
        ranges = [(group[0][0].offset, sum(piece.length for piece, _ in group)) for group in groups]
        hashing = asyncio.to_thread(lambda: [self._digest(group) for group in groups])
        ours, theirs = await asyncio.gather(hashing, self._check.digests(ranges), return_exceptions=True)
        if isinstance(ours, BaseException):
            raise ours
        if isinstance(theirs, BaseException):
            raise theirs
        found = []
        for group, right, there in zip(groups, ours, theirs, strict=True):
            if there != right:
                found.append(group)
            else:
                for piece, _ in group:
                    self._same(piece)
        return found

    def _digest(self, group: Group) -> str:
        first = group[0][0]
        if first.kind is not Kind.DATA:
            return zero_digest(ALGORITHM, first.length)
        digest = ALGORITHMS[ALGORITHM]()
        for piece, payload in group:
            assert payload is not None
            add_to(digest, payload, piece.length, self._name)
        return str(digest.hexdigest())


def _members(groups: Iterable[Group]) -> Iterator[Item]:
    for group in groups:
        yield from group


def _batches(items: Iterable[Item]) -> Iterator[Group]:
    batch: Group = []
    held = whole = 0
    for piece, payload in items:
        batch.append((piece, payload))
        held += 0 if payload is None or isinstance(payload, FileRange) else piece.length
        whole += piece.length
        if held >= BATCH_HELD or whole >= BATCH_ALL:
            yield batch
            batch, held, whole = [], 0, 0
    if batch:
        yield batch


def _runs(items: Iterable[Item]) -> Iterator[Group]:
    """Neighbouring pieces of data together, up to `RUN`; zeroes by themselves."""
    run: Group = []
    for item in items:
        piece = item[0]
        if run:
            first, last = run[0][0], run[-1][0]
            joins = piece.kind is last.kind is Kind.DATA and last.offset + last.length == piece.offset
            if not joins or piece.offset + piece.length - first.offset > RUN:
                yield run
                run = []
        run.append(item)
    if run:
        yield run


def _parts(item: Item) -> Iterator[Item]:
    """A piece of data as small ones; zeroes as they are, since they cost nothing to send."""
    piece, payload = item
    if payload is None:
        yield item
        return
    for part in split(piece.offset, piece.offset + piece.length, GRAIN, piece.kind):
        at = part.offset - piece.offset
        if isinstance(payload, FileRange):
            yield part, FileRange(payload.fd, payload.offset + at)
        else:
            yield part, payload[at : at + part.length]
