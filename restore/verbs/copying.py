"""`asr restore` without `--erase`: files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

from restore.blocks.plan import UNIT
from restore.errors import Refused
from restore.files.copy import copy_files
from restore.manifest.checked import Prepared
from restore.private.mounting import Place
from restore.report import Report
from restore.source import Image
from restore.source.clonezilla import is_clonezilla
from restore.source.spill import attachable, spill
from restore.verbs.opening import is_export, open_prepared, same_place
from targetmode.disks.text import format_size

_CHECKING = "Checking"


async def copy(options: argparse.Namespace, report: Report) -> int:
    """Copy the files of a source to a target, where everything else stays.

    Returns:
        The exit status.

    Raises:
        RestoreError: it was refused or failed, or found differences.
    """
    if len(options.target) > 1:
        raise Refused("a file copy has one target; several at once need --erase")
    (where,) = options.target
    same = where == options.source or same_place(where, options.source)
    if same and options.source_partition == options.target_partition:
        raise Refused(f"{where} is both source and target; they have to be two volumes")
    target = Place(where, options.target_partition, "--target-partition")
    async with _mountable(options, report) as source:
        copied = await copy_files(
            source, target, report, verify=not options.noverify, max_rate=options.max_rate, verbose=options.verbose
        )
    verified = "verified" if not options.noverify else "not verified"
    report.finished(
        f"Copied {copied.items} items ({format_size(copied.size)}), {verified}", items=copied.items, bytes=copied.size
    )
    return 0


@asynccontextmanager
async def _mountable(options: argparse.Namespace, report: Report) -> AsyncIterator[Place]:
    """The source as something that can be mounted, for as long as the context lasts."""
    place, number = options.source, options.source_partition
    path = Path(place)
    if is_export(place) or path.is_block_device() or (path.is_dir() and not is_clonezilla(path)):
        yield Place(place, number)
        return
    with ExitStack() as stack:
        image = open_prepared(place, options, report)
        closing_image = stack.enter_context(closing(image.source))
        form = attachable(image, place)
        if form is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asr-")))
            yield Place(str(await spill(closing_image, directory, report)), number)
            return
        if isinstance(image.source, Prepared):
            await _check(image, report)
        yield Place(place, number, form=form)


async def _check(image: Image, report: Report) -> None:
    """Read all of a prepared image once, since what mounts it does not know of its scan."""
    import asyncio

    from restore.blocks.plan import Kind, cut

    def read() -> None:
        source, done = image.source, 0
        for piece in cut(source.extents(), 0):
            if piece.kind is Kind.DATA:
                source.payload(piece.offset, min(piece.length, UNIT))
            done += piece.length
            report.progress(_CHECKING, min(done, source.expected_size), source.expected_size)

    await asyncio.to_thread(read)
