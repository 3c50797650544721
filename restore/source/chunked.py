"""A source made of chunks that are decoded each by itself: on all cores, ahead of who reads, in bounded memory."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from nbd.backend import Extent
from restore.source import Chunks, Payload, SourceError
from restore.source.storage import Interruptible

AHEAD: Final = 32 << 20  # bytes decoded ahead of each reader, or a chunk for each worker where those are larger
KEPT: Final = 128 << 20  # bytes of decoded chunks, among all readers; what is dropped is decoded again if need be

_Bytes = bytes | bytearray | memoryview


class ChunkedSource:
    """A `Source` over `Chunks`."""

    sequential: Final = False
    checked: Final = False

    def __init__(self, chunks: Chunks, *, workers: int | None = None) -> None:
        """Take over `chunks`, which `close` closes; `workers` None is one for each processor."""
        self.name = chunks.name
        self.size: int = chunks.size
        self._chunks = chunks
        self._decoded = _Decoded(chunks, workers or len(os.sched_getaffinity(0)))
        self._original = True
        self._lock = threading.Lock()
        self._upcoming: Iterator[tuple[int, int]] = iter(())
        self._foreseen: OrderedDict[int, int] = OrderedDict()  # chunks asked for ahead: start to end

    @property
    def least_size(self) -> int:
        """It is known."""
        return self.size

    @property
    def expected_size(self) -> int:
        """It is known."""
        return self.size

    def extents(self) -> Iterator[Extent]:
        """As the format tells."""
        return self._chunks.extents()

    def payload(self, offset: int, length: int) -> Payload:
        """From the file where it lies plain, else decoded, most often ahead of this call."""
        plain = self._chunks.plain(offset, length)
        if plain is not None:
            return plain
        if offset + length > self.size:
            raise SourceError(f"{self.name} ends before byte {offset + length}")
        parts = []
        while length:
            start, end = self._chunks.chunk(offset)
            count = min(length, end - offset)
            with self._lock:
                self._look_ahead(start, end)
            chunk = self._decoded.get(start, end).result()
            part = memoryview(chunk)[offset - start :][:count]
            # A small part must not keep the whole in memory for as long as it is on its way.
            parts.append(memoryview(bytes(part)) if 4 * count < end - start else part)
            offset += count
            length -= count
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def forget(self, offset: int, length: int) -> None:
        """What was decoded of a range, and what the kernel keeps of the file where it lies plain."""
        plain = self._chunks.plain(offset, length)
        if plain is not None:
            with suppress(OSError):
                os.posix_fadvise(plain.fd, plain.offset, length, os.POSIX_FADV_DONTNEED)
            return
        end = offset + length
        while offset < end:
            start, offset = self._chunks.chunk(offset)
            self._decoded.forget(start)

    def reader(self) -> Self:
        """Shares what is decoded."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._original = False
        other._lock = threading.Lock()
        other._upcoming = iter(())
        other._foreseen = OrderedDict()
        return other

    def check_unchanged(self) -> None:
        """As the format tells."""
        self._chunks.check_unchanged()

    def close(self) -> None:
        """Stop decoding, and close it."""
        if self._original:
            if isinstance(self._chunks, Interruptible):
                self._chunks.interrupt()
            self._decoded.close()
            self._chunks.close()

    def _look_ahead(self, start: int, end: int) -> None:
        """Have what will probably be asked for after this chunk decoded by then."""
        if start in self._foreseen:
            while self._foreseen and next(iter(self._foreseen)) <= start:
                self._foreseen.popitem(last=False)
        elif not self._decoded.has(start):  # a jump; what lies ahead now is another part of the image
            self._foreseen.clear()
            self._upcoming = self._encoded_from(end)
        while True:
            ahead = sum(last - first for first, last in self._foreseen.items())
            if ahead >= AHEAD and len(self._foreseen) >= self._decoded.workers:
                return
            coming = next(self._upcoming, None)
            if coming is None:
                return
            self._foreseen[coming[0]] = coming[1]
            self._decoded.get(*coming)

    def _encoded_from(self, offset: int) -> Iterator[tuple[int, int]]:
        """The chunks with data from an offset on, but for those that lie plain."""
        position = 0
        for extent in self._chunks.extents():
            at, position = max(position, offset), position + extent.length
            if extent.zero:
                continue
            while at < position:
                start, end = self._chunks.chunk(at)
                if start >= offset and self._chunks.plain(start, end - start) is None:
                    yield start, end
                at = offset = max(end, at + 1)


@dataclass(slots=True)
class _Entry:
    future: Future[_Bytes]
    size: int


class _Decoded:
    """Chunks that are decoded or about to be, the least recently used dropped first."""

    def __init__(self, chunks: Chunks, workers: int) -> None:
        self.workers = workers
        self._chunks = chunks
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._bytes = 0

    def has(self, start: int) -> bool:
        return start in self._entries

    def get(self, start: int, end: int) -> Future[_Bytes]:
        with self._lock:
            entry = self._entries.get(start)
            if entry is None:
                entry = _Entry(self._pool.submit(self._chunks.decode, start, end), end - start)
                self._entries[start] = entry
                self._bytes += entry.size
                while self._bytes > KEPT and len(self._entries) > 4 * self.workers:
                    self._bytes -= self._entries.popitem(last=False)[1].size
            else:
                self._entries.move_to_end(start)
            return entry.future

    def forget(self, start: int) -> None:
        with self._lock:
            entry = self._entries.pop(start, None)
            if entry is not None:
                self._bytes -= entry.size

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._entries.clear()
