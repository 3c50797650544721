from __future__ import annotations

import bz2
import lzma
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source.udif import adc, codecs
from restore.source.udif.format import RunType
from scripts.dmg import adc_compress, compress
from tests.restore.source.udif.images import KIB, MIB, text
from tests.support import assert_same_bytes, examples

COMPRESSED = (RunType.ADC, RunType.ZLIB, RunType.BZIP2, RunType.LZFSE, RunType.LZMA)
SIZE = 64 * KIB


@pytest.mark.parametrize("kind", COMPRESSED)
def test_exactly_what_it_says(kind: RunType) -> None:
    data = text(SIZE)
    stored = compress(kind, data)
    assert_same_bytes(codecs.decode(kind, memoryview(stored), SIZE), data)
    for size in (SIZE - 1, SIZE + 1, 0):
        with pytest.raises(ValueError, match=r"^more than|^65536 bytes, not"):
            codecs.decode(kind, stored, size)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_cut_short_or_followed_by_something(kind: RunType) -> None:
    data = text(4 * KIB)
    stored = compress(kind, data)
    twice = () if kind == RunType.LZFSE else (stored + stored,)  # its library does not tell where it ended
    for wrong in (stored[:-1], stored[: len(stored) // 2], stored[:1], b"", stored + b"x", *twice):
        with pytest.raises(ValueError):
            codecs.decode(kind, wrong, len(data))


@pytest.mark.parametrize("kind", COMPRESSED)
@given(st.data())
@examples(150)
def test_whatever_is_stored(kind: RunType, data: st.DataObject) -> None:
    """Bytes changed or random: the right size comes out, or `ValueError`."""
    size = 3000
    stored = bytearray(compress(kind, text(size)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stored) - 1))
        stored[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(ValueError):
        assert len(codecs.decode(kind, bytes(stored), size)) == size


@given(st.lists(st.sampled_from([b"a", b"bc", b"abc" * 9, bytes(range(200)), bytes(3000)]), max_size=40))
@examples(100)
def test_adc(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    assert adc.decompress(adc_compress(data), len(data)) == data


def test_adc_by_hand() -> None:
    """The three kinds of token, copies that overlap what they write among them."""
    stored = b"\x82abc" + b"\x04\x02" + b"\x40\x00\x06" + b"\x00\x00" + b"\x80z"
    assert adc.decompress(stored, 3 + 4 + 4 + 3 + 1) == b"abc" + b"abca" + b"abca" + b"aaa" + b"z"
    for wrong, said in (
        (b"\x00\x00", "a copy from before the beginning"),
        (b"\x80a\x00", "cut short"),
        (b"\x80a\x40\x00", "cut short"),
        (b"\x83abc", "3 bytes, not 8"),
    ):
        with pytest.raises(ValueError, match=f"^{said}$"):
            adc.decompress(wrong, 8)


def lzfse_of_zeroes(size: int) -> bytes:
    """LZFSE of copies of a zero, of 271 bytes each."""
    body = b"\x40\x01\x00" + b"\xf0\xff" * (size // 271) + b"\x06" + bytes(7)
    return b"bvxn" + struct.pack("<II", size, len(body)) + body + b"bvx$"


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_bomb_takes_no_memory(kind: RunType) -> None:
    """16 MiB, and of LZFSE what would be a GiB, where 64 KiB are to be."""
    stored = {
        RunType.ADC: lambda: b"\x80\0" + b"\x7f\0\0" * (MIB - 1),
        RunType.ZLIB: lambda: zlib.compress(bytes(16 * MIB), 1),
        RunType.BZIP2: lambda: bz2.compress(bytes(16 * MIB), 9),
        RunType.LZFSE: lambda: lzfse_of_zeroes(1 << 30),
        RunType.LZMA: lambda: lzma.compress(bytes(16 * MIB), preset=0),
    }[kind]()
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(ValueError, match=r"^more than 65536 bytes$"):
            codecs.decode(kind, stored, SIZE)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB + len(stored)
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2


def test_lzma_with_a_large_dictionary() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 96 << 20}]
    stored = lzma.compress(b"a", filters=filters)
    with pytest.raises(ValueError, match="memory usage limit"):
        codecs.decode(RunType.LZMA, stored, 1)
