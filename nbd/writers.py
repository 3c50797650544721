"""Writers of a whole disk and writers of its partitions keep each other out.

Any number of connections may write the same export at once (one client with several connections does), but a writer on
the whole disk and a writer on one of its partitions would each overwrite what the other believes to be there. The
kernel keeps the score: each writer holds a shared lock on one of two files, and looks for locks on the other. A writer
whose process ends, however it ends, is out. Standard library only: nbdkit's own interpreter runs this too.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class WriterLock:
    """One connection's place among the writers of a disk."""

    def __init__(self, directory: str | os.PathLike[str], disk: str, *, whole: bool, who: str) -> None:
        """Prepare to write.

        Args:
            directory: where the locks of all connections of this server are.
            disk: names the disk in that directory.
            whole: whether the whole disk is to be written, rather than a partition.
            who: how the other side is told of this writer.
        """
        kinds = ("whole", "partition") if whole else ("partition", "whole")
        self._own, self._other = (Path(directory) / f"{disk}.{kind}" for kind in kinds)
        self._who = who
        self._fd: int | None = None

    def blocked_by(self) -> str | None:
        """Who keeps this connection from writing now; None when nobody does."""
        try:
            fd = os.open(self._other, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
            return None if kind == fcntl.F_UNLCK else os.pread(fd, 256, 0).decode(errors="replace").strip()
        finally:
            os.close(fd)

    def acquire(self) -> str | None:
        """Become a writer; who is in the way, or None on success. Two at the same moment may both be refused."""
        if self._fd is not None:
            return None
        fd = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        os.pwrite(fd, self._who.encode().ljust(256), 0)
        blocker = self.blocked_by()
        if blocker is not None:
            os.close(fd)
            return blocker
        self._fd = fd
        return None

    def release(self) -> None:
        """Stop being a writer."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
