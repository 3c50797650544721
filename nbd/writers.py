"""Writers of a whole disk and writers of its partitions keep each other out.

Any number of connections may write the same export at once (one client with several connections does), but a writer on
the whole disk and a writer on one of its partitions would each overwrite what the other believes to be there. The
kernel keeps the score: each writer holds a shared lock on one of two files, and looks for locks on the other. A writer
whose process ends, however it ends, is out. That may be a moment after its client has left, so whoever finds one in the
way looks again for a while. Standard library only: nbdkit's own interpreter runs this too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

PATIENCE: Final = 1.0  # seconds that a writer in the way is given to be gone
_LOOK_AGAIN: Final = 0.02
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class WriterLock:
    """One connection's place among the writers of a disk; its threads may share it."""

    def __init__(
        self, directory: str | os.PathLike[str], disk: str, *, whole: bool, who: str, patience: float = PATIENCE
    ) -> None:
        """Prepare to write.

        Args:
            directory: where the locks of all connections of this server are.
            disk: names the disk in that directory.
            whole: whether the whole disk is to be written, rather than a partition.
            who: how the other side is told of this writer.
            patience: seconds that a writer in the way is given to be gone, the first time that there is one.
        """
        kinds = ("whole", "partition") if whole else ("partition", "whole")
        name = hashlib.blake2b(disk.encode(errors="surrogateescape"), digest_size=16).hexdigest()  # disks' may be long
        self._own, self._other = (Path(directory) / f"{name}.{kind}" for kind in kinds)
        self._who = who
        self._patience = patience
        self._mutex = threading.Lock()
        self._fd: int | None = None

    def blocked_by(self) -> str | None:
        """Who keeps this connection from writing now; None when nobody does."""
        with self._mutex:
            return self._insist(self._blocker)

    def acquire(self) -> str | None:
        """Become a writer; who is in the way, or None on success. Two at the same moment may both be refused."""
        with self._mutex:
            return None if self._fd is not None else self._insist(self._try)

    def release(self) -> None:
        """Stop being a writer."""
        with self._mutex:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _insist(self, look: Callable[[], str | None]) -> str | None:
        deadline = time.monotonic() + self._patience
        while (blocker := look()) is not None and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN)
        if blocker is not None:
            self._patience = 0.0
        return blocker

    def _blocker(self) -> str | None:
        try:
            fd = os.open(self._other, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
            if kind == fcntl.F_UNLCK:
                return None
            return os.pread(fd, 256, 0).decode(errors="replace").strip() or "another client"
        finally:
            os.close(fd)

    def _try(self) -> str | None:
        fd = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        os.pwrite(fd, self._who.encode()[:256].ljust(256), 0)
        blocker = self._blocker()
        if blocker is not None:
            os.close(fd)
            return blocker
        self._fd = fd
        return None
