"""Sources that cannot be read to their end: one line that names which and where, and a target that is left empty.

Debian packages: libnbd-bin nbdkit util-linux.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from restore.manifest.damage import map_path, write_map
from tests.restore.engine import (
    GO_ON,
    MIB,
    WRITING,
    asr,
    failed,
    nbdkit,
    restore,
    restoring,
    succeeded,
    verify,
    wait_for,
)
from tests.serving import pattern, run
from tests.support import assert_same_bytes, loop_device, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices and FUSE")

SIZE = 12 * MIB
WHOLE = 5 * MIB + 8192  # bytes that can be read
WAYS = pytest.mark.parametrize("options", [(), ("--noverify",), ("--delta",)], ids=["verified", "noverify", "delta"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(pattern(SIZE))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE + MIB, seed=2))
    return path


def check_left_empty(message: str, disk: Path, old: bytes) -> str:
    """The message without what it says of the target, of which only the image's part was touched."""
    what, _, state = message.removesuffix(GO_ON).rpartition("; ")
    assert state == f"{disk} is left empty", message
    assert "Errno" not in message
    now = disk.read_bytes()
    assert_same_bytes(now[:MIB], bytes(MIB))
    assert_same_bytes(now[SIZE:], old[SIZE:])
    return what


@WAYS
def test_device_with_bad_sectors(options: tuple[str, ...], image: Path, disk: Path) -> None:
    """A loop device over a file that ends before it does."""
    old = disk.read_bytes()
    with loop_device(image) as device:
        os.truncate(image, WHOLE)
        result = restore(device, disk, *options)
    what = check_left_empty(failed(result), disk, old)
    found = re.fullmatch(
        f"{device}: reading (?:the source )?at (?:byte|offset) ([0-9]+) failed: Input/output error", what
    )
    assert found is not None, what
    assert 5 * MIB <= int(found[1]) < SIZE  # the kernel reads ahead, and fails that as one; several threads read
    assert (
        f"  {device} cannot be read where it says what it holds (Input/output error), so all of it counts as used\n"
        in (result.out)
    )


def test_device_with_a_bad_first_sector(image: Path, disk: Path) -> None:
    """Nothing of it can be read: nothing is touched."""
    old = disk.read_bytes()
    with loop_device(image) as device:
        os.truncate(image, 0)
        message = failed(restore(device, disk))
        assert message.startswith(f"{device}: reading at byte 0 failed: Input/output error")
        assert f"{device}: reading at byte " in failed(verify(device, disk))
    assert_same_bytes(disk.read_bytes(), old)


@WAYS
def test_export_with_bad_sectors(options: tuple[str, ...], image: Path, disk: Path, tmp_path: Path) -> None:
    old = disk.read_bytes()
    write_map(map_path(image), SIZE, [(WHOLE, 8192)])
    bad = ("--readonly", "--filter=ddrescue", "file", image, f"ddrescue-mapfile={map_path(image)}")
    with nbdkit(*bad, directory=tmp_path) as uri:
        what = check_left_empty(failed(restore(uri, disk, *options)), disk, old)
    assert what == f"{uri}: READ of {MIB} bytes at offset {5 * MIB} failed: Input/output error"


def test_export_that_fails_in_the_middle(tmp_path: Path) -> None:
    """All of its reads, from some moment on; what was read ahead by then is right."""
    image, disk, size = tmp_path / "source.img", tmp_path / "disk.img", 48 * MIB
    image.write_bytes(pattern(size))
    disk.write_bytes(bytes(size))
    moment = tmp_path / "moment"
    filters = ("--readonly", "--filter=error", "file", image, "error-pread-rate=100%", f"error-pread-file={moment}")
    with nbdkit(*filters, directory=tmp_path) as uri, restoring(uri, disk, "--max-rate=20M") as engine:
        wait_for(engine, WRITING)
        moment.touch()
        message = failed(engine.end())
    found = re.fullmatch(
        f"{re.escape(uri)}: READ of [0-9]+ bytes at offset ([0-9]+) failed: Input/output error; {disk} is left empty",
        message.removesuffix(GO_ON),
    )
    assert found is not None, message
    assert MIB <= int(found[1]) < size
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def test_prepared_image_on_a_device_with_bad_sectors(image: Path, disk: Path, tmp_path: Path) -> None:
    """The file system that the image lies on tells of it where it is read."""
    old = disk.read_bytes()
    succeeded(asr("imagescan", image))
    write_map(tmp_path / "map", SIZE, [(WHOLE, 4096)])
    bad = ("--readonly", "--filter=ddrescue", "file", image, f"ddrescue-mapfile={tmp_path / 'map'}")
    mount, far = tmp_path / "mount", tmp_path / "far.img"
    mount.mkdir()
    with nbdkit(*bad, directory=tmp_path) as uri:
        try:
            with running(["nbdfuse", "-r", "-C", "1", str(mount / "image"), uri], ready=(mount / "image").exists):
                far.symlink_to(mount / "image")
                Path(f"{image}.bmap").rename(f"{far}.bmap")
                later = time.time() + 60  # nbdfuse has its own idea of when a file was changed
                os.utime(f"{far}.bmap", (later, later))
                what = check_left_empty(failed(restore(far, disk)), disk, old)
        finally:
            run("umount", "--lazy", mount, check=False)
    assert what == f"{far}: reading at byte {WHOLE} failed: Input/output error"
