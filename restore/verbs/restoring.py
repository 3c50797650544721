"""`asr restore --erase` and `asr verify`: blocks."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from restore.blocks.job import Fit, Settings, restore, verify
from restore.errors import Refused, RestoreError
from restore.fit import FitSettings, fitted
from restore.report import Report
from restore.report.shown import shown
from restore.source import Image, Source
from restore.target import Target
from restore.verbs.found import found
from restore.verbs.opening import is_export, open_prepared, open_target, same_place

if TYPE_CHECKING:
    from restore.mountpoint import Unmounted

Confirm = Callable[[str], bool]


class _Chosen:
    """The image that was asked for, opened once, and what makes it fit."""

    def __init__(self, options: argparse.Namespace, report: Report, *, restoring: bool) -> None:
        self._options = options
        self._report = report
        self._settings = FitSettings(keep_table=options.keep_table, restoring=restoring)
        self._image: Image | None = None

    def open(self) -> Source:
        self._image = open_prepared(self._options.source, self._options, self._report)
        return self._image.source

    def fit(self, report: Report) -> Fit:
        def fit(source: Source, target: Target) -> AbstractAsyncContextManager[Source]:
            assert self._image is not None
            if self._options.verbose:
                for line in found(self._image, source, target):
                    report.note(line)
            return fitted(self._image, self._options.source, source, target, self._settings, report)

        return fit


async def verify_blocks(options: argparse.Namespace, report: Report) -> int:
    """Compare a target with an image.

    Raises:
        RestoreError: they could not be compared, or differ.
    """
    chosen = _Chosen(options, report, restoring=False)
    (target,) = [options.target] if isinstance(options.target, str) else options.target
    _check_unmounted(target)
    await verify(lambda: open_target(target, options, report, read_only=True), chosen.open, report, chosen.fit(report))
    return 0


def _check_unmounted(target: str) -> None:
    """Refuse to compare a volume that is named by its mount point: it may change meanwhile."""
    if is_export(target) or not Path(target).is_dir():
        return
    from restore.mountpoint import volume_at

    volume = volume_at(target)
    if volume is not None:
        raise Refused(
            f"{target} is the mount point of {volume.device}, which can only be compared when it is not mounted: "
            f"umount {shlex.quote(target)}, then --target {volume.device}"
        )


async def restore_blocks(options: argparse.Namespace, report: Report) -> int:
    """Put an image on one target or several.

    Returns:
        The exit status.

    Raises:
        RestoreError: it was refused, or with one target failed.
    """
    confirm = confirmation(options)
    if options.source.lower() in ("asr:", "asr://"):
        from restore.verbs.discovering import the_one

        options.source = await the_one(options, report)
    _check_distinct(options.source, options.target)
    finishing = _Finishing(options)
    finishing.check()
    chosen = _Chosen(options, report, restoring=True)

    async def one(target: str, open_source: Callable[[], Source], report: Report) -> None:
        settings = Settings(
            verify=not options.noverify, delta=options.delta, max_rate=options.max_rate, confirm=confirm
        )

        def opened(device: str) -> Target:
            return open_target(device, options, report)

        with _taken(target) as (device, volume):
            done = await restore(lambda: opened(device), open_source, settings, report, chosen.fit(report))
            await finishing.finish(device, report)
            if volume is not None:
                volume.remount(report)
        done.tell(report)

    if len(options.target) == 1:
        await one(options.target[0], chosen.open, report)
        return 0
    from restore.blocks.fanout import restore_all
    from restore.report.members import make_members

    members = make_members(as_json=options.json, puppetstrings=options.puppetstrings, timed=options.debug)
    return await restore_all(options.target, chosen.open, one, members, debug=options.debug)


def _check_distinct(source: str, targets: Sequence[str]) -> None:
    """Refuse what is named twice, as source and target or as two targets, also where its names differ."""
    for index, target in enumerate(targets):
        if target == source or same_place(target, source):
            raise Refused(f"{target} is both source and target{_also(target, source)}; they have to be two disks")
        for other in targets[:index]:
            if target == other or same_place(target, other):
                raise Refused(f"{target} is named as a target twice{_also(target, other)}; each has to be another disk")


def _also(name: str, other: str) -> str:
    return "" if name == other else f" (as {other})"


@contextmanager
def _taken(target: str) -> Iterator[tuple[str, Unmounted | None]]:
    """What a target is written as; a volume that is named by its mount point is unmounted for that.

    When nothing was touched it is mounted again; after a failure that is left to whoever finds out what is on it.
    """
    if is_export(target) or not Path(target).is_dir():
        yield target, None
        return
    from restore.mountpoint import Unmounted, volume_at

    volume = volume_at(target)
    if volume is None:
        yield target, None
        return
    unmounted = Unmounted(volume)
    try:
        yield unmounted.device, unmounted
    except (Refused, asyncio.CancelledError) as error:
        failures = unmounted.close()
        if failures:
            raise RestoreError(f"{error}; {failures[0]}") from error
        raise
    except BaseException:
        unmounted.leave()
        raise


class _Finishing:
    """What is asked for after the blocks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._asked = {"grow": options.grow, "new_ids": options.new_ids, "hostname": options.hostname}
        self._verified = "verified" if not options.noverify else "not verified"

    def check(self) -> None:
        """Whether it can be done here, as far as that can be told beforehand."""
        if any(self._asked.values()):
            from restore.finish.steps import check

            check(**self._asked)

    async def finish(self, target: str, report: Report) -> None:
        if not any(self._asked.values()):
            return
        from restore.finish.steps import finish

        try:
            await finish(target, report, **self._asked)
        except RestoreError as error:
            raise RestoreError(f"{error}; the image itself is on {target}, {self._verified}") from error
        except asyncio.CancelledError:
            raise RestoreError(
                f"interrupted; the image itself is on {target}, {self._verified}, but not all that was to follow"
            ) from None


def confirmation(options: argparse.Namespace) -> Confirm | None:
    """What asks before anything is erased; None where nobody is to be asked."""
    if options.noprompt:
        return None
    asking = sys.stdin and sys.stdin.isatty() and not options.json and not options.puppetstrings
    if not asking:
        raise Refused("standard input is not a terminal to ask before erasing; say --noprompt if that is meant")
    lock = threading.Lock()  # several targets are asked about one after the other

    def confirm(question: str) -> bool:
        with lock:
            try:
                return input(f"  {shown(question)} [ny]: ").strip().lower() in ("y", "yes")
            except EOFError:
                return False

    return confirm
