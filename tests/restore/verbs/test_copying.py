"""`asr restore` without `--erase` as an admin types it; the copying itself is tested in test_filecopy.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.restore.engine import asr, failed, succeeded
from tests.restore.filesystems import in_filesystem, make_filesystem, nothing_left_of, partitioned
from tests.serving import Result
from tests.support import loop_device

MIB = 1 << 20
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")


def copy(source: Path, target: Path, *options: str) -> Result:
    return asr("restore", "--source", source, "--target", target, *options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    image = make_filesystem(tmp_path / "source.img", "ext4", 16 * MIB)
    in_filesystem(image, "ext4", "mkdir dir; echo new > dir/both; echo one > dir/one; touch -d 2001-01-01 dir/both")
    return image


@pytest.fixture
def target(tmp_path: Path) -> Path:
    image = make_filesystem(tmp_path / "target.img", "ext4", 32 * MIB)
    in_filesystem(image, "ext4", "mkdir dir; echo old > dir/both; echo two > dir/two")
    return image


def files(image: Path) -> str:
    return in_filesystem(image, "ext4", "cd dir; grep . *")


def test_files_are_copied(source: Path, target: Path, tmp_path: Path) -> None:
    out = succeeded(copy(source, target))
    assert [line.split("  ")[1] for line in out.splitlines()] == [
        "Validating source...done",
        "Validating target...done",
        "Validating sizes...done",
        "Restoring",
        "Verifying",
        f"Copied {out.split('Copied ')[1].strip()}",
    ]
    assert out.endswith(", verified\n")
    assert files(target) == "both:new\none:one\ntwo:two\n"
    nothing_left_of(tmp_path)


def test_rate(source: Path, target: Path) -> None:
    in_filesystem(source, "ext4", "dd if=/dev/urandom of=dir/large bs=1M count=3 status=none")
    began = time.monotonic()
    succeeded(copy(source, target, "--max-rate", "1M"))
    assert time.monotonic() - began > 1.5  # rsync lets the first second's worth through at once


def test_partitions_and_devices(source: Path, target: Path, tmp_path: Path) -> None:
    disk = partitioned(tmp_path / "disk.img", source, target)
    assert "has several file systems" in failed(copy(source, disk))
    with loop_device(disk) as device:
        succeeded(copy(source, device, "--target-partition", "2", "--noverify"))
        assert failed(copy(device, target, "--source-partition", "7")).startswith(f"{device} has no partition 7")
        succeeded(copy(device, target, "--source-partition", "2"))
    assert files(target) == "both:new\none:one\ntwo:two\n"


def test_prepared_image_is_checked_before(source: Path, target: Path) -> None:
    succeeded(asr("imagescan", source))
    assert "  Checking  ....10" in succeeded(copy(source, target))
    scan = Path(f"{source}.bmap")
    with source.open("r+b") as file:
        file.seek(1080)
        file.write(b"\x55")
    stamp = scan.stat().st_mtime_ns
    os.utime(source, ns=(stamp - 1, stamp - 1))
    before = target.read_bytes()
    assert "MiB 0 does not match its scan" in failed(copy(source, target))
    assert target.read_bytes() == before


def test_refusals(source: Path, target: Path, tmp_path: Path) -> None:
    before = target.read_bytes()
    for option in (("--grow",), ("--hostname", "x")):
        assert copy(source, target, *option).status == 2
    assert failed(copy(source, target, "--target", str(tmp_path / "x"))) == (
        "a file copy has one target; several at once need --erase"
    )
    assert failed(copy(source, Path("/"))) == "/ is the running system's own volume"
    assert failed(copy(tmp_path / "none", target)) == f"{tmp_path / 'none'}: No such file or directory"
    assert target.read_bytes() == before
