"""What is mounted, swapped to and locked: /proc's mountinfo in every mount namespace, swaps and locks."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from targetmode.disks.machine import Device, Machine

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file or device something is.

    Attributes:
        device: The device number when it is a block device.
        file: `st_dev` and `st_ino` when it is a regular file.
    """

    device: Device | None = None
    file: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system.

    Attributes:
        mount_point: Where, as its own mount namespace sees it.
        identities: What is mounted: by the file system's device number and by the source's path, since btrfs and FUSE
            have device numbers of their own.
        elsewhere: The process in whose mount namespace it is; empty when it is in ours.
    """

    mount_point: str
    identities: tuple[Identity, ...]
    elsewhere: str


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap area in use.

    Attributes:
        path: Of its device or file.
        identity: Which device or file that is.
    """

    path: str
    identity: Identity


@dataclass(frozen=True, slots=True)
class Lock:
    """A `flock` that some process holds.

    Attributes:
        file: `st_dev` and `st_ino` of what is locked; for a block device, of its node.
        exclusive: Whether it shuts out everyone else, not only those who want it exclusively.
        process: The holder, for people.
    """

    file: tuple[int, int]
    exclusive: bool
    process: str


def identity_of(status: os.stat_result) -> Identity:
    """Tells which block device or regular file `status` is of; neither when it is something else."""
    if stat.S_ISBLK(status.st_mode):
        return Identity(device=(os.major(status.st_rdev), os.minor(status.st_rdev)))
    if stat.S_ISREG(status.st_mode):
        return Identity(file=(status.st_dev, status.st_ino))
    return Identity()


def mounts(machine: Machine) -> list[Mount]:
    """Lists what is mounted: in our mount namespace, then in those of other processes that can be looked into."""
    found = list(_mounts_of(machine.proc / "self", ""))
    seen = {_namespace(machine.proc / "self")}
    for pid in machine.process_ids():
        directory = machine.proc / str(pid)
        namespace = _namespace(directory)
        if namespace is not None and namespace not in seen:
            seen.add(namespace)
            found.extend(_mounts_of(directory, machine.process(pid)))
    return found


def _namespace(directory: Path) -> tuple[Path, Path] | None:
    """Tells processes apart by mount namespace and root directory, which limits what mountinfo shows."""
    try:
        return (directory / "ns" / "mnt").readlink(), (directory / "root").readlink()
    except OSError:
        return None


def _mounts_of(directory: Path, process: str) -> Iterator[Mount]:
    """Parses a process's mountinfo (proc_pid_mountinfo(5))."""
    for line in _lines(directory / "mountinfo"):
        fields = line.split(b" ")
        try:
            major, _, minor = fields[2].partition(b":")
            device = (int(major), int(minor))
            mount_point = unescape(fields[4])
            source = unescape(fields[fields.index(b"-", 6) + 2])
        except (IndexError, ValueError):
            continue
        identities = [] if device[0] == 0 else [Identity(device=device)]
        if device[0] == 0 and source.startswith("/"):
            identity = _identity_at(directory, source)
            if identity != Identity():
                identities.append(identity)
        if identities:
            yield Mount(mount_point, tuple(identities), process)


def _identity_at(directory: Path, source: str) -> Identity:
    """Tells what a path leads to for a process, or failing that for us."""
    for path in (Path(f"{directory}/root{source}"), Path(source)):
        try:
            return identity_of(path.stat())
        except (OSError, ValueError):
            continue
    return Identity()


def swaps(machine: Machine) -> list[Swap]:
    """Lists the swap areas in use (proc_swaps(5))."""
    found = []
    for line in _lines(machine.proc / "swaps")[1:]:
        path = unescape(line.split(b" ")[0].split(b"\t")[0])
        try:
            found.append(Swap(path, identity_of(Path(path).stat())))
        except (OSError, ValueError):
            continue
    return found


def locks(machine: Machine) -> list[Lock]:
    """Lists the `flock`s held on this machine (proc_locks(5))."""
    found = []
    for line in _lines(machine.proc / "locks"):
        fields = line.split()
        if len(fields) < 6 or fields[1] != b"FLOCK":
            continue
        try:
            major, minor, inode = fields[5].split(b":")
            device = os.makedev(int(major, 16), int(minor, 16))
            found.append(Lock((device, int(inode)), fields[3] == b"WRITE", machine.process(int(fields[4]))))
        except ValueError:
            continue
    return found


def _lines(path: Path) -> list[bytes]:
    """Reads the lines of a file; none when it cannot be read."""
    try:
        return path.read_bytes().splitlines()
    except OSError:
        return []


def unescape(raw: bytes) -> str:
    """Decodes a path in which the kernel wrote space, tab, newline and backslash as octal numbers."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), raw))
