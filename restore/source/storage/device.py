"""A block device, read as it is."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from typing import Final

from nbd.backend import measure
from nbd.connection import FileRange
from restore.errors import Refused
from restore.private.attach import Opened
from restore.source.storage.file import read_at
from targetmode.disks.preflight import Claim, PreflightError, claim

_PIECE: Final = 1 << 20
_BLKFLSBUF: Final = 0x1261  # Linux include/uapi/linux/fs.h


class BlockDevice:
    """A block device, claimed so that nobody else uses it meanwhile."""

    seekable: Final = True

    def __init__(self, path: str, claimed: Claim | None = None) -> None:
        """Claim it, unless that was done, and take it over.

        Raises:
            Refused: it is in use, or empty.
        """
        self.name = path
        try:
            self._claim = claimed if claimed is not None else claim(path, read_only=True)
        except PreflightError as error:
            raise Refused(str(error)) from None
        geometry = measure(self._claim.fd)
        self.size: int = geometry.size
        self.sector_size: int = max(geometry.logical_sector, 512)
        if not self.size:
            self.close()
            raise Refused(f"{path} is empty")
        self.forget()

    def opened(self) -> Opened:
        """As something that loop devices can be made over."""
        return Opened(self.name, self._claim.fd, self.size, self.sector_size, read_only=True)

    def forget(self) -> None:
        """Have the kernel read it anew: a file system, or another of the disk's devices, writes past its cache."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._claim.fd, _BLKFLSBUF, 0)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end."""
        return read_at(self._claim.fd, offset, length)

    def stream(self) -> Iterator[bytes]:
        """All of it."""
        for offset in range(0, self.size, _PIECE):
            yield self.read(offset, _PIECE)

    def plain(self, offset: int, length: int) -> FileRange:
        """A range of the open device."""
        return FileRange(self._claim.fd, offset)

    def check_unchanged(self) -> None:
        """It is held, and has no time of last change."""

    def close(self) -> None:
        """Give it up."""
        self._claim.close()
