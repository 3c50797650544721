"""What is read through a scan is what was scanned, or an error that names where; nothing else gets out.

Debian package: bmap-tools.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.connection import FileRange
from restore.blocks.plan import Kind, cut
from restore.manifest.beside import load
from restore.manifest.checked import Prepared
from restore.manifest.scan import scan
from restore.source import Source, SourceError, Unmapped
from restore.source.detect import open_image
from restore.source.payload import as_memory
from restore.source.raw import RawStream
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource
from tests.restore.manifest.images import ISLANDS, MIB, fill, scanned
from tests.serving import run
from tests.support import assert_same_bytes, examples

KINDS = ("file", "stream")


def opened(path: Path, kind: str) -> Source:
    return StreamSource(RawStream(LocalFile(str(path)))) if kind == "stream" else open_image(str(path)).source


@contextmanager
def prepared(path: Path, kind: str = "file", *, keep_unmapped: bool = False) -> Iterator[Prepared]:
    bmap = load(path)
    assert bmap is not None
    with closing(Prepared(opened(path, kind), bmap, keep_unmapped=keep_unmapped)) as source:
        yield source


def everything(source: Source) -> bytes:
    """The image, as a restore reads it."""
    data = bytearray(source.size or 0)
    for piece in cut(source.extents(), 0, source.size):
        if piece.kind is Kind.DATA:
            part = as_memory(source.payload(piece.offset, piece.length), piece.length, source.name)
            data[piece.offset : piece.offset + piece.length] = part
    return bytes(data)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_read(image: Path, kind: str) -> None:
    scanned(image)
    with prepared(image, kind) as source:
        assert_same_bytes(everything(source), image.read_bytes())
        source.check_unchanged()
        assert source.size == source.least_size == source.expected_size == image.stat().st_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maker", ["ours", "bmaptool"])
@pytest.mark.parametrize(
    ("at", "ours", "theirs"),
    [(0, "0", "0"), (2 * MIB, "2", "0 to 2"), (9 * MIB - 1, "8", "8")],
)
def test_damage(image: Path, kind: str, maker: str, at: int, ours: str, theirs: str) -> None:
    if maker == "ours":
        scanned(image)
    else:
        run("bmaptool", "create", image, "-o", f"{image}.bmap")
    flip(image, at)
    Path(f"{image}.bmap").touch()
    where = ours if maker == "ours" else theirs
    with prepared(image, kind) as source:
        for _ in range(2):  # nor when it is tried once more
            with pytest.raises(SourceError) as caught:
                everything(source)
            assert str(caught.value) == (
                f"the source is at fault: {image} is damaged or was changed: MiB {where} does not match its scan, "
                "nor when read once more"
            )


def test_what_is_undamaged_can_be_read(image: Path) -> None:
    scanned(image)
    flip(image, 2 * MIB)
    Path(f"{image}.bmap").touch()
    with prepared(image) as source:
        assert isinstance(source.payload(6 * MIB, MIB), FileRange)
        with pytest.raises(SourceError):
            source.payload(2 * MIB + 5, 1)  # a byte of a range that is damaged elsewhere


def test_a_whole_mapped_range_is_not_copied(image: Path) -> None:
    scanned(image)
    with prepared(image) as source:
        found = source.payload(6 * MIB + 5, 1000)
        assert isinstance(found, FileRange)
        assert found.offset == 6 * MIB + 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_mapped_is_zeroes(image: Path, kind: str) -> None:
    """Whatever the image has there."""
    scanned(image)
    data = bytearray(image.read_bytes())
    with image.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"\xee" * (MIB // 2))
    Path(f"{image}.bmap").touch()
    with prepared(image, kind) as source:
        assert_same_bytes(everything(source), data)
        assert_same_bytes(memoryview(as_memory(source.payload(5 * MIB, MIB), MIB, "")), bytes(MIB))


@given(st.lists(st.tuples(st.integers(0, 9 * MIB), st.integers(1, MIB)), max_size=20), st.booleans())
@examples(60)
def test_any_range(tmp_path: Path, wanted: list[tuple[int, int]], long: bool) -> None:
    image = tmp_path / "disk.img"
    if not image.exists():
        fill(image, 9 * MIB + 12_345, ISLANDS)
        run("bmaptool", "create", image, "-o", tmp_path / "long.bmap")
        scanned(image)
    data = image.read_bytes()
    if long:
        (tmp_path / "disk.img.bmap").rename(tmp_path / "short.bmap")
        (tmp_path / "long.bmap").rename(tmp_path / "disk.img.bmap")
    try:
        with prepared(image) as source, ThreadPoolExecutor(4) as threads:
            wanted = [(offset, min(length, len(data) - offset)) for offset, length in wanted]
            found = threads.map(lambda pair: bytes(as_memory(source.payload(*pair), pair[1], "")), wanted)
            for (offset, length), part in zip(wanted, found, strict=True):
                assert_same_bytes(part, data[offset : offset + length])
    finally:
        if long:
            (tmp_path / "disk.img.bmap").rename(tmp_path / "long.bmap")
            (tmp_path / "short.bmap").rename(tmp_path / "disk.img.bmap")


def test_readers(image: Path) -> None:
    scanned(image)
    data = image.read_bytes()
    with prepared(image) as source:
        readers = [source.reader() for _ in range(3)]
        with ThreadPoolExecutor(3) as threads:
            for found in threads.map(everything, readers):
                assert_same_bytes(found, data)
        for reader in readers:
            reader.close()


def test_kept_unmapped(image: Path) -> None:
    bmap, _ = scanned(image)
    with prepared(image, keep_unmapped=True) as source:
        runs = list(source.extents())
    assert sum(run.length for run in runs) == image.stat().st_size
    assert sum(run.length for run in runs if not isinstance(run, Unmapped)) == bmap.mapped
    assert {(run.hole, run.zero) for run in runs if isinstance(run, Unmapped)} == {(True, False)}
    assert not any(run.zero for run in runs)


def test_zeroes_are_known_by_their_digest(tmp_path: Path) -> None:
    """They are not read."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(3 * MIB) + random.Random(1).randbytes(MIB) + bytes(5000))
    bmap, _ = scanned(image)
    assert bmap.mapped == image.stat().st_size
    with prepared(image) as source:
        kinds = [(run.length, run.hole, run.zero) for run in source.extents()]
        assert kinds == [(3 * MIB, False, True), (MIB, False, False), (5000, False, True)]
        assert_same_bytes(everything(source), image.read_bytes())


def test_a_stream_that_ends_early(image: Path) -> None:
    with closing(opened(image, "stream")) as source:
        bmap = scan(source, None, lambda done, total: None)
    with image.open("r+b") as file:
        file.truncate(5 * MIB)
    with closing(Prepared(opened(image, "stream"), bmap)) as source:
        with pytest.raises(SourceError) as caught:
            everything(source)
        assert str(caught.value) == f"{image} ends before byte {7 * MIB}"


def test_ranges_without_digests_are_read(image: Path) -> None:
    run("bmaptool", "create", "--no-checksum", image, "-o", f"{image}.bmap")
    with prepared(image) as source:
        assert_same_bytes(everything(source), image.read_bytes())
