"""What the running system stands on: the block devices under its own directories, however many layers lie between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from restore.mountpoint.table import Row, row_at
from targetmode.disks.machine import HERE, Device, Machine
from targetmode.disks.mounts import identity_of

DIRECTORIES: Final = (
    *("/", "/usr", "/boot", "/boot/efi", "/boot/firmware", "/efi", "/etc", "/var", "/opt", "/nix", "/gnu"),
    *("/run/live/medium", "/run/initramfs/live", "/cdrom"),
)
"""Where a system keeps itself, those from which live systems run included."""

_LAYERS: Final = ("lowerdir", "upperdir", "workdir")
_DEPTH: Final = 16  # layers


def system_devices(table: list[Row], machine: Machine = HERE) -> set[Device]:
    """The block devices that must stay as they are, by their numbers.

    Args:
        table: all mounts.
        machine: where the kernel tells about it.
    """
    found: set[Device] = set()
    for directory in DIRECTORIES:
        row = row_at(directory, table)
        if row is not None:
            _add_row(row, table, machine, found, _DEPTH)
    return found


def _add_row(row: Row, table: list[Row], machine: Machine, found: set[Device], depth: int) -> None:
    device = row.block_device()
    if device is not None:
        _add_device(device, table, machine, found, depth)
    elif row.kind == "overlay" and depth:
        for layer in _layers(row):
            under = row_at(layer, table)
            if under is not None and under.id != row.id:
                _add_row(under, table, machine, found, depth - 1)


def _layers(row: Row) -> Iterator[Path]:
    """The directories that an overlay lies over; a colon or backslash in a name is escaped with a backslash."""
    for option in row.super_options.split(","):
        name, _, value = option.partition("=")
        if name.rstrip("+") in _LAYERS:
            yield from (Path(part.replace("\0", ":")) for part in value.replace("\\:", "\0").split(":") if part)


def _add_device(device: Device, table: list[Row], machine: Machine, found: set[Device], depth: int) -> None:
    """A device, and all that it is made of."""
    if device in found or not depth:
        return
    found.add(device)
    name = machine.name(device)
    for layer in (name, machine.parent(name)) if name is not None else ():
        if layer is not None:
            _add_lower(layer, table, machine, found, depth - 1)


def _add_lower(name: str, table: list[Row], machine: Machine, found: set[Device], depth: int) -> None:
    """What a whole device or partition is made of."""
    places = [machine.directory(name) / "slaves"]
    uuid = machine.btrfs_of(name)
    if uuid is not None:
        places.append(machine.sys / "fs" / "btrfs" / uuid / "devices")
    for lower in (lower for place in places if place.is_dir() for lower in place.iterdir()):
        under = machine.device(lower.name)
        if under is not None:
            _add_device(under, table, machine, found, depth)
    backing = machine.attribute(name, "loop/backing_file")
    if not backing:
        return
    with contextlib.suppress(OSError, ValueError):
        identity = identity_of(Path(backing).stat())
        row = row_at(backing, table)
        if identity.device is not None:
            _add_device(identity.device, table, machine, found, depth)
        elif row is not None:
            _add_row(row, table, machine, found, depth)
