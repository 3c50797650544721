"""An image is made to fit its target, or refused, before anything is written.

suited.py   a disk belongs on a disk, not on a partition
sizes.py    which partition of an image does not fit
table.py    the backup GPT at the end of a larger disk
shrink.py   a file system made smaller than a target, on an overlay
smallest.py a file system, its partition and its disk made as small as they can be, for restore/minimize.py
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from restore.fit.sizes import ANY_SIZE, check_partitions, check_size, check_whole, claimed_size
from restore.fit.suited import check_suited, doubts
from restore.fit.table import fit_table
from restore.report import Report
from restore.source import Image, Source, SourceSettings
from restore.source.contents import contents_of
from restore.source.detect import open_image
from restore.target import Target


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How an image is to be made to fit.

    Attributes:
        keep_table: a GPT is left as it is.
        restoring: it is going to be written, so that a file system may be made smaller; else only compared.
    """

    keep_table: bool = False
    restoring: bool = True


@asynccontextmanager
async def fitted(
    image: Image, place: str, source: Source, target: Target, settings: FitSettings, report: Report
) -> AsyncIterator[Source]:
    """An image as it fits a target, for as long as the context lasts.

    Args:
        image: it.
        place: where it was found.
        source: the image, or a reader of it.
        target: where it goes.
        settings: how.
        report: is told what was done.

    Raises:
        Refused: it does not fit, with the sizes.
        RestoreError, OSError: the source failed, or a tool did.
    """
    contents = contents_of(source, ANY_SIZE if source.size is None else None)
    if settings.restoring:
        if not settings.keep_table:
            check_whole(source, contents)
        check_suited(source, contents, target)
        for doubt in doubts(source, contents, target):
            report.note(doubt)
    if target.size >= max(source.least_size, claimed_size(source, contents)):
        if not settings.keep_table:
            source, note = fit_table(source, target.size, target.sector_size)
            if note is not None and settings.restoring:
                report.note(note)
        yield source
        return
    if contents is not None and contents.table is not None:
        check_partitions(contents.table, source.name, target.name, target.size)
    if contents is None or contents.table is not None or contents.signature is None or not settings.restoring:
        check_size(source, target, claimed_size(source, contents))
        raise AssertionError("it does not fit")
    # What is rarely wanted, and takes long to load.
    from restore.fit.shrink import check_shrinkable, shrunk
    from restore.manifest.checked import Prepared
    from restore.source.spill import attachable, spill

    size = max(source.least_size, claimed_size(source, contents))
    check_shrinkable(source.name, contents.signature.kind, size, target.size)
    async with AsyncExitStack() as stack:
        form = attachable(image, place)
        if form is None or isinstance(image.source, Prepared):  # its checks are to be made on all that is read
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="asr-"))
            place, form = str(await spill(source, Path(directory), report)), "raw"
            size = source.least_size  # it is known now
        smaller = await stack.enter_async_context(
            shrunk(place, contents.signature.kind, size, target.size, report, form=form, name=source.name)
        )
        opened = open_image(str(smaller.path), SourceSettings(format=smaller.form, allow_backing=True)).source
        opened.name = source.name
        await asyncio.to_thread(source.check_unchanged)
        yield stack.enter_context(closing(opened))
