"""`asr restore --file`: a multicast stream saved as an image, with its scan beside it, so that it can be served on."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from restore.blocks.job import Done, Settings, restore
from restore.errors import Refused, RestoreError, say
from restore.making.capture import claim_target
from restore.manifest import signature
from restore.manifest.beside import bmap_path
from restore.manifest.bmap import Bmap, ImageFile, write
from restore.manifest.damage import map_path
from restore.multicast.client.source import MulticastSource
from restore.replacing import replacing
from restore.report import Report
from restore.source.storage.url import is_url
from restore.target.local import LocalTarget
from restore.verbs.found import found_source
from restore.verbs.opening import is_export, open_prepared
from restore.verbs.restoring import confirmation
from targetmode.disks.text import format_size

_OVERHEAD: Final = 256  # one byte in so many is the file system's own, such as where the blocks of a file are
_RESERVE: Final = 1 << 20  # bytes left over for it, whatever the image


async def save(options: argparse.Namespace, report: Report) -> int:
    """Save what a server streams to a file, which appears whole, verified, and with its scan, or not at all.

    Raises:
        RestoreError: it was refused, or failed; what was there before is as it was.
    """
    path = Path(options.file)
    if is_url(options.file) or is_export(options.file):
        raise Refused(f"{options.file} is no file of this machine, which a stream could be saved to")
    replaced = path.exists()
    if replaced and path.is_file() and not options.erase:
        raise Refused(f"{path} exists; with --erase it is replaced")
    with claim_target(path, overwrite=True) or nullcontext():
        confirm = confirmation(options) if replaced else None
        if confirm is not None:
            question = f"Replace {path} ({format_size(path.stat().st_size)})?"
            if not await asyncio.to_thread(confirm, question):
                raise Refused("not replaced; nothing was touched")
        if options.source.lower() in ("asr:", "asr://"):
            from restore.verbs.discovering import the_one

            options.source = await the_one(options, report)
        options.target = [options.file]  # for the server to tell
        done = await _save(path, options, report, f"{path} is as it was" if replaced else f"nothing is left of {path}")
    report.note(f"Its scan is {bmap_path(path)}")
    done.tell(report)
    return 0


async def _save(path: Path, options: argparse.Namespace, report: Report, failed: str) -> Done:
    image = await asyncio.to_thread(open_prepared, options.source, options, report)
    source = image.source
    assert isinstance(source, MulticastSource)
    with ExitStack() as stack:
        stack.callback(source.close)  # until the restore does that
        if options.verbose:
            report.note(found_source(image, source))
        _check_room(path, source.bmap)
        with _scan(path, source, report), replacing(path) as file:
            os.ftruncate(file.fileno(), source.size)
            target = LocalTarget(os.readlink(f"/proc/self/fd/{file.fileno()}"))  # noqa: PTH115 - it may be no text
            target.name = str(path)
            stack.pop_all()
            settings = Settings(verify=not options.noverify, max_rate=options.max_rate, discarded=failed)
            done = await restore(lambda: target, lambda: source, settings, report)
            signature.drop(bmap_path(path))  # no scan of another image is to lie beside this one, not even for a moment
            bmap_path(path).unlink(missing_ok=True)
            map_path(path).unlink(missing_ok=True)
    return done


def _check_room(path: Path, bmap: Bmap) -> None:
    room = os.statvfs(path.parent)
    needed, free = bmap.mapped + bmap.mapped // _OVERHEAD + _RESERVE, room.f_bavail * room.f_frsize
    if needed > free:
        raise Refused(
            f"{path.parent} has no room for {path.name}: up to {format_size(needed)} are needed, "
            f"and {format_size(free)} are free"
        )


@contextmanager
def _scan(path: Path, source: MulticastSource, report: Report) -> Iterator[None]:
    """The scan of an image that is made within the context: the server's, with its signature, byte for byte.

    A scan notes how large the image's file was. Where the server's is a compressed one that is not this file, so the
    scan is written anew, and no signature goes with it.

    Raises:
        RestoreError: the image is whole, but its scan could not be written.
    """
    where = bmap_path(path)
    signed = source.signature()
    scanned = source.bmap.image_file
    same = scanned is None or scanned.size == source.size
    with ExitStack() as stack:  # which takes its files in the opposite order: first the scan
        if same and signed is not None:
            stack.enter_context(replacing(signature.signature_path(where))).write(signed)
        if same:
            file = stack.enter_context(replacing(where))
            file.write(source.manifest())
            stack.callback(os.utime, file.fileno())  # it is newer than the image
        yield
        try:
            stack.close()
            if not same:
                status = path.stat()
                source.bmap.image_file = ImageFile(status.st_size, status.st_mtime_ns)
                write(source.bmap, where)
        except OSError as error:
            again = f"scan it: asr imagescan {path}"
            raise RestoreError(f"{path} is whole, but its scan cannot be written ({say(error)}); {again}") from None
    if not same and signed is not None:
        what = "the scan that is signed is of the server's file, which is compressed"
        report.note(f"{where} is not signed, since {what}: asr imagescan --sign KEY {path}")
