"""xz: streams of blocks, with an index of them at the end (The .xz File Format, 1.1.0).

A block is decoded by itself as a stream of its own: with a header, an index and a footer that are made for it. So
liblzma checks its header, its size and its checksum.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from restore.source import SourceError
from restore.source.compressed.blocks import Index, Part
from restore.source.compressed.input import Input, damage
from restore.source.compressed.parallel import Job, Step
from restore.source.compressed.serial import PIECE, decode_one
from restore.source.storage import Storage

MAGIC: Final = b"\xfd7zXZ\0"
MEMORY: Final = 512 << 20  # bytes that a decoder may take, for a dictionary above all
_STREAM: Final = "an xz stream"
_BLOCK: Final = "an xz block"
_INDEX: Final = "an xz index"
_HEADER: Final = 12  # bytes of a stream's header, and of its footer
_FOOTER: Final = struct.Struct("<II2s2s")  # CRC32, Backward Size, Stream Flags, "YZ"
_CHECKS: Final = {0: 0, 1: 4, 4: 8, 10: 32}  # bytes of those that liblzma has: none, CRC32, CRC64, SHA-256
_WHOLE: Final = 256 << 20  # bytes: a block that is not larger is decoded in one go, beside others
_INDEX_MOST: Final = 16 << 20  # bytes of an index that is read beforehand
_VLI: Final = 9  # bytes of a number at most


def decode(source: Input) -> Iterator[Step]:
    """All streams, and zeroes between and behind them."""
    first = True
    while first or source.peek(1):
        if source.peek(len(MAGIC)) != MAGIC:
            source.damaged("no xz stream begins here, and it is not the end")
        first = False
        yield from _stream(source)
        while source.peek(4) == bytes(4):  # Stream Padding (section 2.2)
            source.exactly(4, _STREAM)


def _stream(source: Input) -> Iterator[Step]:
    at = source.position
    header = source.exactly(_HEADER, _STREAM)
    check = _flags(header)
    if check is None:
        source.damaged("an xz stream's header is not right, or says what is not known here", at)
    blocks: list[tuple[int, int]] = []
    while True:
        at = source.position
        size = (source.peek(1) or source.cut_short(_STREAM))[0]
        if not size:
            break
        stored = source.exactly((size + 1) * 4, _BLOCK)
        block = _block_header(source, stored, at)
        if block is None:
            if blocks:
                source.damaged("an xz block does not tell its sizes, unlike those before it", at)
            source.give_back(header + stored)
            decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
            yield from decode_one(source, decoder, lzma.LZMAError, _STREAM)
            return
        compressed, length = block
        unpadded = len(stored) + compressed + check
        blocks.append((unpadded, length))
        rest = _padded(unpadded) - len(stored)
        if max(length, rest) <= _WHOLE:
            stored += source.exactly(rest, _BLOCK)
            yield _job(_Block(source.name, at, header, unpadded, length), stored)
        else:
            yield from _large(source, _Block(source.name, at, header, unpadded, length), stored, rest)
    _index(source, header, blocks)


def _index(source: Input, header: bytes, blocks: list[tuple[int, int]]) -> None:
    """Hold the index and the footer of a stream against its blocks."""
    at = source.position
    wanted = _make_index(blocks)
    if source.exactly(len(wanted), _INDEX) != wanted:
        source.damaged("an xz stream's index is not that of its blocks", at)
    at = source.position
    if source.exactly(_HEADER, _STREAM) != _make_footer(wanted, header):
        source.damaged("an xz stream's footer is not right", at)


def _job(block: _Block, stored: bytes) -> Job:
    return Job(lambda: block.decode(stored), block.length + len(stored))


def _large(source: Input, block: _Block, stored: bytes, rest: int) -> Iterator[bytes]:
    """A block that is too large to be held, piece by piece."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
    data = block.header + stored
    left = block.length
    while not decoder.eof:
        try:
            piece = decoder.decompress(data, PIECE)
        except lzma.LZMAError as error:
            raise block.damaged(str(error)) from None
        left -= len(piece)
        if piece:
            yield piece
        data = b""
        if decoder.needs_input and not decoder.eof:
            if rest:
                data = source.some(min(rest, PIECE)) or source.cut_short(_BLOCK)
                rest -= len(data)
                data += b"" if rest else block.end
            elif not piece:
                break
    if left or rest or not decoder.eof:
        raise block.damaged("it is not as long as it says")


@dataclass(frozen=True, slots=True)
class _Block:
    """A block as it is in its stream.

    Attributes:
        name: of the image.
        at: where in what is stored it begins.
        header: its stream's header.
        unpadded: its Unpadded Size, as an index has it.
        length: bytes that are in it.
    """

    name: str
    at: int
    header: bytes
    unpadded: int
    length: int

    @property
    def end(self) -> bytes:
        """An index and a footer as of a stream with no other block."""
        index = _make_index([(self.unpadded, self.length)])
        return index + _make_footer(index, self.header)

    def decode(self, stored: bytes) -> list[bytes]:
        """Its content, in pieces."""
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)
        pieces, left = [], self.length
        data = b"".join((self.header, stored, self.end))
        try:
            while not decoder.eof:
                piece = decoder.decompress(data, PIECE)
                data = b""
                left -= len(piece)
                if left < 0 or (not piece and not decoder.eof):
                    break
                if piece:
                    pieces.append(piece)
        except lzma.LZMAError as error:
            raise self.damaged(str(error)) from None
        if left or not decoder.eof or decoder.unused_data:
            raise self.damaged("it is not as long as it says")
        return pieces

    def damaged(self, why: str) -> SourceError:
        """The error for that."""
        return SourceError(damage(self.name, self.at, f"{_BLOCK}: {why}"))


class XzBlocks:
    """How blocks that an index tells are decoded: a `Format`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._unpadded = array("Q")
        self._headers: list[bytes] = []

    def append(self, header: bytes, unpadded: int) -> None:
        """There is one more, in a stream with that header."""
        self._headers.append(header)
        self._unpadded.append(unpadded)

    def decode(self, part: Part, stored: bytes) -> bytes:
        """A block's content."""
        header, unpadded = self._headers[part.number], self._unpadded[part.number]
        return b"".join(_Block(self._name, part.at, header, unpadded, part.length).decode(stored))

    def is_zero(self, part: Part, stored: bytes) -> bool:
        """That cannot be seen."""
        return False


def read_index(storage: Storage) -> tuple[Index, XzBlocks] | None:
    """The blocks of a storage, read from the streams' indexes, the last one first.

    Returns:
        None where not all is as it should be, which is for decoding in order to say.

    Raises:
        SourceError, OSError: it cannot be read.
    """
    end = storage.size
    if end is None or not storage.seekable:
        return None
    streams = []
    budget = _INDEX_MOST
    while end:
        while end >= 4 and storage.read(end - 4, 4) == bytes(4):
            end -= 4
        stream = _stream_before(storage, end, budget)
        if stream is None:
            return None
        header, blocks, begin, taken = stream
        budget -= taken
        streams.append((header, blocks, begin))
        end = begin
    index, form = Index(), XzBlocks(storage.name)
    for header, blocks, begin in reversed(streams):
        at = begin + _HEADER
        for unpadded, length in blocks:
            if length:
                index.append(at, _padded(unpadded), length)
                form.append(header, unpadded)
            at += _padded(unpadded)
    return (index, form) if len(index) else None


def _stream_before(storage: Storage, end: int, budget: int) -> tuple[bytes, list[tuple[int, int]], int, int] | None:
    """Header, blocks and start of the stream that ends there, and how large its index is; None if that is not right."""
    if end < 2 * _HEADER + 8:
        return None
    footer = storage.read(end - _HEADER, _HEADER)
    size = (_FOOTER.unpack(footer)[1] + 1) * 4
    if size > min(budget, end - 2 * _HEADER) or footer[-2:] != b"YZ":
        return None
    stored = storage.read(end - _HEADER - size, size)
    blocks = _parse_index(stored)
    if blocks is None:
        return None
    begin = end - 2 * _HEADER - size - sum(_padded(unpadded) for unpadded, _ in blocks)
    if begin < 0:
        return None
    header = storage.read(begin, _HEADER)
    if _flags(header) is None or footer != _make_footer(stored, header):
        return None
    return header, blocks, begin, size


def _flags(header: bytes) -> int | None:
    """Bytes of the check that a stream's header tells (section 2.1.1); None where it is not right."""
    if header[:6] != MAGIC or header[6] or header[7] not in _CHECKS:
        return None
    return _CHECKS[header[7]] if header[8:] == _crc(header[6:8]) else None


def _block_header(source: Input, stored: bytes, at: int) -> tuple[int, int] | None:
    """Compressed and uncompressed size, as a block's header tells them (section 3.1); None where it does not."""
    if stored[-4:] != _crc(stored[:-4]):
        source.damaged("an xz block's header does not match its checksum", at)
    if stored[1] & 0x3C:
        source.damaged("a reserved bit is set in an xz block's header", at)
    if stored[1] & 0xC0 != 0xC0:
        return None
    compressed = _number(stored, 2)
    length = None if compressed is None else _number(stored, compressed[1])
    if compressed is None or length is None or not compressed[0]:
        source.damaged("an xz block's sizes are not right", at)
    return compressed[0], length[0]


def _parse_index(stored: bytes) -> list[tuple[int, int]] | None:
    """Unpadded and uncompressed size of each block (section 4); None where it is not right."""
    if stored[0] or stored[-4:] != _crc(stored[:-4]):
        return None
    found = _number(stored, 1)
    if found is None or found[0] > len(stored) // 2:
        return None
    count, at = found
    blocks = []
    for _ in range(count):
        unpadded = _number(stored, at)
        length = None if unpadded is None else _number(stored, unpadded[1])
        if unpadded is None or length is None:
            return None
        at = length[1]
        blocks.append((unpadded[0], length[0]))
    return blocks if _make_index(blocks) == stored else None


def _make_index(blocks: list[tuple[int, int]]) -> bytes:
    index = bytearray(b"\0" + _bytes(len(blocks)))
    for unpadded, length in blocks:
        index += _bytes(unpadded) + _bytes(length)
    index += bytes(-len(index) % 4)
    return bytes(index) + _crc(index)


def _make_footer(index: bytes, header: bytes) -> bytes:
    """A footer (section 2.1.2) behind an index, in a stream that begins so."""
    middle = (len(index) // 4 - 1).to_bytes(4, "little") + header[6:8]
    return _crc(middle) + middle + b"YZ"


def _padded(unpadded: int) -> int:
    return -(-unpadded // 4) * 4


def _crc(data: bytes | bytearray) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _number(data: bytes, at: int) -> tuple[int, int] | None:
    """A multibyte integer (section 1.2), and where it ends; None where it is not right."""
    value = 0
    for count in range(_VLI):
        if at + count >= len(data):
            return None
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if not byte & 0x80:
            return (value, at + count + 1) if byte or not count else None
    return None


def _bytes(value: int) -> bytes:
    """A number as a multibyte integer."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
