"""The system that is restored on the tour: a GPT disk with an EFI system partition and an ext4 root."""

from __future__ import annotations

import random
import shutil
import sysconfig
from pathlib import Path
from typing import Final

from scripts.tour.stage import MIB, Stage

IMAGE: Final = "lab.img"
TREE: Final = "tree"  # the directory whose files are in the root file system
SIZE: Final = 96  # MiB of the image
ESP_START, ESP_SIZE = 1, 16  # MiB
ROOT_START, ROOT_SIZE = 17, 78  # MiB
ESP_ID: Final = "A1B2-C3D4"
ROOT_ID: Final = "5f1d7c1e-3c0b-4f43-9d56-0a1b2c3d4e5f"
_FILES: Final = 24 * MIB  # that the root file system gets, about


def make_tree(stage: Stage) -> Path:
    """A small system's files: what names it and its disks, and a part of Python's library for the rest."""
    tree = stage.work / TREE
    for name in ("etc", "boot/grub", "usr/lib", "var/lib/dbus"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/hostname").write_text("master\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 master\n")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (tree / "etc/os-release").write_text('ID=lab\nNAME="A small system"\n')
    (tree / "etc/fstab").write_text(f"UUID={ROOT_ID} / ext4 defaults 0 1\nUUID={ESP_ID} /boot/efi vfat umask=077 0 1\n")
    (tree / "boot/grub/grub.cfg").write_text(f"search --no-floppy --fs-uuid --set=root {ROOT_ID}\n")
    (tree / "boot/vmlinuz").write_bytes(random.Random(3).randbytes(6 * MIB))  # noqa: S311 - bytes that do not compress
    left = _FILES
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        left -= path.stat().st_size
        if left < 0:
            break
        copy = tree / "usr/lib" / path.relative_to("/").as_posix().replace("/", "_")
        shutil.copyfile(path, copy)
    return tree


def inside_kernel(stage: Stage) -> int:
    """A place in the image that is in use: where the second MiB of its /boot/vmlinuz begins, in bytes."""
    kernel = (stage.work / TREE / "boot/vmlinuz").read_bytes()
    return (stage.work / IMAGE).read_bytes().index(kernel[MIB : MIB + 4096])


def make_system(stage: Stage) -> None:
    """The image, of the tree."""
    path, esp, root = (stage.work / name for name in (IMAGE, "esp.img", "root.img"))
    for image, size in ((path, SIZE), (esp, ESP_SIZE), (root, ROOT_SIZE)):
        with image.open("wb") as file:
            file.truncate(size * MIB)
    stage.quiet("mkfs.vfat", "-i", ESP_ID.replace("-", ""), "-n", "ESP", esp)
    stage.quiet("mmd", "-i", esp, "::/EFI", "::/EFI/lab")
    stage.quiet("mcopy", "-i", esp, f"{TREE}/boot/grub/grub.cfg", "::/EFI/lab/grub.cfg")
    stage.quiet("mkfs.ext4", "-q", "-F", "-L", "lab", "-U", ROOT_ID, "-E", "root_owner=0:0", "-d", TREE, root)
    stage.quiet(
        *("sgdisk", f"-n1:{ESP_START}M:+{ESP_SIZE}M", "-t1:ef00", "-c1:EFI system"),
        *(f"-n2:{ROOT_START}M:+{ROOT_SIZE}M", "-t2:8300", "-c2:root", path),
    )
    for image, start in ((esp, ESP_START), (root, ROOT_START)):
        stage.quiet("dd", f"if={image}", f"of={path}", "bs=1M", f"seek={start}", "conv=notrunc,sparse", "status=none")
    esp.unlink()
