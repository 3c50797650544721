from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source import SourceError
from restore.source.partclone.bitmap import Bitmap, parse_bitmap
from restore.source.partclone.header import BitmapMode, Header, Mode, crc32
from tests.support import examples


def check(bits: list[bool], bitmap: Bitmap) -> None:
    """Compare it with the bits, looked at one by one."""
    total = len(bits)
    assert (bitmap.total, bitmap.used) == (total, sum(bits))
    found = [False] * total
    for first, count in bitmap.runs():
        assert count > 0
        assert first == 0 or not found[first - 1]
        found[first : first + count] = [True] * count
    assert found == bits
    rng = random.Random(total)
    for _ in range(20):
        start, end = sorted(rng.choices(range(total + 1), k=2))
        assert bitmap.rank(start) == sum(bits[:start])
        assert sum(count for _, count in bitmap.runs(start, end)) == sum(bits[start:end])
        assert bitmap.all_used(start, end) == all(bits[start:end])
    assert bitmap.rank(total) == sum(bits)
    used = [number for number, bit in enumerate(bits) if bit]
    for rank in rng.choices(range(len(used)), k=5) if used else ():
        assert bitmap.block(rank) == used[rank]


def packed(bits: list[bool]) -> bytes:
    text = "".join("01"[bit] for bit in reversed(bits))
    return int(text, 2).to_bytes(-(-len(bits) // 8), "little")


RUNS = st.lists(st.tuples(st.booleans(), st.sampled_from((1, 2, 7, 8, 9, 31, 300, 33_000))), min_size=1, max_size=12)


@given(RUNS)
@examples(60)
def test_runs_and_ranks(runs: list[tuple[bool, int]]) -> None:
    bits = [bit for bit, count in runs for _ in range(count)]
    check(bits, Bitmap(packed(bits), len(bits)))


@given(st.binary(min_size=1, max_size=40), st.integers(0, 7))
@examples(60)
def test_bits_behind_the_last_block_count_for_nothing(raw: bytes, spare: int) -> None:
    total = len(raw) * 8 - spare
    check([bool(raw[number // 8] >> number % 8 & 1) for number in range(total)], Bitmap(raw, total))


def test_large_ones_of_one_kind() -> None:
    total = 8 * 10_000_000 + 3
    for byte, used in ((b"\xff", total), (b"\0", 0)):
        bitmap = Bitmap(byte * 10_000_001, total)
        assert list(bitmap.runs()) == ([(0, total)] if used else [])
        assert bitmap.used == used
        assert bitmap.rank(total - 5) == max(used - 5, 0)


def header(total: int, mode: BitmapMode) -> Header:
    return Header(2, "EXTFS", 0, total, 4096, Mode.NONE, 0, reseed=True, bitmap=mode)


@given(st.lists(st.sampled_from((0, 1, 1, 2, 255)), min_size=1, max_size=300))
@examples(40)
def test_a_byte_for_each_block(values: list[int]) -> None:
    stored = bytes(values) + b"BiTmAgIc"
    check([value == 1 for value in values], parse_bitmap(header(len(values), BitmapMode.BYTE), stored, "x"))
    with pytest.raises(SourceError, match=r"^x: the bitmap of blocks in use is damaged, its end is not where"):
        parse_bitmap(header(len(values), BitmapMode.BYTE), stored[:-1] + b"?", "x")


def test_its_checksum() -> None:
    bits = random.Random(1).randbytes(100)
    stored = bits + crc32(bits).to_bytes(4, "little")
    assert parse_bitmap(header(800, BitmapMode.BIT), stored, "x").used == sum(byte.bit_count() for byte in bits)
    with pytest.raises(SourceError, match=r"^x: the bitmap of blocks in use is damaged, its CRC-32 is not right$"):
        parse_bitmap(header(800, BitmapMode.BIT), b"\0" + stored[1:], "x")


def test_none_means_all() -> None:
    check([True] * 13, parse_bitmap(header(13, BitmapMode.NONE), b"", "x"))
