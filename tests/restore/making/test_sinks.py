"""A disk captured as seekable zstd is what zstd itself reads, and what a restore reads at random.

Debian packages: zstd.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import subprocess
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from nbd.backend import Extent
from restore.errors import RestoreError
from restore.making.capture import CaptureSettings, capture
from restore.making.sinks import ZERO_FRAME, ZstdSink
from restore.manifest.beside import load
from restore.report.text import TextReport
from restore.source import Source
from restore.source.detect import open_image
from restore.source.raw import RawStream
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource
from tests.restore.engine import IMAGES, MIB, restore, succeeded
from tests.serving import run
from tests.support import assert_same_bytes, small_filesystem


def captured(source: Source, target: Path, used: Iterable[Extent] | None = None) -> None:
    settings = CaptureSettings(compress="zstd", threads=2)
    with closing(source):
        asyncio.run(capture(source, target, used, settings, TextReport(io.StringIO())))


def unpacked(path: Path) -> bytes:
    """As zstd does it, which checks it first."""
    run("zstd", "-tq", path)
    return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout


def check(path: Path, want: bytes) -> None:
    assert_same_bytes(unpacked(path), want)
    bmap = load(path)
    assert bmap is not None
    assert bmap.image_size == len(want)
    for found in bmap:
        assert blake3(want[found.start : found.end]).digest() == found.blake3
    image = open_image(str(path))
    assert image.format == "zstd"
    with closing(image.source) as source:
        assert not source.sequential
        assert source.size == len(want)
        for offset in range(0, len(want), 700_001):
            length = min(MIB, len(want) - offset)
            payload = source.payload(offset, length)
            assert isinstance(payload, memoryview)
            assert_same_bytes(payload, want[offset : offset + length])


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if kind != "device"])
def test_images(kind: str, tmp_path: Path) -> None:
    make, size = IMAGES[kind]
    make(tmp_path / "disk", size)
    captured(open_image(str(tmp_path / "disk")).source, tmp_path / "disk.zst")
    check(tmp_path / "disk.zst", (tmp_path / "disk").read_bytes())


def test_whose_size_is_known_at_the_end(tmp_path: Path) -> None:
    make, size = IMAGES["holes, odd size"]
    make(tmp_path / "disk", size)
    source = StreamSource(RawStream(LocalFile(str(tmp_path / "disk"))))
    captured(source, tmp_path / "disk.zst")
    check(tmp_path / "disk.zst", (tmp_path / "disk").read_bytes())


def test_used_blocks_only(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(6 * MIB)
    (tmp_path / "disk").write_bytes(data)
    used = [
        (8192, True),
        (4096, True),
        (4096, False),
        (2 * MIB, True),
        (MIB, False),
        (2 * MIB, True),
        (MIB - 16384, False),
    ]
    captured(
        open_image(str(tmp_path / "disk")).source,
        tmp_path / "disk.zst",
        [Extent(length, hole=not taken, zero=not taken) for length, taken in used],
    )
    want, position = bytearray(data), 0
    for length, taken in used:
        if not taken:
            want[position : position + length] = bytes(length)
        position += length
    assert position == len(data)
    check(tmp_path / "disk.zst", bytes(want))


def test_many_gib_of_zeroes(tmp_path: Path) -> None:
    """Cost next to nothing, and are holes again."""
    with (tmp_path / "disk").open("wb") as file:
        file.write(b"\1" * 4096)
        file.truncate((64 << 30) + 777)
    started = time.monotonic()
    captured(open_image(str(tmp_path / "disk")).source, tmp_path / "disk.zst")
    with closing(open_image(str(tmp_path / "disk.zst")).source) as source:
        assert source.size == (64 << 30) + 777
        extents = list(source.extents())
    assert time.monotonic() - started < 10
    assert (tmp_path / "disk.zst").stat().st_size < 3 * MIB
    assert [extent.zero for extent in extents] in ([False, True], [False, True, False])
    assert extents[0].length == MIB
    assert ZERO_FRAME <= 64 * MIB


def test_a_restore_of_it(tmp_path: Path) -> None:
    make, size = IMAGES["holes, odd size"]
    make(tmp_path / "disk", size)
    captured(open_image(str(tmp_path / "disk")).source, tmp_path / "disk.zst")
    (tmp_path / "target").write_bytes(b"\xff" * (size + 512))
    succeeded(restore(tmp_path / "disk.zst", tmp_path / "target"))
    restored = (tmp_path / "target").read_bytes()
    assert_same_bytes(restored[:size], (tmp_path / "disk").read_bytes())


def test_ranges_out_of_order(tmp_path: Path) -> None:
    """Are an error of ours, and never a wrong image."""
    with (tmp_path / "image").open("wb") as file, closing(ZstdSink(file.fileno(), 1)) as sink:
        sink.write(2 * MIB, memoryview(b"x"))
        with pytest.raises(AssertionError, match="byte 0 comes after byte 2097152"):
            sink.write(0, memoryview(b"x"))


def test_full_meanwhile(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a small file system")
    (tmp_path / "disk").write_bytes(random.Random(1).randbytes(12 * MIB))
    with small_filesystem(tmp_path / "small", 8 * MIB) as small:
        with pytest.raises(RestoreError) as caught:
            captured(open_image(str(tmp_path / "disk")).source, small / "disk.zst")
        assert list(small.iterdir()) == []
    assert str(caught.value) == f"{tmp_path}/small is full (No space left on device); nothing is left of the image"
