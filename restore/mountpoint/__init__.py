"""A mounted volume taken from where it is mounted, for as long as its blocks are copied, and put back afterwards.

    table.py    what is mounted, and how
    system.py   what the running system stands on, which stays as it is
    again.py    mounting again
    keeper.py   a process that does that, also when this one is killed

Blocks can only be copied, or written, where nothing else changes them: a volume that is to be read or written is
unmounted. To be read, one that is in use is made read-only instead.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import Refused, RestoreError
from restore.mountpoint.again import mount_again, plan_of
from restore.mountpoint.keeper import Keeper
from restore.mountpoint.system import system_devices
from restore.mountpoint.table import Row, mount_id, rows
from restore.report import Report
from targetmode.disks.machine import HERE, Machine
from targetmode.disks.mounts import identity_of
from targetmode.disks.text import printable

REMOUNTING: Final = "Remounting target volume"  # asr's own words
_LISTED: Final = 3  # processes that are named
_DAEMON_END: Final = 10.0  # seconds that a FUSE program has to end when it is unmounted


@dataclass(frozen=True, slots=True)
class Volume:
    """A mounted volume.

    Attributes:
        name: as it was given: a mount point, or a block device.
        device: its block device.
        rows: everywhere that it is mounted, in order.
    """

    name: str
    device: Path
    rows: tuple[Row, ...]

    @property
    def mount_points(self) -> tuple[str, ...]:
        """Where it is mounted."""
        return tuple(row.mount_point for row in self.rows)


def volume_at(place: str, *, devices: bool = False, machine: Machine = HERE) -> Volume | None:
    """The mounted volume that is meant.

    Args:
        place: a path.
        devices: a block device that is mounted may be meant as well as a mount point.
        machine: where the kernel tells about it.

    Returns:
        None where it is neither.

    Raises:
        Refused: it may not be unmounted: the running system stands on it, or something else is mounted in it.
    """
    try:
        status = Path(place).stat()
        table = rows(machine)
        found = _meant(place, status, table, devices=devices)
    except OSError:
        return None
    if found is None:
        return None
    device = found.block_device()
    if device is not None and device in system_devices(table, machine):
        raise Refused(f"{place} is the running system's own volume")
    if found.mount_point == "/":
        raise Refused(f"{place} is the running system's own volume")
    name = machine.name(device) if device is not None else None
    if device is None or name is None:
        raise Refused(f"{place}: {printable(found.kind)} is on no disk of this machine, so it has no blocks to copy")
    mounted = tuple(row for row in table if row.block_device() == device and row.kind == found.kind)
    _check_whole(place, found, mounted)
    _check_inner(place, mounted, table)
    _check_single(place, name, machine)
    if os.geteuid() != 0:
        raise Refused(f"{place} is mounted, and only root can unmount it")
    return Volume(place, machine.node(name), mounted)


def _meant(place: str, status: os.stat_result, table: list[Row], *, devices: bool) -> Row | None:
    """The mount whose mount point it is, or the first one of the device that it is."""
    if stat.S_ISDIR(status.st_mode):
        number = mount_id(place)
        path = os.path.realpath(place)
        return next((row for row in table if row.id == number and row.mount_point == path), None)
    device = identity_of(status).device
    if device is None or not devices:
        return None
    return next((row for row in table if row.block_device() == device), None)


def _check_whole(place: str, found: Row, mounted: tuple[Row, ...]) -> None:
    """Refuse where only a directory of the volume is mounted; of a btrfs that is a subvolume."""
    for row in mounted:
        if row.root != "/" and row.kind != "btrfs":
            if row.id == found.id:
                raise Refused(f"{place} is not a volume but {row.root} of one, mounted a second time")
            raise Refused(
                f"{place}: {row.root} of it is mounted on {row.mount_point} too; "
                f"unmount that first: umount {shlex.quote(row.mount_point)}"
            )


def _check_inner(place: str, mounted: tuple[Row, ...], table: list[Row]) -> None:
    """Refuse where other volumes are mounted in it."""
    own = {row.id for row in mounted}
    inner = [row.mount_point for row in table if row.parent in own and row.id not in own]
    if inner:
        commands = " && ".join(f"umount {shlex.quote(path)}" for path in reversed(inner))
        raise Refused(f"{place} has other volumes mounted in it: {', '.join(inner)}; unmount them first: {commands}")


def _check_single(place: str, name: str, machine: Machine) -> None:
    """Refuse a btrfs on several devices: a copy of one of them is of no use."""
    uuid = machine.btrfs_of(name)
    if uuid is not None and len(list((machine.sys / "fs" / "btrfs" / uuid / "devices").iterdir())) > 1:
        raise Refused(f"{place}: its btrfs lies on several disks, and one of them alone is not to be copied")


class Unmounted:
    """A volume that is not mounted for now, or only to be read; what is done with its device is up to who has it.

    It is mounted again, as it was, when it is closed, and also when this process ends without doing so, killed or not.
    What has its device open has to be closed before.

    Attributes:
        volume: which it is.
        device: path of its block device.
        read_only: it could not be unmounted; it is still mounted, but nothing can be written to it.
    """

    def __init__(self, volume: Volume, *, or_read_only: bool = False) -> None:
        """Unmount it wherever it is mounted.

        Args:
            volume: which.
            or_read_only: where it is in use, it is enough that nothing is written to it.

        Raises:
            Refused: it is in use; it is mounted as it was.
            RestoreError: it is in use, and could not be mounted again everywhere.
        """
        self.volume = volume
        self.device = str(volume.device)
        self.read_only = False
        self._plans = [plan_of(row, self.device) for row in volume.rows]
        self._keeper: Keeper | None = Keeper(self._plans)
        try:
            busy = self._unmount()
            if busy is not None:
                if not or_read_only:
                    raise Refused(f"{volume.name} is in use{_users(busy)}; stop that first")
                self._make_read_only(busy)
        except BaseException as error:
            failures = self.close()
            if failures:
                raise RestoreError(f"{error}; {failures[0]}") from error
            raise

    def close(self) -> list[str]:
        """Mount it again as it was; a line for each failure. Closing it again does nothing."""
        return self._end("again")

    def remount(self, report: Report) -> None:
        """Mount what is on it by now where it was, with the same options, as a phase of a report.

        Raises:
            RestoreError: it cannot be; says why. It may be mounted at some of several places.
        """
        report.begin(REMOUNTING)
        failures = self._end("changed")
        if failures:
            raise RestoreError("; ".join(failures))
        report.done()

    def leave(self) -> None:
        """Do not mount it again."""
        self._end("leave")

    def _end(self, word: str) -> list[str]:
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return []
        if word == "leave":
            return keeper.end("leave")
        return keeper.end("changed" if word == "changed" else "again")

    def _unmount(self) -> Row | None:
        """The mount that is in use, if one is; the others may be unmounted then."""
        for row in reversed(self.volume.rows):
            try:
                tools.run(["umount", row.mount_point])
            except tools.ToolFailed as error:
                if "busy" not in str(error):
                    raise Refused(f"{row.mount_point} cannot be unmounted: {error}") from None
                return row
            self._wait_for_daemon(row)
        return None

    def _wait_for_daemon(self, row: Row) -> None:
        """What served it may close the device a moment after it was unmounted."""
        deadline = time.monotonic() + _DAEMON_END
        while row.kind.startswith("fuse") and plan_of(row, self.device).daemon and time.monotonic() < deadline:
            time.sleep(0.02)

    def _make_read_only(self, busy: Row) -> None:
        """Have nothing written to it from now on. What is mounted nowhere else any more is mounted again for that."""
        failures = mount_again(self._plans, changed=False)
        if failures:
            raise RestoreError(failures[0])
        if not busy.read_only:
            plan = next(plan for plan in self._plans if plan.mount_point == busy.mount_point)
            options = ",".join("ro" if word == "rw" else word for word in plan.options.split(","))
            try:
                tools.run(["mount", "-o", f"remount,{options}", self.device, busy.mount_point])
            except tools.ToolFailed:
                raise Refused(
                    f"{self.volume.name} is in use{_users(busy)}, and cannot even be made read-only; stop that first"
                ) from None
        if not self.is_read_only():
            raise Refused(f"{self.volume.name} is in use{_users(busy)}, and does not become read-only; stop that first")
        self.read_only = True

    def is_read_only(self) -> bool:
        """Nothing can be written to it where it is mounted."""
        device = self.volume.rows[0].block_device()
        return all(row.read_only for row in rows() if row.block_device() == device)


def _users(row: Row, machine: Machine = HERE) -> str:
    """Who has something on a mounted file system open, or stands in it, as far as that can be found out."""
    try:
        device = Path(row.mount_point).stat().st_dev
    except OSError:
        return ""
    found = []
    for pid in machine.process_ids():
        directory = machine.proc / str(pid)
        try:
            links = [directory / "cwd", directory / "root", directory / "exe", *(directory / "fd").iterdir()]
        except OSError:
            continue
        if pid != os.getpid() and any(_lies_on(link, device) for link in links):
            found.append(machine.process(pid))
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f" by {', '.join(printable(name) for name in found[:_LISTED])}{more}" if found else ""


def _lies_on(link: Path, device: int) -> bool:
    try:
        return link.stat().st_dev == device
    except OSError:
        return False
