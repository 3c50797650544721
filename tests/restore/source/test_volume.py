"""Devices and mounted volumes as sources: used blocks only, and everything is as it was afterwards.

Debian packages: e2fsprogs mount partclone util-linux xfsprogs.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from nbd.backend import Extent
from restore.blocks.plan import GRAIN
from restore.errors import Refused, RestoreError
from restore.source import SourceSettings
from restore.source.detect import open_image
from restore.source.used import used_blocks_of
from tests.restore.engine import WRITING, failed, restore, restoring, succeeded, verify, wait_for
from tests.restore.filesystems import MIB, checked, make_filesystem
from tests.restore.mountpoint.mounts import mounted, row_of, same_mount
from tests.restore.source.used.volumes import JUNK, files_of, filled
from tests.serving import run
from tests.support import assert_same_bytes, loop_device, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 in whose free blocks there is junk."""
    image = filled(tmp_path, "ext4")
    with image.open("r+b") as file:
        for start, end in unused(used_blocks_of(image, lambda note: None)):
            file.seek(start)
            file.write((JUNK * 64)[: end - start])
    return image


def unused(extents: Iterable[Extent] | None) -> list[tuple[int, int]]:
    """The runs that are not used."""
    assert extents is not None
    found, position = [], 0
    for extent in extents:
        if extent.hole:
            found.append((position, position + extent.length))
        position += extent.length
    return found


@pytest.fixture
def device(image: Path) -> Iterator[Path]:
    with loop_device(image) as device:
        yield device


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target.img"
    path.write_bytes(JUNK * 64)
    return path


def extents_of(place: Path, settings: SourceSettings) -> list[Extent]:
    with closing(open_image(str(place), settings).source) as source:
        return list(source.extents())


def test_used_blocks_of_a_device(device: Path, image: Path, target: Path, tmp_path: Path) -> None:
    succeeded(restore(device, target))
    checked(target, "ext4")
    assert files_of(target, "ext4") == files_of(image, "ext4")
    have, want = target.read_bytes(), image.read_bytes()
    position = 0
    for extent in extents_of(device, SourceSettings()):
        end = position + extent.length
        if not extent.hole:
            assert_same_bytes(have[position:end], want[position:end])
        position = end
    large = [(start, end) for start, end in unused(extents_of(device, SourceSettings())) if end - start > 8 * GRAIN]
    assert large
    for start, end in large:
        assert any(want[start + GRAIN : end - GRAIN])
        assert not any(have[start + GRAIN : end - GRAIN])  # zeroed, neither copied nor left as it was
    assert "every block is the same" in succeeded(verify(device, target))
    with loop_device(target) as other, mounted(other, tmp_path / "mounted"):
        assert (tmp_path / "mounted" / "here" / "big").exists()


def test_all_blocks(device: Path, image: Path) -> None:
    whole = [Extent(image.stat().st_size, hole=False, zero=False)]
    assert extents_of(device, SourceSettings(all_blocks=True)) == whole
    assert any(extent.hole for extent in extents_of(device, SourceSettings()))


def test_unknown_contents_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(JUNK * 3)
    notes: list[str] = []
    with loop_device(path) as device:
        assert extents_of(device, SourceSettings(notify=notes.append)) == [Extent(3 * MIB, hole=False, zero=False)]
    assert notes == []


def test_a_raw_image_is_read_as_it_is(image: Path) -> None:
    data = image.read_bytes()
    for start, end in unused(extents_of(image, SourceSettings())):
        assert not any(data[start:end])


# --- Mounted volumes ---


def test_mount_point(device: Path, image: Path, target: Path, tmp_path: Path) -> None:
    files = files_of(image, "ext4")
    with mounted(device, tmp_path / "where", "noatime", "errors=remount-ro") as where:
        before = row_of(where)
        (where / "new").write_bytes(b"new")
        succeeded(restore(where, target))
        assert same_mount(row_of(where), before)
        assert (where / "new").read_bytes() == b"new"
    checked(target, "ext4")
    assert files_of(target, "ext4").items() > files.items()


def test_mounted_device(device: Path, target: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "where") as where:
        succeeded(restore(device, target))
        assert row_of(where)
    checked(target, "ext4")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_in_use(kind: str, tmp_path: Path) -> None:
    path = make_filesystem(tmp_path / "volume", kind)
    target = tmp_path / "target"
    target.write_bytes(JUNK * (path.stat().st_size // MIB))
    with loop_device(path) as device, mounted(device, tmp_path / "where") as where:
        for number in range(50):  # in the device's cache there is what was there before
            (where / f"f{number}").write_bytes(JUNK[number : number + 9000])
        before = row_of(where)
        with running(["sh", "-c", f"cd {where}; exec sleep 60"]) as process:
            wait_until(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == where, "its directory")
            printed = succeeded(restore(where, target))
            assert f"  {where} is in use, so it is read-only until it is copied\n" in printed
            assert same_mount(row_of(where), before)
            (where / "f0").write_bytes(b"it can be written to again")
    checked(target, kind)
    assert len(files_of(target, kind)) == 50


def test_made_writable_meanwhile(device: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        where = stack.enter_context(mounted(device, tmp_path / "where"))
        process = stack.enter_context(running(["sh", "-c", f"cd {where}; exec sleep 60"]))
        wait_until(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == where, "its directory")
        with closing(open_image(str(where)).source) as source:
            source.check_unchanged()
            run("mount", "-o", "remount,rw", device, where)
            said = f"{where} was made writable meanwhile; stop what does that first"
            with pytest.raises(RestoreError, match=f"^{re.escape(said)}$"):
                source.check_unchanged()
            (where / "more").touch()
            run("sync", "-f", where)
            run("mount", "-o", "remount,ro", device, where)
            with pytest.raises(RestoreError, match=f"^{re.escape(said)}$"):
                source.check_unchanged()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(number: signal.Signals, device: Path, target: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "where", "noatime") as where:
        before = row_of(where)
        with restoring(where, target, "--max-rate", "2M") as run:
            wait_for(run, WRITING)
            with pytest.raises(ValueError, match="not enough values"):
                row_of(where)
            run.process.send_signal(number)
            run.end()
        wait_until(lambda: same_mount(row_of(where), before) if where.is_mount() else False, "mounting again")


def test_failure(device: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(bytes(MIB))
    with mounted(device, tmp_path / "where", "noatime") as where:
        before = row_of(where)
        assert failed(restore(where, small)).endswith("the target has 1.0 MiB")
        assert same_mount(row_of(where), before)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/", "/ is the running system's own volume"),
        ("/proc", "/proc: proc is on no disk of this machine, so it has no blocks to copy"),
    ],
)
def test_refused(place: str, said: str) -> None:
    with pytest.raises(Refused, match=f"^{re.escape(said)}$"):
        open_image(place)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"^{tmp_path} is a directory, not a disk, image or mount point$"):
        open_image(str(tmp_path))
