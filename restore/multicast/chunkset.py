"""Sets of chunk numbers, small in memory and on the wire."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterable, Iterator
from typing import Self


class ChunkSet:
    """A set of numbers from 0 to below `count`, one bit each."""

    __slots__ = ("_bits", "count")

    def __init__(self, count: int, members: Iterable[int] = ()) -> None:
        """Of chunks 0 to `count` - 1, those that are given."""
        self.count = count
        bits = bytearray(-(-count // 8))  # one bit after the other would copy all of them each time
        for member in members:
            self._check(member)
            bits[member >> 3] |= 1 << (member & 7)
        self._bits = int.from_bytes(bits, "little")

    @classmethod
    def full(cls, count: int, first: int = 0) -> Self:
        """All of them from `first` on."""
        made = cls(count)
        made._bits = ((1 << count) - 1) >> first << first
        return made

    @classmethod
    def from_bits(cls, bits: bytes | bytearray, count: int) -> Self:
        """Those of `count` chunks whose bits are set, lowest first."""
        made = cls(count)
        made._bits = int.from_bytes(bits, "little") & ((1 << count) - 1)
        return made

    def add(self, member: int) -> None:
        """Have a chunk in it.

        Raises:
            IndexError: there is no such chunk.
        """
        self._check(member)
        self._bits |= 1 << member

    def discard(self, member: int) -> None:
        """Have a chunk not in it."""
        if member in self:
            self._bits ^= 1 << member

    def update(self, other: ChunkSet) -> None:
        """Have all of another set in it."""
        self._bits |= other._bits

    def remove_all(self, other: ChunkSet) -> None:
        """Have none of another set in it."""
        self._bits &= ~other._bits

    def common(self, other: ChunkSet) -> int:
        """How many chunks are in both."""
        return (self._bits & other._bits).bit_count()

    def next(self, start: int) -> int | None:
        """The first member from `start` on, None if there is none."""
        rest = self._bits >> start
        return None if not rest else start + (rest & -rest).bit_length() - 1

    def between(self, start: int, end: int) -> Self:
        """The members from `start` to `end` - 1."""
        made = type(self)(self.count)
        made._bits = (self._bits & ((1 << end) - 1)) >> start << start
        return made

    def copy(self) -> Self:
        """Another with the same members."""
        made = type(self)(self.count)
        made._bits = self._bits
        return made

    def __contains__(self, member: int) -> bool:
        """Whether a chunk is in it."""
        return member >= 0 and bool(self._bits >> member & 1)

    def __len__(self) -> int:
        """How many there are."""
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._bits)

    def __iter__(self) -> Iterator[int]:
        """The members, in order."""
        data = self._bits.to_bytes(-(-self.count // 8), "little")
        for index, byte in enumerate(data):
            while byte:
                yield 8 * index + (byte & -byte).bit_length() - 1
                byte &= byte - 1

    def __eq__(self, other: object) -> bool:
        """Whether two have the same members."""
        return isinstance(other, ChunkSet) and (self.count, self._bits) == (other.count, other._bits)

    __hash__ = None  # type: ignore[assignment]

    def _check(self, member: int) -> None:
        if not 0 <= member < self.count:
            raise IndexError(f"there is no chunk {member}, there are {self.count}")

    def to_text(self) -> str:
        """As a message has it: the bits, lowest first, compressed by zlib, in base64."""
        data = self._bits.to_bytes(-(-self.count // 8), "little")
        return base64.b64encode(zlib.compress(data, 1)).decode()

    @classmethod
    def from_text(cls, text: str, count: int) -> Self:
        """What `to_text` made of a set of `count` chunks.

        Raises:
            ValueError: it is not that.
        """
        size = -(-count // 8)
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(base64.b64decode(text, validate=True), size + 1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise ValueError(f"it is no set of chunks: {error}") from None
        if len(data) != size or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"it is no set of {count} chunks")
        made = cls(count)
        made._bits = int.from_bytes(data, "little")
        if made._bits >> count:
            raise ValueError(f"it has chunks that are not there: there are {count}")
        return made
