"""Reading what is really on the media, and digests of it, past the kernel's cache."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import blake3
import xxhash

PIECE: Final = 256 << 10  # bytes read and hashed at a time
_ALIGNMENT: Final = 4096  # of offsets, lengths and memory; at least every logical sector size there is

# The first is for comparing what was just sent with what arrived: several times as fast as the others, and as good
# against anything but an adversary, who on an unprotected connection would forge any digest all the same.
ALGORITHMS: Final[dict[str, Callable[[], Any]]] = {
    "xxh3-128": xxhash.xxh3_128,
    "blake3": blake3.blake3,
    "sha256": hashlib.sha256,
}


class MediaReader:
    """Reads a file or device past the cache; for use by several threads.

    The blocks are read with O_DIRECT, which has the kernel write its own dirty copies first and then ask the device.
    Where the file system has no O_DIRECT, the file is synced and its pages are dropped from the cache before they are
    read.
    """

    def __init__(self, fd: int) -> None:
        """Read what `fd` has open, over a description of its own.

        Raises:
            OSError: it cannot be opened again.
        """
        self._local = threading.local()
        path = f"/proc/self/fd/{fd}"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            self._direct = True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._direct = False

    def digest(self, algorithm: str, offset: int, length: int) -> str:
        """The digest of a range of the file, in lower-case hexadecimal.

        Raises:
            OSError: the device failed, or ends inside the range.
        """
        if self._is_hole(offset, length):
            return zero_digest(algorithm, length)
        if not self._direct:
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)
        digest = ALGORITHMS[algorithm]()
        end = offset + length
        while offset < end:
            begin = offset // _ALIGNMENT * _ALIGNMENT
            view = self._read(begin, min(PIECE, -(-(end - begin) // _ALIGNMENT) * _ALIGNMENT))
            view = view[offset - begin : end - begin]
            if not len(view):
                raise OSError(errno.EIO, f"the device ends at byte {offset}")
            digest.update(view)
            offset += len(view)
        return str(digest.hexdigest())

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _is_hole(self, offset: int, length: int) -> bool:
        """Whether a range has no storage at all, and so nothing on the media to read: zeroes by definition."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            return error.errno == errno.ENXIO and os.fstat(self._fd).st_size >= offset + length

    def _read(self, offset: int, length: int) -> memoryview:
        """What one read gives; the buffer is the calling thread's own, and is page-aligned as O_DIRECT wants it."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(mmap.mmap(-1, PIECE))
        count = os.preadv(self._fd, [buffer[:length]], offset)
        view: memoryview = buffer[:count]
        return view


@lru_cache(maxsize=64)
def zero_digest(algorithm: str, length: int) -> str:
    """The digest of `length` zeroes, in lower-case hexadecimal."""
    digest = ALGORITHMS[algorithm]()
    zeroes = bytes(min(length, PIECE))
    while length:
        piece = zeroes[:length]
        digest.update(piece)
        length -= len(piece)
    return str(digest.hexdigest())
