"""Digests of ranges of a disk, made on all cores without holding up an event loop."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from targetmode.api import DigestLine
from targetmode.disks.media import MediaReader


class Digester:
    """Makes digests of many ranges at once."""

    def __init__(self) -> None:
        """Use as many threads as there are processors for this process."""
        self._threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="digest", initializer=_give_way)

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


def _give_way() -> None:
    """Let this thread have only what the connections leave of the processors: they are what a copy waits for."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
