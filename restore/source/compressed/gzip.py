"""gzip (RFC 1952): members that follow one another; those of bgzip tell their length, and are decoded on all cores."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

from restore.source import SourceError
from restore.source.compressed.input import Input, damage
from restore.source.compressed.parallel import Job, Step
from restore.source.compressed.serial import Decompressor, decode_one

try:
    from isal import igzip_lib, isal_zlib
except ImportError:  # there is none for this processor
    igzip_lib = isal_zlib = None  # type: ignore[assignment]

MAGIC: Final = b"\x1f\x8b\x08"
_MEMBER: Final = "a gzip member"
_ERRORS: Final = (zlib.error, zlib.error if igzip_lib is None else cast(type[Exception], igzip_lib.IsalError))

# A member of bgzip begins so, but for its time (SAM/BAM Format Specification, section 4.1). Its size less 1 follows.
_BGZF: Final = (MAGIC + b"\4", b"\6\0BC\2\0")
_BGZF_HEAD: Final = 18  # bytes
_BGZF_TAIL: Final = 8  # CRC-32 and size of the content
_BGZF_MOST: Final = 64 << 10  # bytes of content
_BATCH: Final = 32  # members that are decoded together


def decode(source: Input) -> Iterator[Step]:
    """All members, and zeroes behind them."""
    first = True
    while True:
        head = source.peek(_BGZF_HEAD)
        if not head.startswith(MAGIC):
            if not first and source.zeroes_to_end():
                return
            source.damaged("no gzip member begins here, and it is not the end")
        first = False
        if _is_bgzf(head):
            yield _small_members(source)
        else:
            yield from decode_one(source, _decompressor(), _ERRORS, _MEMBER)


def _is_bgzf(head: bytes) -> bool:
    return (head[:4], head[10:16]) == _BGZF and int.from_bytes(head[16:18], "little") > _BGZF_HEAD + _BGZF_TAIL


def _small_members(source: Input) -> Job:
    """The next members that tell their sizes."""
    members: list[_Member] = []
    while len(members) < _BATCH and _is_bgzf(head := source.peek(_BGZF_HEAD)):
        at = source.position
        members.append(_Member(source.name, at, source.exactly(int.from_bytes(head[16:18], "little") + 1, _MEMBER)))
    return Job(lambda: [b"".join(member.decode() for member in members)], 2 * _BATCH * _BGZF_MOST)


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of bgzip: of which image, where in what is stored, and what is stored."""

    name: str
    at: int
    stored: bytes

    def decode(self) -> bytes:
        body = memoryview(self.stored)[_BGZF_HEAD:-_BGZF_TAIL]
        checksum, size = (int.from_bytes(self.stored[at:][:4], "little") for at in (-8, -4))
        library = zlib if isal_zlib is None else isal_zlib
        try:
            data: bytes = library.decompress(body, wbits=-zlib.MAX_WBITS, bufsize=_BGZF_MOST)
        except _ERRORS as error:
            raise SourceError(damage(self.name, self.at, f"{_MEMBER}: {error}")) from None
        if len(data) != size or library.crc32(data) != checksum:
            raise SourceError(damage(self.name, self.at, f"{_MEMBER} does not match its checksum"))
        return data


def _decompressor() -> Decompressor:
    if igzip_lib is not None:
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return _Zlib()


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
