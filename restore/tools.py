"""Programs of others that are run to an end: found, or the package that has them named; failures in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore.errors import Refused, RestoreError
from targetmode.disks.text import printable

_PATH: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # where file systems' tools are, also when not root's path
_HINT: Final = "dmesg(1) may have more information"  # mount's last line, behind the one that says it

PACKAGES: Final = {
    "btrfs": "btrfs-progs",
    "btrfstune": "btrfs-progs",
    "e2fsck": "e2fsprogs",
    "fatlabel": "dosfstools",
    "mcopy": "mtools",
    "mdir": "mtools",
    "mkfs.btrfs": "btrfs-progs",
    "mount": "mount",
    "mount.ntfs-3g": "ntfs-3g",
    "nbd-client": "nbd-client",
    "nbdfuse": "libnbd-bin",
    "ntfs-3g.probe": "ntfs-3g",
    "ntfsfix": "ntfs-3g",
    "ntfsresize": "ntfs-3g",
    "partclone.exfat": "partclone",
    "partclone.extfs": "partclone",
    "partclone.f2fs": "partclone",
    "partclone.fat": "partclone",
    "partclone.hfsp": "partclone",
    "partclone.ntfs": "partclone",
    "partclone.xfs": "partclone",
    "qemu-img": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "resize2fs": "e2fsprogs",
    "rsync": "rsync",
    "setpriv": "util-linux",
    "swaplabel": "util-linux",
    "sync": "coreutils",
    "tune2fs": "e2fsprogs",
    "umount": "mount",
    "unshare": "util-linux",
    "xfs_admin": "xfsprogs",
    "xfs_db": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "xfs_logprint": "xfsprogs",
    "xfs_repair": "xfsprogs",
}
"""The Debian package of each program."""


class ToolFailed(RestoreError):
    """A program ended badly.

    Attributes:
        code: its exit status; negative: the signal that ended it.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended: its exit status, and what it printed."""

    code: int
    out: str
    err: str


def find(program: str) -> str:
    """The path of a program.

    Raises:
        Refused: it is not installed; the line names its package.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_PATH))
    found = shutil.which(program, path=path)
    if found is None:
        raise Refused(f"{program} is needed and not installed; apt install {PACKAGES[program]}")
    return found


def environment() -> dict[str, str]:
    """Ours, with messages in English and no translations of numbers."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def run(command: Sequence[str | Path], *, good: Collection[int] = (0,), text: str | None = None) -> Ended:
    """Run a program to its end.

    Args:
        command: its name, one of `PACKAGES`, and its arguments.
        good: the exit statuses that are no failure.
        text: what it reads on standard input; nothing by default.

    Raises:
        Refused: it is not installed.
        ToolFailed: it ended with another status.
    """
    words = [find(str(command[0])), *map(str, command[1:])]
    done = subprocess.run(words, input=text or "", capture_output=True, text=True, errors="replace", env=environment())
    if done.returncode not in good:
        line = complaint(done.stderr, done.stdout, done.returncode).removeprefix(f"{command[0]}: ")
        if os.strerror(errno.ENOSPC) in line and tempfile.gettempdir() in line:
            line += "; set TMPDIR to a larger directory"
        raise ToolFailed(f"{command[0]}: {line}", done.returncode)
    return Ended(done.returncode, done.stdout, done.stderr)


def complaint(err: str, out: str, code: int) -> str:
    """The line that most likely says what went wrong."""
    lines = [line.strip() for line in (err.strip() or out.strip()).splitlines() if line.strip()]
    lines = [line for line in lines if _HINT not in line] or lines
    lines = [line for line in lines if not line.startswith("(i.e.,")] or lines  # what e2fsck has to add
    return printable(lines[-1]) if lines else f"ended with status {code}"
