"""bzip2: streams that follow one another, of blocks that are decoded each by itself.

A block begins with a number of 48 bits, at any bit. It is decoded as a stream of its own: with a header and a footer
that are made for it, so that libbz2 checks it. What it says in its checksum is checked against that of the stream.
The number occurs by chance once in 280 Tbit, and then mostly without what has to follow; that is taken for damage.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from restore.source import SourceError
from restore.source.compressed.input import Input, damage
from restore.source.compressed.parallel import Job, Step
from restore.source.compressed.serial import PIECE

BLOCK: Final = b"\x31\x41\x59\x26\x53\x59"  # a block begins
END: Final = b"\x17\x72\x45\x38\x50\x90"  # the stream ends
_STREAM: Final = "a bzip2 stream"
_NUMBER: Final = 48  # bits of these
_CHECKSUM: Final = 32  # bits that follow them
_POINTER: Final = 25  # bits that follow a block's checksum: one that is no longer used, and where its text begins
_READ: Final = 256 << 10  # bytes
_MOST: Final = 4 << 20  # stored bytes of a block
_COST: Final = 50 << 20  # bytes that a block may hold: of 900 kB, each five of which may stand for 259


def begins(head: bytes) -> bool:
    """Whether a stream begins here."""
    return head[:3] == b"BZh" and head[3:4] in (b"%d" % level for level in range(1, 10)) and head[4:10] in (BLOCK, END)


def decode(source: Input) -> Iterator[Step]:
    """All streams."""
    first = True
    while first or source.peek(1):
        if not begins(source.peek(10)):
            source.damaged("no bzip2 stream begins here, and it is not the end")
        first = False
        yield from _stream(source)


def _stream(source: Input) -> Iterator[Job]:
    header = source.exactly(4, _STREAM)
    stored = _Bits(source)
    combined = 0
    while stored.value(0, _NUMBER) == _BLOCK:
        block = _Block(source.name, stored.position, header, stored.value(_NUMBER, _CHECKSUM))
        combined = (combined << 1 | combined >> 31) & 0xFFFFFFFF ^ block.checksum
        length = stored.find_next(int(header[3:]))
        yield _job(block, stored.value(0, length), length)
        stored.drop(length)
    if stored.value(_NUMBER, _CHECKSUM) != combined:
        source.damaged("a bzip2 stream does not match its checksum", stored.position)
    stored.drop(_NUMBER + _CHECKSUM)
    stored.leave()


def _job(block: _Block, bits: int, length: int) -> Job:
    return Job(lambda: block.decode(bits, length), _COST)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block: of which image, where in what is stored it begins, its stream's header, its checksum."""

    name: str
    at: int
    header: bytes
    checksum: int

    def decode(self, bits: int, length: int) -> list[bytes]:
        """Its content, from so many bits."""
        length += _NUMBER + _CHECKSUM
        whole = (bits << _NUMBER | _END) << _CHECKSUM | self.checksum
        padding = -length % 8
        data = self.header + (whole << padding).to_bytes((length + padding) // 8, "big")
        decoder = bz2.BZ2Decompressor()
        pieces = []
        try:
            while not decoder.eof:
                piece = decoder.decompress(data, PIECE)
                data = b""
                if piece:
                    pieces.append(piece)
                elif decoder.needs_input:
                    break
        except (OSError, EOFError):
            raise self.damaged() from None
        if not decoder.eof or decoder.unused_data:
            raise self.damaged()
        return pieces

    def damaged(self) -> SourceError:
        """The error for that."""
        return SourceError(damage(self.name, self.at, "a bzip2 block that cannot be decoded, or not to its checksum"))


class _Bits:
    """The stored bits from where the reader is; the first byte may have been used up in part."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self._data = b""
        self._bit = 0  # of the first byte

    @property
    def position(self) -> int:
        """The byte of what is stored where it is."""
        return self._source.position - len(self._data)

    def value(self, start: int, length: int) -> int:
        """So many bits from there on, which have to be there; raises `SourceError`."""
        first, last = self._bit + start, self._bit + start + length
        while last > 8 * len(self._data):
            self._more()
        whole = int.from_bytes(self._data[first // 8 : -(-last // 8)], "big")
        return whole >> (-last % 8) & (1 << length) - 1

    def find_next(self, level: int) -> int:
        """Bits up to where the next block begins, or the end."""
        done = _NUMBER + _CHECKSUM + _POINTER  # as far as was looked
        while True:
            found = None
            for pattern in _PATTERNS:
                found = self._find(pattern, done, found)
            if found is not None:
                if self.value(found, _NUMBER) == _END or self._is_block(found, level):
                    return found
                done = found + 1
                continue
            done = max(done, 8 * len(self._data) - self._bit - _NUMBER - 8)
            if len(self._data) > _MOST:
                self._source.damaged("a bzip2 block does not end", self.position)
            self._more()

    def drop(self, length: int) -> None:
        """Go on by so many bits."""
        count, self._bit = divmod(self._bit + length, 8)
        self._data = self._data[count:]

    def leave(self) -> None:
        """Have what follows, from the next whole byte on, read from the source."""
        if self._bit:
            self.drop(8 - self._bit)
        self._source.give_back(self._data)
        self._data = b""

    def _more(self) -> None:
        self._data += self._source.some(_READ) or self._source.cut_short(_STREAM)

    def _is_block(self, at: int, level: int) -> bool:
        """Whether what follows a block's number may do so: its text begins within it."""
        return self.value(at + _NUMBER + _CHECKSUM, _POINTER) <= level * 100_000

    def _find(self, pattern: tuple[bytes, int, int], start: int, before: int | None) -> int | None:
        """The first place of a number, at one alignment, from a bit on; `before` where there is none before that."""
        inner, shift, number = pattern
        at = (self._bit + start) // 8
        behind = len(self._data) if before is None else (self._bit + before) // 8 + len(inner) + 1
        while (at := self._data.find(inner, at, behind)) >= 0:
            bit = 8 * at - shift - self._bit
            if bit >= start and 8 * len(self._data) >= self._bit + bit + _NUMBER and self.value(bit, _NUMBER) == number:
                return bit if before is None else min(bit, before)
            at += 1
        return before


_BLOCK: Final = int.from_bytes(BLOCK, "big")
_END: Final = int.from_bytes(END, "big")


def _patterns() -> Iterator[tuple[bytes, int, int]]:
    """The whole bytes in the middle of the numbers at each alignment, and how many bits lie before them."""
    for number in (_BLOCK, _END):
        for shift in range(8):
            count = (_NUMBER - shift) // 8
            whole = number >> (_NUMBER - shift - 8 * count) & (1 << 8 * count) - 1
            yield whole.to_bytes(count, "big"), shift, number


_PATTERNS: Final = tuple(_patterns())
