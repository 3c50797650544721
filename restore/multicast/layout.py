"""An image as numbered chunks, the same for everyone who has its manifest."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from restore.manifest.bmap import Bmap
from restore.manifest.checked import is_zero
from restore.multicast.chunkset import ChunkSet

CHUNK: Final = 1 << 20  # bytes of one, at most


class Layout:
    """The chunks of an image: those ranges of its manifest that are not zeroes, in order, numbered from 0.

    Attributes:
        size: bytes of all chunks.
        longest: bytes of the longest one.
    """

    def __init__(self, bmap: Bmap) -> None:
        """From a manifest that `is_streamable`."""
        self._bmap = bmap
        self._ranges = array("L", (index for index in range(len(bmap)) if not is_zero(bmap, index)))
        lengths = [end - start for start, end in self.spans()]
        self.size = sum(lengths)
        self.longest = max(lengths, default=0)

    def __len__(self) -> int:
        """How many chunks there are."""
        return len(self._ranges)

    def span(self, chunk: int) -> tuple[int, int]:
        """Start and end of a chunk in bytes of the image."""
        return self._bmap.span(self._ranges[chunk])

    def spans(self) -> Iterator[tuple[int, int]]:
        """Those of all chunks, in order."""
        return (self._bmap.span(index) for index in self._ranges)

    def length(self, chunk: int) -> int:
        """Bytes of a chunk."""
        start, end = self.span(chunk)
        return end - start

    def digest(self, chunk: int) -> bytes:
        """BLAKE3 of a chunk."""
        found = self._bmap[self._ranges[chunk]].blake3
        assert found is not None
        return found


class Lengths:
    """How many bytes a set of chunks has, without a look at each of them: its cost is that of some 20 ANDs."""

    def __init__(self, layout: Layout) -> None:
        """Note, for each power of two, in which chunks' lengths it is."""
        count = len(layout)
        bits: defaultdict[int, bytearray] = defaultdict(lambda: bytearray(-(-count // 8)))
        for chunk, (start, end) in enumerate(layout.spans()):
            length = end - start
            while length:
                power = length & -length
                bits[power][chunk >> 3] |= 1 << (chunk & 7)
                length ^= power
        self._powers = [(power, ChunkSet.from_bits(members, count)) for power, members in bits.items()]

    def of(self, chunks: ChunkSet) -> int:
        """Bytes of all chunks of a set."""
        return sum(power * members.common(chunks) for power, members in self._powers)


def is_streamable(bmap: Bmap) -> bool:
    """Whether each range of a manifest can be a chunk: it is no longer than that, and has a BLAKE3."""
    return all(found.end - found.start <= CHUNK and found.blake3 is not None for found in bmap)
