"""What a storage holds, told by its first bytes: how it is compressed, and what an image that is."""

from __future__ import annotations

from contextlib import closing
from typing import Any, Final, cast

from restore.errors import Refused
from restore.source.compressed import HEAD, decompressed, sniff
from restore.source.storage import Storage

_PARTCLONE: Final = b"partclone-image"
_FOREIGN: Final = {
    b"PaRtImAgE-VoLuMe": ("partimage", "partimage restore"),
    b"\0ntfsclone-image": ("ntfsclone", "ntfsclone --restore-image"),
}


def head(storage: Storage, length: int = HEAD) -> bytes:
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


def unpacked(storage: Storage) -> tuple[Storage, str | None]:
    """What is compressed in a storage, and how; the storage itself and None where it is not.

    Raises:
        SourceError: it is damaged.
        OSError: it cannot be read.
    """
    name = sniff(head(storage))
    return (storage, None) if name is None else (decompressed(storage, name), name)


def told(storage: Storage) -> str:
    """The format of what is no longer compressed, such as `partclone`; `raw` where nothing tells of another.

    Raises:
        Refused: it is one that cannot be read.
        SourceError, OSError: as `head`.
    """
    first = head(storage)
    for magic, (program, command) in _FOREIGN.items():
        if first.startswith(magic):
            raise Refused(f"{storage.name} is an image of {program}, which asr does not read; use {command}")
    return "partclone" if first.startswith(_PARTCLONE) else "raw"
