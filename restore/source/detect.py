"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source import Image, Source, SourceSettings
from restore.source.chunked import ChunkedSource
from restore.source.clonezilla import is_clonezilla
from restore.source.content import told, unpacked
from restore.source.raw import RawImage, RawStream
from restore.source.storage import Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile
from restore.source.storage.split import is_first_part, open_parts
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw", "partclone", "clonezilla")
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
    if is_clonezilla(Path(place)) if settings.format is None else settings.format == "clonezilla":
        return _open_clonezilla(place, settings)
    storage = _open_storage(place)
    return _open_content(storage, settings.format, Path(place) if isinstance(storage, LocalFile) else None)


def _open_storage(place: str) -> Storage:
    try:
        mode = Path(place).stat().st_mode
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}") from None
    if stat.S_ISBLK(mode):
        return BlockDevice(place)
    return open_parts(Path(place)) if is_first_part(Path(place)) else LocalFile(place)


def _open_content(storage: Storage, wanted: str | None, path: Path | None = None) -> Image:
    """What is stored, decompressed if need be, as an image; the storage is closed if that fails."""
    try:
        inner, compression = unpacked(storage)
        found = wanted or told(inner)
        source = _open_format(inner, found)
    except BaseException:
        storage.close()
        raise
    if compression is not None:
        found = compression if found == "raw" else f"{found}+{compression}"
    return Image(source, found, path)


def _open_format(storage: Storage, name: str) -> Source:
    if name == "partclone":
        from restore.source.partclone.image import PartcloneImage
        from restore.source.partclone.stream import PartcloneStream

        if storage.seekable and storage.size is not None:
            return ChunkedSource(PartcloneImage(storage, storage.size))
        return StreamSource(PartcloneStream(storage))
    if storage.seekable and storage.size is not None:
        return ChunkedSource(RawImage(storage, storage.size))
    return StreamSource(RawStream(storage))


def _open_clonezilla(place: str, settings: SourceSettings) -> Image:
    from restore.source.clonezilla.directory import Directory
    from restore.source.clonezilla.disk import disk_or_partition, open_disk

    path = Path(place)
    directory = Directory(path if path.is_dir() else path.parent)
    wanted = disk_or_partition(path, directory)
    if wanted in directory.disks and directory.has(f"{wanted}-pt.sf"):
        return Image(StreamSource(open_disk(directory, wanted, settings)), "clonezilla")
    image = directory.image(wanted)  # of a partition, or of a disk that has none
    if image is None:
        raise Refused(f"{directory.path}: {wanted} was saved, but its image {wanted}.…-img is missing")
    return _open_content(directory.open(image), None)
