"""Digests of ranges of a disk, made on all cores without holding up an event loop."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from targetmode.api import DigestLine
from targetmode.disks.media import MediaReader

_TASK: Final = 8 << 20  # bytes for a thread at a time, where ranges are not larger


class Digester:
    """Makes digests of many ranges at once."""

    def __init__(self) -> None:
        """Use as many threads as there are processors for this process."""
        self._threads = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="digest", initializer=_give_way)

    async def digests(
        self, fd: int, start: int, algorithm: str, ranges: Sequence[tuple[int, int]]
    ) -> AsyncIterator[list[DigestLine]]:
        """The digests of ranges of the file behind `fd`, in order, some at a time, as soon as they are known.

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
        running: deque[asyncio.Future[tuple[list[DigestLine], OSError | None]]] = deque()
        todo = _tasks(ranges)

        def run(task: Sequence[tuple[int, int]]) -> tuple[list[DigestLine], OSError | None]:
            lines: list[DigestLine] = []
            try:
                for offset, length in task:
                    lines.append(DigestLine(offset, length, reader.digest(algorithm, start + offset, length)))
            except OSError as error:  # what is known before it is told
                return lines, error
            return lines, None

        try:
            while True:
                while len(running) < 2 * self._threads and (task := next(todo, None)) is not None:
                    running.append(loop.run_in_executor(self._pool, run, task))
                if not running:
                    return
                lines, failure = await running.popleft()
                if lines:
                    yield lines
                if failure is not None:
                    raise failure
        finally:
            await asyncio.gather(*running, return_exceptions=True)
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


def _tasks(ranges: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Ranges in their order, small ones together: handing a range to a thread costs more than hashing 64 KiB."""
    task: list[tuple[int, int]] = []
    size = 0
    for offset, length in ranges:
        if task and size + length > _TASK:
            yield task
            task, size = [], 0
        task.append((offset, length))
        size += length
    if task:
        yield task


def _give_way() -> None:
    """Let this thread have only what the connections leave of the processors: they are what a copy waits for."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
