"""What can be exported: bytes with a size that can be read, written, zeroed, trimmed, flushed and asked for holes.

`FileBackend` is a regular file or a block device, whole or a window of it (a partition). It uses the standard library
alone, since nbdkit's own interpreter runs it too. Offsets and lengths are bytes within the export; callers have checked
that they lie inside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FALLOC_KEEP_SIZE: Final = 0x01
_FALLOC_PUNCH_HOLE: Final = 0x02
_FALLOC_ZERO_RANGE: Final = 0x10
_BLKDISCARD: Final = 0x1277
_BLKGETSIZE64: Final = 0x80081272
_BLKSSZGET: Final = 0x1268
_BLKIOOPT: Final = 0x1279
_ZEROES: Final = mmap.mmap(-1, 1 << 20, prot=mmap.PROT_READ)  # untouched anonymous memory: no page is ever allocated
# EBUSY: another opener holds the device exclusively, and pages of the range are still to be written.
_RUN_KEPT: Final = 1.0  # seconds
_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY, errno.EBUSY})

_SYNC_FILE_RANGE_WRITE: Final = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes of one kind.

    Attributes:
        length: bytes.
        hole: no storage is allocated for it.
        zero: it reads as zeroes.
    """

    length: int
    hole: bool
    zero: bool


@dataclass(frozen=True, slots=True)
class Geometry:
    """What a file or device is like, read once.

    Attributes:
        size: bytes.
        is_device: a block device rather than a regular file.
        logical_sector: smallest addressable unit in bytes; 1 for a file.
        preferred: the transfer size that avoids read-modify-write, in bytes, a power of two.
        rotational: seeks are slow.
    """

    size: int
    is_device: bool
    logical_sector: int
    preferred: int
    rotational: bool


def measure(fd: int) -> Geometry:
    """The geometry of an open regular file or block device.

    Raises:
        OSError: it is neither (`EINVAL`), or the kernel does not tell.
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return Geometry(status.st_size, False, 1, 4096, False)
    if not stat.S_ISBLK(status.st_mode):
        raise OSError(errno.EINVAL, "neither a regular file nor a block device")
    (size,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
    (sector,) = struct.unpack("I", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    (optimal,) = struct.unpack("I", fcntl.ioctl(fd, _BLKIOOPT, bytes(4)))
    preferred = optimal if optimal >= 4096 and optimal & (optimal - 1) == 0 else 4096
    return Geometry(size, True, sector, min(preferred, 1 << 20), _rotational(status.st_rdev))


def _rotational(device: int) -> bool:
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (node / "queue", node / ".." / "queue"):  # a partition's queue is its disk's
        try:
            return (queue / "rotational").read_text().strip() == "1"
        except OSError:
            continue
    return False


class FileBackend:
    """A regular file or block device, or a window of one, behind the operations of the protocol.

    Attributes:
        fd: the open file; bulk data are spliced to and from it at `start` plus the export's offset.
        start: where the window begins in the file, in bytes.
        size: bytes of the window.
        read_only: writes are to be refused.
    """

    def __init__(self, fd: int, *, read_only: bool, start: int = 0, size: int | None = None) -> None:
        """Take over `fd`, which `close` closes; `size` None is everything behind `start`."""
        self.fd = fd
        self.geometry = measure(fd)
        self.start = start
        self.size = self.geometry.size - start if size is None else size
        self.read_only = read_only
        self._flush_failure: OSError | None = None
        self._holes = True
        self._run = (0, 0, 0.0)  # a run of data, as offsets in the file, and until when that is believed

    def close(self) -> None:
        """Close the file, without a flush."""
        os.close(self.fd)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`.

        Raises:
            OSError: the device failed, or is now shorter than it was (`EIO`).
        """
        offset += self.start
        while len(buffer):
            count = os.preadv(self.fd, [buffer], offset)
            if count == 0:
                raise OSError(errno.EIO, f"the end came early, at byte {offset}")
            buffer = buffer[count:]
            offset += count

    def write(self, data: memoryview | bytes | mmap.mmap, offset: int, *, fua: bool = False) -> None:
        """Write `data` at `offset`; with `fua` they are on stable storage on return.

        Raises:
            OSError: the device failed or is full; part of the data may have been written.
        """
        offset += self.start
        view = memoryview(data)
        flags = os.RWF_DSYNC if fua else 0
        while len(view):
            count = os.pwritev(self.fd, [view], offset, flags) if fua else os.pwrite(self.fd, view, offset)
            view = view[count:]
            offset += count

    def begin_write_back(self, offset: int, length: int) -> None:
        """Have the kernel begin to write a range that is complete, and not wait for it.

        A disk that works while data still arrive has little left to do at the next flush, and is soon ready to be read.
        """
        _libc.sync_file_range(self.fd, self.start + offset, length, _SYNC_FILE_RANGE_WRITE)

    def flush(self) -> None:
        """Bring every write done so far to stable storage.

        The kernel tells a failed write-back once and forgets; this backend remembers, and fails every later flush too.

        Raises:
            OSError: something written earlier is lost.
        """
        if self._flush_failure is not None:
            raise self._flush_failure
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            if not (self.read_only and error.errno in _UNSUPPORTED):
                self._flush_failure = error
                raise

    def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Give the storage of a range back where the device can; its contents are undefined afterwards.

        Raises:
            OSError: the device failed; one that cannot trim is no error.
        """
        self._run = (0, 0, 0.0)
        start, end = self._aligned(offset, length)
        if start < end:
            try:
                if self.geometry.is_device:
                    fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", start, end - start))
                else:
                    _fallocate(self.fd, _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, start, end - start)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        if fua:
            self.flush()

    def zero(self, offset: int, length: int, *, may_trim: bool, fast: bool = False, fua: bool = False) -> None:
        """Make a range read as zeroes, unmapped where `may_trim` and the device can.

        Raises:
            OSError: `ENOTSUP` when `fast` and it would take as long as writing, with nothing changed; else as `write`.
        """
        self._run = (0, 0, 0.0)
        start, end = self._aligned(offset, length)
        whole = (start, end) == (self.start + offset, self.start + offset + length)
        if fast and not whole:
            raise OSError(errno.ENOTSUP, "not aligned to the device's sectors")
        if start >= end or not self._zero_aligned(start, end - start, may_trim, fast):
            if fast:
                raise OSError(errno.ENOTSUP, "the device has no fast way to zero")
            self._write_zeroes(offset, length)
        elif not whole:
            self._write_zeroes(offset, start - self.start - offset)
            self._write_zeroes(end - self.start, offset + length - (end - self.start))
        if fua:
            self.flush()

    def cache(self, offset: int, length: int) -> None:
        """Begin to read a range ahead."""
        os.posix_fadvise(self.fd, self.start + offset, length, os.POSIX_FADV_WILLNEED)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The runs that make up a range, in order; neighbours differ. A hole reads as zeroes.

        Raises:
            OSError: the device failed.
        """
        position, end = self.start + offset, self.start + offset + length
        while position < end:
            data = self._seek_data(position, end)
            if data > position:
                yield Extent(data - position, hole=True, zero=True)
                position = data
            if position < end:
                hole = min(max(self._seek_hole(position, end), position + 1), end)
                yield Extent(hole - position, hole=False, zero=False)
                position = hole

    def _seek_data(self, position: int, end: int) -> int:
        if not self._holes or self._in_known_run(position):
            return position
        try:
            return min(os.lseek(self.fd, position, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                return end if position < measure(self.fd).size else position
            if error.errno not in _UNSUPPORTED:
                raise
            self._holes = False
            return position

    def _seek_hole(self, position: int, end: int) -> int:
        """Where the run of data at `position` ends.

        On tmpfs the kernel looks at every page up to there, which may be the whole file, so the answer is kept for a
        moment. A hole punched meanwhile by somebody else is taken for data, which is always a true answer.
        """
        if not self._holes:
            return end
        if not self._in_known_run(position):
            self._run = (position, os.lseek(self.fd, position, os.SEEK_HOLE), time.monotonic() + _RUN_KEPT)
        return self._run[1]

    def _in_known_run(self, position: int) -> bool:
        start, stop, until = self._run
        return start <= position < stop and time.monotonic() < until

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        """The part of a range, as file offsets, that consists of whole sectors."""
        sector = self.geometry.logical_sector
        start, end = self.start + offset, self.start + offset + length
        return -(-start // sector) * sector, end // sector * sector

    def _zero_aligned(self, start: int, length: int, may_trim: bool, fast: bool) -> bool:
        """Zero by `fallocate`; False where the device has no way to.

        On a block device PUNCH_HOLE never falls back to writing zeroes and ZERO_RANGE may, so the latter is not fast.
        """
        modes = []
        if may_trim:
            modes.append(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE)
        if not (self.geometry.is_device and fast):
            modes.append(_FALLOC_ZERO_RANGE | _FALLOC_KEEP_SIZE)
        for mode in modes:
            try:
                _fallocate(self.fd, mode, start, length)
                return True
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                if error.errno == errno.EBUSY and not fast:
                    self.flush()
                    with contextlib.suppress(OSError):  # if not now, then by writing
                        _fallocate(self.fd, mode, start, length)
                        return True
        return False

    def _write_zeroes(self, offset: int, length: int) -> None:
        view = memoryview(_ZEROES)
        while length > 0:
            count = min(length, len(view))
            self.write(view[:count], offset)
            offset += count
            length -= count
