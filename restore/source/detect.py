"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source import Image, Source, SourceSettings
from restore.source.chunked import ChunkedSource
from restore.source.raw import RawImage, RawStream
from restore.source.storage import Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw", "udif")
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
    storage = _open_storage(place)
    try:
        found = settings.format or _told_by_content(storage)
        source = _open_format(storage, found, settings)
    except BaseException:
        storage.close()
        raise
    return Image(source, found, Path(place) if isinstance(storage, LocalFile) else None)


def _open_storage(place: str) -> Storage:
    try:
        mode = Path(place).stat().st_mode
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        from restore.source.udif import refuse_bundle

        refuse_bundle(Path(place))
    return BlockDevice(place) if stat.S_ISBLK(mode) else LocalFile(place)


def _told_by_content(storage: Storage) -> str:
    from restore.source.udif import is_udif

    return "udif" if storage.seekable and storage.size is not None and is_udif(storage) else "raw"


def _open_format(storage: Storage, name: str, settings: SourceSettings) -> Source:
    if name == "udif":
        from restore.source.udif import UdifImage

        return ChunkedSource(UdifImage(storage, settings))
    if storage.seekable and storage.size is not None:
        return ChunkedSource(RawImage(storage, storage.size))
    return StreamSource(RawStream(storage))
