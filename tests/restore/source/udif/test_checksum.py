from __future__ import annotations

import random
import zlib
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source.udif.checksum import Checksums, DifferentData, combine, crc_of_zeroes
from restore.source.udif.format import RunType
from restore.source.udif.layout import Block, Layout
from tests.support import examples


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 5000))
@examples(200)
def test_as_zlib_has_it(first: bytes, second: bytes, zeroes: int) -> None:
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)
    assert crc_of_zeroes(zeroes) == zlib.crc32(bytes(zeroes))


def test_zeroes_by_the_terabyte() -> None:
    """As many as fill a disk, in no time: twice as many are the same combined."""
    half = crc_of_zeroes(1 << 40)
    assert combine(half, half, 1 << 40) == crc_of_zeroes(1 << 41)


KINDS = st.lists(st.sampled_from([RunType.ZLIB, RunType.RAW, RunType.ZERO, RunType.IGNORE]), min_size=1, max_size=12)


def two_blocks(kinds: list[RunType], wrong: bool) -> tuple[Layout, list[bytes]]:
    """A layout whose runs are of 1, 2, 3... bytes; the second half of them is a block without a checksum."""
    content = [
        bytes(n) if kind in (RunType.ZERO, RunType.IGNORE) else random.Random(n).randbytes(n)
        for n, kind in enumerate(kinds * 2, 1)
    ]
    layout = Layout(size=sum(map(len, content)))
    layout.starts.extend([0, *accumulate(map(len, content))][:-1])
    layout.kinds.extend(kinds * 2)
    count = len(kinds)
    covered = b"".join(data for kind, data in zip(kinds, content, strict=False) if kind != RunType.IGNORE)
    layout.blocks.append(Block("first", zlib.crc32(covered) ^ wrong, range(count)))
    layout.blocks.append(Block("second", None, range(count, 2 * count)))
    return layout, content


@given(KINDS, st.randoms(use_true_random=False), st.booleans())
@examples(200)
def test_runs_in_any_order_and_again(kinds: list[RunType], order: random.Random, wrong: bool) -> None:
    """Right ones never fail; wrong ones do with the last run that was missing, and with each one after it."""
    layout, content = two_blocks(kinds, wrong)
    runs = [run for run, kind in enumerate(kinds * 2) if kind in (RunType.ZLIB, RunType.RAW)]
    needed = {run for run in runs if run < len(kinds)}
    if wrong and not needed:
        with pytest.raises(DifferentData):
            Checksums(layout)
        return
    checksums = Checksums(layout)
    seen: set[int] = set()
    told = runs * 2
    order.shuffle(told)
    for run in told:
        seen.add(run)
        block = int(run >= len(kinds))
        if wrong and block == 0 and seen >= needed:
            with pytest.raises(DifferentData, match=r'^"first": its checksum is [0-9A-F]{8}, and [0-9A-F]{8} by the '):
                checksums.add(block, run, zlib.crc32(content[run]))
        else:
            checksums.add(block, run, zlib.crc32(content[run]))


def test_a_run_that_is_not_the_same_again() -> None:
    layout, content = two_blocks([RunType.RAW, RunType.RAW], wrong=False)
    checksums = Checksums(layout)
    checksums.add(0, 0, zlib.crc32(content[0]))
    with pytest.raises(DifferentData, match=r'^"first": reading it twice did not give the same$'):
        checksums.add(0, 0, 1)
    with pytest.raises(DifferentData, match="twice"):
        checksums.add(0, 1, zlib.crc32(content[1]))
    checksums.add(1, 2, 5)
    checksums.add(1, 2, 6)
