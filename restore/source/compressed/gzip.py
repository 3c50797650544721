"""gzip (RFC 1952): members that follow one another; those of bgzip tell their length, and are decoded on all cores."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from restore.source.compressed.input import Input
from restore.source.compressed.parallel import Step
from restore.source.compressed.serial import Decompressor, decode_one

try:
    from isal import igzip_lib, isal_zlib
except ImportError:  # there is none for this processor
    igzip_lib = None  # type: ignore[assignment]

MAGIC: Final = b"\x1f\x8b\x08"
_MEMBER: Final = "a gzip member"


def decode(source: Input) -> Iterator[Step]:
    """All members, and zeroes behind them."""
    first = True
    while True:
        head = source.peek(len(MAGIC))
        if head != MAGIC:
            if not first and source.zeroes_to_end():
                return
            source.damaged("no gzip member begins here, and it is not the end")
        first = False
        yield from decode_one(source, _decompressor(), _ERRORS, _MEMBER)


def _decompressor() -> Decompressor:
    if igzip_lib is not None:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return _Zlib()


_ERRORS: Final[tuple[type[Exception], ...]] = (zlib.error,) if igzip_lib is None else (zlib.error, isal_zlib.error)


class _Zlib:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max(max_length, 0))
