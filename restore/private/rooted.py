"""Files below a directory that holds someone else's system: no symbolic link in it leads out of it (openat2(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Final

_OPENAT2: Final = 437  # on every architecture
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_IN_ROOT: Final = 0x10
_MOST: Final = 16 << 20  # bytes of a file that is read
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc: Final = ctypes.CDLL(None, use_errno=True)


class Rooted:
    """A directory whose symbolic links are followed as if it were the root directory. A context manager."""

    def __init__(self, root: Path) -> None:
        """Open it."""
        self._fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Rooted:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        os.close(self._fd)

    def read(self, path: str) -> bytes | None:
        """What a regular file has.

        Returns:
            None where there is no such file, or one that is too large to be a configuration.

        Raises:
            OSError: it cannot be read.
        """
        fd = self._open_file(path, os.O_RDONLY)
        if fd is None:
            return None
        with open(fd, "rb") as file:
            return file.read() if os.fstat(fd).st_size <= _MOST else None

    def write(self, path: str, data: bytes) -> None:
        """Replace what a regular file has, which is made if need be; owner, mode and links stay.

        Raises:
            OSError: it cannot be written.
        """
        fd = self._open_file(path, os.O_RDWR)
        if fd is None:
            fd = self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        with open(fd, "r+b") as file:
            file.write(data)
            file.truncate()
            file.flush()
            os.fsync(fd)

    def is_link(self, path: str) -> bool:
        """Whether there is a symbolic link at this path."""
        try:
            fd = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            return stat.S_ISLNK(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def has(self, path: str) -> bool:
        """Whether a path leads to anything."""
        try:
            os.close(self._open(path, os.O_PATH))
        except OSError:
            return False
        return True

    def remove(self, path: str) -> None:
        """Remove a file; raises OSError."""
        directory, _, name = path.rpartition("/")
        fd = self._open(directory or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.unlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted; nothing where there is none."""
        try:
            fd = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in _ABSENT:
                return []
            raise
        try:
            return sorted(os.listdir(fd))  # noqa: PTH208 - pathlib has none for a descriptor
        finally:
            os.close(fd)

    def _open_file(self, path: str, flags: int) -> int | None:
        try:
            fd = self._open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        return fd

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        resolve = _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
        how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
        fd = int(_libc.syscall(_OPENAT2, self._fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
        return fd
