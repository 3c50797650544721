"""A block device, read as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nbd.backend import measure
from nbd.connection import FileRange
from restore.errors import Refused
from restore.source.storage.file import read_at
from targetmode.disks.preflight import PreflightError, claim

_PIECE: Final = 1 << 20


class BlockDevice:
    """A block device, claimed so that nobody else uses it meanwhile."""

    seekable: Final = True

    def __init__(self, path: str) -> None:
        """Claim it.

        Raises:
            Refused: it is in use, or empty.
        """
        self.name = path
        try:
            self._claim = claim(path, read_only=True)
        except PreflightError as error:
            raise Refused(str(error)) from None
        self.size: int = measure(self._claim.fd).size
        if not self.size:
            self.close()
            raise Refused(f"{path} is empty")

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
