"""What an image holds: partition table and file systems, looked at before it is restored."""

from __future__ import annotations

import errno
from typing import Final

from nbd.errors import NBDError
from restore.source import Source, SourceError
from restore.source.payload import as_memory
from targetmode.disks.contents import Contents, describe_contents
from targetmode.disks.layout import Reader

_PIECE: Final = 1 << 20
_NEAR: Final = 64 << 20  # bytes from its start on that are looked at of an image which has to be decoded from there
_SECTOR: Final = 512


def contents_of(source: Source, size: int | None = None) -> Contents | None:
    """What an image holds; None where it cannot be read.

    Args:
        source: the image.
        size: bytes that it has, where that is known from elsewhere.
    """
    if size is None:
        size = source.size if source.size is not None else max(source.expected_size, source.least_size)
    try:
        return describe_contents(reader_of(source), size, _SECTOR)
    except OSError:
        return None


def reader_of(source: Source) -> Reader:
    """Reads from anywhere; what is far within an image that has to be decoded from its start reads as zeroes.

    What is read raises OSError, also where the source is damaged.
    """

    def read(offset: int, length: int) -> bytes:
        if source.sequential and offset + length > _NEAR:
            return bytes(length)  # too far to be decoded for this: what is there is unknown
        parts = []
        try:
            while length:
                count = min(length, _PIECE)
                parts.append(bytes(as_memory(source.payload(offset, count), count, source.name)))
                offset, length = offset + count, length - count
        except (SourceError, NBDError) as error:
            raise OSError(errno.EIO, str(error)) from None
        return b"".join(parts)

    return read
