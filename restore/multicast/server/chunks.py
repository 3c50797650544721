"""The chunks of the image that is served, read and checked, laid out as they are sent."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from blake3 import blake3

from nbd.connection import FileRange
from restore.multicast.carousel import Turn
from restore.multicast.chunkset import ChunkSet
from restore.multicast.layout import CHUNK, Layout
from restore.multicast.packet import HEADER_SIZE, Header, Headers, segments_of
from restore.multicast.repair import RepairMaker
from restore.source import Source, SourceError
from restore.source.payload import as_memory

_ZEROES: Final = bytes(CHUNK)


class Prepared:
    """A turn as its datagrams: header, segment, header, segment, and so on; memory that is used again and again.

    Attributes:
        end: how many datagrams have been sent after it.
        datagram_size: bytes of each datagram.
    """

    def __init__(self, session: int, segment_size: int) -> None:
        """Room for any chunk of a session."""
        most = segments_of(CHUNK, segment_size)
        self._session = session
        self._size = segment_size
        self._memory = memoryview(bytearray(most * segment_size))
        self._headers = Headers(session, most)
        places = [self._memory[at : at + segment_size] for at in range(0, len(self._memory), segment_size)]
        self._whole: list[memoryview | bytes] = [
            part for pair in zip(self._headers.views, places, strict=True) for part in pair
        ]
        self._parts: Sequence[memoryview | bytes] = ()
        self._count = 0
        self.end = 0
        self.datagram_size = HEADER_SIZE + segment_size

    def fill(self, chunks: ChunkReader, repairs: RepairMaker, turn: Turn) -> None:
        """Have it be a turn; raises as `ChunkReader.read_into`."""
        chunk = turn.chunk
        segments = chunks.segments(chunk, self._size)
        to_learn = turn.repairs and not repairs.knows(chunk)
        if turn.segments or to_learn:
            length = chunks.read_into(self._memory, chunk)
            padded = segments * self._size
            self._memory[length:padded] = _ZEROES[: padded - length]
        if to_learn:
            repairs.learn(chunk, self._memory[: segments * self._size])
        self._headers.name(turn.sequence, chunk)
        parts: list[memoryview | bytes] = self._whole[: 2 * turn.segments]
        if turn.repairs:
            made = repairs.make(chunk, turn.first_repair, turn.repairs)
            for number, data in enumerate(made, segments + turn.first_repair):
                parts += Header(self._session, turn.sequence, chunk, number).pack(), data
        self._parts = parts
        self._count = turn.segments + turn.repairs
        self.end = turn.sequence + self._count

    def batches(self, most: int) -> Iterator[tuple[Sequence[memoryview | bytes], int]]:
        """Its datagrams by up to `most`, as parts and how many datagrams they are."""
        for first in range(0, self._count, most):
            last = min(first + most, self._count)
            yield self._parts[2 * first : 2 * last], last - first


class ChunkReader:
    """Reads chunks from any thread; what is not what the manifest says is never handed out."""

    def __init__(self, source: Source, layout: Layout) -> None:
        """Read from a source, which stays open for as long as this is used."""
        self._source = source
        self._layout = layout
        self._lock = threading.Lock()
        self._checked = ChunkSet(len(layout))

    def segments(self, chunk: int, size: int) -> int:
        """How many segments of so many bytes a chunk has."""
        return segments_of(self._layout.length(chunk), size)

    def read(self, chunk: int) -> memoryview:
        """The bytes of a chunk; raises as `read_into`."""
        buffer = memoryview(bytearray(self._layout.length(chunk)))
        self.read_into(buffer, chunk)
        return buffer

    def read_into(self, buffer: memoryview, chunk: int) -> int:
        """Read a chunk into the start of a buffer; how many bytes it has.

        Raises:
            SourceError: it is not what was scanned.
            OSError: it cannot be read.
        """
        start, end = self._layout.span(chunk)
        length = end - start
        payload = self._source.payload(start, length)
        if not (isinstance(payload, FileRange) and _filled(payload, buffer[:length])):
            buffer[:length] = as_memory(payload, length, self._source.name)
        if chunk not in self._checked:
            if blake3(buffer[:length]).digest() != self._layout.digest(chunk):
                raise SourceError(
                    f"the source is at fault: {self._source.name} is damaged or was changed: bytes {start} to "
                    f"{end - 1} do not match its scan"
                )
            with self._lock:
                self._checked.add(chunk)
        return length


def _filled(payload: FileRange, buffer: memoryview) -> bool:
    """Read a range of a file into a buffer of its length; False if that takes more than one call."""
    return os.preadv(payload.fd, [buffer], payload.offset) == len(buffer)
