"""Which kind of source something is: told by where it lies and by its content, never by a file's name."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.exports import SCHEMES
from restore.source import Image, Source, SourceSettings, compressed
from restore.source.chunked import ChunkedSource
from restore.source.clonezilla import is_clonezilla
from restore.source.content import open_format, told, unpacked
from restore.source.qemu import headers
from restore.source.storage import Storage
from restore.source.storage.device import BlockDevice
from restore.source.storage.file import LocalFile, SplitFile, split_parts
from restore.source.storage.url import is_url, open_url
from restore.source.stream import StreamSource

PLAIN: Final = SourceSettings()
FORMATS: Final = ("raw", *compressed.FORMATS, "udif", *headers.FORMATS, "partclone", "clonezilla")
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
        from restore.source.export.image import open_export

        return Image(open_export(place, settings), "raw")
    if is_url(place):
        return _open_content(open_url(place, settings), settings)
    path = Path(place)
    if is_clonezilla(path) if settings.format is None else settings.format == "clonezilla":
        return _open_clonezilla(path, settings)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Refused(f"{place}: {error.strerror}") from None
    if stat.S_ISDIR(mode) or (stat.S_ISBLK(mode) and settings.format in (None, "raw")):
        return _open_device(place, mode, settings)
    if stat.S_ISBLK(mode):
        return _open_content(BlockDevice(place), settings)
    parts = split_parts(place)
    return _open_content(SplitFile(parts) if len(parts) > 1 else LocalFile(place), settings, path)


def _open_content(storage: Storage, settings: SourceSettings, path: Path | None = None) -> Image:
    """What is stored, decompressed if need be, as an image; the storage is closed if that fails."""
    wanted = settings.format
    inner, compression = storage, None
    try:
        if wanted in compressed.FORMATS:
            inner, compression = unpacked(storage, wanted)
            found = "raw"
        elif wanted in ("raw", *headers.FORMATS, "udif"):
            found = wanted
        else:
            inner, compression = unpacked(storage)
            found = wanted or told(inner)
        source = open_format(inner, found, settings)
    except BaseException:
        inner.close()
        raise
    try:
        _check_content(source, found if wanted is None and compression is None else None)
    except BaseException:
        source.close()
        raise
    if compression is not None:
        found = compression if found == "raw" else f"{found}+{compression}"
    return Image(source, found, path)


def _check_content(source: Source, told_as: str | None) -> None:
    """See to it that an image has something in it, and is no UDIF image without its end, which would be taken for raw.

    Raises:
        Refused: it has not, or is one.
    """
    if source.size == 0:
        raise Refused(f"{source.name} is empty")
    if told_as != "raw" or not source.name.lower().endswith(".dmg"):
        return
    from restore.source.contents import contents_of

    contents = contents_of(source)
    if contents is not None and (contents.table is not None or contents.signature is not None):
        return
    if source.sequential:
        raise Refused(
            f"{source.name} begins with no partition table or file system, and is no raw image then; a UDIF image "
            "cannot be read from a server that sends no ranges: download it first (--format raw takes it as it is)"
        )
    if contents is not None:
        raise Refused(
            f"{source.name} is no UDIF image, and has no partition table or file system either: it may be cut short; "
            "--format raw takes it as it is"
        )


def _open_device(place: str, mode: int, settings: SourceSettings) -> Image:
    """A mount point, or a block device that is an image as it is."""
    from restore.source.device import DeviceImage
    from restore.source.volume import open_volume

    if stat.S_ISDIR(mode):
        from restore.source.udif.recognise import refuse_bundle

        refuse_bundle(Path(place))
    chunks = open_volume(place, settings)
    if chunks is None and stat.S_ISDIR(mode):
        raise Refused(f"{place} is a directory, not a disk, image or mount point")
    return Image(ChunkedSource(chunks or DeviceImage(BlockDevice(place), settings)), "raw")


def _open_clonezilla(path: Path, settings: SourceSettings) -> Image:
    from restore.source.clonezilla.directory import Directory
    from restore.source.clonezilla.disk import disk_or_partition, open_disk

    directory = Directory(path if path.is_dir() else path.parent)
    wanted = disk_or_partition(path, directory)
    if wanted in directory.disks and directory.has(f"{wanted}-pt.sf"):
        return Image(StreamSource(open_disk(directory, wanted, settings)), "clonezilla")
    image = directory.image(wanted)  # of a partition, or of a disk that has none
    if image is None:
        raise Refused(f"{directory.path}: {wanted} was saved, but its image {wanted}.…-img is missing")
    return _open_content(directory.open(image), SourceSettings(notify=settings.notify))
