"""An image file on a local path, an NFS or SMB mount included, and one that was split into parts."""

from __future__ import annotations

import fcntl
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from string import ascii_lowercase
from typing import Final

from nbd.connection import FileRange
from restore.errors import Refused, RestoreError
from targetmode.disks.preflight import uses

_PIECE: Final = 256 << 10
_GAP: Final = 26  # parts


class LocalFile:
    """A regular file, held so that nobody who asks for locks changes it meanwhile."""

    seekable: Final = True

    def __init__(self, path: str) -> None:
        """Open it.

        Raises:
            Refused: it is not there, or in use for writing, or empty.
        """
        self.name = path
        self.fd = _open_file(path)
        self._state = self._current_state()
        self.size: int = self._state[0]
        if not self.size:
            self.close()
            raise Refused(f"{path} is empty")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end."""
        return read_at(self.fd, offset, length)

    def stream(self) -> Iterator[bytes]:
        """All of it, with the kernel reading ahead."""
        offset = 0
        while part := os.pread(self.fd, _PIECE, offset):
            yield part
            offset += len(part)

    def plain(self, offset: int, length: int) -> FileRange:
        """A range of the open file."""
        return FileRange(self.fd, offset)

    def check_unchanged(self) -> None:
        """Its size and time of last change."""
        if self._state != self._current_state():
            raise RestoreError(f"{self.name} was changed meanwhile; stop what writes it first")

    def close(self) -> None:
        """Close it; more than once does no harm."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _current_state(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns


class SplitFile:
    """Local files that follow one another, such as `image.aa`, `image.ab`."""

    seekable: Final = True

    def __init__(self, paths: Sequence[str]) -> None:
        """Open them all; raises as `LocalFile`."""
        self.name = paths[0]
        with ExitStack() as stack:
            self._parts = []
            for path in paths:
                self._parts.append(LocalFile(path))
                stack.callback(self._parts[-1].close)
            self._opened = stack.pop_all()
        self._starts = [0, *accumulate(part.size for part in self._parts)]
        self.size: int = self._starts.pop()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere, across parts."""
        end = min(offset + length, self.size)
        found = []
        while offset < end:
            part, at = self._part(offset)
            found.append(part.read(at, end - offset))
            if not found[-1]:
                break  # it was cut short meanwhile, which `check_unchanged` tells
            offset += len(found[-1])
        return b"".join(found)

    def stream(self) -> Iterator[bytes]:
        """One part after the other."""
        for part in self._parts:
            yield from part.stream()

    def plain(self, offset: int, length: int) -> FileRange | None:
        """A range of the part that it lies in."""
        part, at = self._part(offset)
        return part.plain(at, length) if at + length <= part.size else None

    def check_unchanged(self) -> None:
        """None of the parts."""
        for part in self._parts:
            part.check_unchanged()

    def close(self) -> None:
        """Close them all."""
        self._opened.close()

    def _part(self, offset: int) -> tuple[LocalFile, int]:
        index = bisect_right(self._starts, offset) - 1
        return self._parts[index], offset - self._starts[index]


def split_parts(path: str) -> list[str]:
    """All the files, in order, of what `split` made, of which `path` is the first: `X.aa`, `X.ab` … `X.az`, `X.ba` …

    Returns:
        `path` alone where it is not the first of several.

    Raises:
        Refused: one of them is missing.
    """
    stem = path.removesuffix("aa")
    if stem == path or not os.path.exists(f"{stem}ab"):  # noqa: PTH110
        return [path]
    names = [stem + first + second for first in ascii_lowercase for second in ascii_lowercase]
    there = [os.path.exists(name) for name in names]  # noqa: PTH110
    count = there.index(False) if False in there else len(names)
    # A gap is told from the end by a part that is not much further; `X.gz` and the like may be no parts.
    beyond = names[count : count + _GAP]
    later = next((name for name in beyond if os.path.exists(name)), None)  # noqa: PTH110
    if later is not None:
        raise Refused(f"{names[count]} is missing: {later} is there, which is a later part of the same image")
    return names[:count]


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Bytes of an open file; fewer only at its end. Raises `OSError`."""
    parts = []
    while length and (part := os.pread(fd, length, offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _open_file(path: str) -> int:
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise Refused(f"{path} is neither an image file nor a block device")
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
