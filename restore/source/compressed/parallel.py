"""Parts that can be decoded each by itself, decoded on all cores and had in their order, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

HELD: Final = 64 << 20  # bytes that parts under way may take, or a part for each worker and one where those are larger
_MEMORY: Final = 4  # of what the machine has, one such part is never passed, but for a single part


@dataclass(frozen=True, slots=True)
class Job:
    """A part to decode.

    Attributes:
        run: decodes it, in any thread; raises `SourceError`.
        cost: bytes of memory that it takes at most, before and after.
        then: told what `run` found, in the order of the parts, by one thread.
    """

    run: Callable[[], list[bytes]]
    cost: int
    then: Callable[[list[bytes]], None] | None = None


Step = Job | bytes


def workers() -> int:
    """How many threads decode: one for each processor."""
    return len(os.sched_getaffinity(0))


def in_order(steps: Iterator[Step]) -> Iterator[bytes]:
    """Carry out jobs a little ahead of who asks; bytes among them are passed on. Raises what those raise."""
    count = workers()
    most = max(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MEMORY, HELD)
    waiting: deque[tuple[Job, Future[list[bytes]]] | bytes] = deque()
    held = 0
    failure: BaseException | None = None
    with _Pool(count) as pool:
        while True:
            step = None
            if failure is None:
                try:
                    step = next(steps, None)
                except Exception as error:  # what was found before it comes first
                    failure = error
            if step is None and not waiting:
                break
            if isinstance(step, Job):
                waiting.append((step, pool.submit(step.run)))
                held += step.cost
            elif step is not None:
                if not waiting:
                    yield step
                    continue
                waiting.append(step)
                held += len(step)
            while waiting and (step is None or (held > HELD and (len(waiting) > count or held > most))):
                first = waiting.popleft()
                if isinstance(first, bytes):
                    held -= len(first)
                    yield first
                    continue
                job, future = first
                pieces = future.result()
                held -= job.cost
                del first, future
                if job.then is not None:
                    job.then(pieces)
                yield from pieces
                if step is None:
                    break
    if failure is not None:
        raise failure


class _Pool:
    """Threads, which are only started when there is something to do, and end with the block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        return self

    def submit(self, run: Callable[[], list[bytes]]) -> Future[list[bytes]]:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="decode")
        return self._threads.submit(run)

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
