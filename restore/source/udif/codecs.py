"""A run's stored bytes become its sectors: each by itself, and by what frees the interpreter meanwhile, but for ADC."""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable
from typing import Any, Final, Protocol

from restore.source.udif import adc, lzfse
from restore.source.udif.format import RunType

try:  # twice as fast at least, where it is to be had
    from isal import isal_zlib as fast_zlib
except ImportError:
    import zlib as fast_zlib  # type: ignore[no-redef]

_LZMA_MEMORY: Final = 80 << 20  # bytes that one run's decoder may take: as much as `xz -9` needs, and not 4 GiB

crc32 = fast_zlib.crc32
_ZLIB_ERROR: Any = fast_zlib.error  # a class, and not a value as its declaration has it

_Bytes = bytes | bytearray | memoryview


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int, /) -> bytes: ...


def decode(kind: int, data: bytes | memoryview, size: int) -> _Bytes:
    """The `size` bytes of a run that is stored as `data`; `kind` is a `RunType` with stored bytes.

    Raises:
        ValueError: they are not exactly that; says in a few words how not.
    """
    return _DECODERS[kind](data, size)


def _raw(data: bytes | memoryview, size: int) -> _Bytes:
    return data  # as long as it has to be: layout.py has seen to that


def _zlib(data: bytes | memoryview, size: int) -> bytes:
    try:
        return _whole(fast_zlib.decompressobj(), data, size)
    except _ZLIB_ERROR as error:
        raise ValueError(str(error).lower()) from None


def _bzip2(data: bytes | memoryview, size: int) -> bytes:
    try:
        return _whole(bz2.BZ2Decompressor(), data, size)
    except (OSError, EOFError) as error:
        raise ValueError(str(error).lower()) from None


def _lzma(data: bytes | memoryview, size: int) -> bytes:
    try:
        return _whole(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY), data, size)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error).lower()) from None


def _whole(decompressor: _Decompressor, data: bytes | memoryview, size: int) -> bytes:
    """All of a stream, whose own checksum is behind its data; never more than one byte beyond `size`."""
    out = decompressor.decompress(data, size + 1)
    if len(out) != size:
        raise ValueError(f"more than {size} bytes" if len(out) > size else f"{len(out)} bytes, not {size}")
    if not decompressor.eof:
        raise ValueError("cut short")
    if decompressor.unused_data:
        raise ValueError("followed by something else")
    return out


_DECODERS: Final[dict[int, Callable[[bytes | memoryview, int], _Bytes]]] = {
    RunType.RAW: _raw,
    RunType.ADC: adc.decompress,
    RunType.ZLIB: _zlib,
    RunType.BZIP2: _bzip2,
    RunType.LZFSE: lzfse.decompress,
    RunType.LZMA: _lzma,
}
