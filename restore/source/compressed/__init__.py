"""Compression as a layer of storage: what a compressed file holds is a storage of its own.

    input.py, serial.py, parallel.py   stored bytes in; streams decoded bit by bit; parts decoded on all cores
    a format                           cuts what is stored into parts, and checks all that lies between them
    decoded.py, blocks.py              what comes out, from the start; or at random, where there is an index of parts
    seekable.py                        zstd's index of frames, read and written

Files that follow one another in one file (members, streams, frames) are all decoded. What else follows is damage, but
for zeroes behind gzip members.
"""

from __future__ import annotations

from typing import Final

from restore.source import SourceError
from restore.source.storage import Storage

FORMATS: Final = ("gzip", "bzip2", "xz", "zstd", "lz4")
HEAD: Final = 4096  # bytes that `sniff` wants, where there are as many


def sniff(head: bytes) -> str | None:
    """Which of `FORMATS` begins so; None if none does."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head[:3] == b"BZh" and head[3:4].isdigit() and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    at = 0
    while head[at + 1 : at + 4] == b"\x2a\x4d\x18" and head[at] & 0xF0 == 0x50:  # skippable frames, of either format
        at += 8 + int.from_bytes(head[at + 4 : at + 8], "little")
    if head[at : at + 4] in (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18"):
        return "lz4"
    if at or head[at : at + 4] == b"\x28\xb5\x2f\xfd":
        return "zstd"
    return None


def decompressed(storage: Storage, name: str) -> Storage:
    """The decoded bytes of a storage, which is taken over: closing what is returned closes it.

    Args:
        storage: what is stored.
        name: how it is compressed, one of `FORMATS`.

    Raises:
        SourceError: it is damaged, as far as can be told without decoding it.
        OSError: it cannot be read.
    """
    from restore.source.compressed import bzip2, gzip, lz4, seekable, xz, zstd
    from restore.source.compressed.blocks import LARGEST, DecodedBlocks
    from restore.source.compressed.decoded import DecodedStream
    from restore.source.memory import keep_freed

    keep_freed()
    size = None
    found = {"xz": xz.read_index, "zstd": seekable.read_seek_table}.get(name, lambda _: None)(storage)
    if found is not None:
        index, form = found
        if index.largest() <= LARGEST:
            return DecodedBlocks(storage, index, form)
        size = index.size
    formats = {"gzip": gzip.decode, "bzip2": bzip2.decode, "xz": xz.decode, "zstd": zstd.decode, "lz4": lz4.decode}
    return DecodedStream(storage, formats[name], size, _least_size(storage, name) if size is None else size)


def _least_size(storage: Storage, name: str) -> int:
    """Bytes that the first frame says are in it; others may follow."""
    from restore.source.compressed import lz4, zstd
    from restore.source.compressed.input import Input

    if name not in ("zstd", "lz4") or not storage.seekable:
        return 0
    head = Input(storage.name, iter((storage.read(0, HEAD),)))
    try:
        while zstd.is_skippable(head.peek(4)):
            zstd.skip(head)
        header = zstd.read_header(head) if name == "zstd" else lz4.read_header(head)
    except SourceError:  # which decoding will say again
        return 0
    return header.size or 0
