import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from targetmode.disks.inventory import Disk, inspect, list_disks
from targetmode.disks.machine import Machine
from targetmode.disks.preflight import NotADisk


def test_disks_of_a_made_up_machine(fake_machine: Callable[..., Machine]) -> None:
    machine = fake_machine(
        {
            "sda/dev": "8:0",
            "sda/size": "2000000\n",
            "sda/ro": "0",
            "sda/removable": "1",
            "sda/device/vendor": "ATA     \n",
            "sda/device/model": "Samsung SSD 860 \n",
            "sda/device/vpd_pg80": "\0?\0\x14S3Z9NB0K123456      ",
            "sda/queue/rotational": "1",
            "sda/queue/logical_block_size": "512",
            "sda/queue/physical_block_size": "4096",
            "sda/queue/optimal_io_size": "65536",
            "sda/sda1/dev": "8:1",
            "sda/sda1/partition": "1",
            "sda/sda1/start": "2048",
            "sda/sda1/size": "4096",
            "nvme0n1/dev": "259:0",
            "nvme0n1/size": "8",
            "nvme0n1/ro": "1",
            "nvme0n1/device/model": "Fast \x1b[0m\n",
            "nvme0n1/device/serial": "N1\n",
            "sdb/dev": "8:16",
            "sdb/size": "8",
            "sdb/device/vendor": "Generic\n",
            "sdb/device/model": "Card Reader\n",
            "nvme0c0n1/dev": "259:9",
            "nvme0c0n1/size": "8",
            "nvme0c0n1/hidden": "1",
            "loop0/dev": "7:0",
            "loop0/size": "0",
            "ram0/dev": "1:0",
            "ram0/size": "8192",
            "zram0/dev": "254:0",
            "zram0/size": "8192",
        },
        proc={"self/mountinfo": "22 1 8:1 / /data rw - ext4 /dev/sda1 rw\n"},
    )
    disks = {disk.name: disk for disk in list_disks(machine=machine)}
    assert list(disks) == ["nvme0n1", "sda", "sdb"]
    sda = disks["sda"]
    assert (sda.path, sda.size, sda.model, sda.serial) == (
        machine.dev / "sda",
        2000000 * 512,
        "Samsung SSD 860",
        "S3Z9NB0K123456",
    )
    assert (sda.rotational, sda.read_only, sda.removable) == (True, False, True)
    assert (sda.logical_sector, sda.physical_sector, sda.optimal_io) == (512, 4096, 65536)
    assert sda.contents is None
    assert [str(use) for use in sda.in_use] == ["partition sda1: mounted on /data"]
    (partition,) = sda.partitions
    assert (partition.name, partition.number, partition.start, partition.size) == ("sda1", 1, 1 << 20, 2 << 20)
    assert [str(use) for use in partition.in_use] == ["mounted on /data"]
    nvme = disks["nvme0n1"]
    assert (nvme.model, nvme.serial, nvme.read_only, nvme.rotational) == ("Fast \ufffd[0m", "N1", True, False)
    assert (nvme.logical_sector, nvme.physical_sector) == (512, 512)
    assert disks["sdb"].model == "Generic Card Reader"


def find(name: str) -> Disk | None:
    return next((disk for disk in list_disks() if disk.name == name), None)


def test_attached_loop_device_is_listed(
    run: Callable[..., str], make_image: Callable[..., Path], attach_partitioned: Callable[[Path], Path]
) -> None:
    image = make_image()
    run("sgdisk", "-n1:1M:+8M", "-n2:0:0", image)
    device = attach_partitioned(image)
    run("mkfs.vfat", "-n", "EFI", f"{device}p1")
    disk = find(device.name)
    assert disk is not None
    assert disk == inspect(device)
    assert (disk.path, disk.size, disk.in_use) == (device, 64 << 20, ())
    assert str(disk.contents).startswith('gpt: 1 vfat "EFI" 8.0 MiB, 2 unknown')
    assert next((p.name, p.start, p.size) for p in disk.partitions) == (f"{device.name}p1", 1 << 20, 8 << 20)
    run("losetup", "--detach", device)
    assert find(device.name) is None


def test_partition(
    run: Callable[..., str], make_image: Callable[..., Path], attach_partitioned: Callable[[Path], Path]
) -> None:
    image = make_image()
    run("sgdisk", "-n1:1M:+8M", image)
    device = attach_partitioned(image)
    run("mkfs.ext4", "-q", "-L", "root", f"{device}p1")
    disk = inspect(f"{device}p1")
    assert (disk.name, disk.size, disk.partitions) == (f"{device.name}p1", 8 << 20, ())
    assert str(disk.contents) == 'ext4 "root"'


def test_device_with_large_sectors(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path], tmp_path: Path
) -> None:
    device = attach(make_image(), "--sector-size", "4096", "--read-only")
    link = tmp_path / "by-id"
    link.symlink_to(device)
    disk = inspect(link)
    assert (disk.path, disk.logical_sector, disk.physical_sector, disk.read_only) == (device, 4096, 4096, True)


def test_image_file(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("mkfs.ext4", "-q", "-L", "data", image)
    disk = inspect(image)
    assert (disk.path, disk.name, disk.size, disk.logical_sector) == (image, "disk.img", 64 << 20, 512)
    assert (disk.rotational, disk.read_only, disk.removable, disk.in_use) == (False, False, False, ())
    assert str(disk.contents) == 'ext4 "data"'
    assert inspect(image, contents=False).contents is None


def test_what_cannot_be_read_has_no_contents(as_nobody: Callable[[str, str], str]) -> None:
    imports = "import targetmode.disks.contents\nfrom targetmode.disks.inventory import inspect, list_disks"
    code = "d = inspect(sys.argv[1]); list_disks(); print(d.size, d.contents, d.read_only)"
    assert as_nobody(imports, code) == f"{1 << 20} None True\n"


def test_what_is_no_disk(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/null"), tmp_path / "missing"):
        with pytest.raises(NotADisk, match=str(path)):
            inspect(path)


def test_device_node_without_a_device(
    requires_root: None, fake_machine: Callable[..., Machine], tmp_path: Path
) -> None:
    node = tmp_path / "node"
    os.mknod(node, 0o060600, os.makedev(8, 0))
    with pytest.raises(NotADisk, match="without a device"):
        inspect(node, machine=fake_machine({}))


def test_importing_does_not_load_the_parsers() -> None:
    code = "import sys; from targetmode.disks import inventory, layout, preflight; print('construct' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
