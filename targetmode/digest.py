"""Digests of what is really on the media, made on all cores without holding up an event loop.

The blocks are read with O_DIRECT, which has the kernel write its own dirty copies first and then ask the device. Where
the file system has no O_DIRECT, the file is synced and its pages are dropped from the cache before they are read.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import mmap
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import blake3

from targetmode.api import DigestLine

PIECE: Final = 1 << 20  # bytes read and hashed at a time
_ALIGNMENT: Final = 4096  # of offsets, lengths and memory; at least every logical sector size there is

_NEW: Final[dict[str, Callable[[], Any]]] = {"blake3": blake3.blake3, "sha256": hashlib.sha256}


class MediaReader:
    """Reads a file or device past the cache; for use by several threads."""

    def __init__(self, fd: int) -> None:
        """Read what `fd` has open, over a description of its own.

        Raises:
            OSError: it cannot be opened again.
        """
        self._local = threading.local()
        path = f"/proc/self/fd/{fd}"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            self._direct = True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._direct = False

    def digest(self, algorithm: str, offset: int, length: int) -> str:
        """The digest of a range of the file, in lower-case hexadecimal.

        Raises:
            OSError: the device failed, or ends inside the range.
        """
        if not self._direct:
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)
        digest = _NEW[algorithm]()
        end = offset + length
        while offset < end:
            begin = offset // _ALIGNMENT * _ALIGNMENT
            view = self._read(begin, min(PIECE, -(-(end - begin) // _ALIGNMENT) * _ALIGNMENT))
            view = view[offset - begin : end - begin]
            if not len(view):
                raise OSError(errno.EIO, f"the device ends at byte {offset}")
            digest.update(view)
            offset += len(view)
        return str(digest.hexdigest())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _read(self, offset: int, length: int) -> memoryview:
        """What one read gives; the buffer is the calling thread's own, and is page-aligned as O_DIRECT wants it."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(mmap.mmap(-1, PIECE))
        count = os.preadv(self._fd, [buffer[:length]], offset)
        view: memoryview = buffer[:count]
        return view


class Digester:
    """Makes digests of many ranges at once."""

    def __init__(self) -> None:
        """Use as many threads as there are processors for this process."""
        self._threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="digest")

    async def digests(
        self, fd: int, start: int, algorithm: str, ranges: Sequence[tuple[int, int]]
    ) -> AsyncIterator[DigestLine]:
        """The digests of ranges of the file behind `fd`, in order, each as soon as it and those before it are known.

        Args:
            fd: an open file or device.
            start: where the export begins in it, in bytes.
            algorithm: one of `api.ALGORITHMS`.
            ranges: (offset, length) within the export.

        Raises:
            OSError: the device failed.
        """
        loop = asyncio.get_running_loop()
        reader = MediaReader(fd)
        running: deque[tuple[int, int, asyncio.Future[str]]] = deque()
        todo = iter(ranges)
        try:
            while True:
                while len(running) < 2 * self._threads and (pair := next(todo, None)) is not None:
                    offset, length = pair
                    job = loop.run_in_executor(self._pool, reader.digest, algorithm, start + offset, length)
                    running.append((offset, length, job))
                if not running:
                    return
                offset, length, job = running.popleft()
                yield DigestLine(offset, length, await job)
        finally:
            await asyncio.gather(*(job for _, _, job in running), return_exceptions=True)
            reader.close()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
