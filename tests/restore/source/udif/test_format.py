from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from restore.source.udif.format import (
    BLOCK,
    FAST_RUN,
    MISH_SIZE,
    RUN,
    RUN_SIZE,
)
from restore.source.udif.recognise import KOLY_SIZE
from scripts.dmg import Part, Run, mish
from tests.support import examples

WORD, LONG = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)


def test_sizes() -> None:
    assert (KOLY_SIZE, MISH_SIZE, RUN_SIZE) == (512, 0xCC, 40)


@given(st.tuples(WORD, WORD, LONG, LONG, LONG, LONG))
@examples(50)
def test_the_fast_way_is_the_defined_one(values: tuple[int, ...]) -> None:
    assert FAST_RUN.size == RUN_SIZE
    run = RUN.parse(FAST_RUN.pack(*values))
    assert (run.type, run.comment, run.start, run.sectors, run.offset, run.length) == values


def test_a_whole_block() -> None:
    part = Part("x", 7, 3, [Run(1, 0, 3, 40, 1536), Run(0xFFFFFFFF, 3, 0)], (2, 32, b"abcd"))
    block = BLOCK.parse(mish(part))
    assert (block.head.first_sector, block.head.checksum.data[:5]) == (7, b"abcd\0")
    assert [run.length for run in block.runs] == [1536, 0]
