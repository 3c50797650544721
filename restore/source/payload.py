"""What can be done with a payload, be it memory or a range of a file."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from typing import Any, Final

from restore.source import Payload

_PIECE: Final = 256 << 10  # bytes; small enough for the processor's cache
_local = threading.local()


def add_to(digest: Any, payload: Payload, length: int, name: str) -> None:
    """Feed a payload of `length` bytes to a digest, by its `update`; `name` is of the image, for errors.

    Raises:
        OSError: the file failed, or ends inside the range.
    """
    if isinstance(payload, memoryview):
        digest.update(payload)
        return
    buffer = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(mmap.mmap(-1, _PIECE))
    offset = payload.offset
    while length:
        count = _read(payload.fd, buffer[: min(length, _PIECE)], offset, name)
        if count == 0:
            raise OSError(errno.EIO, f"{name} ends at byte {offset}, earlier than it did at the start")
        digest.update(buffer[:count])
        offset += count
        length -= count


def as_memory(payload: Payload, length: int, name: str) -> memoryview:
    """A payload's bytes; raises as `add_to`."""
    if isinstance(payload, memoryview):
        return payload
    data = bytearray(length)
    done = 0
    while done < length:
        count = _read(payload.fd, memoryview(data)[done:], payload.offset + done, name)
        if count == 0:
            raise OSError(errno.EIO, f"{name} ends at byte {payload.offset + done}, earlier than it did at the start")
        done += count
    return memoryview(data)


def _read(fd: int, buffer: memoryview, offset: int, name: str) -> int:
    try:
        return os.preadv(fd, [buffer], offset)
    except OSError as error:
        raise OSError(error.errno, f"{name}: reading at byte {offset} failed: {error.strerror}") from None
