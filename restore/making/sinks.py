"""What a captured image is written to: a sparse raw file, or zstd in the seekable format."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

import zstandard

from restore.source.compressed.seekable import SeekTable, zero_frame

FRAME: Final = 1 << 20  # bytes of the image in a frame, which begins at a multiple of that
ZERO_FRAME: Final = 32 << 20  # the same of zeroes
_GRAIN: Final = 64 << 10
_ZERO_GRAIN: Final = bytes(_GRAIN)
_LEVEL: Final = 3  # zstd's own default
_AHEAD: Final = 4  # frames under way, for each thread


class Sink(Protocol):
    """What an image is written to."""

    @property
    def in_order(self) -> bool:
        """Whether `write` has to be called by one thread, in the image's order."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Put bytes somewhere, from any thread but for `in_order`; what is left out is zeroes.

        The memory is kept until it was written. Raises `OSError`.
        """
        ...

    def finish(self, size: int) -> None:
        """All has been written, and the image is of that size. Raises `OSError`."""
        ...

    def close(self) -> None:
        """Stop, finished or not; the file stays open."""
        ...


class RawSink:
    """A sparse raw image."""

    in_order: Final = False

    def __init__(self, fd: int) -> None:
        """Write to an empty file."""
        self._fd = fd

    def write(self, offset: int, data: memoryview) -> None:
        """Write what is not zeroes."""
        whole = data.obj if isinstance(data.obj, bytearray) and len(data.obj) == len(data) else bytes(data)
        start = 0
        while start < len(data):
            end = start
            while end < len(data) and not whole.startswith(_ZERO_GRAIN[: len(data) - end], end):
                end += _GRAIN
            view = data[start : min(end, len(data))]
            while view:
                count = os.pwrite(self._fd, view, offset + start)
                view, start = view[count:], start + count
            start = max(start, end) + _GRAIN

    def finish(self, size: int) -> None:
        """Give it its size."""
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        """There is nothing to stop."""


class ZstdSink:
    """Frames of 1 MiB, compressed on all cores, zeroes in larger ones, and a seek table behind them."""

    in_order: Final = True

    def __init__(self, fd: int, threads: int) -> None:
        """Write to an empty file, compressing in so many threads."""
        self._fd = fd
        self._most = _AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="compress")
        self._local = threading.local()
        self._waiting: deque[tuple[Future[bytes], int]] = deque()
        self._table = SeekTable()
        self._end = 0  # bytes of the image that are in frames, or under way to one
        self._frame: bytearray | None = None  # what has been told of the frame that begins there

    def write(self, offset: int, data: memoryview) -> None:
        """Compress it with what else is in the same frames."""
        while data:
            start = offset // FRAME * FRAME
            count = min(start + FRAME - offset, len(data))
            if start < self._end:
                raise AssertionError(f"byte {offset} comes after byte {self._end}")
            if start != self._end:
                self._close_frame(FRAME)
                self._zeroes(start)
            if count == FRAME:
                self._compress(data[:count])
            else:
                if self._frame is None:
                    self._frame = bytearray(FRAME)
                self._frame[offset - start : offset - start + count] = data[:count]
            offset, data = offset + count, data[count:]

    def finish(self, size: int) -> None:
        """Write what is left, and the seek table."""
        self._close_frame(min(size - self._end, FRAME))
        self._zeroes(size)
        while self._waiting:
            self._put_first()
        for piece in self._table.pieces():
            self._write(piece)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _close_frame(self, length: int) -> None:
        if self._frame is not None:
            frame, self._frame = self._frame, None
            self._compress(memoryview(frame)[:length])

    def _zeroes(self, end: int) -> None:
        """Zeroes up to there."""
        while self._end < end:
            length = min(end - self._end, ZERO_FRAME)
            made: Future[bytes] = Future()
            made.set_result(zero_frame(length))
            self._add(made, length)

    def _compress(self, data: memoryview) -> None:
        self._add(self._pool.submit(self._compressed, data), len(data))

    def _compressed(self, data: memoryview) -> bytes:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)
            self._local.compressor = compressor
        found: bytes = compressor.compress(data)
        return found

    def _add(self, frame: Future[bytes], length: int) -> None:
        self._waiting.append((frame, length))
        self._end += length
        while len(self._waiting) > self._most:
            self._put_first()

    def _put_first(self) -> None:
        frame, length = self._waiting.popleft()
        stored = frame.result()
        self._write(stored)
        self._table.append(stored, length)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
