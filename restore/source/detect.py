"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source import Image, Source, SourceSettings, compressed
from restore.source.chunked import ChunkedSource
from restore.source.raw import RawImage, RawStream
from restore.source.storage import Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile, SplitFile, split_parts
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw", *compressed.FORMATS)
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
    if (image := _open_device(place, settings)) is not None:
        return image
    storage = _open_storage(place)
    source, found = _open_format(storage, settings.format)
    return Image(source, found, Path(place) if isinstance(storage, LocalFile | SplitFile) else None)


def _open_device(place: str, settings: SourceSettings) -> Image | None:
    """A mount point, or a block device that is an image as it is; None for anything else."""
    try:
        mode = Path(place).stat().st_mode
    except (OSError, ValueError):
        return None
    if not stat.S_ISDIR(mode) and (not stat.S_ISBLK(mode) or settings.format not in (None, "raw")):
        return None
    from restore.source.device import DeviceImage
    from restore.source.volume import open_volume

    chunks = open_volume(place, settings)
    if chunks is None and stat.S_ISDIR(mode):
        raise Refused(f"{place} is a directory, not a disk, image or mount point")
    return Image(ChunkedSource(chunks or DeviceImage(BlockDevice(place), settings)), "raw")


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
    except BaseException:
        storage.close()
        raise
    return _open_raw(storage), compression or "raw"


def _compression(storage: Storage, wanted: str | None) -> str | None:
    """How a storage is compressed, as `--format` has it or as it begins."""
    if wanted in compressed.FORMATS:
        return wanted
    if wanted == "raw" or isinstance(storage, BlockDevice):  # a disk that begins like that is still a disk
        return None
    return compressed.sniff(_head(storage))


def _head(storage: Storage) -> bytes:
    if storage.seekable:
        return storage.read(0, compressed.HEAD)
    pieces = storage.stream()
    return next(pieces, b"")[: compressed.HEAD]


def _open_raw(storage: Storage) -> Source:
    if storage.seekable and storage.size is not None:
        return ChunkedSource(RawImage(storage, storage.size))
    return StreamSource(RawStream(storage))
