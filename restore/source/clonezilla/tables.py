"""The bytes of a disk's partition tables, from what an image directory has of them (UEFI 2.10 sections 5.2 and 5.3).

An MBR is kept whole, and the first extended boot record; those that follow it are made from the dump of the table, as
`sfdisk` does when Clonezilla restores. Of a GPT there are the first 34 sectors of 512 bytes. The second copy is made of
the first: the file that Clonezilla keeps of it (`DISK-gpt-2nd`) lacks its first sector, since `dd` is told to begin one
too late.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from construct import ConstructError

from restore.errors import Refused
from restore.partitions.mbr import chs
from restore.source.clonezilla.directory import Directory
from restore.source.clonezilla.layout import Entry, Layout
from targetmode.disks import gpt, mbr
from targetmode.disks.layout import Partition, Reader
from targetmode.disks.table import read_table

_CODE: Final = 446  # bytes of a boot record before its partition records
_GPT_LIMIT: Final = 2 << 20
_HIDDEN_LIMIT: Final = 1 << 30  # bytes between the MBR and the first partition; Clonezilla keeps no more either
_LINK: Final = 0x05  # type of the record that leads to the next extended boot record


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of the disk.

    Attributes:
        offset: of the first, in bytes.
        data: they.
    """

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """Behind the last, in bytes of the disk."""
        return self.offset + len(self.data)


@dataclass(frozen=True, slots=True)
class Tables:
    """A disk without what is in its partitions.

    Attributes:
        size: of the disk, in bytes.
        regions: that are not in a partition, in order.
        partitions: as they are read from those regions; extended ones are left out.
        exact: the disk's size is known; else it ends where its last partition does.
    """

    size: int
    regions: tuple[Region, ...]
    partitions: tuple[Partition, ...]
    exact: bool


def read_tables(directory: Directory, disk: str, layout: Layout) -> Tables:
    """The tables of a disk.

    Raises:
        Refused: a file of them is missing or damaged, or what they say differs from the dump.
        OSError: a file cannot be read.
    """
    tables = _gpt(directory, disk, layout) if layout.gpt else _mbr(directory, disk, layout)
    _compare(directory, disk, layout, tables)
    return tables


def _mbr(directory: Directory, disk: str, layout: Layout) -> Tables:
    sector_size = layout.sector_size
    ends = [entry.start + entry.sectors for entry in layout.entries]
    sectors = max([layout.sectors or 0, *ends])  # old versions of parted told the last sector, not how many
    record = directory.data(f"{disk}-mbr", 512)
    if not mbr.has_boot_signature(record):
        raise Refused(f"{directory.path}/{disk}-mbr is no boot record")
    regions = [Region(0, record)]
    hidden = f"{disk}-hidden-data-after-mbr"
    if directory.has(hidden):
        regions.append(Region(512, directory.data(hidden, _HIDDEN_LIMIT)))
    regions += (Region(lba * sector_size, data) for lba, data in _extended(directory, disk, layout))
    return _assembled(regions, sectors * sector_size, sector_size, exact=layout.sectors is not None)


def _extended(directory: Directory, disk: str, layout: Layout) -> Iterator[tuple[int, bytes]]:
    """The extended boot records, each with the sector where it goes."""
    separator = "p" if disk[-1:].isdigit() else ""
    containers = [entry for entry in layout.entries if int(entry.type, 16) in mbr.EXTENDED_TYPES and entry.number < 5]
    logical = sorted((entry for entry in layout.entries if entry.number > 4), key=lambda entry: entry.number)
    if not containers:
        if logical:
            raise Refused(f"{directory.path}/{disk}-pt.sf lists logical partitions without an extended one")
        return
    if len(containers) > 1:
        raise Refused(f"{directory.path}/{disk}-pt.sf lists several extended partitions")
    container = containers[0]
    kept = f"{disk}{separator}{container.number}-ebr"
    first = directory.data(kept, 512) if directory.has(kept) else b""
    at = container.start
    places = _places(directory, disk, container, logical, _second(first, container))
    for index, (entry, at) in enumerate(zip(logical, places, strict=True)):
        following = (logical[index + 1], places[index + 1]) if index + 1 < len(logical) else None
        code = first[:_CODE] if index == 0 and mbr.has_boot_signature(first) else bytes(_CODE)
        yield at, code + _records(entry, at, following, container.start) + b"\x55\xaa"
    if not logical:
        yield at, (first[:_CODE] or bytes(_CODE)) + bytes(64) + b"\x55\xaa"


def _places(
    directory: Directory, disk: str, container: Entry, logical: Sequence[Entry], second: int | None
) -> list[int]:
    """The sector of each logical partition's boot record: as far before it as the first is, where there is room."""
    places = []
    free, end = container.start, container.start + container.sectors
    gap = logical[0].start - container.start if logical else 0
    for index, entry in enumerate(logical):
        if not free < entry.start < entry.start + entry.sectors <= end:
            raise Refused(f"{directory.path}/{disk}-pt.sf: partition {entry.number} has no room where it is")
        place = max(free, entry.start - gap) if index else free
        if index == 1 and second is not None and free <= second < entry.start:
            place = second
        places.append(place)
        free = entry.start + entry.sectors
    return places


def _second(first: bytes, container: Entry) -> int | None:
    """Where the first extended boot record, if it was kept, leads to."""
    try:
        record = mbr.BOOT_RECORD.parse(first)
    except ConstructError:
        return None
    for entry in record.partition_record:
        if entry.os_type in mbr.EXTENDED_TYPES and entry.size_in_lba:
            return int(container.start + entry.starting_lba)
    return None


def _records(entry: Entry, at: int, following: tuple[Entry, int] | None, base: int) -> bytes:
    """The four partition records of the extended boot record at sector `at`."""
    records = _record(int(entry.type, 16), entry.start, entry.sectors, at)
    if following is not None:
        other, place = following
        records += _record(_LINK, place, other.start + other.sectors - place, base)
    return records.ljust(64, b"\0")


def _record(kind: int, start: int, sectors: int, base: int) -> bytes:
    """A partition record whose address counts from sector `base`."""
    return bytes(
        mbr.RECORD.build(
            {
                "boot_indicator": 0,
                "starting_chs": chs(start),
                "os_type": kind,
                "ending_chs": chs(start + sectors - 1),
                "starting_lba": start - base,
                "size_in_lba": sectors,
            }
        )
    )


def _gpt(directory: Directory, disk: str, layout: Layout) -> Tables:
    name, sector_size = f"{disk}-gpt-1st", layout.sector_size
    kept = bytearray(directory.data(name, _GPT_LIMIT))
    if directory.has(f"{disk}-mbr"):
        kept[:_CODE] = directory.data(f"{disk}-mbr", 512)[:_CODE]
    try:
        alternate = gpt.HEADER.parse(bytes(kept[sector_size : 2 * sector_size])).alternate_lba
    except ConstructError:
        raise Refused(f"{directory.path}/{name} has no GPT in sector 1") from None
    last = max(alternate, (layout.sectors or 0) - 1)
    copy = gpt.read_copy(_reader([Region(0, bytes(kept))]), 1, last, sector_size)
    array_sectors = -(-len(copy.array) // sector_size) if copy else 0
    if copy is None or alternate <= copy.header.last_usable_lba + array_sectors:
        raise Refused(f"{directory.path}/{name} is damaged: its GPT's checksums or addresses are not right")
    array = copy.array.ljust(array_sectors * sector_size, b"\0")
    array_lba = alternate - array_sectors
    backup = _backup_header(copy, array_lba).ljust(sector_size, b"\0")
    regions = [
        Region(0, bytes(kept[:512])),
        Region(sector_size, copy.raw_header.ljust(sector_size, b"\0")),
        Region(copy.header.partition_entry_lba * sector_size, array),
        Region(array_lba * sector_size, array + backup),
    ]
    return _assembled(regions, (last + 1) * sector_size, sector_size, exact=True)


def _backup_header(copy: gpt.Copy, array_lba: int) -> bytes:
    """The header of the second copy (section 5.3.2): the first one's, but for the addresses."""
    header = dict(copy.header)
    places = {"my_lba": header["alternate_lba"], "alternate_lba": 1, "partition_entry_lba": array_lba}
    known: bytes = gpt.HEADER.build({**header, **places, "header_crc32": 0})
    raw = known + copy.raw_header[len(known) :]
    return raw[:16] + gpt.header_crc(raw).to_bytes(4, "little") + raw[20:]


def _assembled(regions: list[Region], size: int, sector_size: int, *, exact: bool) -> Tables:
    ordered = tuple(sorted(regions, key=lambda region: region.offset))
    table = read_table(_reader(ordered), size, sector_size)
    return Tables(size, ordered, table.partitions if table else (), exact)


def _reader(regions: Sequence[Region]) -> Reader:
    """Reads a disk of which only these regions are known, and all else is zero."""

    def read(offset: int, length: int) -> bytes:
        found = bytearray(length)
        for region in regions:
            start, end = max(region.offset, offset), min(region.end, offset + length)
            if start < end:
                found[start - offset : end - offset] = region.data[start - region.offset : end - region.offset]
        return bytes(found)

    return read


def _compare(directory: Directory, disk: str, layout: Layout, tables: Tables) -> None:
    """See that the tables say what the dump says; somebody may have edited that for another disk."""
    if layout.gpt and any(entry.type == "ee" for entry in layout.entries):
        return  # of an sfdisk that did not know GPT; the dump is of the protective MBR
    unit = layout.sector_size
    dumped: dict[int, tuple[int, int]] = {}
    for entry in layout.entries:
        if layout.gpt or int(entry.type, 16) not in mbr.EXTENDED_TYPES:
            dumped[entry.number] = (entry.start * unit, entry.sectors * unit)
    there: dict[int, Any] = {found.number: (found.start, found.length) for found in tables.partitions}
    for number in sorted(dumped.keys() | there.keys()):
        if dumped.get(number) != there.get(number):
            saved = f"{disk}-gpt-1st" if layout.gpt else f"{disk}-mbr"
            raise Refused(f"{directory.path}: {disk}-pt.sf and {saved} differ in partition {number}; one was changed")
