"""`asr restore --file`: a multicast stream saved as an image file, with its scan beside it, ready to be served on."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from restore.blocks.job import Settings, restore
from restore.errors import Refused, RestoreError
from restore.manifest.beside import bmap_path
from restore.manifest.bmap import ImageFile, write
from restore.multicast.client.source import MulticastSource
from restore.replacing import replacing
from restore.report import Report
from restore.target import Target
from restore.verbs.opening import open_prepared, open_target


async def save(options: argparse.Namespace, report: Report) -> int:
    """Save what a server streams; the file is there when all of it is, and compared.

    Returns:
        The exit status.

    Raises:
        RestoreError: it was refused, or failed.
        OSError: the file cannot be written.
    """
    path = Path(options.file)
    if os.path.lexists(path):
        raise Refused(f"{path} is there already; remove it, or say another --file")
    if options.source.lower() in ("asr:", "asr://"):
        from restore.verbs.discovering import the_one

        options.source = await the_one(options, report)
    options.target = [options.file]
    image = await asyncio.to_thread(open_prepared, options.source, options, report)
    source = image.source
    assert isinstance(source, MulticastSource)
    settings = Settings(verify=not options.noverify, delta=False, max_rate=options.max_rate, confirm=None)
    with replacing(path) as file:
        file.truncate(source.size)
        temporary = str(Path(f"/proc/self/fd/{file.fileno()}").readlink())

        def opened() -> Target:
            target = open_target(temporary, options, report)
            target.name = str(path)
            return target

        try:
            done = await restore(opened, lambda: source, settings, report)
        except RestoreError as error:
            reason = str(error).partition(f"; {path} is left empty")[0]
            error.args = (f"{reason}; {path} was not made",)
            raise
    bmap, status = source.bmap, path.stat()
    bmap.image_file = ImageFile(status.st_size, status.st_mtime_ns)
    await asyncio.to_thread(write, bmap, bmap_path(path))
    report.note(f"Its scan is {bmap_path(path)}")
    done.tell(report)
    return 0
