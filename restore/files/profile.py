"""What of a file each file system can keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Profile:
    """What a file system keeps of a file beside its name and content.

    Attributes:
        lost: for people, what it does not keep; empty where it keeps everything.
        rsync: rsync's options.
        symlinks: whether it has symbolic links.
        devices: whether it has device nodes, FIFOs and sockets.
        owners: whether it keeps user, group and permissions.
        xattrs: whether it keeps extended attributes.
        acls: whether it keeps ACLs.
        links: whether it has hard links.
        folds_case: names that differ only in case are one.
        time: how finely it keeps times, in nanoseconds.
    """

    lost: str
    rsync: tuple[str, ...]
    symlinks: bool = True
    devices: bool = True
    owners: bool = True
    xattrs: bool = True
    acls: bool = True
    links: bool = True
    folds_case: bool = False
    time: int = 1


_FULL: Final = Profile("", ("-aHAXS", "--modify-window=-1"))
_FAT: Final = Profile(
    "owners, permissions, links, devices and extended attributes",
    ("-rtS", "--modify-window=2"),
    *(False, False, False, False, False, False, True),
    time=2_000_000_000,
)
_PROFILES: Final = {
    "hfsplus": Profile("ACLs", ("-aHXS", "--modify-window=1"), acls=False, time=1_000_000_000),
    "ntfs": Profile(
        "owners, permissions, devices, ACLs and extended attributes",
        ("-rltHS", "--modify-window=-1"),
        devices=False,
        owners=False,
        xattrs=False,
        acls=False,
        time=100,
    ),
    "vfat": _FAT,
    "exfat": _FAT,
}


def profile(kind: str) -> Profile:
    """The profile of a target's file system."""
    return _PROFILES.get(kind, _FULL)
