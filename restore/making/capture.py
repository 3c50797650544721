"""`asr capture`: a disk, a partition or an export becomes a prepared image, in one reading.

    mapped ranges ──▶ threads: read (a bad sector is tried again, then zeroes), hash, write ──▶ IMAGE, IMAGE.bmap
                                                                                    └──────────▶ IMAGE.map, if need be

The image has a temporary name until it is whole.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import stat
import tempfile
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from nbd.backend import Extent, measure
from nbd.connection import FileRange
from nbd.errors import ConnectionLost, NBDError, RequestFailed
from restore.errors import Refused, RestoreError, join, say
from restore.making.sinks import RawSink, Sink, ZstdSink
from restore.manifest import damage, signature
from restore.manifest.beside import bmap_path
from restore.manifest.bmap import BLOCK, Bmap, ImageFile, write
from restore.manifest.scan import Both, Digests, mapped_runs, ranges, zero_digests
from restore.replacing import sync_directory, umask
from restore.report import Report
from restore.source import Payload, Source, SourceError
from restore.source.payload import as_memory
from targetmode.disks.preflight import Claim, InUse, PreflightError, claim, uses
from targetmode.disks.text import format_size

PHASE: Final = "Capturing"
SECTOR: Final = 512
_AHEAD: Final = 4  # ranges under way, for each thread
_MEDIUM: Final = frozenset({errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO, errno.ETIMEDOUT})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_RESERVE: Final = 1 << 20  # bytes left over for the file system's own use, whatever the image
_OVERHEAD: Final = 256  # one byte in so many is the file system's own, such as where the blocks of a file are
_LINE: Final = 256  # bytes at most of a range in the scan

Reread = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """How a capture is to be done.

    Attributes:
        compress: `none` makes a sparse raw image, `zstd` a seekable compressed one.
        overwrite: an image that is there may be replaced.
        retries: how often a sector that cannot be read is tried again.
        sign: path of an SSH key to sign the scan with.
        threads: None is one for each processor.
    """

    compress: Literal["none", "zstd"] = "none"
    overwrite: bool = False
    retries: int = 3
    sign: str | None = None
    threads: int | None = None


async def capture(
    source: Source,
    target: str | Path,
    used: Iterable[Extent] | None,
    settings: CaptureSettings,
    report: Report,
    *,
    reread: Reread | None = None,
) -> Bmap:
    """Make a prepared image.

    Args:
        source: what to capture, open.
        target: path of the image.
        used: the runs of used blocks from its first byte on, those not used as holes; None where that is not known.
        settings: how.
        report: told as it goes.
        reread: reads (offset, length) anew, past whatever the source keeps of what it could not read; None where its
            payloads are ranges of a device's file.

    Raises:
        Refused: the image is there already, or in use, or there is no room for it.
        RestoreError: the source failed for good, or the image cannot be written; nothing is left of it.
        OSError: likewise.
    """
    started = time.monotonic()
    work = _Capture(source, Path(target), used, settings, report, reread)
    running = asyncio.create_task(asyncio.to_thread(work.run))
    try:
        bmap = await asyncio.shield(running)
    except asyncio.CancelledError:
        work.stopping.set()
        await asyncio.wait([running])
        running.exception()  # it does not matter any more
        raise
    if settings.sign is not None:
        await asyncio.to_thread(signature.sign, bmap_path(target), settings.sign)
        report.note(f"signed: {signature.signature_path(bmap_path(target))}")
    lost = sum(length for _, length in work.bad)
    if lost:
        report.note(
            f"{format_size(lost)} could not be read and are zeroes in the image; {damage.map_path(target)} says where"
        )
    seconds = time.monotonic() - started
    report.finished(
        f"Captured {format_size(bmap.mapped)} of {format_size(bmap.image_size)} in {seconds:.1f} s",
        size=bmap.image_size,
        mapped=bmap.mapped,
        unreadable=lost,
        seconds=round(seconds, 3),
    )
    return bmap


@dataclass(slots=True)
class _Read:
    """A range that was read.

    Attributes:
        digests: of it, as it is in the image.
        bad: (offset, length) of what could not be read.
        data: what still has to be written; None where that was done.
    """

    digests: Digests
    bad: list[tuple[int, int]] = field(default_factory=list)
    data: memoryview | None = None


def claim_target(target: Path, *, overwrite: bool) -> Claim | None:
    """See that an image can come to be there, and keep others from what it is to replace.

    Returns:
        What is there now; None where nothing is, or an empty file.

    Raises:
        Refused: it cannot be written, is no file, may not be replaced, or is in use.
    """
    if not target.parent.is_dir():
        raise Refused(f"{target} cannot be written: {target.parent} is no directory")
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Refused(f"{target} cannot be written: {say(error)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{target} is not a file; asr restore writes to devices")
    if not overwrite:
        raise Refused(f"{target} exists; with --overwrite it is replaced")
    try:
        if status.st_size:
            return claim(target, read_only=False)
        if found := uses(target):
            raise InUse(target, found)
    except PreflightError as error:
        raise Refused(str(error)) from None
    return None


class _Capture:
    """One capture."""

    def __init__(
        self,
        source: Source,
        target: Path,
        used: Iterable[Extent] | None,
        settings: CaptureSettings,
        report: Report,
        reread: Reread | None,
    ) -> None:
        self.stopping = threading.Event()
        self.bad: list[tuple[int, int]] = []
        self._source = source
        self._target = target
        self._used = used
        self._settings = settings
        self._report = report
        self._reread = reread
        self._sectors: _Sectors | None = None
        self._sectors_lock = threading.Lock()
        self._mapped = 0

    def run(self) -> Bmap:
        """All of it, in a thread."""
        with claim_target(self._target, overwrite=self._settings.overwrite) or nullcontext():
            return self._make()

    def _make(self) -> Bmap:
        plan = None if self._source.sequential else _Plan(self._ranges())
        if plan is not None:
            self._check_room(plan.total, len(plan))
        try:
            fd, temporary = tempfile.mkstemp(prefix=".asr.", suffix=".part", dir=self._target.parent)
        except OSError as error:
            raise Refused(f"{self._target} cannot be written: {say(error)}") from None
        try:
            with os.fdopen(fd, "r+b") as file:
                bmap = self._write(fd, plan)
                os.fchmod(fd, 0o666 & ~umask())
                os.fsync(fd)
                status = os.fstat(file.fileno())
            self._replace(temporary, bmap)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        finally:
            if self._sectors is not None:
                self._sectors.close()
        bmap.image_file = ImageFile(status.st_size, status.st_mtime_ns)
        try:
            write(bmap, bmap_path(self._target))
        except OSError as error:
            again = f"scan it: asr imagescan {self._target}"
            raise RestoreError(
                f"{self._target} is whole, but its scan cannot be written ({say(error)}); {again}"
            ) from None
        return bmap

    def _check_room(self, mapped: int, count: int) -> None:
        """See that there is room for so many bytes in so many ranges; only a raw image's size is known beforehand."""
        room = os.statvfs(self._target.parent)
        free = room.f_bavail * room.f_frsize
        needed = mapped + mapped // _OVERHEAD + count * _LINE + _RESERVE
        if self._settings.compress == "none" and needed > free:
            raise Refused(
                f"{self._target.parent} has no room for {self._target.name}: up to {format_size(needed)} are needed, "
                f"and {format_size(free)} are free"
            )

    def _ranges(self) -> Iterator[tuple[int, int, bool]]:
        return ranges(mapped_runs(self._source, self._used), grain=0)

    def _write(self, fd: int, plan: _Plan | None) -> Bmap:
        threads = self._settings.threads or len(os.sched_getaffinity(0))
        zstd = self._settings.compress == "zstd"
        with closing(ZstdSink(fd, threads) if zstd else RawSink(fd)) as sink:
            return self._fill(sink, plan, threads)

    def _fill(self, sink: Sink, plan: _Plan | None, threads: int) -> Bmap:
        source = self._source
        bmap = Bmap(1)
        total = plan.total if plan is not None else None
        done = 0
        jobs: deque[tuple[int, int, Future[_Read]]] = deque()

        def take() -> None:
            nonlocal done
            start, length, future = jobs.popleft()
            read = future.result()
            bmap.append(start // BLOCK, (start + length - 1) // BLOCK, *read.digests)
            self.bad += read.bad
            data = read.data
            if data is not None:
                self._put(lambda: sink.write(start, data))
            done += length
            if self.stopping.is_set():
                raise RestoreError("interrupted; nothing is left of the image")
            self._report.progress(PHASE, done, max(total if total is not None else source.expected_size, done))

        with ThreadPoolExecutor(threads, thread_name_prefix="capture") as pool:
            try:
                for start, end, zero in plan or self._ranges():
                    length = min(end, source.least_size) - start
                    # What is decoded from the start is read in its order.
                    data = source.payload(start, length) if source.sequential and not zero else None
                    jobs.append((start, length, pool.submit(self._one, sink, start, length, zero, data)))
                    while len(jobs) > _AHEAD * threads:
                        take()
                while jobs:
                    take()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        size = source.size
        if size is None:
            raise AssertionError("a source's size is known when it has been read")
        bmap.image_size = size
        self.bad = join(self.bad)
        self._check_readable(bmap)
        source.check_unchanged()
        self._put(lambda: sink.finish(size))
        self._report.progress(PHASE, done, done)
        return bmap

    def _check_readable(self, bmap: Bmap) -> None:
        if self.bad and sum(length for _, length in self.bad) >= bmap.mapped:
            raise RestoreError(f"nothing of {self._source.name} could be read")

    def _one(self, sink: Sink, start: int, length: int, zero: bool, data: Payload | None) -> _Read:
        """Read and hash one range, and write it, but where the sink wants that in order; in any thread."""
        if zero:
            return _Read(zero_digests(length))
        view, bad = self._read(start, length, data)
        both = Both()
        both.update(view)
        digests = both.digests()
        if digests == zero_digests(length):
            return _Read(digests, bad)
        if sink.in_order:
            return _Read(digests, bad, view)
        self._put(lambda: sink.write(start, view))
        return _Read(digests, bad)

    def _put(self, write: Callable[[], None]) -> None:
        """Have a sink write."""
        try:
            write()
        except OSError as error:
            if error.errno in _FULL:
                raise RestoreError(
                    f"{self._target.parent} is full ({say(error)}); nothing is left of the image"
                ) from None
            raise RestoreError(f"{self._target} cannot be written: {say(error)}") from None

    def _read(self, start: int, length: int, data: Payload | None) -> tuple[memoryview, list[tuple[int, int]]]:
        """A range's bytes, zeroes where they cannot be read, and where that is."""
        payload: Payload | None = data
        try:
            if payload is None:
                payload = self._source.payload(start, length)
            return as_memory(payload, length, self._source.name), []
        except (OSError, NBDError, SourceError) as error:
            if not _of_the_medium(error):
                raise
        buffer = bytearray(length)
        bad: list[tuple[int, int]] = []
        self._rescue(memoryview(buffer), start, self._again(payload), bad)
        return memoryview(buffer), join(bad)

    def _again(self, payload: Payload | None) -> Reread:
        """How to read small ranges anew."""
        if self._reread is not None:
            return self._reread
        if isinstance(payload, FileRange):
            with self._sectors_lock:
                if self._sectors is None:
                    self._sectors = _Sectors(payload.fd)
            return self._sectors.read
        source = self._source
        return lambda offset, length: bytes(as_memory(source.payload(offset, length), length, source.name))

    def _rescue(self, buffer: memoryview, start: int, read: Reread, bad: list[tuple[int, int]]) -> None:
        """Read what can be read of a range, by halves."""
        if self.stopping.is_set():
            raise RestoreError("interrupted; nothing is left of the image")
        sector = max(self._sectors.sector if self._sectors is not None else SECTOR, SECTOR)
        attempts = 1 if len(buffer) > sector else 1 + self._settings.retries
        for _ in range(attempts):
            try:
                buffer[:] = read(start, len(buffer))
                return
            except (OSError, NBDError, SourceError) as error:
                if not _of_the_medium(error):
                    raise
        if len(buffer) <= sector:
            bad.append((start, len(buffer)))
            return
        half = -(-len(buffer) // 2 // sector) * sector
        self._rescue(buffer[:half], start, read, bad)
        self._rescue(buffer[half:], start + half, read, bad)

    def _replace(self, temporary: str, bmap: Bmap) -> None:
        """Let the image have its name, and nothing of an older one stay beside it."""
        where = bmap_path(self._target)
        signature.drop(where)
        where.unlink(missing_ok=True)
        if self.bad:
            damage.write_map(damage.map_path(self._target), bmap.image_size, self.bad)
        else:
            damage.map_path(self._target).unlink(missing_ok=True)
        os.replace(temporary, self._target)  # noqa: PTH105
        sync_directory(self._target.parent)


def _of_the_medium(error: BaseException | None) -> bool:
    """Whether it is a place that cannot be read, rather than a disk or a server that is gone."""
    while error is not None:
        if isinstance(error, ConnectionLost):  # though it may come of ETIMEDOUT
            return False
        if isinstance(error, OSError | RequestFailed):
            return error.errno in _MEDIUM
        error = error.__cause__ or error.__context__
    return False


class _Plan:
    """Ranges that are gone through once, after their bytes have been counted; 17 bytes each."""

    def __init__(self, found: Iterable[tuple[int, int, bool]]) -> None:
        self._starts, self._ends, self._zeroes = array("Q"), array("Q"), bytearray()
        self.total = 0
        for start, end, zero in found:
            self._starts.append(start)
            self._ends.append(end)
            self._zeroes.append(zero)
            self.total += end - start

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, bool]]:
        return ((s, e, bool(z)) for s, e, z in zip(self._starts, self._ends, self._zeroes, strict=True))


class _Sectors:
    """A device's file read sector by sector, past the cache, which would read whole pages."""

    def __init__(self, fd: int) -> None:
        self.sector = measure(fd).logical_sector
        self._local = threading.local()
        path = f"/proc/self/fd/{fd}"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, length: int) -> bytes:
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(mmap.mmap(-1, 1 << 20))
        unit = max(self.sector, SECTOR)
        count = os.preadv(self._fd, [buffer[: -(-length // unit) * unit]], offset)
        if count < length:
            raise OSError(errno.EIO, f"it ends at byte {offset + count}")
        return bytes(buffer[:length])

    def close(self) -> None:
        os.close(self._fd)
