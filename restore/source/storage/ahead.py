"""Reading ahead from where each request takes its time: several under way, handed on in order, memory bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

PIECE: Final = 4 << 20  # bytes asked for at once
_AHEAD: Final = 2  # pieces ahead of who reads, for each connection
_SPARE: Final = 8  # more pieces that are kept
_RECENT: Final = 64  # places in which reading goes on that are remembered
_TAIL: Final = 64 << 10  # bytes at the end that are had at once
_UNIT: Final = 1 << 20  # bytes that `stream` hands on at once


class ReadAhead:
    """Turns whole ranges from a server into `Storage.read` and `Storage.stream`.

    Large reads go to the server as they are, as many at once as there are threads that read. Small ones do too, until
    they turn out to follow one another; then whole pieces are had ahead of them.
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], size: int, connections: int, *, head: bytes = b"", piece: int = PIECE
    ) -> None:
        """Prepare; nothing is asked for.

        Args:
            fetch: gets the bytes of a range, all of them, from several threads.
            size: bytes in all.
            connections: ranges to ask for at once.
            head: what is known already of the first bytes.
            piece: bytes to ask for at once.
        """
        self._fetch = fetch
        self._size = size
        self._head = head
        self._tail: bytes | None = None
        self._piece = piece
        self._ahead = _AHEAD * connections
        self._pool = ThreadPoolExecutor(connections, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._pieces: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._recent: OrderedDict[int, None] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere, fewer only at the end; raises what `fetch` does."""
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        if offset >= self._size - _TAIL and length < self._piece:
            return self._last()[offset - self._size :][:length]
        if length >= self._piece or not self._goes_on(offset, length):
            return self._fetch(offset, length)
        parts = []
        while length:
            index, at = divmod(offset, self._piece)
            part = self._get(index)[at : at + length]
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def stream(self) -> Iterator[bytes]:
        """All of it; raises what `fetch` does."""
        coming: deque[Future[bytes]] = deque()
        yield from _cut(self._head)
        start = len(self._head)
        try:
            while True:
                while start < self._size and len(coming) < self._ahead:
                    end = min(start - start % self._piece + self._piece, self._size)
                    coming.append(self._pool.submit(self._fetch, start, end - start))
                    start = end
                if not coming:
                    return
                yield from _cut(coming.popleft().result())
        finally:
            for future in coming:
                future.cancel()

    def close(self) -> None:
        """End its threads; what they wait for has to end by itself."""
        self._pool.shutdown(cancel_futures=True)
        self._pieces.clear()

    def _last(self) -> bytes:
        """The last bytes, which are looked at again and again to tell what it is."""
        if self._tail is None:
            start = max(self._size - _TAIL, 0)
            self._tail = self._fetch(start, self._size - start)
        return self._tail

    def _goes_on(self, offset: int, length: int) -> bool:
        """Whether a read is in a piece that is there, or goes on from one shortly before it."""
        first, last = offset // self._piece, (offset + length - 1) // self._piece
        with self._lock:
            found = first in self._pieces or first in self._recent or first - 1 in self._recent
            for index in range(first, last + 1):
                self._recent[index] = None
                self._recent.move_to_end(index)
            while len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
            return found

    def _get(self, index: int) -> bytes:
        with self._lock:
            future = self._ask(index)
            for coming in range(index + 1, index + 1 + self._ahead):
                if coming * self._piece < self._size and coming not in self._pieces:
                    self._ask(coming)
            self._pieces.move_to_end(index)
            while len(self._pieces) > self._ahead + _SPARE:
                self._pieces.popitem(last=False)[1].cancel()
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._pieces.get(index) is future:
                    del self._pieces[index]
            raise

    def _ask(self, index: int) -> Future[bytes]:
        future = self._pieces.get(index)
        if future is None:
            start = index * self._piece
            future = self._pool.submit(self._fetch, start, min(self._piece, self._size - start))
            self._pieces[index] = future
        return future


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) <= _UNIT:
        if data:
            yield data
        return
    for start in range(0, len(data), _UNIT):
        yield data[start : start + _UNIT]
