import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from targetmode.disks.machine import Machine
from targetmode.disks.uses import Survey, Use, uses


def said(path: Path) -> list[str]:
    return [str(use) for use in uses(path)]


@contextmanager
def another_mount_namespace(device: Path, directory: Path, *options: str) -> Iterator[int]:
    """Mounts a device where only another process sees it; yields that process's number."""
    script = 'mount "$@" && echo mounted && exec sleep 600'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *options, device, directory]
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "mounted\n"
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def ext4(run: Callable[..., str], make_image: Callable[..., Path]) -> Path:
    image = make_image(name="ext4.img")
    run("mkfs.ext4", "-q", image)
    return image


@pytest.fixture
def partitioned(run: Callable[..., str], make_image: Callable[..., Path]) -> Path:
    image = make_image(name="partitioned.img")
    run("sgdisk", "-n1:1M:+20M", "-n2:0:0", image)
    return image


def test_free_file_and_device_have_none(make_image: Callable[..., Path], attach: Callable[..., Path]) -> None:
    assert said(make_image(name="free.img")) == []
    assert said(attach(make_image())) == []


def test_something_else_has_none(tmp_path: Path) -> None:
    assert uses(tmp_path) == ()
    assert uses("/dev/null") == ()


def test_missing_path_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        uses(tmp_path / "missing")


def test_mounted_device(ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]) -> None:
    device = attach(ext4)
    directory = mount(device, "with space")
    assert uses(device) == (Use("mount", f"mounted on {directory}", remedies=(f"umount '{directory}'",)),)


def test_symbolic_link_is_followed(
    ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path], tmp_path: Path
) -> None:
    device = attach(ext4)
    directory = mount(device)
    link = tmp_path / "by-id"
    link.symlink_to(device)
    assert said(link) == [f"mounted on {directory}"]


def test_image_behind_a_loop_device(ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]) -> None:
    device = attach(ext4)
    assert uses(ext4) == (Use("loop", f"backing file of {device}", remedies=(f"losetup -d {device}",)),)
    directory = mount(device)
    assert uses(ext4) == (
        Use(
            "loop",
            f"backing file of {device}, which is mounted on {directory}",
            remedies=(f"umount {directory}", f"losetup -d {device}"),
        ),
    )


def test_image_that_moved_since_it_was_attached(ext4: Path, attach: Callable[..., Path]) -> None:
    device = attach(ext4)
    moved = ext4.rename(ext4.with_name("moved.img"))
    linked = ext4.with_name("linked.img")
    linked.hardlink_to(moved)
    try:
        assert said(moved) == said(linked) == [f"backing file of {device}"]
    finally:
        moved.rename(ext4)


def test_device_behind_a_loop_device(ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]) -> None:
    lower = attach(ext4)
    upper = attach(lower)
    assert said(lower) == [f"backing device of {upper}"]
    assert said(upper) == []
    directory = mount(upper)
    assert said(lower) == [f"backing device of {upper}, which is mounted on {directory}"]
    assert said(ext4) == [
        f"backing file of {lower}, which is backing device of {upper}, which is mounted on {directory}"
    ]


def test_loop_device_whose_backing_file_is_used_otherwise(
    ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]
) -> None:
    whole = attach(ext4)
    directory = mount(attach(ext4))
    (use,) = uses(whole)
    assert use.where == f"backing file {ext4}"
    assert use.detail.endswith(f", which is mounted on {directory}")


def test_loop_devices_over_other_parts_of_a_file_do_not_matter(
    ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]
) -> None:
    with ext4.open("r+b") as file:
        file.truncate(128 << 20)
    first = attach(ext4, "--sizelimit", str(64 << 20))
    second = attach(ext4, "--offset", str(64 << 20))
    mount(first)
    assert said(second) == []
    assert len(said(ext4)) == 2


def test_loop_device_over_a_mounted_device(ext4: Path, attach: Callable[..., Path], mount: Callable[..., Path]) -> None:
    lower = attach(ext4)
    upper = attach(lower, "--read-only")
    directory = mount(lower)
    assert f"backing file {lower}: mounted on {directory}" in said(upper)


def test_partitions(
    partitioned: Path,
    run: Callable[..., str],
    attach_partitioned: Callable[[Path], Path],
    mount: Callable[..., Path],
) -> None:
    disk = attach_partitioned(partitioned)
    first, second = Path(f"{disk}p1"), Path(f"{disk}p2")
    run("mkfs.ext4", "-q", first)
    directory = mount(first)
    assert said(disk) == [f"partition {first.name}: mounted on {directory}"]
    assert said(first) == [f"mounted on {directory}"]
    assert said(second) == []
    assert said(partitioned) == [f"backing file of {disk} (partition {first.name}: mounted on {directory})"]


def test_partition_of_a_disk_used_whole(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    attach_partitioned: Callable[[Path], Path],
    attach: Callable[..., Path],
    partitioned: Path,
) -> None:
    disk = attach_partitioned(partitioned)
    upper = attach(disk)
    assert said(Path(f"{disk}p1")) == [f"whole disk {disk.name}: backing device of {upper}"]


def test_swap_device_and_file(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    attach: Callable[..., Path],
    swapon: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    device = attach(make_image())
    file = tmp_path / "swap file"
    file.write_bytes(bytes(1 << 20))
    file.chmod(0o600)
    for path in (device, file):
        run("mkswap", path)
        swapon(path)
    assert uses(device) == (Use("swap", "used as swap", remedies=(f"swapoff {device}",)),)
    assert uses(file) == (Use("swap", "used as swap", remedies=(f"swapoff '{file}'",)),)


def test_device_mounted_in_another_mount_namespace(ext4: Path, attach: Callable[..., Path], tmp_path: Path) -> None:
    device = attach(ext4)
    directory = tmp_path / "mnt"
    directory.mkdir()
    with another_mount_namespace(device, directory) as pid:
        (use,) = uses(device)
        assert str(use) == f"mounted on {directory} in the mount namespace of process {pid} (sleep)"
    assert said(device) == []


def test_btrfs_of_two_devices(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    attach: Callable[..., Path],
    mount: Callable[..., Path],
) -> None:
    devices = [attach(make_image(128 << 20, f"{number}.img")) for number in range(2)]
    filesystem = str(uuid.uuid4())  # the kernel remembers the devices of one that it has seen
    run("mkfs.btrfs", "-q", "-U", filesystem, *devices)
    directory = mount(devices[0], "mnt", "-o", f"device={devices[1]}")
    found = {str(use) for device in devices for use in uses(device)}
    assert found == {
        f"mounted on {directory}",
        f"part of the mounted btrfs file system {filesystem}",
    }


def test_btrfs_of_one_device_in_another_mount_namespace(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path], tmp_path: Path
) -> None:
    device = attach(make_image(128 << 20))
    run("mkfs.btrfs", "-q", device)
    directory = tmp_path / "mnt"
    directory.mkdir()
    with another_mount_namespace(device, directory) as pid:
        assert said(device) == [f"mounted on {directory} in the mount namespace of process {pid} (sleep)"]


def kernel_has(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.xfail(not kernel_has("dmsetup", "version"), reason="this kernel has no device mapper", run=False)
def test_held_by_a_real_device_mapper_device(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path]
) -> None:
    device = attach(make_image())
    name = f"targetmode-test-{os.getpid()}"
    run("dmsetup", "create", name, "--noudevsync", "--table", f"0 2048 linear {device} 0")
    try:
        (use,) = uses(device)
        assert use.kind == "holder"
        assert use.detail.endswith(f"(device mapper {name})")
    finally:
        run("dmsetup", "remove", "--noudevsync", "--retry", name)
    assert uses(device) == ()


@pytest.mark.xfail(not Path("/proc/mdstat").exists(), reason="this kernel has no MD", run=False)
def test_member_of_a_real_array(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path]
) -> None:
    device = attach(make_image())
    array = f"/dev/md/targetmode-test-{os.getpid()}"
    run("mdadm", "--create", array, "--run", "--level=1", "--raid-devices=2", device, "missing")
    try:
        (use,) = uses(device)
        assert use.detail == f"member of {Path(array).resolve().name}"
    finally:
        run("mdadm", "--stop", array)
    assert uses(device) == ()


# Device mapper and MD stacks as sysfs shows them, for kernels without either.

DISK = {
    "sda/dev": "8:0",
    "sda/sda1/dev": "8:1",
    "sda/sda1/partition": "1",
    "sda/sda2/dev": "8:2",
    "sda/sda2/partition": "2",
}


def test_root_on_lvm(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine(
        {
            **DISK,
            "sda/sda2/holders/dm-0/x": "",
            "dm-0/dev": "253:0",
            "dm-0/dm/name": "debian-root",
            "dm-0/dm/uuid": "LVM-aaaa",
        },
        proc={"self/mountinfo": "22 1 253:0 / / rw - ext4 /dev/mapper/debian-root rw\n"},
    )
    survey = Survey(machine)
    (use,) = survey.of_device("sda")
    assert str(use) == "partition sda2: held by dm-0 (LVM debian-root), which is mounted on /"
    assert [str(use) for use in survey.of_device("sda2")] == ["held by dm-0 (LVM debian-root), which is mounted on /"]
    assert survey.of_device("sda1") == ()
    assert [str(use) for use in survey.of_device("dm-0")] == ["mounted on /"]
    assert survey.of_device_alone("sda") == ()


@pytest.mark.parametrize(
    ("attributes", "detail", "remedy"),
    [
        ({"dm/name": "vg-lv", "dm/uuid": "LVM-x"}, "held by {} (LVM vg-lv)", "lvchange -an /dev/mapper/vg-lv"),
        ({"dm/name": "home", "dm/uuid": "CRYPT-LUKS2-x"}, "held by {} (LUKS home)", "cryptsetup close home"),
        ({"dm/name": "mpatha", "dm/uuid": "mpath-x"}, "held by {} (multipath mpatha)", "multipath -f mpatha"),
        ({"dm/name": "odd name", "dm/uuid": ""}, "held by {} (device mapper odd name)", "dmsetup remove 'odd name'"),
    ],
)
def test_held_by_device_mapper(
    fake_machine: Callable[..., Machine], attributes: dict[str, str], detail: str, remedy: str
) -> None:
    machine = fake_machine(
        {**DISK, "sda/holders/dm-3/x": "", "dm-3/dev": "253:3"}
        | {f"dm-3/{name}": text for name, text in attributes.items()}
    )
    assert Survey(machine).of_device("sda") == (Use("holder", detail.format("dm-3"), remedies=(remedy,)),)
    (use,) = Survey(machine).of_device("sda1")
    assert str(use) == f"whole disk sda: {detail.format('dm-3')}"


def test_member_of_an_array_with_lvm_on_it(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine(
        {
            **DISK,
            "sda/sda1/holders/md0/x": "",
            "md0/dev": "9:0",
            "md0/holders/dm-1/x": "",
            "dm-1/dev": "253:1",
            "dm-1/dm/name": "vg-srv",
            "dm-1/dm/uuid": "LVM-x",
        },
        proc={"self/mountinfo": "22 1 253:1 / /srv rw - ext4 /dev/mapper/vg-srv rw\n"},
    )
    (use,) = Survey(machine).of_device("sda1")
    assert str(use) == "member of md0, which is held by dm-1 (LVM vg-srv), which is mounted on /srv"
    assert use.remedies == (
        "umount /srv",
        "lvchange -an /dev/mapper/vg-srv",
        f"mdadm --stop {machine.dev / 'md0'}",
    )


def test_held_by_something_without_a_name(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine({**DISK, "sda/sda1/holders/bcache0/x": "", "bcache0/dev": "252:0"})
    assert [str(use) for use in Survey(machine).of_device("sda")] == ["partition sda1: held by bcache0"]


def test_device_node_is_looked_up_by_its_number(fake_machine: Callable[..., Machine], tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a device node")
    machine = fake_machine({**DISK, "sda/holders/md7/x": "", "md7/dev": "9:7"})
    node = tmp_path / "node"
    os.mknod(node, 0o060600, os.makedev(8, 0))
    assert [str(use) for use in uses(node, machine=machine)] == ["member of md7"]
