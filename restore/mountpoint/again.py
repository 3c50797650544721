"""Mounting again what was unmounted: where it was, with the options that it had."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import RestoreError
from restore.mountpoint.table import Row, rows

_FUSE_ONLY: Final = ("user_id=", "group_id=", "blksize=", "default_permissions")
"""What the kernel tells of a FUSE file system, and no FUSE program takes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to mount a volume again, once.

    Attributes:
        device: path of its block device.
        mount_point: where it was mounted.
        kind: of file system, as `mount -t` knows it.
        options: of this mount alone.
        super_options: of the file system.
        private: what is mounted in it was not passed on to other mount namespaces.
        daemon: the command of the program that served it, if any.
    """

    device: str
    mount_point: str
    kind: str
    options: str
    super_options: str
    private: bool
    daemon: tuple[str, ...] = ()


def plan_of(row: Row, device: str) -> Plan:
    """How to mount that again."""
    daemon = _daemon(row) if row.kind.startswith("fuse") else ()
    return Plan(device, row.mount_point, row.kind, row.options, row.super_options, not row.shared, daemon)


def mount_again(plans: Sequence[Plan], *, changed: bool) -> list[str]:
    """Mount a volume again wherever it was, in order; what is mounted still is made as writable as it was.

    Args:
        plans: where and how.
        changed: something else may be on the device by now, whose file system has other options.

    Returns:
        A line for each failure.
    """
    failures = []
    for plan in plans:
        try:
            if _is_mounted(plan):
                _remount(plan)
            else:
                _mount(plan, changed=changed)
        except (RestoreError, OSError) as error:
            failures.append(f"{plan.device} could not be mounted again on {plan.mount_point}: {error}")
    return failures


def _is_mounted(plan: Plan) -> bool:
    status = Path(plan.device).stat()
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return any(row.mount_point == plan.mount_point and row.block_device() == device for row in rows())


def _remount(plan: Plan) -> None:
    """Both are named, or mount would take options from fstab."""
    if "rw" in plan.super_options.split(","):
        tools.run(["mount", "-o", f"remount,{plan.options}", plan.device, plan.mount_point])


def _mount(plan: Plan, *, changed: bool) -> None:
    """With all options; if the file system does not take them, or it is another one, with those of the mount alone."""
    kind = plan.kind
    if changed:
        kind = _kind_on(plan.device)
        if kind != plan.kind:
            _mount_once(plan, kind, plan.options)
            _make_private(plan)
            return
    if plan.daemon and not changed:
        tools.run(plan.daemon)
        return
    try:
        _mount_once(plan, kind, _joined(plan.options, plan.super_options))
    except tools.ToolFailed:
        _mount_once(plan, kind, plan.options)
    _make_private(plan)


def _mount_once(plan: Plan, kind: str, options: str) -> None:
    words = options.split(",")
    read_only = "ro" in plan.super_options.split(",")
    if read_only:
        words = ["ro", *(word for word in words if word != "rw")]
    elif "ro" in plan.options.split(","):  # the mount, not the file system
        words = ["rw", *(word for word in words if word != "ro")]
    tools.run(["mount", "-t", kind, "-o", ",".join(words), plan.device, plan.mount_point])
    if not read_only and "ro" in plan.options.split(","):
        tools.run(["mount", "-o", f"remount,bind,{plan.options}", plan.device, plan.mount_point])


def _make_private(plan: Plan) -> None:
    """As it was, where what it is mounted in has made it shared."""
    shared = [row.shared for row in rows() if row.mount_point == plan.mount_point]
    if plan.private and shared and shared[-1]:
        tools.run(["mount", "--make-private", plan.mount_point])


def _joined(options: str, super_options: str) -> str:
    words = [word for word in super_options.split(",") if word not in ("ro", "rw") and not word.startswith(_FUSE_ONLY)]
    return ",".join((options, *words))


def _kind_on(device: str) -> str:
    """What is on a device now, as `mount -t` knows it.

    Raises:
        RestoreError: nothing that is mounted.
        OSError: it cannot be read.
    """
    from restore.private.mounting import MOUNTED_AS  # the process that mounts again starts faster without
    from targetmode.disks.layout import fd_reader
    from targetmode.disks.machine import block_size_of
    from targetmode.disks.signatures import identify

    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        signature = identify(fd_reader(fd), block_size_of(fd))
    finally:
        os.close(fd)
    if signature is None or signature.kind not in MOUNTED_AS:
        raise RestoreError(f"it has {signature or 'no known file system'}, which is not mounted")
    return MOUNTED_AS[signature.kind]


def _daemon(row: Row) -> tuple[str, ...]:
    """The command of the FUSE program that serves a mount, which alone knows all of its options."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            words = [os.fsdecode(word) for word in (directory / "cmdline").read_bytes().split(b"\0")[:-1]]
        except OSError:
            continue
        if len(words) > 2 and row.source in words[1:] and row.mount_point in words[1:] and words[0].startswith("/"):
            return tuple(words)
    return ()
