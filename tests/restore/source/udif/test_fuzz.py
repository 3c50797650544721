"""Whatever an image is, it is read or there is one error of ours: no other one, not for long, not for much memory."""

from __future__ import annotations

import plistlib
import time
import tracemalloc
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from restore.errors import RestoreError
from restore.source.udif.format import CRC32, FAST_RUN, MISH_SIZE, SECTOR, RunType
from scripts.dmg import Part, Run, checksum, koly, mish, tail
from tests.restore.source.udif.images import KIB, MIB, opened, part, text
from tests.support import examples

TEXT = text(16 * KIB)
KINDS = [*RunType, 0x80000009, 3]
MOST = 4 * MIB  # bytes of an image that are read


def seed_image() -> bytes:
    """A run of every kind, in two blocks."""
    fork = bytearray()
    kinds = (RunType.ZLIB, RunType.RAW, RunType.ZERO, RunType.ADC, RunType.BZIP2, RunType.LZFSE, RunType.LZMA)
    first = part("one", 0, [(kind, bytes(KIB) if kind == RunType.ZERO else TEXT[:KIB]) for kind in kinds], fork)
    second = part("two", first.sectors, [(RunType.IGNORE, bytes(KIB)), (RunType.ZLIB, TEXT)], fork)
    return bytes(fork) + tail([first, second], len(fork))


SEED = seed_image()
PLIST = SEED.index(b"<?xml")


def holds(content: bytes) -> bool:
    """The invariant; whether the image could be read."""
    tracemalloc.start()
    started = time.process_time()
    read = False
    try:
        with suppress(RestoreError):
            image = opened(content)
            offset = 0
            for extent in image.extents():
                offset += extent.length
            assert offset == image.size
            offset = 0
            while offset < min(image.size, MOST):
                start, end = image.chunk(offset)
                assert start == offset < end
                assert len(image.decode(start, end)) == end - start
                offset = end
            read = True
        assert tracemalloc.get_traced_memory()[1] < 80 * MIB
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5
    return read


def test_the_seed_is_right() -> None:
    assert holds(SEED)


POSITIONS = st.one_of(st.integers(0, len(SEED) - 1), st.integers(len(SEED) - 512, len(SEED) - 1), st.integers(0, PLIST))


@given(st.lists(st.tuples(POSITIONS, st.integers(0, 7)), min_size=1, max_size=4))
@examples(100)
def test_flipped_bits(flips: list[tuple[int, int]]) -> None:
    content = bytearray(SEED)
    for at, bit in flips:
        content[at] ^= 1 << bit
    holds(bytes(content))


@given(POSITIONS, POSITIONS, POSITIONS, st.binary(max_size=40), st.booleans())
@examples(100)
def test_cut_and_spliced(first: int, second: int, third: int, junk: bytes, keep: bool) -> None:
    """Something taken out, doubled or put in; the trailer left where it is, or not."""
    low, high = sorted((first, second))
    body, trailer = (SEED[:-512], SEED[-512:]) if keep else (SEED, b"")
    holds(body[:low] + junk + body[high:] + trailer)
    holds(body[:third] + body[low:high] + junk + body[third:] + trailer)


def test_cut_anywhere() -> None:
    for length in range(0, len(SEED), 37):
        assert not holds(SEED[:length])


EDGES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([1 << power for power in (9, 17, 31, 32, 54, 55, 62, 63)]),
    st.sampled_from([(1 << 64) - 1, (1 << 63) - 1, (1 << 55) - 1, (1 << 32) - 1, len(SEED), 131072, 131073]),
)
SMALL = st.integers(0, 0xFFFFFFFF)
RUNS = st.builds(Run, st.sampled_from(KINDS), EDGES, EDGES, EDGES, EDGES)
CHECKSUMS = st.tuples(st.sampled_from([0, CRC32, 4]), st.sampled_from([0, 32, 33, 128, 4096]), st.binary(max_size=8))
PARTS = st.builds(
    Part,
    st.text(max_size=5).filter(str.isprintable),
    EDGES,
    EDGES,
    st.lists(RUNS, max_size=6),
    CHECKSUMS,
    st.dictionaries(st.sampled_from(["run_count", "version"]), SMALL, max_size=1)
    | st.dictionaries(st.sampled_from(["data_start", "sectors", "first_sector"]), EDGES, max_size=2),
)
TRAILERS = st.dictionaries(
    st.sampled_from(["data_offset", "plist_offset", "plist_length", "sectors", "resource_length"]), EDGES, max_size=2
)


@given(st.lists(PARTS, max_size=4), TRAILERS, CHECKSUMS)
@examples(80)
def test_hostile_fields(parts: list[Part], trailer: dict[str, int], master: tuple[int, int, bytes]) -> None:
    sectors = {"sectors": sum(part.sectors for part in parts) % (1 << 64), "master_checksum": checksum(*master)}
    holds(TEXT + tail(parts, len(TEXT), 0, **(sectors | trailer)))


@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 40), EDGES, EDGES), min_size=1, max_size=8),
    CHECKSUMS,
    st.integers(0, 600),
)
@example([(RunType.ZERO, (1 << 54) - 1, 0, 0)], (0, 0, b""), 0)
@examples(100)
def test_runs_that_fit_but_hold_anything(
    runs: list[tuple[int, int, int, int]], master: tuple[int, int, bytes], at: int
) -> None:
    """Past the tables' checks, so that it comes to decoding."""
    table, position = [], 0
    for kind, sectors, offset, length in runs:
        length = sectors * SECTOR if kind == RunType.RAW else length % 2000
        table.append(Run(kind, position, sectors, (offset + at) % 8000, length))
        position += sectors
    block = Part("x", 0, position, table, master)
    holds(SEED + TEXT + tail([block], len(SEED) + len(TEXT), data_offset=0, master_checksum=checksum(0, 0, b"")))


def test_many_runs() -> None:
    """The time that they take is theirs times some microseconds."""
    count = 50_000
    runs = [Run(RunType.ZLIB, number, 1, number % 7, 20) for number in range(count)]
    block = Part("x", 0, count, runs[:1], head={"run_count": count})
    data = mish(block)[:MISH_SIZE] + b"".join(
        FAST_RUN.pack(run.kind, 0, run.start, run.sectors, run.offset, run.length) for run in runs
    )
    listed = plistlib.dumps({"resource-fork": {"blkx": [{"Name": "x", "Data": data}]}})
    started = time.process_time()
    image = opened(listed + koly(plist_length=len(listed), sectors=count))
    assert time.process_time() - started < 2
    assert image.size == count * SECTOR
