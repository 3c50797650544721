"""A scan maps all that has to be copied, with the right digests; bmaptool copies with it.

Debian packages: bmap-tools gzip.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import os
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from nbd.backend import Extent
from restore.errors import RestoreError
from restore.manifest.bmap import BLOCK, UNIT, Bmap
from restore.manifest.scan import ScanSettings, imagescan, ranges, scan
from restore.report.text import TextReport
from restore.source.detect import open_image
from restore.source.raw import RawStream
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource
from tests.restore.engine import asr, failed
from tests.restore.manifest.images import ISLANDS, MIB, fill, scanned
from tests.serving import run
from tests.support import assert_same_bytes, examples


def check_digests(bmap: Bmap, data: bytes) -> None:
    assert bmap.image_size == len(data)
    for found in bmap:
        part = data[found.start : found.end]
        assert (found.checksum, found.blake3) == (hashlib.sha256(part).digest(), blake3(part).digest())
        assert found.start // UNIT == (found.end - 1) // UNIT


def mapped(bmap: Bmap, data: bytes) -> bytearray:
    """What is written by one who copies only what is mapped, onto a disk that is all 0xEE."""
    disk = bytearray(b"\xee" * len(data))
    for found in bmap:
        disk[found.start : found.end] = data[found.start : found.end]
    return disk


def test_scan(image: Path) -> None:
    bmap, printed = scanned(image)
    data = image.read_bytes()
    check_digests(bmap, data)
    for offset, length in ISLANDS:
        assert_same_bytes(mapped(bmap, data)[offset : offset + length], data[offset : offset + length])
    assert bmap.mapped < 4 * MIB
    status = image.stat()
    assert bmap.image_file is not None
    assert (bmap.image_file.size, bmap.image_file.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert printed.splitlines() == [
        "  Block checksum:  ....10....20....30....40....50....60....70....80....90....100",
        "  3.3 MiB of 9.0 MiB are mapped, in 7 ranges",
        f'  asr: successfully scanned image "{image}"',
    ]


def test_bmaptool_copies_with_it(image: Path, tmp_path: Path) -> None:
    scanned(image)
    run("bmaptool", "copy", image, tmp_path / "copy")
    assert_same_bytes((tmp_path / "copy").read_bytes(), image.read_bytes())


def test_bmaptool_sees_damage_by_it(image: Path, tmp_path: Path) -> None:
    scanned(image)
    with image.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"\0")
    result = run("bmaptool", "copy", image, tmp_path / "copy", check=False)
    assert result.status
    assert "checksum mismatch for blocks range 512-" in result.err


def test_bmaptool_copies_a_compressed_image_with_it(tmp_path: Path) -> None:
    """Zeroes that a stream has been decoded to are mapped: they may be in use."""
    image = tmp_path / "disk.img"
    fill(image, 5 * MIB, [(0, 10), (4 * MIB, MIB)])
    with closing(StreamSource(RawStream(LocalFile(str(image))))) as source:
        bmap = scan(source, None, lambda done, total: None)
    check_digests(bmap, image.read_bytes())
    assert bmap.mapped == 5 * MIB


def test_used_blocks(image: Path, tmp_path: Path) -> None:
    """Just what is in use: data that are not are left out, holes that are in use are written."""
    used = [
        Extent(2 * MIB, hole=False, zero=False),  # of which 1 MiB is mostly a hole
        Extent(2 * MIB, hole=True, zero=True),
        Extent(UNIT + 1000, hole=False, zero=False),
        Extent(4 * MIB - 1000 + 12_345, hole=True, zero=True),
    ]
    assert sum(extent.length for extent in used) == image.stat().st_size
    bmap, _ = scanned(image, used)
    data = image.read_bytes()
    check_digests(bmap, data)
    have = mapped(bmap, data)
    assert_same_bytes(have[: 2 * MIB], data[: 2 * MIB])
    assert_same_bytes(have[2 * MIB : 4 * MIB], b"\xee" * 2 * MIB)
    assert_same_bytes(have[4 * MIB : 5 * MIB + 1000], data[4 * MIB : 5 * MIB + 1000])
    assert_same_bytes(have[5 * MIB + 4096 :], b"\xee" * (len(data) - 5 * MIB - 4096))


def test_used_blocks_of_less_than_the_image(image: Path) -> None:
    """What lies behind is mapped as without them."""
    bmap, _ = scanned(image, [Extent(MIB, hole=True, zero=True)])
    data = image.read_bytes()
    check_digests(bmap, data)
    have = mapped(bmap, data)
    assert_same_bytes(have[:MIB], b"\xee" * MIB)
    for offset, length in ISLANDS[2:]:
        assert_same_bytes(have[offset : offset + length], data[offset : offset + length])


def test_a_used_block_that_is_zeroes_is_mapped(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(3 * MIB))  # no holes
    bmap, _ = scanned(image)
    check_digests(bmap, image.read_bytes())
    assert bmap.mapped == 3 * MIB


def test_nothing_mapped(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    fill(image, 3 * MIB + 1, [])
    bmap, _ = scanned(image)
    assert (len(bmap), bmap.image_size) == (0, 3 * MIB + 1)
    run("bmaptool", "copy", image, tmp_path / "copy")
    assert_same_bytes((tmp_path / "copy").read_bytes(), image.read_bytes())


def test_image_changed_meanwhile(image: Path) -> None:
    with closing(open_image(str(image)).source) as source:
        os.utime(image, ns=(0, 5))
        with pytest.raises(RestoreError, match="was changed meanwhile; stop what writes it first"):
            asyncio.run(imagescan(source, image, None, ScanSettings(), TextReport(io.StringIO())))
    assert list(image.parent.iterdir()) == [image]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")
def test_a_directory_that_cannot_be_written_is_told_at_once(image: Path) -> None:
    run("mount", "--bind", image.parent, image.parent)
    try:
        run("mount", "-o", "remount,bind,ro", image.parent)
        result = asr("imagescan", image)
        assert failed(result) == f"{image}.bmap: it cannot be written: Read-only file system"
        assert "Block checksum" not in result.out
    finally:
        run("umount", image.parent)


def test_interrupted(image: Path) -> None:
    """Nothing is left, and nothing goes on."""

    async def interrupt() -> None:
        with closing(open_image(str(image)).source) as source:
            work = asyncio.create_task(imagescan(source, image, None, ScanSettings(), TextReport(io.StringIO())))
            await asyncio.sleep(0)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(interrupt())
    assert list(image.parent.iterdir()) == [image]


kinds = st.lists(
    st.tuples(
        st.one_of(st.integers(1, 9000), st.integers(1, 3 * MIB), st.sampled_from([BLOCK, UNIT, 65536])),
        st.sampled_from(["data", "zero", "gap"]),
    ),
    max_size=25,
)


@given(kinds)
@examples(500)
def test_ranges(image: list[tuple[int, str]]) -> None:
    """In order, of whole blocks, within one MiB; every mapped byte is in one, and none of data in one of zeroes."""
    ends = list(itertools.accumulate(length for length, _ in image))
    runs = [
        (end - length, end, kind == "zero") for end, (length, kind) in zip(ends, image, strict=True) if kind != "gap"
    ]
    found = list(ranges(runs))
    position = 0
    for start, end, _ in found:
        assert start % BLOCK == end % BLOCK == 0
        assert position <= start < end
        assert start // UNIT == (end - 1) // UNIT
        position = end
    for start, end, zero in runs:
        covering = [(s, e, z) for s, e, z in found if s < end and e > start]
        assert sum(min(e, end) - max(s, start) for s, e, _ in covering) == end - start
        assert zero or not any(z for _, _, z in covering)
    total = sum(min(e, ends[-1]) - s for s, e, _ in found) if ends else 0
    assert total <= sum(end - start for start, end, _ in runs) + (65536 + 2 * BLOCK) * len(runs)
