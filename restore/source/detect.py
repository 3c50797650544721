"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source import Image, Source, SourceSettings
from restore.source.chunked import ChunkedSource
from restore.source.raw import RawImage, RawStream
from restore.source.storage import Networked, Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile
from restore.source.storage.url import is_url, open_url
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw",)
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
    storage = _open_storage(place, settings)
    found = settings.format or "raw"
    return Image(_open_format(storage, found), found, Path(place) if isinstance(storage, LocalFile) else None)


def _open_storage(place: str, settings: SourceSettings) -> Storage:
    if is_url(place):
        return open_url(place, settings)
    try:
        mode = Path(place).stat().st_mode
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}") from None
    return BlockDevice(place) if stat.S_ISBLK(mode) else LocalFile(place)


def _open_format(storage: Storage, name: str) -> Source:
    if storage.seekable and storage.size is not None:
        workers = storage.connections if isinstance(storage, Networked) else None  # each waits for one range
        return ChunkedSource(RawImage(storage, storage.size), workers=workers)
    return StreamSource(RawStream(storage))
