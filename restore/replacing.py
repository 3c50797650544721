"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file under a temporary name beside `path`; when the block ends well it is synced and takes that name.

    When the block fails it is removed, and what `path` was is as it was.

    Raises:
        OSError: it cannot be made, synced or renamed; names `path`.
    """
    path = Path(path)
    with _naming(path):
        fd, temporary = tempfile.mkstemp(prefix=".asr.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(fd, "w+b") as file:
            yield file
            file.flush()
            os.fchmod(fd, _mode(path))
            os.fsync(fd)
        with _naming(path):
            os.replace(temporary, path)  # noqa: PTH105 - of one directory
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    sync_directory(path.parent)


def check_replaceable(path: str | Path) -> None:
    """See to it that a file can be made there, before the work that it is for begins.

    Raises:
        OSError: it cannot; names `path`.
    """
    path = Path(path)
    with _naming(path):
        fd, temporary = tempfile.mkstemp(prefix=".asr.", suffix=".part", dir=path.parent)
    os.close(fd)
    os.unlink(temporary)  # noqa: PTH108


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name what the file is for, not the temporary name, which tells nobody anything."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"it cannot be written: {error.strerror}", str(path)) from None


def sync_directory(directory: Path) -> None:
    """Have the names in a directory outlive a power loss, where its file system can.

    A file system that cannot sync a directory, as some network ones, is no error.
    """
    with suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _mode(path: Path) -> int:
    """The permissions of what is replaced, else those that a new file gets."""
    with suppress(OSError):
        return path.stat().st_mode & 0o777
    return 0o666 & ~umask()


def umask() -> int:
    """This process's umask, without changing it even for a moment (proc(5), since Linux 4.7)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077
