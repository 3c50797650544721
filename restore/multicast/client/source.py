"""A multicast stream as a `Source`: known from its manifest, its data come in an order of their own."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Self

from nbd.backend import Extent
from restore.manifest.bmap import Bmap
from restore.manifest.checked import mapped_extents
from restore.multicast.chunkset import ChunkSet
from restore.multicast.client.intake import Intake
from restore.multicast.client.server import Server
from restore.multicast.client.shelf import Place
from restore.multicast.layout import CHUNK, Layout
from restore.multicast.session import Session
from restore.source import Description, R, SourceError

_LOOK: Final = 0.1  # seconds after which a wait looks whether it is to end
_ZEROES: Final = memoryview(bytes(CHUNK))


class MulticastSource:
    """The image that a server streams. What is read before it has come, or once more, is fetched by unicast."""

    sequential: Final = False

    def __init__(
        self, name: str, bmap: Bmap, server: Server, intake: Intake, session: Session, *, keep_unmapped: bool = False
    ) -> None:
        """Take over `server` and `intake`, which `close` ends.

        Args:
            name: for people.
            bmap: the image's manifest.
            server: where it comes from.
            intake: brings its chunks.
            session: what the server has said that it streams.
            keep_unmapped: what lies between mapped ranges is to be left as it is on the target.
        """
        self.name = name
        self.bmap = bmap
        self.size: int = bmap.image_size
        self.keep_unmapped = keep_unmapped
        self._layout = Layout(bmap)
        self._starts = array("Q", (start for start, _ in self._layout.spans()))
        self._server = server
        self._intake = intake
        self._session = session
        self._original = True
        self._begin()

    def _begin(self) -> None:
        """What every reader has for itself."""
        self._lock: threading.Lock = threading.Lock()
        self._held: dict[int, memoryview] = {}  # chunks at hand
        self._first: dict[int, memoryview] = {}  # those of the first MiB, which is written last
        self._place: Place | None = None
        self._all_came = self._well = False

    @property
    def least_size(self) -> int:
        """It is known."""
        return self.size

    @property
    def expected_size(self) -> int:
        """It is known."""
        return self.size

    def extents(self) -> Iterator[Extent]:
        """As the manifest has it."""
        return mapped_extents(self.bmap, keep_unmapped=self.keep_unmapped)

    def payload(self, offset: int, length: int) -> memoryview:
        """From what has come, else from the server, by unicast.

        Raises:
            SourceError, RestoreError: it cannot be had.
        """
        buffer = None
        for chunk in self._chunks(offset, length):
            start, end = self._layout.span(chunk)
            data = self._chunk(chunk)
            low, high = max(start, offset), min(end, offset + length)
            part = data[low - start : high - start]
            if len(part) == length:
                return part
            buffer = bytearray(length) if buffer is None else buffer
            buffer[low - offset : high - offset] = part
        if buffer is None:
            return _ZEROES[:length] if length <= CHUNK else memoryview(bytes(length))
        return memoryview(buffer)

    def arrivals(self, ranges: Iterable[R], stopped: Callable[[], bool]) -> Iterator[R]:
        """What needs nothing at once, then each range when all of its chunks have come.

        The chunks of the first MiB are waited for too, since that is written last.
        """
        waiting: list[R] = []
        missing: list[int] = []
        wanted = ChunkSet(len(self._layout))
        for chunk in self._chunks(0, CHUNK):
            if chunk not in self._first:
                wanted.add(chunk)
        for item in ranges:
            chunks = self._chunks(item.offset, item.length)
            if not chunks:
                yield item
                continue
            for chunk in chunks:
                wanted.add(chunk)
            waiting.append(item)
            missing.append(len(chunks))
        offsets = [item.offset for item in waiting]
        left = len(wanted)
        place = self._place = self._intake.want(wanted)
        while left:
            found = place.take(_LOOK)
            if stopped():
                return
            if found is None:
                continue
            chunk, data = found
            left -= 1
            start, _ = self._layout.span(chunk)
            if start < CHUNK:
                self._first[chunk] = data
            index = bisect_right(offsets, start) - 1
            if index < 0 or start >= offsets[index] + waiting[index].length:
                continue  # it is of the first MiB
            self._held[chunk] = data
            missing[index] -= 1
            if not missing[index]:
                item = waiting[index]
                yield item
                for chunk in self._chunks(item.offset, item.length):
                    self._held.pop(chunk, None)
        self._all_came = True

    def described(self, offset: int, length: int) -> list[Description] | None:
        """By its chunks, where they are all of it."""
        parts = []
        position = offset
        for chunk in self._chunks(offset, length):
            start, end = self._layout.span(chunk)
            if start != position:
                return None
            parts.append(Description(start, end - start, self._layout.digest(chunk).hex()))
            position = end
        return parts if position == offset + length else None

    def manifest(self) -> bytes:
        """The manifest's file as the server has it.

        Raises:
            ServerGone: it cannot be had.
        """
        return self._server.manifest(self._session)

    def signature(self) -> bytes | None:
        """The one of the manifest's file; None if it has none.

        Raises:
            ServerGone: it cannot be had.
        """
        return self._server.signature()

    def progressed(self, restored: int, verified: int) -> None:
        """The server is told with the next report."""
        self._intake.progressed(self, restored, verified)

    def reader(self) -> Self:
        """Of the same stream, for one more target."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._original = False
        other._begin()
        return other

    def check_unchanged(self) -> None:
        """Every chunk is what the manifest says, whatever becomes of the server's image; asked when all is well."""
        self._well = self._all_came

    def close(self) -> None:
        """Take no more; of the original, hang up."""
        if self._place is not None:
            self._place.leave()
            self._place = None
            if self._well:
                self._intake.finished()
        if self._original:
            self._intake.close()
            self._server.close()

    def _chunks(self, offset: int, length: int) -> range:
        """Those that a range touches."""
        first = max(bisect_right(self._starts, offset) - 1, 0)
        if first < len(self._starts) and self._layout.span(first)[1] <= offset:
            first += 1
        last = bisect_right(self._starts, offset + length - 1)
        return range(first, max(last, first))

    def _chunk(self, chunk: int) -> memoryview:
        data = self._held.get(chunk) or self._first.get(chunk)
        if data is None:
            data = self._intake.fetch(chunk)
            if self._layout.span(chunk)[0] < CHUNK:
                self._first[chunk] = data
        if len(data) != self._layout.length(chunk):
            raise SourceError(f"{self.name}: chunk {chunk} has another length than it had")
        return data
