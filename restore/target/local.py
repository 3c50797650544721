"""A local target: a block device, or an image file that is there already."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from nbd.backend import FileBackend
from nbd.client import Operation
from nbd.connection import FileRange, PayloadError
from nbd.errors import ConnectionLost, RequestFailed
from nbd.wire import Command
from restore.errors import Refused
from restore.target import ALGORITHM, Facts, Verifier, zero_ranges
from targetmode.disks.contents import Contents, describe_contents
from targetmode.disks.layout import fd_reader
from targetmode.disks.machine import HERE
from targetmode.disks.media import MediaReader
from targetmode.disks.preflight import NotADisk, PreflightError, claim

PIECE: Final = 1 << 20


class LocalTarget:
    """A block device or image file of this machine, claimed so that nothing else uses it."""

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        """Claim it, after every check that `targetmode serve` makes.

        Raises:
            Refused: it is not there, is in use, or may not be opened.
        """
        try:
            self._claim = claim(path, read_only=read_only)
        except NotADisk as error:
            raise Refused(f"{error}{_hint(path) if 'not exist' in str(error) else ''}") from None
        except PreflightError as error:
            raise Refused(str(error)) from None
        self._backend = FileBackend(os.dup(self._claim.fd), read_only=read_only)
        self.name = path
        self.size = self._backend.size
        self._buffer = memoryview(mmap.mmap(-1, PIECE))
        self._aborted = False

    @property
    def generation(self) -> int:
        """It stays what it is, since it is held open."""
        return 0

    @property
    def sector_size(self) -> int:
        """As the device tells; of an image file 512."""
        return max(self._backend.geometry.logical_sector, 512)

    @property
    def facts(self) -> Facts:
        """As the kernel tells."""
        if not self._claim.is_block:
            return Facts("image file", None)
        device = os.fstat(self._backend.fd).st_rdev
        name = HERE.name((os.major(device), os.minor(device)))
        disk = None if name is None else HERE.parent(name)
        return Facts("block device", self.sector_size, None if disk is None else str(HERE.node(disk)))

    def contents(self) -> Contents:
        """Partition table, file systems and labels."""
        return describe_contents(fd_reader(self._backend.fd), self.size, self.sector_size)

    def zeroes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The holes of an image file; a device tells of none."""
        return zero_ranges(self._backend.extents(offset, length), offset)

    def run(self, operations: Iterable[Operation], done: Callable[[Operation], None]) -> None:
        """Carry out operations one after the other."""
        for operation in operations:
            if self._aborted:
                raise ConnectionLost("interrupted")
            try:
                self._carry_out(operation)
            except OSError as error:
                name = Command(operation.command).name
                raise RequestFailed(error.errno or 0, name, operation.offset, operation.length) from None
            done(operation)

    def _carry_out(self, operation: Operation) -> None:
        if operation.command == Command.WRITE_ZEROES:
            self._backend.zero(operation.offset, operation.length, may_trim=True)
        elif isinstance(operation.data, FileRange):
            self._copy(operation.data, operation.offset, operation.length)
        elif operation.data is not None:
            self._backend.write(operation.data, operation.offset)

    def flush(self) -> None:
        """Sync the file or device."""
        try:
            self._backend.flush()
        except OSError as error:
            raise OSError(error.errno, f"the data written could not be brought to the disk: {error.strerror}") from None

    async def verifier(self, note: Callable[[str], None]) -> Verifier:
        """Reads the media past the cache."""
        return _MediaVerifier(self._backend.fd)

    def abort(self) -> None:
        """Stop before the next operation."""
        self._aborted = True

    def close(self) -> None:
        """Give it up."""
        self._backend.close()
        self._claim.close()

    def _copy(self, source: FileRange, offset: int, length: int) -> None:
        position = source.offset
        while length:
            try:
                count = os.preadv(source.fd, [self._buffer[: min(length, PIECE)]], position)
            except OSError as error:
                raise PayloadError(f"reading the source at offset {position} failed: {error.strerror}") from None
            if count == 0:
                raise PayloadError(f"the source ends at offset {position}, earlier than it did at the start")
            self._backend.write(self._buffer[:count], offset)
            position += count
            offset += count
            length -= count


def _hint(path: str) -> str:
    """What to do about a target that is not there: nothing can be made among the kernel's own files."""
    directory = Path(path).absolute().parent
    if not directory.is_dir():
        return f": there is no directory {directory}"
    top = directory.resolve().parts[1:3]
    if top[:1] in (("dev",), ("proc",), ("sys",)) and top != ("dev", "shm"):
        return ""
    return "; an image file has to be there first: truncate -s SIZE FILE"


class _MediaVerifier:
    def __init__(self, fd: int) -> None:
        self._reader = MediaReader(fd)

    async def digests(self, ranges: Sequence[tuple[int, int]], algorithm: str = ALGORITHM) -> list[str]:
        return [await asyncio.to_thread(self._reader.digest, algorithm, offset, length) for offset, length in ranges]

    async def close(self) -> None:
        self._reader.close()
