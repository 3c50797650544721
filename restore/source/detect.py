"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source import Image, Source, SourceSettings, compressed
from restore.source.chunked import ChunkedSource
from restore.source.clonezilla import is_clonezilla
from restore.source.content import head, told
from restore.source.raw import RawImage, RawStream
from restore.source.storage import InParts, Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile, SplitFile, split_parts
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw", *compressed.FORMATS, "partclone", "clonezilla")
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
    if settings.format == "clonezilla" or (settings.format is None and is_clonezilla(Path(place))):
        return _open_clonezilla(Path(place), settings)
    storage = _open_storage(place)
    source, found = _open_format(storage, settings.format)
    return Image(source, found, Path(place) if isinstance(storage, LocalFile | SplitFile) else None)


def _open_storage(place: str) -> Storage:
    try:
        mode = Path(place).stat().st_mode
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}") from None
    if stat.S_ISBLK(mode):
        return BlockDevice(place)
    parts = split_parts(place)
    return LocalFile(place) if len(parts) == 1 else SplitFile(parts)


def _open_format(storage: Storage, wanted: str | None) -> tuple[Source, str]:
    """The image in a storage, which is taken over, and its format."""
    try:
        compression = _compression(storage, wanted)
        if compression is not None:
            storage = compressed.decompressed(storage, compression)
        found = _content(storage, wanted)
        source = _open_partclone(storage) if found == "partclone" else _open_raw(storage)
    except BaseException:
        storage.close()
        raise
    if compression is not None:
        found = compression if found == "raw" else f"{found}+{compression}"
    return source, found


def _compression(storage: Storage, wanted: str | None) -> str | None:
    """How a storage is compressed, as `--format` has it or as it begins."""
    if wanted in compressed.FORMATS:
        return wanted
    if wanted == "raw" or isinstance(storage, BlockDevice):  # a disk that begins like that is still a disk
        return None
    return compressed.sniff(head(storage))


def _content(storage: Storage, wanted: str | None) -> str:
    """What the bytes are that are not, or no longer, compressed."""
    if wanted is None or wanted in compressed.FORMATS:
        return "raw" if isinstance(storage, BlockDevice) else told(storage)
    return wanted


def _open_raw(storage: Storage) -> Source:
    if storage.seekable and storage.size is not None:
        return ChunkedSource(RawImage(storage, storage.size))
    return StreamSource(RawStream(storage))


def _open_partclone(storage: Storage) -> Source:
    from restore.source.partclone.image import PartcloneImage
    from restore.source.partclone.stream import PartcloneStream

    if storage.seekable and storage.size is not None and not isinstance(storage, InParts):
        return ChunkedSource(PartcloneImage(storage, storage.size))
    return StreamSource(PartcloneStream(storage))


def _open_clonezilla(place: Path, settings: SourceSettings) -> Image:
    from restore.source.clonezilla.directory import Directory
    from restore.source.clonezilla.disk import disk_or_partition, open_disk

    directory = Directory(place if place.is_dir() else place.parent)
    wanted = disk_or_partition(place, directory)
    if wanted in directory.disks and directory.has(f"{wanted}-pt.sf"):
        return Image(StreamSource(open_disk(directory, wanted, settings)), "clonezilla")
    image = directory.image(wanted)  # of a partition, or of a disk that has none
    if image is None:
        raise Refused(f"{directory.path}: {wanted} was saved, but its image {wanted}.…-img is missing")
    return Image(*_open_format(directory.open(image), None))
