"""An image that other programs are to read: as it lies if they can, else decoded to a sparse file."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Final

from restore.errors import Refused, RestoreError
from restore.exports import SCHEMES
from restore.private.attach import FORMS
from restore.report import Report
from restore.source import Image, Source
from restore.source.storage.file import split_parts
from targetmode.disks.text import format_size, printable

_PIECE: Final = 1 << 20


def attachable(image: Image, place: str) -> str | None:
    """The format that an image can be attached in as it lies; None where it has to be decoded.

    An image that is split, compressed or behind a URL is no such thing, though its bytes are raw in the end.

    Args:
        image: it.
        place: where it was found.
    """
    if image.format not in FORMS:
        return None
    as_it_lies = image.path is not None and len(split_parts(place)) == 1
    return image.format if as_it_lies or place.startswith(SCHEMES) or Path(place).is_block_device() else None


async def spill(source: Source, directory: Path, report: Report) -> Path:
    """Decode an image that cannot be mounted as it is into a private sparse file, which the caller removes.

    Raises:
        Refused: there is no room for it, with the sizes.
        SourceError, OSError: the source failed.
    """
    path = directory / "image"
    data = source.expected_size
    report.note(
        f"{printable(source.name)} is decoded to a temporary file of at most {format_size(data)} in {directory}"
    )
    space = os.statvfs(directory)
    if source.size is not None and not source.sequential:
        needed = sum(extent.length for extent in source.extents() if not extent.zero)
        if needed > space.f_bavail * space.f_frsize:
            free = format_size(space.f_bavail * space.f_frsize)
            raise Refused(
                f"{directory} has no room for the decoded image: {format_size(needed)} needed, {free} free; "
                "set TMPDIR to a directory that has"
            )
    try:
        await asyncio.to_thread(_write_sparse, source, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Refused(f"{directory} is too small for the decoded image; set TMPDIR to a larger directory") from None
    return path


def _write(fd: int, data: memoryview, at: int) -> None:
    """All of it: a full file system takes what there is room for, and refuses only what comes then."""
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def _write_sparse(source: Source, path: Path) -> None:
    offset = 0
    with path.open("xb", buffering=0) as file:
        for extent in source.extents():
            if not extent.zero:
                for at in range(offset, offset + extent.length, _PIECE):
                    length = min(_PIECE, offset + extent.length - at)
                    found = source.payload(at, length)
                    data = found if isinstance(found, memoryview) else os.pread(found.fd, length, found.offset)
                    if len(data) != length:
                        raise RestoreError(f"{source.name} ends at offset {at + len(data)}, earlier than it says")
                    if any(memoryview(data)[:1]) or bytes(data).count(0) != length:
                        _write(file.fileno(), memoryview(data), at)
            offset += extent.length
        file.truncate(offset)
    source.check_unchanged()
