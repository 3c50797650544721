"""Several targets at once: the source is read once for all that keep pace, and each succeeds or fails by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

from restore.errors import Differences, RestoreError
from restore.failing import tell
from restore.report import Members, Report
from restore.source import Source

_THREADS: Final = 8
_THREADS_EACH: Final = 4  # for each target: its copy, and what is hashed and asked meanwhile

RestoreOne = Callable[[str, Callable[[], Source], Report], Awaitable[None]]
"""Puts an image on one target: what that is called, what opens the image, what is told."""


async def restore_all(
    targets: Sequence[str],
    open_source: Callable[[], Source],
    restore_one: RestoreOne,
    members: Members,
    *,
    debug: bool = False,
) -> int:
    """Put an image on several targets.

    Args:
        targets: what each is called.
        open_source: called once.
        restore_one: does all of it for one.
        members: makes the report of each, and tells the end.
        debug: should the program itself fail, print where.

    Returns:
        The exit status: 0 when all are done, 3 when some differ and none failed otherwise, else 1.

    Raises:
        RestoreError: the source cannot be opened, and nothing was touched; or interrupted, and each report says more.
        asyncio.CancelledError: interrupted before anything was touched.
    """
    # Each copy keeps a thread to its end, and waits for what others are needed for.
    threads = ThreadPoolExecutor(_THREADS + _THREADS_EACH * len(targets))
    asyncio.get_running_loop().set_default_executor(threads)
    source = await asyncio.to_thread(open_source)
    with closing(source):
        readers = [source.reader() for _ in targets]
        statuses = [RestoreError.status] * len(targets)

        async def run(index: int) -> None:
            report = members.member(targets[index])
            statuses[index] = await _ended(targets[index], readers[index], restore_one, report, debug=debug)

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(targets)):
                    group.create_task(run(index))
        except asyncio.CancelledError:
            raise RestoreError("interrupted") from None
        finally:
            members.summary(list(zip(targets, statuses, strict=True)))
    failures = set(statuses) - {0}
    return 0 if not failures else Differences.status if failures == {Differences.status} else RestoreError.status


async def _ended(target: str, source: Source, restore_one: RestoreOne, report: Report, *, debug: bool) -> int:
    """How one has ended, which was told."""
    used = False

    def open_source() -> Source:
        nonlocal used
        used = True
        return source

    try:
        await restore_one(target, open_source, report)
    except Exception as error:
        return tell(error, report, debug=debug)
    except asyncio.CancelledError:
        report.failed("interrupted; nothing was touched")
        raise
    finally:
        if not used:  # else it was closed with the restore
            source.close()
    return 0
