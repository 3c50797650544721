"""File systems with files, and with room where there were some, made by their own tools."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nbd.backend import Extent
from tests.restore.filesystems import CHECK, MIB, inside, make_filesystem
from tests.serving import run
from tests.support import loop_device

FILES: Final = 40
_BLOCK: Final = 4096
JUNK: Final = random.Random(7).randbytes(MIB)

FAT: Final = {
    "fat12": (12 * MIB, "-F12", "-s8"),
    "fat16": (24 * MIB, "-F16", "-s4"),
    "fat32": (40 * MIB, "-F32", "-s1"),
}
KINDS: Final = ("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs", "exfat", "f2fs", *FAT)


def filled(directory: Path, kind: str) -> Path:
    """A file system that was filled, and of which every third file was removed again; cleanly unmounted."""
    image = directory / f"{kind}.img"
    tree = directory / "tree"
    tree.mkdir(exist_ok=True)
    generator = random.Random(1)
    for number in range(FILES):
        (tree / f"f{number}").write_bytes(generator.randbytes(100 + number * 3100))
    remove = [f"f{number}" for number in range(0, FILES, 3)]
    if kind in FAT:
        size, *words = FAT[kind]
        make_filesystem(image, "vfat", size, *words)
        run("mcopy", "-i", image, *sorted(tree.iterdir()), "::")
        run("mdel", "-i", image, *(f"::{name}" for name in remove))
    elif kind == "f2fs":
        _empty(image, 100 * MIB)  # the least
        run("mkfs.f2fs", "-q", image)
        run("sload.f2fs", "-f", tree, image)
    elif kind == "exfat":
        _empty(image, 32 * MIB)
        run("mkfs.exfat", image)
        with loop_device(image) as device:
            inside(device, _script(tree, remove), kind="exfat-fuse", options="nonempty")
    else:
        make_filesystem(image, kind)
        options = "loop,nouuid" if kind == "xfs" else "loop"
        inside(image, _script(tree, remove), kind="ntfs-3g" if kind == "ntfs" else kind, options=options)
    return image


def _script(tree: Path, remove: Iterable[str]) -> str:
    return f"mkdir here; cp {tree}/* here/; sync; cd here; rm {' '.join(remove)}; cp f5 big; cat f* >> big; sync"


def _empty(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def files_of(image: Path, kind: str) -> dict[str, str]:
    """The names of all files of an image, with the SHA-256 of each."""
    script = "find . -type f -exec sha256sum {} +"
    if kind in FAT:
        names = [line.removeprefix("::/") for line in run("mdir", "-b", "-i", image, "::").out.split()]
        out = image.parent / "out"
        out.mkdir(exist_ok=True)
        run("mcopy", "-n", "-o", "-i", image, *(f"::{name}" for name in names), out)
        return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
    if kind == "f2fs":
        return _f2fs_blocks(image)
    if kind == "exfat":
        with loop_device(image) as device:
            printed = inside(device, script, kind="exfat-fuse", options="ro,nonempty").out
    else:
        mounted_as = "ntfs-3g" if kind == "ntfs" else kind
        options = "ro,loop,norecovery,nouuid" if kind == "xfs" else "ro,loop"
        printed = inside(image, script, kind=mounted_as, options=options).out
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in printed.splitlines())}


def _f2fs_blocks(image: Path) -> dict[str, str]:
    """Where the blocks of the files lie: the kernel here may not know f2fs, and its tools do not read files."""
    trees = [path.read_bytes() for path in (image.parent / "tree").iterdir()]
    wanted = {tree[at : at + _BLOCK].ljust(_BLOCK, b"\0") for tree in trees for at in range(0, len(tree), _BLOCK)}
    data = image.read_bytes()
    blocks = ((at, data[at : at + _BLOCK]) for at in range(0, len(data), _BLOCK))
    return {str(at): hashlib.sha256(block).hexdigest() for at, block in blocks if block in wanted}


def checked(image: Path, kind: str) -> None:
    """Fail unless the file system's own checker finds nothing."""
    commands = {
        **CHECK,
        **dict.fromkeys(FAT, ("fsck.vfat", "-n")),
        "exfat": ("fsck.exfat", "-n"),
        "f2fs": ("fsck.f2fs", "--dry-run"),
    }
    printed = run(*commands[kind], image).out
    assert "[Fail]" not in printed, printed


def copy_used(source: Path, target: Path, used: Iterable[Extent]) -> None:
    """Copy what is used over junk."""
    with source.open("rb") as reading, target.open("wb") as writing:
        for extent in used:
            left = extent.length
            while left:
                count = min(left, MIB)
                data = reading.read(count)
                writing.write(JUNK[:count] if extent.hole else data)
                left -= count
    assert target.stat().st_size == source.stat().st_size
