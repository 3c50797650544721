"""`asr imagescan`, `asr info` and `asr capture`: images are prepared, looked at, and made."""

from __future__ import annotations

import argparse
import asyncio
from contextlib import ExitStack, closing
from pathlib import Path

from restore.errors import Refused, RestoreError
from restore.exports import SCHEMES
from restore.report import Report, answer
from restore.report.shown import shown
from restore.source.detect import open_image
from restore.source.spill import attachable
from restore.source.storage.url import is_url
from restore.verbs.found import found_source
from restore.verbs.opening import is_export, same_place, source_settings


async def scan(options: argparse.Namespace, report: Report) -> int:
    """Scan an image; its scan is beside it then. With --minimize a copy that is shrunk to its contents comes first.

    Raises:
        RestoreError: it was refused, or failed.
    """
    from restore.manifest.scan import ScanSettings, imagescan
    from restore.source.used import UsedBlocks, used_blocks_of

    def used_in(path: Path) -> UsedBlocks | None:
        return None if options.all_blocks else used_blocks_of(path, report.note)

    _check_key(options.sign)
    image = open_image(options.image, source_settings(options, report))
    with closing(image.source) as source:
        if image.path is None:
            raise Refused(f"{options.image} is no image file of this machine, which its scan could lie beside")
        if options.verbose:
            report.note(found_source(image, source))
        settings = ScanSettings(sign=options.sign)
        if options.minimize is not None:
            from restore.making.minimize import minimize

            await minimize(image, options.image, Path(options.minimize), settings, report, used_in)
        used = None
        if image.format == "raw" and attachable(image, options.image):
            used = await asyncio.to_thread(used_in, image.path)
        await imagescan(source, image.path, used, settings, report)
    return 0


async def info(options: argparse.Namespace, report: Report) -> int:
    """Tell of an image what can be told without reading it all.

    Returns:
        The exit status: 1, after one line on standard error, where its scan is not signed as it has to be.

    Raises:
        RestoreError: it cannot be opened.
    """
    from restore.manifest.beside import beside, find
    from restore.manifest.info import describe
    from restore.report.text import TextReport

    settings, signers = source_settings(options, report), options.verify_signature
    image = open_image(options.image, settings)
    status = None
    try:
        with closing(image.source) as source, ExitStack() as stack:
            path = None if signers is None else stack.enter_context(beside(image, options.image, settings))
            found = describe(source, path or options.image, image.format, signers, options.image)
            text = found.as_plist() if options.plist else found.as_json() if options.json else found.as_text()
            status = answer(text.rstrip("\n") + "\n", "asr")
            if signers is not None:
                find(path, image, signers)
    except RestoreError as error:
        if status is None:
            raise
        TextReport().failed(shown(str(error)))  # standard output is the one object that --json promises
        return error.status
    return status


async def capture(options: argparse.Namespace, report: Report) -> int:
    """Make a prepared image of a disk, a partition or an export.

    Raises:
        RestoreError: it was refused, or failed.
    """
    from restore.making.capture import CaptureSettings, claim_target
    from restore.making.capture import capture as run

    place, target = options.source, options.target
    if is_url(target) or is_export(target):
        raise Refused(
            f"{target} is no target: capture writes an image file on this machine; asr restore writes to disks"
        )
    if same_place(target, place):
        also = "" if target == place else f" (as {place})"
        raise Refused(f"{target} is both source and target{also}; the image needs a file of its own")
    if (old := claim_target(Path(target), overwrite=options.overwrite)) is not None:
        old.close()  # `run` has it again, when the source is open
    _check_key(options.sign)
    image = open_image(place, source_settings(options, report))
    settings = CaptureSettings(
        compress=options.compress, overwrite=options.overwrite, retries=options.retries, sign=options.sign
    )
    with closing(image.source) as source:
        if options.verbose:
            report.note(found_source(image, source))
        used = None  # a device tells itself what is used
        if place.startswith(SCHEMES) and not options.all_blocks:
            from restore.source.used.exported import used_blocks_of_export

            used = await used_blocks_of_export(place, report)
        await run(source, target, used, settings, report, reread=getattr(source, "reread", None))
    return 0


def _check_key(key: str | None) -> None:
    """Refuse a key that nothing can be signed with, before an image is read for it."""
    if key is not None:
        from restore.manifest.signature import check_key

        check_key(key)
