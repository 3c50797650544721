"""What is mounted is taken away for a while and put back as it was; what has to stay is refused by name.

Debian packages: btrfs-progs e2fsprogs mount ntfs-3g util-linux xfsprogs.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.mountpoint import Unmounted, Volume, volume_at
from restore.mountpoint.system import system_devices
from restore.mountpoint.table import rows
from tests.restore.filesystems import MIB, make_filesystem
from tests.restore.mountpoint.mounts import mounted, row_of, same_mount
from tests.restore.reports import Remembered
from tests.serving import ROOT, run
from tests.support import loop_device, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    with loop_device(make_filesystem(tmp_path / "volume.img", "ext4", 16 * MIB)) as device:
        yield device


def volume_of(place: Path, *, devices: bool = False) -> Volume:
    found = volume_at(str(place), devices=devices)
    assert found is not None
    return found


def is_mounted(where: Path) -> bool:
    return any(row.mount_point == str(where) for row in rows())


@pytest.mark.parametrize(
    "options", [("rw",), ("noatime", "nosuid", "errors=remount-ro", "data=journal"), ("ro", "nodev")]
)
def test_unmounted_and_mounted_again(options: tuple[str, ...], device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "at the point", *options) as where:
        before = row_of(where)
        taken = Unmounted(volume_of(where))
        assert (taken.device, taken.read_only, taken.volume.mount_points) == (str(device), False, (str(where),))
        assert not is_mounted(where)
        assert taken.close() == []
        assert same_mount(row_of(where), before)
        assert taken.close() == []


def test_a_mount_that_alone_is_read_only(device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "where") as where:
        run("mount", "-o", "remount,bind,ro,noexec", device, where)
        before = row_of(where)
        assert ("ro" in before.options, before.read_only) == (True, False)
        Unmounted(volume_of(where)).close()
        assert same_mount(row_of(where), before)


def test_mounted_at_two_places(device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "a", "noatime") as a, mounted(device, tmp_path / "b", "nodev") as b:
        before = [row_of(a), row_of(b)]
        taken = Unmounted(volume_of(device, devices=True))
        assert taken.volume.mount_points == (str(a), str(b))
        assert not is_mounted(a)
        assert not is_mounted(b)
        taken.close()
        assert same_mount(row_of(a), before[0])
        assert same_mount(row_of(b), before[1])


def test_subvolumes(tmp_path: Path) -> None:
    with loop_device(make_filesystem(tmp_path / "image", "btrfs")) as device, ExitStack() as stack:
        with mounted(device, tmp_path / "all") as where:
            run("btrfs", "-q", "subvolume", "create", where / "one")
            (where / "one" / "here").touch()
        a = stack.enter_context(mounted(device, tmp_path / "a", "subvol=one"))
        b = stack.enter_context(mounted(device, tmp_path / "b", "noatime"))
        before = [row_of(a), row_of(b)]
        taken = Unmounted(volume_of(a))
        assert not is_mounted(b)
        taken.close()
        assert (a / "here").exists()
        assert same_mount(row_of(a), before[0])
        assert same_mount(row_of(b), before[1])


def test_a_program_serves_it(tmp_path: Path) -> None:
    with loop_device(make_filesystem(tmp_path / "image", "ntfs", 16 * MIB)) as device:
        options = ("uid=1234", "umask=0027", "noatime")
        with mounted(device, tmp_path / "where", *options, kind="ntfs-3g") as where:
            before = row_of(where)
            taken = Unmounted(volume_of(where))
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
            taken.close()
            assert same_mount(row_of(where), before)
            assert (where.stat().st_uid, where.stat().st_mode & 0o777) == (1234, 0o750)


def test_a_loop_device_that_clears_itself(tmp_path: Path) -> None:
    image = make_filesystem(tmp_path / "volume.img", "ext4", 16 * MIB)
    with mounted(image, tmp_path / "where", "loop") as where:
        before = row_of(where)
        taken = Unmounted(volume_of(where))
        os.close(os.open(taken.device, os.O_RDONLY | os.O_EXCL))
        assert Path("/sys/block", Path(taken.device).name, "loop/backing_file").read_text().strip() == str(image)
        taken.close()
        assert same_mount(row_of(where), before)


# --- A target ---


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_is_there_now_is_mounted(kind: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(make_filesystem(tmp_path / "volume.img", "ext4", 320 * MIB)))
        where = stack.enter_context(mounted(device, tmp_path / "where", "noatime", "nodev", "errors=remount-ro"))
        (where / "old").touch()
        taken = Unmounted(volume_of(where))
        make_filesystem(tmp_path / "new.img", kind, 320 * MIB)
        run("dd", f"if={tmp_path / 'new.img'}", f"of={taken.device}", "bs=1M", "conv=fsync", "status=none")
        report = Remembered()
        taken.remount(report)
        assert report.phases == ["Remounting target volume"]
        found = row_of(where)
        assert (found.kind, found.source) == (kind, str(device))
        assert {"rw", "noatime", "nodev"} <= set(found.options.split(","))
        assert not (where / "old").exists()


def test_what_is_there_now_cannot_be_mounted(device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "where") as where:
        taken = Unmounted(volume_of(where))
        run("wipefs", "-qa", device)
        said = f"{device} could not be mounted again on {where}: it has no known file system, which is not mounted"
        with pytest.raises(RestoreError, match=f"^{re.escape(said)}$"):
            taken.remount(Remembered())
        assert not is_mounted(where)
        assert taken.close() == []


def test_left_unmounted(device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "where") as where:
        taken = Unmounted(volume_of(where))
        taken.leave()
        assert not is_mounted(where)


def test_in_use(device: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        where = stack.enter_context(mounted(device, tmp_path / "where", "noatime"))
        also = stack.enter_context(mounted(device, tmp_path / "also"))
        other = stack.enter_context(running(["sleep", "60"]))
        before = [row_of(where), row_of(also)]
        with running(["sh", "-c", f"cd {where}; exec sleep 61"]) as process:
            wait_until(lambda: Path(f"/proc/{process.pid}/cwd").readlink() == where, "its directory")
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "its start")
            said = f"{where} is in use by process {process.pid} (sleep); stop that first"
            with pytest.raises(Refused, match=f"^{re.escape(said)}$"):
                Unmounted(volume_of(where))
            assert same_mount(row_of(where), before[0])
            assert same_mount(row_of(also), before[1])
            assert other.poll() is None
            taken = Unmounted(volume_of(where), or_read_only=True)
            assert taken.read_only
            assert taken.is_read_only()
            assert taken.close() == []
            assert same_mount(row_of(where), before[0])
            with (where / "open").open("wb"):
                said = f"{where} is in use by process {process.pid} (sleep), and cannot even be made read-only"
                with pytest.raises(Refused, match=f"^{re.escape(said)}; stop that first$"):
                    Unmounted(volume_of(where), or_read_only=True)
            assert same_mount(row_of(where), before[0])


def test_killed(device: Path, tmp_path: Path) -> None:
    code = f"""
import os, time
from restore.mountpoint import Unmounted, volume_at
taken = Unmounted(volume_at({str(tmp_path / "where")!r}))
fd = os.open(taken.device, os.O_RDONLY | os.O_EXCL)
print("unmounted", flush=True)
time.sleep(60)"""
    with mounted(device, tmp_path / "where", "noatime") as where:
        before = row_of(where)
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"unmounted\n"
            assert not is_mounted(where)
            process.send_signal(signal.SIGKILL)
        wait_until(lambda: is_mounted(where), "mounting again")
        assert same_mount(row_of(where), before)


# --- Refusals ---


def refused(place: str | Path, said: str, *, devices: bool = False) -> None:
    with pytest.raises(Refused, match=f"^{re.escape(said)}$"):
        volume_at(str(place), devices=devices)


def test_not_mounted(device: Path, tmp_path: Path) -> None:
    assert volume_at(str(tmp_path)) is None
    assert volume_at(str(device), devices=True) is None
    assert volume_at(str(tmp_path / "nothing")) is None
    with mounted(device, tmp_path / "where") as where:
        (where / "inner").mkdir()
        assert volume_at(str(where / "inner")) is None
        assert volume_at(str(device)) is None  # a device is named by where it is mounted, unless a caller allows it
        link = tmp_path / "link"
        link.symlink_to(where)
        assert volume_of(link).mount_points == (str(where),)


def test_the_running_system() -> None:
    refused("/", "/ is the running system's own volume")
    table = rows()
    for device in {row.block_device() for row in table if row.mount_point == "/"} - {None}:
        assert device in system_devices(table)


def test_what_the_running_system_stands_on_elsewhere(tmp_path: Path) -> None:
    with mounted("/", tmp_path / "root", "bind") as where:
        refused(where, f"{where} is the running system's own volume")


def test_what_is_under_the_running_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: Path) -> None:
    """A live system: an overlay over a loop device over a file on a volume."""
    monkeypatch.setattr("restore.mountpoint.system.DIRECTORIES", (str(tmp_path / "system"),))
    with ExitStack() as stack:
        medium = stack.enter_context(mounted(device, tmp_path / "medium"))
        inner = make_filesystem(medium / "root.img", "ext4", 8 * MIB)
        lower = stack.enter_context(mounted(stack.enter_context(loop_device(inner)), tmp_path / "lower"))
        with stack, mounted("tmpfs", tmp_path / "ram", kind="tmpfs") as ram:
            (ram / "upper").mkdir()
            (ram / "work").mkdir()
            layers = (f"lowerdir={lower}", f"upperdir={ram / 'upper'}", f"workdir={ram / 'work'}")
            with mounted("overlay", tmp_path / "system", *layers, kind="overlay"):
                for where in (medium, lower):
                    refused(where, f"{where} is the running system's own volume")


def test_no_disk_of_this_machine(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "where", kind="tmpfs") as where:
        refused(where, f"{where}: tmpfs is on no disk of this machine, so it has no blocks to copy")


def test_others_are_mounted_in_it(device: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        where = stack.enter_context(mounted(device, tmp_path / "where"))
        inner = stack.enter_context(mounted("tmpfs", where / "a b", kind="tmpfs"))
        stack.enter_context(mounted("tmpfs", inner / "c", kind="tmpfs"))
        refused(where, f"{where} has other volumes mounted in it: {inner}; unmount them first: umount '{inner}'")


def test_a_directory_of_it_is_mounted(device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "where") as where:
        (where / "inner").mkdir()
        with mounted(where / "inner", tmp_path / "other", "bind") as other:
            refused(where, f"{where}: /inner of it is mounted on {other} too; unmount that first: umount {other}")
            refused(other, f"{other} is not a volume but /inner of one, mounted a second time")


def test_several_disks(tmp_path: Path) -> None:
    paths = [tmp_path / "a.img", tmp_path / "b.img"]
    with ExitStack() as stack:
        for path in paths:
            with path.open("wb") as file:
                file.truncate(120 * MIB)
        devices = [stack.enter_context(loop_device(path)) for path in paths]
        run("mkfs.btrfs", "-q", "-f", *devices)
        with mounted(devices[0], tmp_path / "where") as where:
            refused(where, f"{where}: its btrfs lies on several disks, and one of them alone is not to be copied")
