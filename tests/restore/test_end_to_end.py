"""A restore onto everything that it can go to: inside the image's range the image, outside what was there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.restore.conftest import FOREIGN, LOCAL, OURS
from tests.restore.engine import IMAGES, MIB, Disk, image, named_ranges, nbdkit, restore, succeeded, verify
from tests.serving import pattern, run
from tests.support import assert_same_bytes


@pytest.mark.parametrize("source", IMAGES)
@pytest.mark.parametrize("disk", [*OURS[:3], FOREIGN[0], *LOCAL], indirect=True)
def test_restore(disk: Disk, source: str, tmp_path: Path) -> None:
    check_restore(disk, source, tmp_path)


@pytest.mark.parametrize("source", ["random, odd size", "holes, odd size", "one byte"])
@pytest.mark.parametrize("disk", [OURS[3], *FOREIGN[1:]], indirect=True)
def test_restore_elsewhere(disk: Disk, source: str, tmp_path: Path) -> None:
    check_restore(disk, source, tmp_path)


def check_restore(disk: Disk, source: str, directory: Path) -> None:
    old = pattern(disk.size, seed=7)
    disk.fill(old)
    with image(source, directory) as (path, data):
        said = succeeded(restore(path, disk.target))
        assert_same_bytes(disk.read(), data + old[len(data) :])
        assert said.count(disk.note or "read back") == (1 if disk.note else 0), said
        assert ", verified" in said


@pytest.mark.parametrize("disk", [*OURS, "local file", "qemu-nbd"], indirect=True)
def test_others_agree(disk: Disk, tmp_path: Path) -> None:
    """nbdcopy and qemu-img find the same as our verification: all right, then one byte wrong."""
    disk.fill(pattern(disk.size, seed=9))
    with (tmp_path / "source.img").open("wb") as file:
        file.truncate(disk.size)
        file.seek(3 * MIB + 5)
        file.write(pattern(2 * MIB))
    source = tmp_path / "source.img"
    succeeded(restore(source, disk.target))
    copy = tmp_path / "copy.img"
    where = disk.target
    compare = ("qemu-img", "compare", "--force-share", "-f", "raw", "-F", "raw", source, where)
    if where.startswith("nbd"):
        run("nbdcopy", "--", where, copy)
        assert_same_bytes(copy.read_bytes(), source.read_bytes())
    assert "Images are identical." in run(*compare).out
    succeeded(verify(source, where))
    assert disk.path is not None
    with disk.path.open("r+b") as file:
        file.seek(4 * MIB + 77)
        file.write(bytes([source.read_bytes()[4 * MIB + 77] ^ 1]))
    result = verify(source, where)
    assert result.status == 3
    assert named_ranges(result) == [f"bytes {4 * MIB} to {5 * MIB - 1} (MiB 4)"]
    assert "Content mismatch" in run(*compare, check=False).out


@pytest.mark.parametrize("options", [("--connections=4",), ("--noverify",), ("--connections=3", "--max-rate=64M")])
@pytest.mark.parametrize("disk", ["builtin file", "nbdkit file", "nbdkit's own file"], indirect=True)
def test_options(disk: Disk, options: tuple[str, ...], tmp_path: Path) -> None:
    old = pattern(disk.size, seed=11)
    disk.fill(old)
    with image("holes", tmp_path) as (path, data):
        said = succeeded(restore(path, disk.target, *options))
    assert_same_bytes(disk.read(), data + old[len(data) :])
    noverify = "--noverify" in options
    assert ("Verifying" in said) is not noverify
    assert (", not verified" in said) is noverify
    assert (", verified" in said) is not noverify


@pytest.mark.parametrize(
    "arguments",
    [
        ("--filter=nozero", "file"),
        ("--filter=nozero", "--filter=noextents", "file"),
        ("--filter=blocksize-policy", "file", "blocksize-maximum=65536", "blocksize-error-policy=error"),
        (
            "--filter=blocksize-policy",
            "file",
            "blocksize-minimum=4096",
            "blocksize-maximum=128k",
            "blocksize-error-policy=error",
        ),
        ("--filter=multi-conn", "file", "multi-conn-mode=disable"),
        ("--no-sr", "file"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("source", ["random, odd size", "holes, odd size", "one byte"])
def test_servers_with_limits(arguments: tuple[str, ...], source: str, tmp_path: Path) -> None:
    """Servers that have no WRITE_ZEROES, no extents, small or large blocks, one connection, simple replies alone."""
    old = pattern(8 * MIB, seed=13)
    target = tmp_path / "disk.img"
    target.write_bytes(old)
    with image(source, tmp_path) as (path, data), nbdkit(*arguments, target, directory=tmp_path) as uri:
        succeeded(restore(path, uri, "--connections=2"))
        assert_same_bytes(target.read_bytes(), data + old[len(data) :])
        succeeded(verify(path, uri))


def test_a_server_whose_holes_are_smaller_than_its_blocks(tmp_path: Path) -> None:
    target, source = tmp_path / "disk.img", tmp_path / "source.img"
    size = 8 * MIB
    for path in (target, source):
        with path.open("wb") as file:
            file.truncate(size)
    with target.open("r+b") as file:
        for offset in range(12_288, size - 8192, 200_704):
            file.seek(offset)
            file.write(pattern(8192))
    blocks = (
        "blocksize-minimum=64k",
        "blocksize-preferred=64k",
        "blocksize-maximum=1M",
        "blocksize-error-policy=error",
    )
    with nbdkit("--filter=blocksize-policy", "file", target, *blocks, directory=tmp_path) as uri:
        succeeded(restore(source, uri))
    assert_same_bytes(target.read_bytes(), bytes(size))
