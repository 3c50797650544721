"""Where a disk's partitions lie, as `sfdisk --dump` and `parted` wrote it into an image directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from restore.errors import Refused
from restore.source.clonezilla.directory import Directory
from targetmode.disks.layout import SECTOR_SIZES

_LINE: Final = re.compile(r"/dev/\S*?(\d+) *: *start= *(\d+), *size= *(\d+), *(?:Id|type)= *([0-9A-Fa-f-]+)(?:,.*)?")
_SETTING: Final = re.compile(r"([a-z-]+): *(\S+)")
_DISK: Final = re.compile(r"Disk /dev/[^:\s]+: *(\d+)s")
_SECTOR: Final = re.compile(r"Sector size \(logical/physical\): *(\d+)B/\d+B")
_MOST: Final = 1 << 63  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A partition of the dump.

    Attributes:
        number: from 1.
        start: first sector.
        sectors: how many.
        type: MBR type or GPT type GUID, in hexadecimal, lower case.
    """

    number: int
    start: int
    sectors: int
    type: str


@dataclass(frozen=True, slots=True)
class Layout:
    """What the dump says of a disk.

    Attributes:
        gpt: else it has an MBR.
        sector_size: bytes, the unit of all else.
        sectors: of the disk, as `parted` has it; None where it does not tell.
        entries: partitions, extended ones included, empty ones left out.
    """

    gpt: bool
    sector_size: int
    sectors: int | None
    entries: tuple[Entry, ...]


def read_layout(directory: Directory, disk: str) -> Layout:
    """What `DISK-pt.sf` and `DISK-pt.parted` say.

    Raises:
        Refused: there is no such dump, or it makes no sense.
        OSError: it cannot be read.
    """
    name = f"{disk}-pt.sf"
    path = directory.path / name
    if not directory.has(name):
        raise Refused(f"{path} is missing, which lists the disk's partitions")
    settings: dict[str, str] = {}
    entries = []
    for line in directory.text(name).splitlines():
        if match := _LINE.fullmatch(line.strip()):
            number, start, sectors = map(int, match.groups()[:3])
            if sectors:
                entries.append(Entry(number, start, sectors, match[4].lower()))
        elif match := _SETTING.fullmatch(line.strip()):
            settings[match[1]] = match[2]
        elif line.strip().startswith("/dev/"):
            raise Refused(f"{path} has a line that cannot be understood: {line.strip()!r}")
    label = settings.get("label", "dos")
    if label not in ("dos", "gpt"):
        raise Refused(f"{path} has a partition table of the kind {label!r}; only dos and gpt are known")
    if len({entry.number for entry in entries}) != len(entries):
        raise Refused(f"{path} lists a partition twice")
    parted = directory.text(f"{disk}-pt.parted")
    sector = settings.get("sector-size") or (found[1] if (found := _SECTOR.search(parted)) else "512")
    if sector not in map(str, SECTOR_SIZES):
        raise Refused(f"{path} has sectors of {sector} bytes, which cannot be")
    size = int(sector)
    told = _DISK.search(parted)
    ends = [entry.start + entry.sectors for entry in entries]
    total = int(told[1]) if told else None
    if max([*ends, total or 0]) * size > _MOST:
        raise Refused(f"{path} tells of more bytes than a disk can have")
    gpt = label == "gpt" or any(entry.type == "ee" for entry in entries)
    if label == "dos" and any(len(entry.type) > 2 for entry in entries):
        raise Refused(f"{path} has a partition of a type that cannot be")
    return Layout(gpt, size, total, tuple(entries))
