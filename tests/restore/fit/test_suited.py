"""What kind of target an image belongs on.

Debian packages: e2fsprogs gdisk mount.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from restore.target.local import LocalTarget
from targetmode.disks.machine import Machine
from tests.restore.engine import failed, restore, succeeded
from tests.restore.filesystems import MIB, make_filesystem, partitioned
from tests.serving import serving
from tests.support import loop_device


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A volume, and a disk with it and one that is larger than that disk."""
    directory = tmp_path_factory.mktemp("parts")
    volume, larger = (make_filesystem(directory / f"{n}", "ext4", n * MIB) for n in (8, 40))
    return volume, partitioned(directory / "disk.img", volume, larger)


@pytest.fixture
def disk(parts: tuple[Path, Path], tmp_path: Path) -> Path:
    """A disk to restore to."""
    path = tmp_path / "sdx"
    path.write_bytes(parts[1].read_bytes())
    return path


@pytest.fixture
def small(parts: tuple[Path, Path], tmp_path: Path) -> Path:
    """An image of a disk, smaller than a partition of the target."""
    return partitioned(tmp_path / "small.img", parts[0])


def test_disk_on_a_partition(parts: tuple[Path, Path], disk: Path, small: Path, tmp_path: Path) -> None:
    before = disk.read_bytes()
    with serving(disk, errors=tmp_path / "errors") as server:
        partition = server.uri("sdx2")
        assert failed(restore(small, partition)) == (
            f"{small} is a whole disk with a partition table, and {partition} is a partition of sdx, where its "
            "partitions would not be found; name sdx as the target"
        )
        assert disk.read_bytes() == before
        succeeded(restore(parts[0], partition))


def test_a_local_partition_names_its_disk(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel makes nodes of partitions, which it does not do everywhere."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop device")
    with loop_device(disk) as loop:
        number = loop.stat().st_rdev
        sys = tmp_path / "sys"
        node = sys / "devices" / "sdx" / "sdx2"
        node.mkdir(parents=True)
        (node / "partition").write_text("2\n")
        for link in (
            sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}",
            sys / "class" / "block" / "sdx2",
        ):
            link.parent.mkdir(parents=True)
            link.symlink_to(node)
        target = LocalTarget(str(loop))
        try:
            assert target.facts.partition_of is None
            monkeypatch.setattr("restore.target.local.HERE", Machine(sys=sys))
            facts = target.facts
        finally:
            target.close()
    assert (facts.kind, facts.sector_size, facts.partition_of) == ("block device", 512, "/dev/sdx")


def test_volume_on_a_disk(parts: tuple[Path, Path], disk: Path) -> None:
    said = f"{parts[0]} is a volume without a partition table: {disk} loses the one it has, and its 2 partitions"
    assert f"  {said}\n" in succeeded(restore(parts[0], disk))
    assert said not in succeeded(restore(parts[0], disk))


def test_sectors_of_another_size(small: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for a loop device")
    behind = tmp_path / "behind"
    behind.write_bytes(bytes(64 * MIB))
    made = subprocess.run(
        ["losetup", "--find", "--show", "--sector-size", "4096", behind], check=True, capture_output=True, text=True
    )
    loop = made.stdout.strip()
    try:
        said = f"The partition table of {small} counts in sectors of 512 bytes and {loop} has 4096: no system finds"
        assert said in succeeded(restore(small, loop))
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)
    assert "counts in sectors" not in succeeded(restore(small, behind))
