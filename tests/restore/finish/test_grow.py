"""--grow: partition and file system fill the disk; their own checkers agree.

Debian packages: btrfs-progs e2fsprogs gdisk libnbd-bin mount ntfs-3g util-linux xfsprogs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from restore.finish.steps import finish
from tests.restore.filesystems import MIB, SMALLEST, checked, extracted, in_filesystem, make_filesystem, partitioned
from tests.restore.reports import Remembered
from tests.serving import run, serving
from tests.support import loop_device


def grown(where: Path | str) -> list[str]:
    report = Remembered()
    asyncio.run(finish(str(where), report, grow=True))
    return report.notes


def room(path: Path, kind: str) -> int:
    """The size of a file system in MiB, as df tells it."""
    return int(in_filesystem(path, kind, "df -BM --output=size . | tail -1").strip().removesuffix("M"))


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs"])
def test_last_partition_and_its_filesystem(tmp_path: Path, private: None, kind: str) -> None:
    size = SMALLEST.get(kind, 64 * MIB)
    image = make_filesystem(tmp_path / "fs.img", kind)
    in_filesystem(image, kind, "echo kept > file")
    other = make_filesystem(tmp_path / "other.img", "ext4", 8 * MIB)
    disk = partitioned(tmp_path / "disk.img", other, image)
    before = room(image, kind)
    with disk.open("r+b") as file:
        file.truncate(disk.stat().st_size + 200 * MIB)
    notes = grown(disk)
    now = size + 200 * MIB + 2 * MIB
    assert notes == [
        f"Partition 2 ({kind}) grown from {size / MIB:.1f} MiB to {now / MIB:.1f} MiB",
        f"Partition 2 ({kind}): file system fills {now / MIB:.1f} MiB",
    ]
    assert "No problems found" in run("sgdisk", "-v", disk).out
    part = extracted(disk, 2)
    assert part.stat().st_size == now
    checked(part, kind)
    assert room(part, kind) > before + 180
    assert in_filesystem(part, kind, "cat file") == "kept\n"
    assert grown(disk) == notes[1:], "doing it again changes nothing"


def test_mbr(tmp_path: Path, private: None) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    run("sfdisk", disk, stdin="label: dos\nstart=2048, size=16M, type=83\n")
    run("dd", f"if={image}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc", "status=none")
    assert grown(disk)[0] == "Partition 1 (ext4) grown from 16.0 MiB to 63.0 MiB"
    part = extracted(disk, 1)
    checked(part, "ext4")
    assert part.stat().st_size == 63 * MIB
    assert "correctly" not in run("sfdisk", "--verify", disk).err


def test_logical_partition_stays(tmp_path: Path, private: None) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    run("sfdisk", disk, stdin="label: dos\nstart=2048, size=32M, type=5\nstart=4096, size=16M, type=83\n")
    run("dd", f"if={image}", f"of={disk}", "bs=1M", "seek=2", "conv=notrunc", "status=none")
    line = "Partition 5 (ext4) left as it is: partition 5 is a logical one, which is not made larger"
    assert grown(disk) == [line]


def test_other_filesystem_stays(tmp_path: Path, private: None) -> None:
    disk = partitioned(tmp_path / "disk.img", make_filesystem(tmp_path / "fs.img", "vfat", 16 * MIB), room=32 * MIB)
    before = disk.read_bytes()
    line = "Partition 1 (vfat) left as it is: only ext2, ext3, ext4, xfs, btrfs and ntfs can grow"
    assert grown(disk) == [line]
    assert disk.read_bytes() == before


def test_volume_over_nbd(tmp_path: Path, private: None) -> None:
    """A file system without a partition table, on an export."""
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    with image.open("r+b") as file:
        file.truncate(48 * MIB)
    with serving(image, errors=tmp_path / "errors") as server:
        assert grown(server.uri()) == ["File system (ext4): file system fills 48.0 MiB"]
    checked(image, "ext4")
    assert room(image, "ext4") > 40


def test_disk_with_sectors_of_4096_bytes(tmp_path: Path, private: None) -> None:
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    with loop_device(image, sector=4096) as device:
        run("sgdisk", "-n1:0:0", device)
    fs = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB, "-b", "4096")
    run("dd", f"if={fs}", f"of={image}", "bs=1M", "seek=1", "conv=notrunc", "status=none")
    with image.open("r+b") as file:
        file.truncate(96 * MIB)
    with loop_device(image, sector=4096) as device:
        assert grown(device)[-1] == "Partition 1 (ext4): file system fills 94.0 MiB"
        assert "No problems found" in run("sgdisk", "-v", device).out
    run("dd", f"if={image}", f"of={fs}", "bs=1M", "skip=1", "count=94", "status=none")
    checked(fs, "ext4")
    assert room(fs, "ext4") > 80


def test_hybrid_mbr(tmp_path: Path, private: None) -> None:
    """Only one of the two tables would say that the partition is larger."""
    disk = partitioned(tmp_path / "disk.img", make_filesystem(tmp_path / "fs.img", "ext4", 8 * MIB))
    run("sgdisk", "-h", "1", disk)
    with disk.open("r+b") as file:
        file.truncate(disk.stat().st_size + 20 * MIB)
    run("sgdisk", "-e", disk)
    before = disk.read_bytes()
    said = "there is a hybrid MBR beside the GPT, which has to say the same"
    assert grown(disk) == [f"Partition 1 (ext4) left as it is: {said}"]
    assert disk.read_bytes() == before
    assert "No problems found" in run("sgdisk", "-v", disk).out
