"""What a storage holds, told by its bytes: how it is compressed, and what an image that is; and that image, opened."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final, cast

from restore.errors import Refused
from restore.source import Source, SourceSettings
from restore.source.chunked import ChunkedSource
from restore.source.compressed import HEAD, decompressed, sniff
from restore.source.qemu import headers
from restore.source.raw import RawImage, RawStream
from restore.source.storage import InParts, Networked, Storage
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource

_PARTCLONE: Final = b"partclone-image"
_FOREIGN: Final = {
    b"PaRtImAgE-VoLuMe": ("partimage", "partimage restore"),
    b"\0ntfsclone-image": ("ntfsclone", "ntfsclone --restore-image"),
}


def unpacked(storage: Storage, wanted: str | None = None) -> tuple[Storage, str | None]:
    """What is compressed in a storage, and how; the storage itself and None where it is not.

    A UDIF image is not, though it may begin with a run that is an .xz or bzip2 stream as any other.

    Args:
        storage: it.
        wanted: how it is compressed, where that is known.

    Raises:
        Refused: it is a disk image of the Mac that cannot be read.
        SourceError: it is damaged.
        OSError: it cannot be read.
    """
    name = wanted or sniff(_head(storage))
    if wanted is None and name is not None and _is_udif(storage):
        name = None
    return (storage, None) if name is None else (decompressed(storage, name), name)


def told(storage: Storage) -> str:
    """The format of what is no longer compressed, such as `partclone`; `raw` where nothing tells of another.

    Raises:
        Refused: it is one that cannot be read.
        SourceError, OSError: it cannot be read.
    """
    first = _head(storage)
    for magic, (program, command) in _FOREIGN.items():
        if first.startswith(magic):
            raise Refused(f"{storage.name} is an image of {program}, which asr does not read; use {command}")
    if first.startswith(_PARTCLONE):
        return "partclone"
    if storage.seekable and storage.size is not None:
        if _is_udif(storage):
            return "udif"
        return headers.sniff(storage.read, storage.size) or "raw"
    return headers.sniff(lambda offset, length: first[offset : offset + length], len(first)) or "raw"


def open_format(storage: Storage, name: str, settings: SourceSettings) -> Source:
    """The image that a storage holds, which is taken over unless this fails.

    Raises:
        Refused: it may not be used.
        SourceError: it is damaged.
        OSError: it cannot be read.
    """
    size = storage.size if storage.seekable else None
    workers = storage.connections if isinstance(storage, Networked) else None  # each waits for one range
    if name == "partclone":
        from restore.source.partclone.image import PartcloneImage
        from restore.source.partclone.stream import PartcloneStream

        # Parts decoded each by itself are larger than what is wanted of them at a time: they are best streamed.
        if size is not None and not isinstance(storage, InParts):
            return ChunkedSource(PartcloneImage(storage, size), workers=workers)
        return StreamSource(PartcloneStream(storage))
    if name in headers.FORMATS:
        from restore.source.qemu.image import open_qemu

        if not isinstance(storage, LocalFile):
            raise _no_file(storage, name)
        return open_qemu(storage, name, settings)
    if name == "udif":
        from restore.source.udif.image import UdifImage

        if size is None:
            raise Refused(
                f"{storage.name} is a udif image, which has to be a file: copy it, decompressed, to one first"
            )
        return ChunkedSource(UdifImage(storage, settings), workers=workers)
    if size is not None:
        return ChunkedSource(RawImage(storage, size), workers=workers)
    return StreamSource(RawStream(storage))


def _is_udif(storage: Storage) -> bool:
    from restore.source.udif.recognise import is_udif

    return storage.seekable and storage.size is not None and is_udif(storage)


def _no_file(storage: Storage, name: str) -> Refused:
    return Refused(f"{storage.name} is a {name} image, which has to be a file: copy it, decompressed, to one first")


def _head(storage: Storage, length: int = HEAD) -> bytes:
    """The first bytes, fewer only where there are no more; raises `SourceError`, `OSError`."""
    if storage.seekable:
        return storage.read(0, length)
    found = bytearray()
    with closing(cast(Any, storage.stream())) as pieces:
        for piece in pieces:
            found += piece
            if len(found) >= length:
                break
    return bytes(found[:length])
