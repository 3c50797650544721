import os
from collections.abc import Callable
from pathlib import Path

import pytest

from targetmode.disks.machine import HERE, Machine, block_size_of


def test_devices_and_their_partitions(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine(
        {
            "nvme0n1/dev": "259:0\n",
            "nvme0n1/size": "2048\n",
            "nvme0n1/nvme0n1p1/dev": "259:1\n",
            "nvme0n1/nvme0n1p1/partition": "1\n",
            "nvme0n1/nvme0n1p10/dev": "259:3\n",
            "nvme0n1/nvme0n1p10/partition": "10\n",
            "nvme0n1/nvme0n1p2/dev": "259:2\n",
            "nvme0n1/nvme0n1p2/partition": "2\n",
            "nvme0n1/queue/rotational": "0\n",
        }
    )
    assert machine.disks() == ["nvme0n1"]
    assert machine.partitions("nvme0n1") == ["nvme0n1p1", "nvme0n1p2", "nvme0n1p10"]
    assert machine.parent("nvme0n1p2") == "nvme0n1"
    assert machine.parent("nvme0n1") is None
    assert machine.name((259, 3)) == "nvme0n1p10"
    assert machine.name((8, 0)) is None
    assert machine.device("nvme0n1p1") == (259, 1)
    assert machine.device("sda") is None
    assert machine.attribute("nvme0n1", "queue/rotational") == "0"
    assert machine.number("nvme0n1", "queue/none") == 0


def test_nodes(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine({"dm-0/dev": "253:0", "dm-0/dm/name": "vg-root", "cciss!c0d0/dev": "104:0"})
    assert machine.node("dm-0") == machine.dev / "dm-0"
    (machine.dev / "mapper").mkdir(parents=True)
    (machine.dev / "mapper" / "vg-root").touch()
    assert machine.node("dm-0") == machine.dev / "mapper" / "vg-root"
    assert machine.node("cciss!c0d0") == machine.dev / "cciss" / "c0d0"


def test_machine_without_sysfs_has_no_disks(tmp_path: Path) -> None:
    machine = Machine(tmp_path, tmp_path, tmp_path)
    assert machine.disks() == []
    assert machine.loops() == []
    assert machine.process_ids() == []


def test_process_is_named() -> None:
    name = (Path("/proc/self/comm")).read_text().strip()
    assert HERE.process(os.getpid()) == f"process {os.getpid()} ({name})"
    assert HERE.process(2**30) == f"process {2**30}"


def test_loop_device_tells_what_backs_it(make_image: Callable[..., Path], attach: Callable[..., Path]) -> None:
    image = make_image()
    device = attach(image, "--offset", "1048576", "--sizelimit", "2097152")
    (loop,) = [loop for loop in HERE.loops() if loop.name == device.name]
    status = image.stat()
    assert loop.backing_file == (status.st_dev, status.st_ino)
    assert loop.backing_device is None
    assert (loop.backing_path, loop.offset, loop.limit) == (str(image), 1 << 20, 2 << 20)
    upper = attach(device)
    (loop,) = [loop for loop in HERE.loops() if loop.name == upper.name]
    assert loop.backing_device == HERE.device(device.name)


def test_loop_device_that_may_not_be_opened_is_known_by_path(
    fake_machine: Callable[..., Machine], make_image: Callable[..., Path]
) -> None:
    image = make_image()
    status = image.stat()
    machine = fake_machine({"loop0/dev": "7:0", "loop0/loop/backing_file": f"{image}\n", "loop0/loop/offset": "512\n"})
    (loop,) = machine.loops()
    assert (loop.backing_path, loop.backing_file, loop.offset) == (str(image), (status.st_dev, status.st_ino), 512)
    image.unlink()
    (loop,) = machine.loops()
    assert loop.backing_file is None


def test_block_size(make_image: Callable[..., Path], attach: Callable[..., Path]) -> None:
    fd = os.open(attach(make_image(5 << 20)), os.O_RDONLY)
    try:
        assert block_size_of(fd) == 5 << 20
    finally:
        os.close(fd)
    with Path("/dev/null").open("rb") as file, pytest.raises(OSError, match="Inappropriate ioctl"):
        block_size_of(file.fileno())
