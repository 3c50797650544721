"""A file system made smaller than it was, on an overlay; the source stays as it is, byte for byte.

Debian packages: btrfs-progs e2fsprogs libnbd-bin mount ntfs-3g qemu-utils util-linux xfsprogs.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from restore.errors import Refused
from restore.fit.shrink import shrunk
from tests.restore.filesystems import (
    MIB,
    checked,
    in_filesystem,
    make_filesystem,
    nothing_left_of,
    partitioned,
)
from tests.restore.reports import Remembered
from tests.serving import run, serving

SIZES = {"ext2": 64, "ext3": 64, "ext4": 200, "btrfs": 700, "ntfs": 200}
FILL = (
    "mkdir a; head -c 9000000 /dev/urandom > a/file; head -c 5000000 /dev/urandom > other; sync; sha256sum a/file other"
)


@pytest.fixture(autouse=True)
def requires_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices and mounts")


def shrink(
    source: Path | str, kind: str, size: int, target: int, out: Path, offset: int = 0, form: str = "raw"
) -> Path:
    """The shrunk image, converted to a raw file."""

    async def work() -> None:
        async with shrunk(str(source), kind, size, target, Remembered(), offset=offset, form=form) as found:
            assert found.size == target
            assert found.form == "qcow2"
            run("qemu-img", "convert", "-O", "raw", found.path, out)
        assert not found.path.exists()

    asyncio.run(work())
    assert out.stat().st_size == target
    return out


@pytest.mark.parametrize("kind", list(SIZES))
def test_smaller(tmp_path: Path, kind: str) -> None:
    size = SIZES[kind] * MIB
    image = make_filesystem(tmp_path / "fs.img", kind, size)
    sums = in_filesystem(image, kind, FILL)
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    target = size * 3 // 4 // 4096 * 4096
    small = shrink(image, kind, size, target, tmp_path / "small.img")
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before
    checked(small, kind)
    assert in_filesystem(small, kind, "sha256sum a/file other") == sums
    nothing_left_of(tmp_path)


def test_partition_of_an_image_and_of_an_export(tmp_path: Path) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 64 * MIB)
    sums = in_filesystem(image, "ext4", FILL)
    disk = partitioned(tmp_path / "disk.img", make_filesystem(tmp_path / "o.img", "ext4", 8 * MIB), image)
    target = 48 * MIB
    run("qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
    with serving(
        disk, options=("--listen", "127.0.0.1:0", "--control", "off", "--read-only"), errors=tmp_path / "e"
    ) as s:
        for source, form in ((disk, "raw"), (tmp_path / "disk.qcow2", "qcow2"), (s.uri(), "raw")):
            out = tmp_path / "small.img"
            out.unlink(missing_ok=True)
            small = shrink(source, "ext4", 64 * MIB, target, out, offset=9 * MIB, form=form)
            checked(small, "ext4")
            assert in_filesystem(small, "ext4", "sha256sum a/file other") == sums


def test_refusals(tmp_path: Path) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 64 * MIB)
    in_filesystem(image, "ext4", FILL)
    with pytest.raises(Refused) as refused:
        shrink(image, "ext4", 64 * MIB, 12 * MIB, tmp_path / "out")
    start, _, end = str(refused.value).partition("can be made no smaller than ")
    assert start == f"{image} does not fit: its file system "
    assert end.endswith(" MiB, the target has 12.0 MiB")
    with pytest.raises(Refused) as refused:
        shrink(image, "xfs", 64 * MIB, 12 * MIB, tmp_path / "out")
    assert str(refused.value) == (
        f"{image} has 64.0 MiB and the target 12.0 MiB: xfs cannot be made smaller; "
        "only ext2, ext3, ext4, btrfs and ntfs can"
    )
    for kind in ("btrfs", "ntfs"):
        image = make_filesystem(tmp_path / f"{kind}.img", kind, 200 * MIB)
        in_filesystem(image, kind, "head -c 40000000 /dev/urandom > file")
        with pytest.raises(Refused) as refused:
            shrink(image, kind, 200 * MIB, 20 * MIB, tmp_path / "out")
        assert str(refused.value).startswith(f"{image} does not fit: its file system can be made no smaller than ")
        assert kind != "btrfs" or "than 256.0 MiB, the target" in str(refused.value)
        nothing_left_of(tmp_path)


def test_a_damaged_file_system_is_not_made_smaller(tmp_path: Path) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 64 * MIB)
    run("debugfs", "-w", "-R", "clri <2>", image)
    with pytest.raises(Refused) as refused:
        shrink(image, "ext4", 64 * MIB, 48 * MIB, tmp_path / "out")
    assert str(refused.value).startswith(f"the file system of {image} is damaged: e2fsck: ")
    assert str(refused.value).endswith("; repair it in a copy of the image")
    nothing_left_of(tmp_path)
