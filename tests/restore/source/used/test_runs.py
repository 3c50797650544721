from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.source.used.runs import Runs
from tests.support import examples

RUNS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=20)


def laid_out(steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs from gaps and lengths."""
    found, position = [], 0
    for gap, length in steps:
        found.append((position + gap, position + gap + length))
        position += gap + length
    return found


@examples(200)
@given(steps=RUNS, taken=RUNS)
def test_what_is_left(steps: list[tuple[int, int]], taken: list[tuple[int, int]]) -> None:
    runs, reserved = Runs(laid_out(steps)), laid_out(taken)
    kept = {at for start, end in runs for at in range(start, end)}
    assert runs.total == len(kept)
    kept -= {at for start, end in reserved for at in range(start, end)}
    left = list(runs.without(reversed(reserved)))
    assert [at for start, end in left for at in range(start, end)] == sorted(kept)
    assert all(start < end for start, end in left)


def test_reserved_runs_that_overlap() -> None:
    assert list(Runs([(0, 100)]).without([(20, 80), (10, 30), (40, 50), (0, 1)])) == [(1, 10), (80, 100)]


def test_neighbours_are_joined() -> None:
    assert list(Runs([(0, 5), (5, 9), (10, 11)])) == [(0, 9), (10, 11)]


def test_the_shortest_are_forgotten() -> None:
    runs = Runs(((at, at + (1 << 20 if at % (8 << 20) == 0 else 4096)) for at in range(0, 1 << 30, 2 << 20)), most=200)
    assert list(runs) == [(at, at + (1 << 20)) for at in range(0, 1 << 30, 8 << 20)]
    assert runs.total == 128 * (1 << 20) + 384 * 4096


@pytest.mark.parametrize("wrong", [(5, 5), (6, 5), (3, 9), (2, 3)])
def test_out_of_order(wrong: tuple[int, int]) -> None:
    runs = Runs([(0, 4)])
    with pytest.raises(ValueError, match=f"the run from {wrong[0]} to {wrong[1]} is out of order"):
        runs.add(*wrong)
