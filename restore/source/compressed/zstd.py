"""Zstandard (RFC 8878): frames that follow one another, each decoded by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, cast

import zstandard

from restore.source import SourceError
from restore.source.compressed.input import Input, damage
from restore.source.compressed.parallel import Job, Step
from restore.source.compressed.serial import PIECE

MAGIC: Final = b"\x28\xb5\x2f\xfd"
WINDOW: Final = 128 << 20  # bytes; what zstd itself takes without --long
_FRAME: Final = "a zstd frame"
_BLOCK: Final = 128 << 10  # bytes of a block, stored or decoded, at most
_WHOLE: Final = 32 << 20  # bytes, decoded: a frame that is not larger is decoded in one go, beside others
_READ: Final = 256 << 10  # stored bytes of a larger one that are decoded at a time
_local = threading.local()


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says of itself (section 3.1.1.1).

    Attributes:
        stored: its bytes, the magic number included.
        window: bytes of what was decoded last that are referred to.
        size: bytes of the decoded content, None where it does not say.
        checksum: it ends with one of its content.
    """

    stored: bytes
    window: int
    size: int | None
    checksum: bool


def is_skippable(magic: bytes) -> bool:
    """Whether this is the magic number of a frame that holds nothing of the content; lz4 has the same."""
    return len(magic) == 4 and magic[0] & 0xF0 == 0x50 and magic[1:] == b"\x2a\x4d\x18"


def decode(source: Input) -> Iterator[Step]:
    """All frames."""
    first = True
    while first or source.peek(1):
        first = False
        if is_skippable(source.peek(4)):
            skip(source)
        elif source.peek(4) == MAGIC:
            yield from _frame(source)
        else:
            source.damaged("no zstd frame begins here, and it is not the end")


def skip(source: Input) -> None:
    """Pass over a skippable frame (section 3.1.2)."""
    left = int.from_bytes(source.exactly(8, "a skippable frame")[4:], "little")
    while left:
        left -= len(source.exactly(min(left, 1 << 20), "a skippable frame"))


def read_header(source: Input) -> FrameHeader:
    """The header of the frame that begins here.

    Raises:
        SourceError: it is damaged, or more than can be decoded here.
    """
    at = source.position
    stored = source.exactly(5, _FRAME)
    descriptor = stored[4]
    single = descriptor >> 5 & 1
    sizes = (1 - single, (0, 1, 2, 4)[descriptor & 3], (single, 2, 4, 8)[descriptor >> 6])
    rest = source.exactly(sum(sizes), _FRAME)
    if descriptor & 8:
        source.damaged("a reserved bit is set in a zstd frame's header", at)
    window, dictionary = rest[: sizes[0]], rest[sizes[0] :][: sizes[1]]
    size = None
    if sizes[2]:
        size = int.from_bytes(rest[-sizes[2] :], "little") + (256 if sizes[2] == 2 else 0)
    if int.from_bytes(dictionary, "little"):
        number = int.from_bytes(dictionary, "little")
        raise SourceError(f"{source.name} was compressed with a dictionary ({number}), which it does not hold")
    if single:
        length = size or 0
    else:
        base = 1 << 10 + (window[0] >> 3)
        length = base + base // 8 * (window[0] & 7)
        if length > WINDOW:
            raise SourceError(
                f"{source.name} needs {length >> 20} MiB of memory to decode, more than the {WINDOW >> 20} that zstd "
                "takes too; unpack it first: zstd -d --long=31"
            )
    return FrameHeader(stored + rest, length, size, bool(descriptor & 4))


def _frame(source: Input) -> Iterator[Step]:
    """One frame: a job, or piece by piece where it is large."""
    at = source.position
    header = read_header(source)
    parts = [header.stored]
    blocks = 0
    last = False
    while not last and (header.size or 0) <= _WHOLE and blocks < _WHOLE // _BLOCK:
        last, block = _block(source)
        parts += block
        blocks += 1
    if not last:
        yield from _large(_Stored(source, header, parts))
        return
    if header.checksum:
        parts.append(source.exactly(4, _FRAME))
    most = header.size if header.size is not None else blocks * _BLOCK
    name = source.name
    yield Job(lambda: _decode_pieces(name, at, b"".join(parts), most), most + sum(map(len, parts)))


def _block(source: Input) -> tuple[bool, list[bytes]]:
    """The next block, as it is stored, and whether it is its frame's last (section 3.1.1.2)."""
    header = source.exactly(3, _FRAME)
    last, size = _block_header(source, header, source.position - 3)
    return last, [header, source.exactly(size, _FRAME)]


def _block_header(source: Input, header: bytes, at: int) -> tuple[bool, int]:
    """Whether a block is its frame's last, and the bytes that follow its header."""
    value = int.from_bytes(header, "little")
    kind, size = value >> 1 & 3, value >> 3
    if kind == 3 or size > _BLOCK:
        source.damaged("a zstd block's header is not right", at)
    return bool(value & 1), 1 if kind == 1 else size


class _Stored:
    """The stored bytes of one large frame, as a file to read; what follows the frame is left in the `Input`.

    Attributes:
        source: that.
        at: where in what is stored lies what was read last.
        ended: the frame's end has been read.
    """

    def __init__(self, source: Input, header: FrameHeader, begun: list[bytes]) -> None:
        """The header and some whole blocks have been read."""
        self.source = source
        self.ended = False
        self._begun = b"".join(begun)
        self.at = source.position - len(self._begun)
        self._checksum = header.checksum
        self._last = self._tail = False  # the last block, and what follows it, have begun
        self._left = 0  # bytes of what has begun
        self._header = b""  # of the next block, as far as it is there

    def read(self, most: int) -> bytes:
        """Some bytes, none behind the end; raises `SourceError` where there is none."""
        if self._begun:
            piece, self._begun = self._begun, b""
            return piece
        if self.ended:
            return b""
        self.at = self.source.position
        piece = self.source.some(most) or self.source.cut_short(_FRAME)
        end = self._pass(piece)
        self.source.give_back(piece[end:])
        return piece[:end]

    def _pass(self, piece: bytes) -> int:
        """How much of a piece belongs to the frame."""
        at = 0
        while True:
            step = min(self._left, len(piece) - at)
            at += step
            self._left -= step
            if self._left:
                return at
            if self._tail:
                self.ended = True
                return at
            if self._last:
                self._tail = True
                self._left = 4 if self._checksum else 0
                continue
            part = piece[at : at + 3 - len(self._header)]
            at += len(part)
            self._header += part
            if len(self._header) < 3:
                return at
            self._last, self._left = _block_header(self.source, self._header, self.at + at - 3)
            self._header = b""


def _large(stored: _Stored) -> Iterator[bytes]:
    """A frame that is too large to be held."""
    begun = stored.at
    try:
        decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        with decoder.stream_reader(cast(IO[bytes], stored), read_size=_READ) as reader:
            while piece := reader.read(PIECE):
                yield piece
    except zstandard.ZstdError as error:
        stored.source.damaged(_words(error), stored.at)
    if not stored.ended:
        stored.source.damaged("a zstd frame ends elsewhere than its blocks", begun)


def _decode_pieces(name: str, at: int, stored: bytes, most: int) -> list[bytes]:
    """A whole frame, as `decode_frame`, in pieces."""
    if most <= 2 * PIECE:
        return [decode_frame(name, at, stored, most)]
    try:
        with _decoder().stream_reader(stored) as reader:
            return list(iter(lambda: reader.read(PIECE), b""))
    except zstandard.ZstdError as error:
        raise SourceError(damage(name, at, _words(error))) from None


def decode_frame(name: str, at: int, stored: bytes, most: int) -> bytes:
    """A whole frame.

    Args:
        name: of the image.
        at: where in what is stored the frame begins.
        stored: its bytes.
        most: bytes that are in it at most.

    Raises:
        SourceError: it is damaged.
    """
    try:
        return _decoder().decompress(stored, max_output_size=max(most, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SourceError(damage(name, at, _words(error))) from None


def _decoder() -> zstandard.ZstdDecompressor:
    """This thread's own."""
    decoder: zstandard.ZstdDecompressor | None = getattr(_local, "decoder", None)
    if decoder is None:
        decoder = _local.decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    return decoder


def _words(error: Exception) -> str:
    """What libzstd says, without what the binding says before it."""
    return f"a zstd frame: {str(error).rsplit(': ', 1)[-1]}"
