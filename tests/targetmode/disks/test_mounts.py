import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetmode.disks.machine import HERE, Machine
from targetmode.disks.mounts import Identity, Lock, identity_of, locks, mounts, swaps


def test_mountinfo_is_parsed(fake_machine: Callable[..., Machine], make_image: Callable[..., Path]) -> None:
    image = make_image(name="image file")
    escaped = str(image).replace(" ", "\\040")
    machine = fake_machine(
        {},
        proc={
            "self/mountinfo": "22 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw\n"
            "23 22 0:25 / /proc rw - proc proc rw\n"
            "24 22 8:2 /@home /mnt/with\\040space\\134 rw - btrfs /dev/sda2 rw\n"
            f"25 22 0:99 / /mnt/fuse rw - fuse.fuse2fs {escaped} rw\n"
            "26 22 0:98 / /mnt/gone rw - fuse /no/such/file rw\n"
            "not a mount\n27 22 x:y / / rw - a b c\n28\n",
        },
    )
    found = [(mount.mount_point, mount.identities) for mount in mounts(machine)]
    assert found == [
        ("/", (Identity(device=(8, 1)),)),
        ("/mnt/with space\\", (Identity(device=(8, 2)),)),
        ("/mnt/fuse", (identity_of(image.stat()),)),
    ]


def test_each_mount_namespace_is_looked_into_once(fake_machine: Callable[..., Machine], tmp_path: Path) -> None:
    line = "1 1 8:1 / /{} rw - ext4 /dev/sda1 rw\n"
    machine = fake_machine(
        {},
        proc={
            "self/mountinfo": line.format("here"),
            "10/mountinfo": line.format("here"),
            "20/mountinfo": line.format("there"),
            "20/comm": "container\n",
            "30/mountinfo": line.format("there"),
            "40/mountinfo": line.format("unseen"),
        },
    )
    for process, namespace in (("self", "a"), ("10", "a"), ("20", "b"), ("30", "b")):
        (machine.proc / process / "ns").mkdir()
        (machine.proc / process / "ns" / "mnt").symlink_to(f"mnt:[{namespace}]")
        (machine.proc / process / "root").symlink_to("/")
    assert [(mount.mount_point, mount.elsewhere) for mount in mounts(machine)] == [
        ("/here", ""),
        ("/there", "process 20 (container)"),
    ]


def test_swaps_are_parsed(fake_machine: Callable[..., Machine], make_image: Callable[..., Path]) -> None:
    image = make_image(name="swap file")
    escaped = str(image).replace(" ", "\\040")
    machine = fake_machine(
        {},
        proc={
            "swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
            f"{escaped}    file\t\t65532\t\t0\t\t-2\n/gone\\040(deleted) file\t\t1\t\t0\t\t-2\n"
        },
    )
    assert [(swap.path, swap.identity) for swap in swaps(machine)] == [(str(image), identity_of(image.stat()))]


def test_locks_are_parsed(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine(
        {},
        proc={
            "locks": "1: FLOCK  ADVISORY  WRITE 77 fe:00:1234 0 EOF\n"
            "1: -> FLOCK  ADVISORY  WRITE 78 fe:00:1234 0 EOF\n"
            "2: FLOCK  ADVISORY  READ 79 fe:00:99 0 EOF\n"
            "3: POSIX  ADVISORY  WRITE 80 fe:00:1 0 EOF\n"
            "4: FLOCK  ADVISORY  WRITE 81 <none>:0 0 EOF\n",
            "77/comm": "targetmode\n",
        },
    )
    assert locks(machine) == [
        Lock((os.makedev(0xFE, 0), 1234), True, "process 77 (targetmode)"),
        Lock((os.makedev(0xFE, 0), 99), False, "process 79"),
    ]


@pytest.mark.parametrize(("operation", "exclusive"), [(fcntl.LOCK_EX, True), (fcntl.LOCK_SH, False)])
def test_real_lock_is_found(make_image: Callable[..., Path], operation: int, exclusive: bool) -> None:
    image = make_image()
    with image.open("rb") as file:
        fcntl.flock(file, operation)
        status = image.stat()
        assert Lock((status.st_dev, status.st_ino), exclusive, HERE.process(os.getpid())) in locks(HERE)


def test_real_root_is_mounted() -> None:
    assert "/" in [mount.mount_point for mount in mounts(HERE)]


@settings(deadline=None)
@given(text=st.binary(max_size=300))
def test_any_bytes_from_procfs_are_parsed(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    proc = tmp_path_factory.mktemp("proc")
    (proc / "self").mkdir()
    for name in ("self/mountinfo", "swaps", "locks"):
        (proc / name).write_bytes(b"header\n" + text)
    machine = Machine(proc=proc)
    mounts(machine)
    swaps(machine)
    locks(machine)
