"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.exports import SCHEMES
from restore.source import Image, Source, SourceSettings, virtual
from restore.source.chunked import ChunkedSource
from restore.source.raw import RawImage, RawStream
from restore.source.storage import Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw", *virtual.FORMATS)
"""What `--format` takes: what the bytes that are stored are, where they are compressed what they are then."""


def open_image(place: str, settings: SourceSettings = PLAIN) -> Image:
    """Find and open an image.

    Args:
        place: a path or URL.
        settings: how.

    Raises:
        Refused: there is none, or it may not be used.
        SourceError: it is damaged.
        OSError: it cannot be read.
    """
    if place.startswith(SCHEMES):
        from restore.source.export import open_export

        return Image(open_export(place, settings), "raw")
    storage = _open_storage(place)
    path = Path(place) if isinstance(storage, LocalFile) else None
    try:
        found = settings.format or _sniff(storage)
    except BaseException:
        storage.close()
        raise
    return Image(_open_format(storage, found, settings), found, path)


def _sniff(storage: Storage) -> str:
    """The format of what is stored; a device is a disk, whatever begins its first sector."""
    if isinstance(storage, BlockDevice) or not storage.seekable or storage.size is None:
        return "raw"
    return virtual.sniff(storage.read, storage.size) or "raw"


def _open_storage(place: str) -> Storage:
    try:
        mode = Path(place).stat().st_mode
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}") from None
    return BlockDevice(place) if stat.S_ISBLK(mode) else LocalFile(place)


def _open_format(storage: Storage, name: str, settings: SourceSettings) -> Source:
    if name in virtual.FORMATS:
        if not isinstance(storage, LocalFile):
            storage.close()
            raise Refused(
                f"{storage.name} is a {name} image, which has to be a file: copy it, decompressed, to one first"
            )
        from restore.source.qemu import open_qemu

        return open_qemu(storage, name, settings)
    if storage.seekable and storage.size is not None:
        return ChunkedSource(RawImage(storage, storage.size))
    return StreamSource(RawStream(storage))
