from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from restore.errors import Differences, join
from tests.support import examples


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=12))
@examples(300)
def test_join(ranges: list[tuple[int, int]]) -> None:
    """The same bytes, in order, and no two ranges that could be one."""
    joined = join(ranges)
    covered = [byte for offset, length in joined for byte in range(offset, offset + length)]
    assert covered == sorted({byte for offset, length in ranges for byte in range(offset, offset + length)})
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(joined))


def test_differences_join_their_ranges() -> None:
    error = Differences("differ", [(20, 10), (10, 10), (40, 1)])
    assert error.ranges == [(10, 20), (40, 1)]
    assert error.status == 3
