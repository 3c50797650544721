"""File systems in image files, filled by mounting them where nobody else sees it; all with real tools."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.serving import Result, run
from tests.support import wait_until

MIB: Final = 1 << 20
MAKE: Final[dict[str, tuple[str, ...]]] = {
    "ext2": ("mkfs.ext2", "-q", "-F"),
    "ext3": ("mkfs.ext3", "-q", "-F"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "ntfs": ("mkntfs", "-q", "-f", "-F"),
    "vfat": ("mkfs.vfat",),
}
CHECK: Final[dict[str, tuple[str, ...]]] = {
    "ext2": ("e2fsck", "-fn"),
    "ext3": ("e2fsck", "-fn"),
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly"),
    "ntfs": ("ntfsfix", "--no-action"),
    "vfat": ("fsck.vfat", "-n"),
}
SMALLEST: Final = {"xfs": 320 * MIB, "btrfs": 120 * MIB}


def make_filesystem(path: Path, kind: str, size: int | None = None, *options: str) -> Path:
    """A file system in a sparse file of its own."""
    with path.open("wb") as file:
        file.truncate(size or SMALLEST.get(kind, 64 * MIB))
    run(*MAKE[kind], *options, path)
    return path


def inside(image: str | Path, script: str, *, kind: str = "", options: str = "", check: bool = True) -> Result:
    """Run a shell script at the root of a mounted image or device, which only that script sees mounted."""
    mount = f"mount {f'-t {kind}' if kind else ''} {f'-o {options}' if options else ''} {image} /mnt"
    command = f"set -e; {mount}; (cd /mnt; set -e; {script}); umount /mnt"
    return run("unshare", "--mount", "--propagation=private", "sh", "-c", command, check=check)


def in_filesystem(path: Path, kind: str, script: str) -> str:
    """What a script prints that runs at the root of an image's file system."""
    options = "loop,nouuid" if kind == "xfs" else "loop"
    return inside(path, script, kind="ntfs-3g" if kind == "ntfs" else kind, options=options).out


def checked(path: str | Path, kind: str) -> None:
    """Fail unless the file system's own checker finds nothing."""
    run(*CHECK[kind], path)


def nothing_left_of(directory: Path) -> None:
    """Fail unless what a private process started and attached for images in a directory is gone."""

    ours = f"{tempfile.gettempdir()}/asr-"

    def left() -> list[str]:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        loops = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").out.splitlines()
        processes = subprocess.run(["ps", "-eo", "stat,args"], capture_output=True, text=True, check=True).stdout
        running = [line for line in processes.splitlines() if ours in line and not line.startswith("Z")]
        return [line for line in (*mounts, *loops) if str(directory) in line or ours in line] + running

    wait_until(lambda: not left(), "the end of all that was started", 20)


def partitioned(path: Path, *images: Path, room: int = 0) -> Path:
    """A disk image with a GPT, a partition for each image, and so many bytes of room behind them."""
    with path.open("wb") as file:
        file.truncate(sum(image.stat().st_size for image in images) + 4 * MIB + room)
    run("sgdisk", *(f"-n{n}:0:+{image.stat().st_size >> 20}M" for n, image in enumerate(images, 1)), path)
    offset = 1
    for image in images:
        run("dd", f"if={image}", f"of={path}", "bs=1M", f"seek={offset}", "conv=notrunc,sparse", "status=none")
        offset += image.stat().st_size >> 20
    return path


def extracted(disk: Path, number: int) -> Path:
    """A partition of a disk image, as an image of its own."""
    rows = json.loads(run("sfdisk", "--json", disk).out)["partitiontable"]["partitions"]
    start, size = rows[number - 1]["start"], rows[number - 1]["size"]
    path = disk.with_suffix(f".{number}")
    path.unlink(missing_ok=True)
    options = ("bs=64K", "iflag=skip_bytes,count_bytes", "conv=sparse", "status=none")
    run("dd", f"if={disk}", f"of={path}", f"skip={start * 512}", f"count={size * 512}", *options)
    with path.open("r+b") as file:
        file.truncate(size * 512)
    return path
