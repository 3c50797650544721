"""Decompressors that go on from call to call, fed from an `Input` and asked for a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from restore.source.compressed.input import Input

PIECE: Final = 1 << 20  # bytes, decoded, had at a time
_FED: Final = 256 << 10  # bytes, stored, given at a time


class Decompressor(Protocol):
    """As Python's `bz2` and `lzma` have it."""

    @property
    def eof(self) -> bool: ...  # noqa: D102

    @property
    def needs_input(self) -> bool: ...  # noqa: D102

    @property
    def unused_data(self) -> bytes | None: ...  # noqa: D102

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...  # noqa: D102


def decode_one(
    source: Input, decompressor: Decompressor, errors: type[Exception] | tuple[type[Exception], ...], what: str
) -> Iterator[bytes]:
    """Decode one stream, and leave what follows it to be read.

    Args:
        source: where it begins.
        decompressor: a new one.
        errors: what that raises for damage.
        what: the stream's name, for people.

    Raises:
        SourceError: it is damaged, or ends in its middle; and as `Input.some`.
    """
    at = source.position
    while not decompressor.eof:
        data = b""
        if decompressor.needs_input:
            at = source.position
            data = source.some(_FED)
            if not data:
                source.cut_short(what)
        try:
            piece = decompressor.decompress(data, PIECE)
        except errors as error:
            source.damaged(f"{what}: {error}", at)
        if piece:
            yield piece
    source.give_back(decompressor.unused_data or b"")  # None is what lz4 has for nothing
