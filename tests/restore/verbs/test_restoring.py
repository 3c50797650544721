"""`asr restore --erase` as an admin types it: what is done beside the copying of blocks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.restore.engine import asr, failed, restore, succeeded, verify
from tests.restore.filesystems import checked, extracted, in_filesystem, make_filesystem, nothing_left_of, partitioned
from tests.restore.mountpoint.mounts import mounted
from tests.serving import run
from tests.support import loop_device

MIB = 1 << 20
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mounts")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with something like a system on it."""
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts")
    directory = tmp_path_factory.mktemp("system")
    part = make_filesystem(directory / "root", "ext4", 32 * MIB, "-L", "root")
    in_filesystem(
        part, "ext4", "mkdir etc; echo old > etc/hostname; echo ID=x > etc/os-release; echo 1 > etc/machine-id"
    )
    return partitioned(directory / "disk.img", part)


@root
def test_grown_renewed_and_named(system: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(100 * MIB)
    out = succeeded(restore(system, disk, "--grow", "--new-ids", "--hostname", "bench-7.example"))
    assert out.splitlines()[-1].startswith("  Restored 36.0 MiB in ")
    assert 'Partition 1 (ext4 "root") grown from 32.0 MiB to 98.0 MiB' in out
    assert "/etc/hostname is bench-7.example" in out
    assert "No problems found" in run("sgdisk", "-v", disk).out
    part = extracted(disk, 1)
    assert part.stat().st_size == 98 * MIB
    checked(part, "ext4")
    assert in_filesystem(part, "ext4", "cat etc/hostname; df -m . | tail -1").startswith("bench-7.example\n")
    uuids = [run("blkid", "-p", "-o", "value", "-s", "UUID", image).out for image in (part, extracted(system, 1))]
    assert uuids[0] != uuids[1]
    nothing_left_of(tmp_path)


@root
def test_what_fails_afterwards_says_that_the_image_is_there(tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(MIB))
    disk.write_bytes(b"\x55" * MIB)
    assert failed(restore(image, disk, "--hostname", "bench-7")) == (
        f"there is no Linux system on the target to be given a name; the image itself is on {disk}, verified"
    )
    assert disk.read_bytes() == image.read_bytes()


@root
def test_a_mount_point_is_not_compared(tmp_path: Path) -> None:
    image = make_filesystem(tmp_path / "image.img", "ext4", 16 * MIB)
    with loop_device(image) as loop, mounted(loop, tmp_path / "volume") as volume:
        assert failed(verify(image, volume)) == (
            f"{volume} is the mount point of {loop}, which can only be compared when it is not mounted: "
            f"umount {volume}, then --target {loop}"
        )
        assert os.path.ismount(volume)


def test_no_room_for_a_file_system_that_cannot_be_shrunk(tmp_path: Path) -> None:
    image, disk = make_filesystem(tmp_path / "image", "vfat", 16 * MIB), tmp_path / "disk"
    disk.write_bytes(b"\x55" * (8 * MIB))
    assert failed(restore(image, disk)) == (
        f"{image} has 16.0 MiB and the target 8.0 MiB: vfat cannot be made smaller; "
        "only ext2, ext3, ext4, btrfs and ntfs can"
    )
    assert disk.read_bytes() == b"\x55" * (8 * MIB)
    assert failed(verify(image, disk)).startswith(f"{disk} is too small: it has 8388608 bytes (8.0 MiB), {image} has")


def test_unscanned_images(tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(MIB))
    disk.write_bytes(bytes(MIB))
    assert failed(restore(image, disk, "--SHA256")).startswith(
        f"{image}: could not find any scan information. The source"
    )
    assert failed(restore(image, disk, "--keep-unmapped")) == (
        f"{image} has no scan that says what is mapped, for --keep-unmapped; asr imagescan {image}"
    )
    assert succeeded(asr("imagescan", image)).endswith(f'  asr: successfully scanned image "{image}"\n')
    succeeded(restore(image, disk, "--SHA256"))


@root
@pytest.mark.parametrize("form", ["raw", "qcow2", "gz"])
def test_a_volume_onto_a_smaller_disk(tmp_path: Path, form: str) -> None:
    """Its contents have room there."""
    image, disk = make_filesystem(tmp_path / "image", "ext4", 64 * MIB), tmp_path / "disk"
    in_filesystem(image, "ext4", "echo kept > file; dd if=/dev/urandom of=large bs=1M count=8 status=none")
    source = {"raw": image, "qcow2": tmp_path / "image.qcow2", "gz": tmp_path / "image.gz"}[form]
    if form == "qcow2":
        run("qemu-img", "convert", "-O", "qcow2", image, source)
    elif form == "gz":
        run("gzip", "--keep", "--fast", image)
    disk.write_bytes(b"\x55" * (40 * MIB))
    before = source.read_bytes()
    assert "Making ext4 fit...done" in succeeded(restore(source, disk))
    checked(disk, "ext4")
    assert in_filesystem(disk, "ext4", "cat file; stat -c %s large") == f"kept\n{8 * MIB}\n"
    assert source.read_bytes() == before
    disk.write_bytes(b"\x55" * (4 * MIB))
    assert f"{source} does not fit: its file system can be made no smaller than" in failed(restore(source, disk))
    assert disk.read_bytes() == b"\x55" * (4 * MIB)
    nothing_left_of(tmp_path)


@root
def test_a_volume_onto_a_larger_partition(tmp_path: Path) -> None:
    """The rest of it is left as it is."""
    image, disk = make_filesystem(tmp_path / "image", "ext4", 16 * MIB), tmp_path / "disk"
    disk.write_bytes(b"\x55" * (24 * MIB))
    with loop_device(disk) as device:
        succeeded(restore(image, device))
        checked(device, "ext4")
    assert disk.read_bytes()[16 * MIB :] == b"\x55" * (8 * MIB)
