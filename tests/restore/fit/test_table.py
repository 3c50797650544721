"""A disk image on a larger disk: its backup GPT is at the end from the start, restored and verified like all the rest.

Debian packages: btrfs-progs dosfstools e2fsprogs fdisk gdisk ntfs-3g xfsprogs.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.backend import Extent
from restore.blocks.plan import Kind, cut
from restore.errors import join
from restore.fit.table import MOVING, Overlaid, fit_table
from restore.source import Source, Unmapped
from restore.source.detect import open_image
from restore.source.payload import as_memory
from restore.source.raw import RawStream
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource
from tests.restore.engine import failed, nbdkit, restore, succeeded, verify
from tests.restore.filesystems import make_filesystem, partitioned
from tests.serving import run
from tests.support import assert_same_bytes, examples

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions with file systems."""
    directory = tmp_path_factory.mktemp("image")
    parts = [make_filesystem(directory / f"part{n}", "ext4", 8 * MIB) for n in (1, 2)]
    return partitioned(directory / "disk.img", *parts)


def blank(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.write(b"\x55" * size)
    return path


def opened(path: Path, kind: str) -> Source:
    return StreamSource(RawStream(LocalFile(str(path)))) if kind == "stream" else open_image(str(path)).source


def on_disk(source: Source, before: bytes) -> bytes:
    """What a disk has when a source was restored onto it."""
    disk = bytearray(before)
    for piece in cut(source.extents(), 0):
        data = bytes(piece.length)
        if piece.kind is Kind.DATA:
            data = bytes(as_memory(source.payload(piece.offset, piece.length), piece.length, source.name))
        disk[piece.offset : piece.offset + piece.length] = data
    return bytes(disk)


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("more", [512, 16 * 512, 20 * MIB, 20 * MIB + 512])
def test_fits_a_larger_disk(image: Path, tmp_path: Path, kind: str, more: int) -> None:
    size = image.stat().st_size + more
    with closing(opened(image, kind)) as source:
        fitting, note = fit_table(source, size, 512)
        assert note == MOVING
        found = on_disk(fitting, b"\x55" * size)
        assert (fitting.size, fitting.least_size) == (size, source.least_size)
    disk = tmp_path / "disk"
    disk.write_bytes(found)
    assert "No problems found" in run("sgdisk", "-v", disk).out
    gap = found[image.stat().st_size : size - 33 * 512]
    assert gap == b"\x55" * len(gap)  # what is no part of the image stays what it was


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_nothing_to_do(image: Path, tmp_path: Path, kind: str) -> None:
    with closing(opened(image, kind)) as source:
        assert fit_table(source, image.stat().st_size, 512) == (source, None)
    with closing(opened(make_filesystem(tmp_path / "fs", "ext4", 8 * MIB), kind)) as source:
        assert fit_table(source, 16 * MIB, 512) == (source, None)


def test_damaged_table_is_left_alone(image: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.img"
    damaged.write_bytes(image.read_bytes())
    with damaged.open("r+b") as file:
        file.seek(512 + 60)
        file.write(b"?")
    with closing(opened(damaged, "file")) as source:
        assert fit_table(source, 100 * MIB, 512) == (
            source,
            "Partition table left as it is: the primary GPT at byte 512 is damaged",
        )


def test_restored_verified_and_compared(image: Path, tmp_path: Path) -> None:
    disk = blank(tmp_path / "disk", 40 * MIB)
    assert f"  {MOVING}\n" in succeeded(restore(image, disk))
    assert "No problems found" in run("sgdisk", "-v", disk).out
    assert "Backup partition" not in succeeded(verify(image, disk))
    assert "bytes 0 to" in verify(image, disk, "--keep-table").err


def test_over_the_wire(image: Path, tmp_path: Path) -> None:
    disk = blank(tmp_path / "disk", 40 * MIB)
    with nbdkit("file", disk, directory=tmp_path) as uri:
        assert MOVING in succeeded(restore(image, uri))
        assert succeeded(restore(image, uri, "--delta")).endswith(
            "verified, 1.0 MiB of it written, the rest was there already\n"
        )
    assert "No problems found" in run("sgdisk", "-v", disk).out


def test_kept(image: Path, tmp_path: Path) -> None:
    disk = blank(tmp_path / "disk", 40 * MIB)
    assert MOVING not in succeeded(restore(image, disk, "--keep-table"))
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + b"\x55" * (40 * MIB - image.stat().st_size))


def test_several_disks_of_different_sizes(image: Path, tmp_path: Path) -> None:
    disks = [blank(tmp_path / str(size), size * MIB) for size in (20, 33, 40)]
    others = [word for disk in disks[1:] for word in ("--target", str(disk))]
    out = succeeded(restore(image, disks[0], *others))
    assert out.count(MOVING) == 2
    for disk in disks:
        assert "No problems found" in run("sgdisk", "-v", disk).out


def test_a_compressed_disk_that_does_not_fit(image: Path, tmp_path: Path) -> None:
    """Its size is not known before it was decoded, but its partitions are."""
    run("gzip", "--keep", "--fast", image)
    packed, disk = Path(f"{image}.gz"), blank(tmp_path / "disk", 12 * MIB)
    assert failed(restore(packed, disk)).endswith("where partition 2 (8.0 MiB, ends at 17.0 MiB) does not fit")
    assert disk.read_bytes() == b"\x55" * (12 * MIB)


def test_a_disk_that_is_too_small_for_a_partition(image: Path, tmp_path: Path) -> None:
    disk = blank(tmp_path / "disk", 12 * MIB)
    assert failed(restore(image, disk)) == (
        f"{disk} is too small for {image}: it has 12.0 MiB, where partition 2 (8.0 MiB, ends at 17.0 MiB) does not fit"
    )
    assert disk.read_bytes() == b"\x55" * (12 * MIB)
    disk = blank(tmp_path / "disk", 18 * MIB)
    assert failed(restore(image, disk)) == (
        f"{disk} is too small: it has 18874368 bytes (18.0 MiB), {image} has {image.stat().st_size} (20.0 MiB)"
    )


class _Bytes:
    """A source in memory."""

    sequential = False
    name = "image"

    def __init__(self, runs: list[tuple[int, bool]]) -> None:
        self.data = b"".join(bytes(n) if zero else bytes([index % 255 + 1]) * n for index, (n, zero) in enumerate(runs))
        self.size = self.least_size = self.expected_size = len(self.data)
        self._runs = runs

    def extents(self) -> list[Extent]:
        return [Extent(length, hole=zero, zero=zero) for length, zero in self._runs]

    def payload(self, offset: int, length: int) -> memoryview:
        assert offset + length <= self.size, "read behind the end"
        return memoryview(self.data)[offset : offset + length]


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 3000)), max_size=6),
    st.integers(1, 9000),
)
@examples(300)
def test_overlaid(runs: list[tuple[int, bool]], gaps: list[tuple[int, int]], step: int) -> None:
    patches, position = [], 0
    for gap, length in gaps:
        patches.append((position + gap, b"\xff" * length))
        position += gap + length
    inner = _Bytes(runs)
    size = max(position, inner.size)
    want, mapped = bytearray(inner.data.ljust(size, b"?")), [(0, inner.size)]
    for at, data in patches:
        want[at : at + len(data)] = data
        mapped.append((at, len(data)))
    source = Overlaid(inner, size, patches)  # type: ignore[arg-type]
    have, position, told = bytearray(b"?" * size), 0, []
    for extent in source.extents():
        if not isinstance(extent, Unmapped):
            told.append((position, extent.length))
            for at in range(position, position + extent.length, step):
                length = min(step, position + extent.length - at)
                have[at : at + length] = bytes(length) if extent.zero else bytes(source.payload(at, length))  # type: ignore[arg-type]
        position += extent.length
    assert position == size
    assert join(told) == join(mapped)
    assert_same_bytes(have, want)


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_an_image_that_was_cut_short(tmp_path: Path, label: str) -> None:
    """As by a download that ended early: what is missing must not look restored, whatever room the target has."""
    whole, path, disk = tmp_path / "whole.img", tmp_path / "image.img", tmp_path / "disk"
    with whole.open("wb") as file:
        file.truncate(40 * MIB)
    run("sfdisk", "-q", whole, stdin=f"label: {label}\nstart=1MiB size=4MiB\nstart=5MiB size=34MiB\n")
    path.write_bytes(whole.read_bytes()[: 24 * MIB])
    blank(disk, 48 * MIB)
    message = failed(restore(path, disk))
    assert message == (
        f"{path} is cut short: it has 24.0 MiB, and its partition 2 (34.0 MiB, ends at 39.0 MiB) goes on behind that; "
        "get a whole copy of it (--keep-table restores it as it is)"
    )
    assert not disk.read_bytes().strip(b"\x55")
    succeeded(restore(path, disk, "--keep-table"))
    assert_same_bytes(disk.read_bytes()[: 24 * MIB], path.read_bytes())
    succeeded(restore(whole, disk))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "ntfs", "vfat"])
def test_a_volume_that_was_cut_short(tmp_path: Path, kind: str) -> None:
    path, disk = make_filesystem(tmp_path / "image.img", kind), blank(tmp_path / "disk", MIB)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with disk.open("r+b") as file:
        file.truncate(2 * size)
    message = failed(restore(path, disk))
    assert message.startswith(f"{path} is cut short: it has {size // 2} bytes (")
    assert f"and its file system ({kind}) " in message
    wanted = int(message.rsplit(" ", 2)[1])
    assert size // 2 < wanted <= size
    assert disk.read_bytes()[:MIB] == b"\x55" * MIB
    with path.open("r+b") as file:
        file.truncate(wanted)
    succeeded(restore(path, disk))
