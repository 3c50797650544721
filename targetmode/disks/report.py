"""What `targetmode disks` prints: a table for people, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from targetmode.disks.inventory import Disk
from targetmode.disks.text import format_size


def as_json(disks: Sequence[Disk]) -> dict[str, Any]:
    """Everything that is known, sizes in bytes."""
    return {"disks": [_disk(disk) for disk in disks]}


def as_table(disks: Sequence[Disk]) -> str:
    """A line for each disk, and below it one for what is on it and one for what becomes of it."""
    if not disks:
        return "This machine has no disks."
    rows = [("PATH", "SIZE", "MODEL", "SERIAL", "TYPE")]
    rows += [(str(d.path), format_size(d.size), d.model or "-", d.serial or "-", _type(d)) for d in disks]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, disk in zip(rows, [None, *disks], strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if disk is not None:
            lines.append(f"    {disk.contents if disk.contents is not None else 'contents unreadable'}")
            lines.append(f"    {_verdict(disk)}")
    return "\n".join(lines)


def _type(disk: Disk) -> str:
    words = ["rotational" if disk.rotational else "solid state"]
    words += ["removable"] if disk.removable else []
    words += ["read-only"] if disk.read_only else []
    return ", ".join(words)


def _verdict(disk: Disk) -> str:
    if disk.in_use:
        return f"in use: {'; '.join(str(use) for use in disk.in_use)}"
    return f"may be offered: targetmode serve {disk.path}{' --read-only' if disk.read_only else ''}"


def _disk(disk: Disk) -> dict[str, Any]:
    contents = disk.contents
    held = {part.partition.number: part for part in contents.partitions} if contents is not None else {}
    table = contents.table if contents is not None else None
    return {
        "path": str(disk.path),
        "name": disk.name,
        "size": disk.size,
        "model": disk.model,
        "serial": disk.serial,
        "rotational": disk.rotational,
        "removable": disk.removable,
        "read_only": disk.read_only,
        "logical_sector": disk.logical_sector,
        "physical_sector": disk.physical_sector,
        "contents": str(contents) if contents is not None else None,
        "table": {"scheme": table.scheme, "uuid": table.uuid} if table is not None else None,
        "partitions": [
            {
                "number": number,
                "start": part.partition.start,
                "size": part.partition.length,
                "type": part.partition.type,
                "name": part.partition.name,
                "uuid": part.partition.uuid,
                "file_system": part.signature.kind if part.signature is not None else None,
                "label": part.signature.label if part.signature is not None else None,
            }
            for number, part in held.items()
        ],
        "in_use": [str(use) for use in disk.in_use],
        "exportable": not disk.in_use,
    }
