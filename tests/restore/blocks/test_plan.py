"""Any image, however its extents lie, is cut into pieces that cover it once; nothing that may differ is skipped."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from nbd.backend import Extent
from nbd.client import Operation
from nbd.connection import FileRange
from nbd.wire import Command
from restore.blocks.plan import GRAIN, UNIT, ZERO_UNIT, Kind, KnownZeroes, Piece, cut, operation, split, throttle
from restore.errors import join
from restore.source import Unmapped
from tests.support import examples

MIB = 1 << 20

lengths = st.one_of(
    st.integers(1, 5000),
    st.integers(1, 3 * MIB),
    st.sampled_from([GRAIN - 1, GRAIN, GRAIN + 1, UNIT, 4096, 512, ZERO_UNIT, ZERO_UNIT + 1]),
)
images = st.lists(lengths, min_size=1, max_size=30).flatmap(
    lambda sizes: st.sampled_from([0, 1]).map(lambda first: [(n, (i + first) % 2 == 0) for i, n in enumerate(sizes)])
)


def extents(image: list[tuple[int, bool]]) -> list[Extent]:
    return [Extent(length, hole=hole, zero=hole) for length, hole in image]


def data_ranges(image: list[tuple[int, bool]]) -> list[tuple[int, int]]:
    position, ranges = 0, []
    for length, hole in image:
        if not hole:
            ranges.append((position, position + length))
        position += length
    return ranges


def check_covers(pieces: list[Piece], start: int, end: int) -> None:
    """In order, without gaps or overlaps, each of them something."""
    position = start
    for piece in pieces:
        assert piece.offset == position
        assert piece.length > 0
        position += piece.length
    assert position == max(end, start)


@given(images, st.sampled_from([0, MIB]), st.booleans())
@examples(400)
def test_cut(image: list[tuple[int, bool]], start: int, to_the_end: bool) -> None:
    size = sum(length for length, _ in image)
    end = size if to_the_end else min(size, MIB)
    taken: list[Extent] = []
    pieces = list(cut((taken.append(extent) or extent for extent in extents(image)), start, end))  # type: ignore[func-returns-value]
    assert sum(extent.length for extent in taken[:-1]) < max(end, 1)  # of a stream, taking one is to decode it
    if to_the_end:
        assert pieces == list(cut(extents(image), start))
    check_covers(pieces, start, end)
    for piece in pieces:
        unit = UNIT if piece.kind is Kind.DATA else ZERO_UNIT
        assert piece.kind in (Kind.DATA, Kind.ZERO)
        assert piece.length <= unit
        assert piece.offset // unit == (piece.offset + piece.length - 1) // unit  # cut at its multiples
        assert piece.offset % GRAIN == 0
        assert piece.offset + piece.length == end or (piece.offset + piece.length) % GRAIN == 0
    zeroes = [(piece.offset, piece.offset + piece.length) for piece in pieces if piece.kind is Kind.ZERO]
    for (zero_start, zero_end), (data_start, data_end) in itertools.product(zeroes, data_ranges(image)):
        assert zero_end <= data_start or data_end <= zero_start, "data taken for zeroes"


@given(images)
@examples(200)
def test_long_holes_are_no_data(image: list[tuple[int, bool]]) -> None:
    """A byte that is further than a grain from any data is not sent."""
    size = sum(length for length, _ in image)
    ranges = data_ranges(image)
    for piece in cut(extents(image), 0, size):
        if piece.kind is Kind.DATA:
            for grain in range(piece.offset, piece.offset + piece.length, GRAIN):
                assert any(start < grain + GRAIN and grain < end for start, end in ranges)


@given(st.lists(st.tuples(lengths, st.sampled_from(["data", "zero", "unmapped"])), min_size=1, max_size=30))
@examples(300)
def test_what_is_unmapped_is_left_alone(image: list[tuple[int, str]]) -> None:
    """Not a byte of it is in a piece, and every other byte is in one."""
    position = 0
    mapped: list[tuple[int, int]] = []
    for length, kind in image:
        if kind != "unmapped":
            mapped.append((position, length))
        position += length
    runs = [
        Unmapped(n, hole=True, zero=False)
        if kind == "unmapped"
        else Extent(n, hole=kind == "zero", zero=kind == "zero")
        for n, kind in image
    ]
    pieces = list(cut(runs, 0))
    assert all(a.offset + a.length <= b.offset for a, b in itertools.pairwise(pieces))
    assert join([(piece.offset, piece.length) for piece in pieces]) == join(mapped)
    zeroes = [(piece.offset, piece.offset + piece.length) for piece in pieces if piece.kind is Kind.ZERO]
    for (zero_start, zero_end), (start, end) in itertools.product(
        zeroes, data_ranges([(n, kind != "data") for n, kind in image])
    ):
        assert zero_end <= start or end <= zero_start, "data taken for zeroes"


@given(
    st.lists(st.tuples(st.integers(0, 3 * MIB), lengths), max_size=20),
    st.lists(st.tuples(lengths, st.sampled_from([Kind.DATA, Kind.ZERO])), min_size=1, max_size=20),
)
@examples(400)
def test_known_zeroes(gaps: list[tuple[int, int]], lengths: list[tuple[int, Kind]]) -> None:
    position, known = 0, []
    for gap, length in gaps:
        known.append((position + gap, length))
        position += gap + length
    before, position = [], 0
    for length, kind in lengths:
        before.append(Piece(position, length, kind))
        position += length
    after = list(KnownZeroes(known).apply(before))
    check_covers(after, 0, position)
    assert [p for p in after if p.kind is Kind.DATA] == [p for p in before if p.kind is Kind.DATA]
    for piece in after:
        if piece.kind is Kind.ALREADY_ZERO:
            assert any(o <= piece.offset and piece.offset + piece.length <= o + n for o, n in known)
            assert any(o <= piece.offset and piece.offset + piece.length <= o + n for o, n in ranges_of(before))
        elif piece.kind is Kind.ZERO:  # not zeroed without need, but for what is too small to be worth it
            for offset, length in known:
                overlap = min(piece.offset + piece.length, offset + length) - max(piece.offset, offset)
                assert overlap <= 0 or length < GRAIN


def ranges_of(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(piece.offset, piece.length) for piece in pieces if piece.kind is Kind.ZERO]


def test_too_many_known_zeroes_are_forgotten_not_guessed() -> None:
    known = KnownZeroes((number * 2 * GRAIN, GRAIN) for number in range(60_000))
    kinds = {p.offset: p.kind for p in known.apply([Piece(0, 60_000 * 2 * GRAIN, Kind.ZERO)])}
    assert kinds[0] is Kind.ALREADY_ZERO
    assert kinds[GRAIN] is Kind.ZERO
    assert kinds[max(kinds)] is Kind.ZERO


@given(st.integers(0, 10 * MIB), st.integers(0, 10 * MIB), st.sampled_from([512, UNIT, ZERO_UNIT]))
@examples(100)
def test_split(start: int, length: int, unit: int) -> None:
    pieces = list(itertools.islice(split(start, start + length, unit, Kind.DATA), 3000))
    if len(pieces) < 3000:
        check_covers(pieces, start, start + length)
    assert all(piece.length <= unit for piece in pieces)
    assert all((piece.offset + piece.length) % unit == 0 for piece in pieces[:-1])


def test_a_long_run_of_data_is_cut_as_it_comes() -> None:
    taken = 0

    def endless() -> Iterator[Extent]:
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield Extent(MIB, hole=False, zero=False)

    pieces = cut(endless(), MIB)
    for number in range(1, 10):
        assert next(pieces) == Piece(number * MIB, MIB, Kind.DATA)
        assert taken <= number + 1


def test_operation() -> None:
    payload = FileRange(99, 5)
    assert operation(Piece(5, 6, Kind.DATA), payload) == Operation(Command.WRITE, 5, 6, data=payload)
    assert operation(Piece(5, 6, Kind.ZERO), None) == Operation(Command.WRITE_ZEROES, 5, 6)
    assert operation(Piece(5, 6, Kind.ALREADY_ZERO), None) is None


def test_throttle() -> None:
    pieces = [Piece(number * MIB, MIB, Kind.DATA if number % 2 else Kind.ZERO) for number in range(9)]
    started = time.monotonic()
    items = [(piece, memoryview(b"") if piece.kind is Kind.DATA else None) for piece in pieces]
    assert list(throttle(items, 10 * MIB)) == items
    assert 0.28 < time.monotonic() - started < 1  # four pieces of data, the first of them at once
    started = time.monotonic()
    assert list(throttle(items, None)) == items
    assert time.monotonic() - started < 0.1
