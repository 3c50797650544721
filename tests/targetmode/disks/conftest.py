"""Disks to test on: image files, loop devices over them, and a made-up sysfs; nothing else is ever touched.

Debian packages: btrfs-progs cryptsetup-bin dmsetup dosfstools e2fsprogs exfatprogs fdisk gdisk genisoimage lvm2 mdadm
mount ntfs-3g parted squashfs-tools util-linux xfsprogs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from targetmode.disks.machine import Machine
from targetmode.disks.signatures import identify
from tests.support import is_attached


@pytest.fixture
def requires_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices and mounts")


@pytest.fixture
def run() -> Callable[..., str]:
    """Runs a tool and returns what it prints; a tool that fails or is missing fails the test."""

    def run(*command: str | Path, input: str | None = None) -> str:  # noqa: A002
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "LVM_SUPPRESS_FD_WARNINGS": "1"}
        result = subprocess.run(
            [str(word) for word in command], input=input, capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
        return result.stdout

    return run


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., Path]:
    """Makes a sparse file of `size` bytes."""

    def make(size: int = 64 << 20, name: str = "disk.img") -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(size)
        return path

    return make


@pytest.fixture
def as_nobody(requires_root: None) -> Iterator[Callable[..., str]]:
    """Runs Python code without privilege on a sparse file of 1 MiB that only root may read; returns what it prints.

    What it imports has to be imported first: a checkout may lie where only root can read it.

    The file's path is `sys.argv[1]`. It lies in /dev/shm, which everyone may enter, unlike pytest's directories.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        Path(directory).chmod(0o755)
        image = Path(directory) / "disk.img"
        with image.open("wb") as file:
            file.truncate(1 << 20)
        image.chmod(0o600)

        def as_nobody(imports: str, code: str) -> str:
            drop = "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)"
            command = [sys.executable, "-c", f"import os, sys\n{imports}\n{drop}\n{code}", str(image)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            return result.stdout.replace(str(image), "IMAGE")

        yield as_nobody


@pytest.fixture
def attach(requires_root: None, run: Callable[..., str]) -> Iterator[Callable[..., Path]]:
    """Attaches a loop device to a file or device, with `losetup` options; they are all detached in the end."""
    with ExitStack() as cleanup:

        def attach(image: Path, *options: str) -> Path:
            device = Path(run("losetup", "--find", "--show", *options, image).strip())
            cleanup.callback(_detach, device, image)
            return device

        yield attach


def _detach(device: Path, image: Path) -> None:
    """Detaches a loop device, its partitions first: those that parted told the kernel of would outlive it."""
    for _ in range(100):
        if not is_attached(device, image):
            return
        subprocess.run(["partx", "--delete", str(device)], capture_output=True)
        subprocess.run(["losetup", "--detach", str(device)], capture_output=True)
        time.sleep(0.05)
    raise AssertionError(f"{device} stays attached")


@pytest.fixture
def mount(attach: None, run: Callable[..., str], tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a device on a new directory; it is unmounted in the end, before its loop device is detached."""
    with ExitStack() as cleanup:

        def mount(device: Path, name: str = "mnt", *options: str) -> Path:
            directory = tmp_path / name
            directory.mkdir()
            run("mount", *options, device, directory)
            cleanup.callback(subprocess.run, ["umount", "--lazy", str(directory)], capture_output=True)
            return directory

        yield mount


@pytest.fixture
def swapon(attach: None, run: Callable[..., str]) -> Iterator[Callable[[Path], None]]:
    """Swaps to a device or file until the test ends."""
    with ExitStack() as cleanup:

        def swapon(path: Path) -> None:
            run("swapon", path)
            cleanup.callback(subprocess.run, ["swapoff", str(path)], capture_output=True)

        yield swapon


@pytest.fixture
def attach_partitioned(attach: Callable[..., Path], run: Callable[..., str]) -> Callable[[Path], Path]:
    """Attaches a loop device whose partitions the kernel knows, also when it is built without partition parsers."""

    def attach_partitioned(image: Path) -> Path:
        device = attach(image, "--partscan")
        run("partx", "--update", device)
        return device

    return attach_partitioned


@pytest.fixture
def fake_machine(tmp_path: Path) -> Callable[..., Machine]:
    """Makes a sysfs, procfs and /dev out of files, for what this machine's kernel does not have.

    Attributes of block devices are given by path, such as `sda/sda1/dev`; the links between them are made here.
    """

    def make(attributes: Mapping[str, str], proc: Mapping[str, str] | None = None) -> Machine:
        machine = Machine(tmp_path / "sys", tmp_path / "proc", tmp_path / "dev")
        devices = machine.sys / "devices"
        for directory in ("block", "class/block", "dev/block"):
            (machine.sys / directory).mkdir(parents=True)
        for path, text in attributes.items():
            _write(devices / path, text)
        for number in sorted(devices.rglob("dev")):
            device = number.parent
            (machine.sys / "class/block" / device.name).symlink_to(device)
            (machine.sys / "dev/block" / number.read_text().strip()).symlink_to(device)
            if device.parent == devices:
                (machine.sys / "block" / device.name).symlink_to(device)
        for path, text in (proc or {}).items():
            _write(machine.proc / path, text)
        return machine

    return make


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def as_blkid_sees(run: Callable[..., str]) -> Callable[[Path], tuple[str, str, str]]:
    """Asks blkid for the kind, label and UUID of what a disk holds."""

    def as_blkid_sees(path: Path) -> tuple[str, str, str]:
        lines = run("blkid", "--probe", "--output", "udev", path).splitlines()
        values = {name: value for name, _, value in (line.partition("=") for line in lines)}
        label = values.get("ID_FS_LABEL_ENC", "").encode().decode("unicode_escape").encode("latin-1").decode()
        return values["ID_FS_TYPE"], label, values.get("ID_FS_UUID", "")

    return as_blkid_sees


@pytest.fixture
def identify_file() -> Callable[[Path], tuple[str, str, str] | None]:
    """Identifies the kind, label and UUID of what a file holds, and checks that only what is there is read."""

    def identify_file(path: Path) -> tuple[str, str, str] | None:
        size = path.stat().st_size
        with path.open("rb") as file:

            def read(offset: int, length: int) -> bytes:
                assert offset >= 0
                assert length > 0
                assert offset + length <= size
                file.seek(offset)
                return file.read(length)

            signature = identify(read, size)
        return None if signature is None else (signature.kind, signature.label, signature.uuid)

    return identify_file
