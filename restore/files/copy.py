"""File copy: every item of the source replaces its namesake on the target, and everything else there stays."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import tempfile
import threading
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import Refused, RestoreError
from restore.files.compare import KINDS, LOST_AND_FOUND, Comparison, Item, is_kept, under, walk
from restore.files.profile import Profile, profile
from restore.private.mounting import Mounted, Place, mounted, reached
from restore.private.process import in_private
from restore.report import RESTORING, VERIFYING, Report
from targetmode.disks.text import format_size, printable

_PROGRESS: Final = re.compile(rb"\s*([0-9,]+)\s+\d+%")
_LISTED: Final = 20  # differences that are printed


class FileDifferences(RestoreError):
    """Verification of a file copy found items that are not what they should be.

    Attributes:
        lines: `path: what differs`.
    """

    status = 3

    def __init__(self, lines: list[str]) -> None:
        shown = "; ".join(lines[:_LISTED])
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        super().__init__(f"verification found {len(lines)} differences: {shown}{more}")
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Copied:
    """What a file copy did.

    Attributes:
        items: how many items of any type.
        size: bytes of their contents.
    """

    items: int
    size: int


async def copy_files(
    source: Place,
    target: Place,
    report: Report,
    *,
    verify: bool = True,
    max_rate: int | None = None,
    verbose: bool = False,
) -> Copied:
    """Copy the files of one file system onto another.

    Args:
        source: where they are; see `source.spill` for images that neither the kernel nor qemu reads.
        target: where they go; `Place.option` names its option.
        report: is told of progress.
        verify: compare all of it afterwards.
        max_rate: most bytes per second, None for no limit.
        verbose: say also which file systems were found, and how much is to be copied.

    Raises:
        Refused: before anything was written.
        FileDifferences: verification failed.
        RestoreError: the copy failed or was interrupted; the target is a whole file system with a part of the files.
        asyncio.CancelledError: it was interrupted before anything was written.
    """
    arguments = {
        "source": asdict(source),
        "target": asdict(target),
        "verify": verify,
        "max_rate": max_rate,
        "verbose": verbose,
    }
    watched = _Watched(report)
    try:
        found = await in_private("restore.files.copy:copy_in_private", arguments, watched)
    except asyncio.CancelledError:
        if not watched.copying:
            raise
        raise RestoreError(
            f"interrupted; {target.where} may have only a part of the files (the same command again copies them all)"
        ) from None
    if found["differences"]:
        raise FileDifferences(found["differences"])
    return Copied(found["items"], found["size"])


class _Watched:
    """A report that knows whether copying has begun."""

    def __init__(self, report: Report) -> None:
        self.copying = False
        self.begin, self.done, self.note = report.begin, report.done, report.note
        self.missed = report.missed
        self.failed, self.finished = report.failed, report.finished
        self._progress = report.progress

    def progress(self, phase: str, done: int, total: int) -> None:
        self.copying = True
        self._progress(phase, done, total)


def copy_in_private(
    report: Report,
    directory: Path,
    *,
    source: dict[str, str],
    target: dict[str, str],
    verify: bool,
    max_rate: int | None,
    verbose: bool = False,
) -> dict[str, object]:
    """What `copy_files` does, in the private process."""
    tools.find("rsync")
    here, there = Place(**source), Place(**target)  # type: ignore[arg-type]  # as JSON had them
    with ExitStack() as stack:
        report.begin("Validating source")
        under = stack.enter_context(reached(here, read_only=True))
        origin = stack.enter_context(mounted(here, under, directory / "source", read_only=True))
        report.done()
        report.begin("Validating target")
        under = stack.enter_context(reached(there, read_only=False))
        with mounted(there, under, directory / "target", read_only=False) as goal:
            keeps = profile(goal.kind)
            report.done()
            report.begin("Validating sizes")
            items, size = _check_fits(origin, goal, keeps)
            report.done()
            if verbose:
                report.note(f"Source: {origin.name}, {origin.kind}, {items} items, {format_size(size)}")
                report.note(f"Target: {goal.name}, {goal.kind}")
            for note in (origin.note, goal.note, keeps.lost and f"{goal.kind} keeps no {keeps.lost}"):
                if note:
                    report.note(note)
            _rsync(origin, goal, keeps, size, max_rate, report)
        differences = []
        if verify:
            if under is not None:
                os.posix_fadvise(under.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with mounted(there, under, directory / "written", read_only=True) as goal:
                differences = _verify(origin, goal, keeps, size, report)
    return {"items": items, "size": size, "differences": differences}


def _check_fits(origin: Mounted, goal: Mounted, keeps: Profile) -> tuple[int, int]:
    """How many items and bytes are to be copied; refused where they do not fit."""
    source, target = os.fsencode(origin.root), os.fsencode(goal.root)
    items = size = needed = replaced = largest = 0
    seen: set[tuple[int, int]] = set()
    names: dict[bytes, bytes] = {}
    for item in walk(source, skipped=_skipped(origin)):
        if keeps.folds_case:
            _check_case(item, names, goal)
        if not is_kept(item, keeps):
            continue
        items += 1
        status = item.status
        if not stat.S_ISDIR(status.st_mode):
            _check_directory(item, origin, goal)
        if not stat.S_ISREG(status.st_mode) or (keeps.links and (status.st_dev, status.st_ino) in seen):
            continue
        if status.st_nlink > 1:
            seen.add((status.st_dev, status.st_ino))
        size += status.st_size
        needed += status.st_blocks * 512
        before = _blocks(under(target, item.path))
        replaced += before
        largest = max(largest, min(before, status.st_blocks * 512))
    space = os.statvfs(target)
    free = space.f_bfree * space.f_frsize
    # A file is there twice for as long as the new one is being written.
    if needed - replaced + largest > free:
        raise Refused(
            f"{goal.name} has no room for what is in {origin.name}: {format_size(needed + largest)} needed, "
            f"{format_size(free)} free and {format_size(replaced)} replaced"
        )
    return items, size


def _skipped(origin: Mounted) -> bytes | None:
    return LOST_AND_FOUND if origin.kind.startswith("ext") else None


def _check_case(item: Item, names: dict[bytes, bytes], goal: Mounted) -> None:
    folded = os.fsencode(os.fsdecode(item.path).casefold())
    other = names.setdefault(folded, item.path)
    if other != item.path:
        pair = f"{os.fsdecode(other)} and {os.fsdecode(item.path)}"
        raise Refused(f"{printable(pair)} differ only in case, which {goal.kind} on {goal.name} cannot tell apart")


def _check_directory(item: Item, origin: Mounted, goal: Mounted) -> None:
    """Refuse to put an item in the place of a directory that has something in it, which is not the source's to remove.

    What is only reached through a symbolic link is none: the link itself becomes a directory.
    """
    root = os.fsencode(goal.root)
    path = under(root, item.path)
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            return
        if os.path.realpath(path) != under(os.path.realpath(root), item.path):
            return
        with os.scandir(path) as entries:
            if next(entries, None) is None:
                return
    except OSError:  # it is not there, or rsync will say what is wrong with it
        return
    kind = KINDS[stat.S_IFMT(item.status.st_mode)]
    raise Refused(
        f"{goal.name} has a directory that is not empty where {origin.name} has a {kind}: "
        f"{printable(os.fsdecode(item.path))}; what is in it would be lost, so move that directory away first"
    )


def _blocks(path: bytes) -> int:
    """What removing a file frees, in bytes."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0


def _rsync(origin: Mounted, goal: Mounted, keeps: Profile, size: int, max_rate: int | None, report: Report) -> None:
    """Run rsync, its count of bytes on the way to the report.

    `--ignore-times` has it look at every file, `--whole-file` not compare blocks. Without `--force` it puts nothing in
    the place of a directory that is not empty; see `_check_directory`.
    """
    skipped = _skipped(origin)
    command = [
        *(tools.find("rsync"), *keeps.rsync, "--numeric-ids", "--ignore-times", "--whole-file"),
        *([f"--exclude=/{skipped.decode()}"] if skipped else []),
        *([f"--bwlimit={max_rate / 1024:.2f}"] if max_rate else []),
        *("--no-inc-recursive", "--info=progress2,nonreg0", "--no-human-readable", "--outbuf=N"),
        *(f"{origin.root}/", f"{goal.root}/"),
    ]
    report.progress(RESTORING, 0, size)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=tools.environment()
        )
        try:
            assert process.stdout is not None
            rest = b""
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                *lines, rest = (rest + piece).replace(b"\n", b"\r").split(b"\r")
                for line in lines:
                    if match := _PROGRESS.match(line):
                        report.progress(RESTORING, min(int(match[1].replace(b",", b"")), max(size - 1, 0)), size)
            status = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if status:
            errors.seek(0)
            said = errors.read(1 << 20).decode("utf-8", "replace").splitlines()
            first = next((line for line in said if line.strip()), f"ended with status {status}")
            raise RestoreError(f"copying failed; the target has a part of the files: {printable(first)}")
    report.progress(RESTORING, size, size)


def _verify(origin: Mounted, goal: Mounted, keeps: Profile, size: int, report: Report) -> list[str]:
    """Compare what is on the target now, mounted anew, with the source."""
    done, lock = 0, threading.Lock()

    def progress(count: int) -> None:
        nonlocal done
        with lock:
            done += count
            report.progress(VERIFYING, min(done, size), size)

    found = Comparison(os.fsencode(origin.root), os.fsencode(goal.root), keeps, _skipped(origin), progress).run()
    if not found:
        report.progress(VERIFYING, size, size)
    return found
