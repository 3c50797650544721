"""Several targets at once: the source is read once for all that keep pace, and each succeeds or fails by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from restore.errors import Differences, RestoreError
from restore.job import Settings, restore
from restore.report import Members, Report
from restore.source import Source
from restore.target import Target


async def restore_all(
    targets: Sequence[tuple[str, Callable[[Report], Target]]],
    open_source: Callable[[], Source],
    settings: Settings,
    members: Members,
) -> int:
    """Put an image on several targets.

    Args:
        targets: of each what it is called, and what opens it when it is given the report to note things to.
        open_source: called once.
        settings: how; each question is asked by itself, one after the other.
        members: makes the report of each, and tells the end.

    Returns:
        The exit status: 0 when all are done, 3 when some differ and none failed otherwise, else 1.

    Raises:
        RestoreError: the source cannot be opened, and nothing was touched; or interrupted, and each report says more.
        asyncio.CancelledError: interrupted before anything was touched.
    """
    source = await asyncio.to_thread(open_source)
    with closing(source):
        settings = replace(settings, confirm=_one_at_a_time(settings.confirm))
        readers = [source.reader() for _ in targets]
        statuses = [RestoreError.status] * len(targets)

        async def run(index: int) -> None:
            name, open_target = targets[index]
            statuses[index] = await _restore_one(open_target, readers[index], settings, members.member(name))

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(targets)):
                    group.create_task(run(index))
        except asyncio.CancelledError:
            raise RestoreError("interrupted") from None
        finally:
            members.summary([(name, status) for (name, _), status in zip(targets, statuses, strict=True)])
    failures = set(statuses) - {0}
    return 0 if not failures else Differences.status if failures == {Differences.status} else RestoreError.status


async def _restore_one(
    open_target: Callable[[Report], Target], source: Source, settings: Settings, report: Report
) -> int:
    used = False

    def open_source() -> Source:
        nonlocal used
        used = True
        return source

    try:
        await restore(lambda: open_target(report), open_source, settings, report)
    except RestoreError as error:
        report.failed(str(error), error.ranges if isinstance(error, Differences) else ())
        return error.status
    except asyncio.CancelledError:
        report.failed("interrupted; nothing was touched")
        raise
    finally:
        if not used:  # else it was closed with the restore
            source.close()
    return 0


def _one_at_a_time(confirm: Callable[[str], bool] | None) -> Callable[[str], bool] | None:
    if confirm is None:
        return None
    lock = threading.Lock()

    def ask(question: str) -> bool:
        with lock:
            return confirm(question)

    return ask
