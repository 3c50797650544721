"""A raw image: a regular file, sparse or not, or a block device."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nbd.backend import Extent, FileBackend
from nbd.connection import FileRange
from restore.errors import Refused, RestoreError
from targetmode.disks.preflight import PreflightError, claim, uses

PIECE: Final = 256 << 10


class RawSource:
    """A raw image, held so that nobody who asks for locks changes it meanwhile."""

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            Refused: it is not there, or it is in use for writing.
        """
        self.name = path
        self._local = threading.local()
        try:
            status = Path(path).stat()
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from None
        if stat.S_ISBLK(status.st_mode):
            try:
                held = claim(path, read_only=True)
            except PreflightError as error:
                raise Refused(str(error)) from None
            fd = os.dup(held.fd)
            self._claim: object = held
        elif stat.S_ISREG(status.st_mode):
            fd = _open_file(path)
        else:
            raise Refused(f"{path} is neither an image file nor a block device")
        self._backend = FileBackend(fd, read_only=True)
        self._state = self._current_state()
        self.size = self._backend.size
        if not self.size:
            self.close()
            raise Refused(f"{path} is empty")

    def extents(self) -> Iterator[Extent]:
        """The runs of data and of holes, as the file system tells."""
        return self._backend.extents(0, self.size)

    def payload(self, offset: int, length: int) -> FileRange:
        """A range of the open file."""
        return FileRange(self._backend.fd, offset)

    def hash(self, digest: Any, offset: int, length: int) -> None:
        """Feed a range to a digest, through a buffer small enough for the processor's cache."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(mmap.mmap(-1, PIECE))
        while length:
            count = os.preadv(self._backend.fd, [buffer[: min(length, PIECE)]], offset)
            if count == 0:
                raise OSError(errno.EIO, f"{self.name} ends at byte {offset}, earlier than it did at the start")
            digest.update(buffer[:count])
            offset += count
            length -= count

    def check_unchanged(self) -> None:
        """A file's size and time of last change; a device is held, and has neither."""
        if self._state != self._current_state():
            raise RestoreError(f"{self.name} was changed meanwhile; stop what writes it first")

    def _current_state(self) -> tuple[int, int] | None:
        status = os.fstat(self._backend.fd)
        return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def close(self) -> None:
        """Close it."""
        self._backend.close()
        held = getattr(self, "_claim", None)
        if held is not None:
            held.close()


def _open_file(path: str) -> int:
    # A loop device over it may be the very target. Its own lock below keeps other writers away, but not that one.
    found = [use for use in uses(path) if use.kind == "loop"]
    if found:
        raise Refused(f"{path} is the {found[0]}; detach that first")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Refused(f"{path} is being written by another program; stop that first") from None
    return fd
