"""Making a scan of an image: which of its blocks are to be copied, and their digests, on all cores.

What is mapped: where the used blocks of its file systems are known, just those, holes that are in use included, since
who copies by a block map leaves what is not mapped as it was. Else all but the holes. What a stream decodes to zeroes
is no hole; nobody knows whether it is in use.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from blake3 import blake3

from nbd.backend import Extent
from restore.errors import RestoreError
from restore.manifest import signature
from restore.manifest.beside import bmap_path
from restore.manifest.bmap import BLOCK, UNIT, Bmap, ImageFile, write
from restore.replacing import check_replaceable
from restore.report import Report
from restore.source import Payload, Source
from restore.source.payload import add_to
from targetmode.disks.text import format_size

PHASE: Final = "Block checksum:"
GRAIN: Final = 64 << 10  # a gap between two mapped runs that is smaller is mapped too: `plan.GRAIN`
_PIECE: Final = 256 << 10  # read and hashed at a time, so that both digests find it in the processor's cache
_AHEAD: Final = 4  # ranges of 1 MiB under way, for each thread

Digests = tuple[bytes, bytes]
"""SHA-256 and BLAKE3."""


@dataclass(frozen=True, slots=True)
class ScanSettings:
    """How a scan is to be done.

    Attributes:
        sign: path of an SSH key to sign it with; None leaves it unsigned.
        threads: None is one for each processor.
    """

    sign: str | None = None
    threads: int | None = None


async def imagescan(
    source: Source, path: str | Path, used: Iterable[Extent] | None, settings: ScanSettings, report: Report
) -> Bmap:
    """Scan an image, write `IMAGE.bmap` beside it, and tell that this was the end; else as `scan_beside`."""
    started = time.monotonic()
    bmap = await scan_beside(source, path, used, settings, report)
    seconds = time.monotonic() - started
    report.finished(
        f'asr: successfully scanned image "{path}"', size=bmap.image_size, mapped=bmap.mapped, seconds=round(seconds, 3)
    )
    return bmap


async def scan_beside(
    source: Source,
    path: str | Path,
    used: Iterable[Extent] | None,
    settings: ScanSettings,
    report: Report,
    phase: str = PHASE,
) -> Bmap:
    """Scan an image and write `IMAGE.bmap` beside it.

    Args:
        source: the image, open.
        path: of its file.
        used: the runs of used blocks from its first byte on, those not used as holes; None where that is not known.
        settings: how.
        report: told as it goes.
        phase: what its progress is told as.

    Raises:
        RestoreError: the source failed or was changed meanwhile, or what was found cannot be written.
        OSError: likewise.
    """
    status = Path(path).stat()
    await asyncio.to_thread(check_replaceable, bmap_path(path))
    stopping = threading.Event()

    def advance(done: int, total: int) -> None:
        if stopping.is_set():
            raise RestoreError("interrupted; there is no scan")
        report.progress(phase, done, total)

    work = asyncio.create_task(asyncio.to_thread(scan, source, used, advance, threads=settings.threads))
    try:
        bmap = await asyncio.shield(work)
    except asyncio.CancelledError:
        stopping.set()
        await asyncio.wait([work])
        work.exception()  # it does not matter any more
        raise
    source.check_unchanged()
    bmap.image_file = ImageFile(status.st_size, status.st_mtime_ns)
    where = bmap_path(path)
    await asyncio.to_thread(signature.drop, where)  # before it is one of another scan
    await asyncio.to_thread(write, bmap, where)
    report.progress(phase, bmap.image_size, bmap.image_size)
    if settings.sign is not None:
        await asyncio.to_thread(signature.sign, where, settings.sign)
        report.note(f"signed: {signature.signature_path(where)}")
    report.note(f"{format_size(bmap.mapped)} of {format_size(bmap.image_size)} are mapped, in {len(bmap)} ranges")
    return bmap


def scan(
    source: Source,
    used: Iterable[Extent] | None,
    advance: Callable[[int, int], None],
    *,
    threads: int | None = None,
) -> Bmap:
    """Read an image once and make its block map.

    Args:
        source: the image.
        used: as for `imagescan`.
        advance: told how far it has come, and how far it goes; what it raises ends the scan.
        threads: None is one for each processor.

    Raises:
        SourceError, OSError: the source failed.
    """
    bmap = Bmap(1)
    with Hashing(source.name, threads) as hashing:
        for start, end, zero in ranges(mapped_runs(source, used)):
            length = min(end, source.least_size) - start
            data = None if zero else source.payload(start, length)
            for job in hashing.add(start, length, data):
                _append(bmap, job)
                advance(start, source.expected_size)
        for job in hashing.rest():
            _append(bmap, job)
    if source.size is None:
        raise AssertionError("a source's size is known when it has been read")
    bmap.image_size = source.size
    return bmap


@dataclass(slots=True)
class Job:
    """A range that is being hashed."""

    start: int
    length: int
    digests: Future[Digests]


def _append(bmap: Bmap, job: Job) -> None:
    checksum, digest = job.digests.result()
    bmap.append(job.start // BLOCK, (job.start + job.length - 1) // BLOCK, checksum, digest)


class Both:
    """SHA-256 and BLAKE3 of the same bytes."""

    def __init__(self) -> None:
        """Of none so far."""
        self._checksum, self._blake3 = hashlib.sha256(), blake3()

    def update(self, data: memoryview) -> None:
        """Add some, in pieces that the second digest still finds in the processor's cache."""
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self._checksum.update(piece)
            self._blake3.update(piece)

    def digests(self) -> Digests:
        """Of all."""
        return self._checksum.digest(), self._blake3.digest()


class Hashing:
    """Ranges hashed in threads, in order, few of them at a time."""

    def __init__(self, name: str, threads: int | None = None) -> None:
        """Use so many threads, None being one for each processor; `name` is the image's, for errors."""
        self._name = name
        threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="scan")
        self._most = _AHEAD * threads
        self._jobs: deque[Job] = deque()

    def add(self, start: int, length: int, data: Payload | None) -> Iterator[Job]:
        """Hash a range, None being zeroes; those that have to be taken before there is room for more."""
        self._jobs.append(Job(start, length, self._pool.submit(_hash, data, length, self._name)))
        while len(self._jobs) > self._most:
            yield self._jobs.popleft()

    def rest(self) -> Iterator[Job]:
        """Those that have not been taken."""
        while self._jobs:
            yield self._jobs.popleft()

    def __enter__(self) -> Hashing:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads, whatever they do."""
        self._pool.shutdown(cancel_futures=True)


def _hash(data: Payload | None, length: int, name: str) -> Digests:
    if data is None:
        return zero_digests(length)
    both = Both()
    add_to(both, data, length, name)
    return both.digests()


@lru_cache(maxsize=512)
def zero_digests(length: int) -> Digests:
    """SHA-256 and BLAKE3 of so many zeroes, at most 1 MiB."""
    zeroes = bytes(length)
    return hashlib.sha256(zeroes).digest(), blake3(zeroes).digest()


def mapped_runs(source: Source, used: Iterable[Extent] | None) -> Iterator[tuple[int, int, bool]]:
    """The runs of an image that are mapped, in order, as (start, end, is it zeroes); `used` is as for `imagescan`."""
    position = 0
    for length, mapped, zero in _kinds(source, used):
        if mapped:
            yield position, position + length, zero
        position += length


def _kinds(source: Source, used: Iterable[Extent] | None) -> Iterator[tuple[int, bool, bool]]:
    """Runs of the image as (length, is it mapped, is it zeroes)."""
    if used is None:
        for extent in source.extents():
            yield extent.length, not extent.hole or source.sequential, extent.zero
        return
    runs = iter(used)
    left, in_use = 0, False
    for extent in source.extents():
        length = extent.length
        while length:
            if not left:
                run = next(runs, None)  # what lies behind the last one may be anything but a hole
                left, in_use = (length, not extent.hole) if run is None else (run.length, not run.hole)
                continue
            count = min(length, left)
            yield count, in_use, extent.zero
            length, left = length - count, left - count


def ranges(runs: Iterable[tuple[int, int, bool]], grain: int = GRAIN) -> Iterator[tuple[int, int, bool]]:
    """Mapped runs as ranges of whole blocks, cut at each MiB, each as soon as it cannot grow any more.

    Args:
        runs: (start, end, is it zeroes), in order, not overlapping.
        grain: a gap smaller than this is mapped too.

    Yields:
        The same; the last end may lie beyond the image's.
    """
    start = end = 0
    zero = True
    for first, last, run_zero in _blocks(runs):
        if start == end:
            start, zero = first, run_zero
        elif first // UNIT == start // UNIT and (first == end or first - end < grain):
            zero = zero and run_zero and first == end
        else:
            yield start, end, zero
            start, zero = first, run_zero
        end = last
        while (stop := (start // UNIT + 1) * UNIT) <= end:
            yield start, stop, zero
            start, zero = stop, run_zero
    if start < end:
        yield start, end, zero


def _blocks(runs: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """The same runs widened to whole blocks; those that are only partly zeroes are not."""
    position = 0
    for start, end, zero in runs:
        first, last = max(start // BLOCK * BLOCK, position), -(-end // BLOCK) * BLOCK
        inner, outer = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
        parts = [(first, inner, False), (inner, outer, True), (outer, last, False)] if zero and inner < outer else []
        for part in parts or [(first, last, False)]:
            if part[0] < part[1]:
                yield part
        position = max(position, last)
