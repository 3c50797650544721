"""Who uses a disk, partition or image file now: mounts, swap, device mapper, MD RAID, loop devices, locks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from targetmode.disks.machine import HERE, Loop, Machine
from targetmode.disks.mounts import Identity, Lock, Mount, Swap, identity_of, locks, mounts, swaps
from targetmode.disks.text import printable

_DM_MAKERS = {"LVM": "LVM", "CRYPT": "LUKS", "mpath": "multipath", "DMRAID": "dmraid"}
"""What the first part of a device mapper UUID says of who made the device."""


@dataclass(frozen=True, slots=True)
class Use:
    """One reason why a disk may not be offered or overwritten; `str()` says it.

    Attributes:
        kind: `mount`, `swap`, `holder` (device mapper and others), `raid`, `btrfs`, `loop`, `lock` or `exclusive`.
        detail: The reason in words that follow "it is": `mounted on /mnt/data`.
        where: Which part of the disk, or what beneath it, is used so: `partition sda2`; empty for the disk itself.
        remedies: Commands that end the use, in their order; empty where there is none to recommend.
    """

    kind: str
    detail: str
    where: str = ""
    remedies: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Says what is used and how: `partition sda2: mounted on /boot`."""
        return f"{self.where}: {self.detail}" if self.where else self.detail


class Survey:
    """What this machine's block devices and files are used for, looked up once and kept.

    Make a new one to see what has changed.
    """

    def __init__(self, machine: Machine = HERE) -> None:
        self.machine = machine

    @cached_property
    def _mounts(self) -> list[Mount]:
        return mounts(self.machine)

    @cached_property
    def _swaps(self) -> list[Swap]:
        return swaps(self.machine)

    @cached_property
    def _locks(self) -> list[Lock]:
        return locks(self.machine)

    @cached_property
    def _loops(self) -> list[Loop]:
        return self.machine.loops()

    def of_path(self, path: str | os.PathLike[str]) -> tuple[Use, ...]:
        """Finds the uses of a block device or regular file; none for anything else.

        Raises:
            OSError: There is nothing at `path`, or it may not be looked up.
        """
        status = Path(path).stat()
        identity = identity_of(status)
        found = list(self._lock_uses(status))
        if identity.device is not None:
            name = self.machine.name(identity.device)
            found += self._identity_uses(identity) if name is None else self.of_device(name)
        elif identity.file is not None:
            found += self._identity_uses(identity)
        return _distinct(found)

    def of_device(self, name: str) -> tuple[Use, ...]:
        """Finds the uses of a whole device with its partitions, or of a partition with its whole device.

        Args:
            name: The kernel's name, such as `sda` or `sda1`.
        """
        return _distinct(self._device_uses(name, frozenset()))

    def of_device_alone(self, name: str) -> tuple[Use, ...]:
        """Finds the uses of one block device, not those of its partitions or of the disk it is on."""
        return _distinct(self._own_uses(name))

    def locked_by(self, status: os.stat_result) -> list[str]:
        """Names the processes that have a file or device node locked, exclusively or not."""
        return [lock.process for lock in self._locks if lock.file == (status.st_dev, status.st_ino)]

    def _device_uses(self, name: str, ignored: frozenset[str]) -> Iterator[Use]:
        """Finds the uses of everything that shares bytes with a device; loop devices in `ignored` do not count."""
        yield from self._uses_above(name, ignored)
        parent = self.machine.parent(name)
        if parent is not None:
            for use in self._own_uses(parent, ignored):
                yield _within(use, f"whole disk {parent}")
        yield from self._uses_below(parent or name, ignored)

    def _uses_above(self, name: str, ignored: frozenset[str] = frozenset()) -> Iterator[Use]:
        """Finds the uses of a device and of its partitions."""
        yield from self._own_uses(name, ignored)
        for partition in self.machine.partitions(name):
            for use in self._own_uses(partition, ignored):
                yield _within(use, f"partition {partition}")

    def _uses_below(self, name: str, ignored: frozenset[str]) -> Iterator[Use]:
        """Finds the uses of what backs a loop device, apart from itself and from loop devices over other parts."""
        for loop in self._loops:
            if loop.name != name:
                continue
            apart = ignored | {other.name for other in self._loops if other is loop or not _overlap(loop, other)}
            if loop.backing_device is None:
                found = self._identity_uses(Identity(file=loop.backing_file), apart) if loop.backing_file else ()
            else:
                backing = self.machine.name(loop.backing_device)
                found = self._device_uses(backing, apart) if backing else ()
            for use in found:
                yield _within(use, f"backing file {printable(loop.backing_path)}")

    def _own_uses(self, name: str, ignored: frozenset[str] = frozenset()) -> Iterator[Use]:
        """Finds the uses of one block device."""
        with suppress(OSError):
            yield from self._lock_uses(self.machine.node(name).stat())
        device = self.machine.device(name)
        if device is not None:
            found = list(self._identity_uses(Identity(device=device), ignored))
            filesystem = self.machine.btrfs_of(name)
            if filesystem is not None and not any(use.kind == "mount" for use in found):
                yield Use("btrfs", f"part of the mounted btrfs file system {filesystem}")
            yield from found
        for holder in self.machine.holders(name):
            yield self._holder_use(holder)

    def _identity_uses(self, identity: Identity, ignored: frozenset[str] = frozenset()) -> Iterator[Use]:
        """Finds mounts, swap areas and loop devices over a block device or file.

        Mounts in other mount namespaces count only when there are none in ours.
        """
        mounted = [mount for mount in self._mounts if identity in mount.identities]
        for mount in [mount for mount in mounted if not mount.elsewhere] or mounted:
            yield _mount_use(mount)
        for swap in self._swaps:
            if swap.identity == identity:
                yield Use("swap", "used as swap", remedies=(f"swapoff {_quoted(swap.path)}",))
        for loop in self._loops:
            if loop.name not in ignored and _backs(identity, loop):
                node = self.machine.node(loop.name)
                word = "file" if identity.device is None else "device"
                yield self._stacked_use("loop", f"backing {word} of {node}", f"losetup -d {node}", loop.name)

    def _lock_uses(self, status: os.stat_result) -> Iterator[Use]:
        """Finds who has a file or device node locked exclusively."""
        for lock in self._locks:
            if lock.exclusive and lock.file == (status.st_dev, status.st_ino):
                yield Use("lock", f"locked by {printable(lock.process)}")

    def _holder_use(self, holder: str) -> Use:
        """Says what a device is held by: an MD array it is a member of, or a device mapper device."""
        if holder.startswith("md"):
            remedy = f"mdadm --stop {self.machine.node(holder)}"
            return self._stacked_use("raid", f"member of {holder}", remedy, holder)
        name = self.machine.attribute(holder, "dm/name")
        if not name:
            return self._stacked_use("holder", f"held by {holder}", "", holder)
        maker = _DM_MAKERS.get(self.machine.attribute(holder, "dm/uuid").partition("-")[0], "device mapper")
        remedy = {
            "LVM": f"lvchange -an {_quoted(f'/dev/mapper/{name}')}",
            "LUKS": f"cryptsetup close {_quoted(name)}",
            "multipath": f"multipath -f {_quoted(name)}",
        }.get(maker, f"dmsetup remove {_quoted(name)}")
        return self._stacked_use("holder", f"held by {holder} ({maker} {printable(name)})", remedy, holder)

    def _stacked_use(self, kind: str, detail: str, remedy: str, upper: str) -> Use:
        """Says that something lies beneath the device `upper`, and what that in turn is used for."""
        above = list(self._uses_above(upper))
        if above:
            detail += f" ({above[0]})" if above[0].where else f", which is {above[0]}"
        commands = [command for use in above for command in use.remedies]
        return Use(kind, detail, remedies=(*commands, remedy) if remedy else ())


def uses(path: str | os.PathLike[str], *, machine: Machine = HERE) -> tuple[Use, ...]:
    """Finds what a block device (whole or partition) or regular file is in use for; nothing is read from it.

    Without privilege, other processes' mount namespaces stay unseen. What the kernel or a program has opened
    exclusively without any of these uses is only found by opening it: see `targetmode.disks.preflight.claim`.

    Args:
        path: Of a block device, of an image file, or of a symbolic link to one.
        machine: Where the kernel tells about it.

    Returns:
        One Use for each reason why it may not be offered or overwritten, without doubles.

    Raises:
        OSError: There is nothing at `path`, or it may not be looked up.
    """
    return Survey(machine).of_path(Path(path))


def _mount_use(mount: Mount) -> Use:
    """Says where something is mounted, and in whose mount namespace unless it is ours."""
    detail = f"mounted on {printable(mount.mount_point)}"
    if mount.elsewhere:
        return Use("mount", f"{detail} in the mount namespace of {printable(mount.elsewhere)}")
    if mount.mount_point == "/":
        return Use("mount", detail)
    return Use("mount", detail, remedies=(f"umount {_quoted(mount.mount_point)}",))


def _within(use: Use, where: str) -> Use:
    """Says of a use which part of the disk it is of."""
    return replace(use, where=f"{where}: {use.where}" if use.where else where)


def _backs(identity: Identity, loop: Loop) -> bool:
    """Tells whether a loop device lies over this device or file."""
    if identity.device is not None:
        return loop.backing_device == identity.device
    if loop.backing_file == identity.file:
        return True
    try:
        return identity_of(Path(loop.backing_path).stat()) == identity
    except OSError:
        return False


def _overlap(first: Loop, second: Loop) -> bool:
    """Tells whether two loop devices show a common part of their backing file, if they have the same one."""
    return (second.limit == 0 or first.offset < second.offset + second.limit) and (
        first.limit == 0 or second.offset < first.offset + first.limit
    )


def _distinct(found: Iterable[Use]) -> tuple[Use, ...]:
    """Drops doubles, such as one mount point in several mount namespaces."""
    return tuple(dict.fromkeys(found))


def _quoted(text: str) -> str:
    """Quotes a word for the shell, safe to print."""
    return shlex.quote(printable(text))
