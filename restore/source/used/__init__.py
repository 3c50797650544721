"""Which blocks of a disk, a partition or a raw image are in use, learnt from its file systems.

    facts.py       what a file system says of itself: is it clean, how much is in use, what always is
    partclone.py   the map of most of them, from `partclone.<fs> -D`
    btrfs.py       that of btrfs, from its own tools
    exported.py    all that for an export
    runs.py        many runs in little memory

No map is believed as it is. A file system that was not unmounted cleanly has none; a map has to be in order, to be as
long as the file system, and to have at least as much in use as the file system counts itself. Superblocks are in use
whatever it says, so are the first and the last MiB of each volume, and all that is in no partition: partition tables,
boot loaders, extended boot records, and what nobody knows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from nbd.backend import Extent
from restore.errors import Refused, RestoreError
from restore.private.attach import Opened, loop, opened
from restore.source.used import btrfs, partclone
from restore.source.used.facts import Unmapped, check_device, facts_of, kind_of
from restore.source.used.runs import Run, Runs
from targetmode.disks.layout import Reader, fd_reader
from targetmode.disks.table import read_table

EDGE: Final = 1 << 20  # bytes at either end of a volume that are in use whatever the map says
_SILENT: Final = frozenset(
    {"", "LVM2_member", "crypto_LUKS", "linux_raid_member", "zfs_member", "BitLocker", "iso9660", "squashfs", "jbd"}
)
"""What is in use throughout, or what only its owner can tell of: nothing has to be said of it."""


class UsedBlocks:
    """The used blocks of a disk: as an iterable the extents from its first byte on, those not in use as holes.

    Attributes:
        size: bytes of the disk.
        used: bytes of them that are in use.
        unused: the runs that are not.
    """

    def __init__(self, size: int, unused: Runs) -> None:
        """Of a disk of `size` bytes all but the runs that are not in use."""
        self.size = size
        self.used = size - sum(end - start for start, end in unused)
        self.unused = unused

    def __iter__(self) -> Iterator[Extent]:
        """What is not in use is told as zeroes, as which it is to arrive."""
        position = 0
        for start, end in self.unused:
            if position < start:
                yield Extent(start - position, hole=False, zero=False)
            yield Extent(end - start, hole=True, zero=True)
            position = end
        if position < self.size:
            yield Extent(self.size - position, hole=False, zero=False)


def used_blocks_of(path: str | os.PathLike[str], note: Callable[[str], None]) -> UsedBlocks | None:
    """The used blocks of a raw image file, a disk or a partition; as `used_blocks`.

    Raises:
        Refused: it is not there, or in use.
        OSError: it cannot be read.
    """
    with opened(os.fspath(path), read_only=True) as found:
        return used_blocks(found, note)


def used_blocks(of: Opened, note: Callable[[str], None]) -> UsedBlocks | None:
    """The used blocks of what is open.

    Args:
        of: open to be read; nothing writes it meanwhile.
        note: told in one line of each volume all of which counts as used since its map cannot be had.

    Returns:
        None where nothing is known of any volume.
    """
    try:
        volumes = _volumes(of)
    except OSError as error:  # a bad sector must not keep the others from being read
        note(f"{of.name} cannot be read where it says what it holds ({error.strerror}), so all of it counts as used")
        return None
    if os.geteuid() != 0 and any(volume.kind not in _SILENT for volume in volumes):
        note(f"{of.name}: only root can find out which blocks its file systems use, so all of it counts as used")
        return None
    unused = Runs()
    hindered: dict[
        str, list[str]
    ] = {}  # what is missing on this machine, and of which volumes nothing is known for that
    for volume in volumes:
        try:
            found = _unused(of, volume)
        except Refused as error:
            hindered.setdefault(str(error), []).append(volume.name)
        except (Unmapped, RestoreError) as error:
            if volume.kind not in _SILENT:
                note(f"{volume.name} {error}, so all of it counts as used")
        except OSError as error:
            note(f"{volume.name} cannot be read ({error.strerror}), so all of it counts as used")
        else:
            for start, end in found:
                unused.add(start, end)
    for what, names in hindered.items():
        note(f"{what}; as it is, all of {', '.join(names)} counts as used")
    return UsedBlocks(of.size, unused) if len(unused) else None


@dataclass(frozen=True, slots=True)
class _Volume:
    """A partition, or all of a disk that has none.

    Attributes:
        name: for people, with what it holds.
        kind: of what it holds, as blkid names it; empty where that is not known.
        start, end: where it lies, in bytes.
        alone: no other partition lies on the same blocks.
        read: reads from where it begins.
    """

    name: str
    kind: str
    start: int
    end: int
    alone: bool
    read: Reader


def _volumes(of: Opened) -> list[_Volume]:
    """As they lie on the disk."""
    read = fd_reader(of.fd)
    table = read_table(read, of.size, of.sector_size)
    if table is None:
        kind = kind_of(read, of.size)
        return [_Volume(f"{of.name} ({kind})", kind, 0, of.size, alone=True, read=read)]
    volumes = []
    for this in sorted(table.partitions, key=lambda partition: partition.start):
        end = this.start + this.length
        others = [other for other in table.partitions if other is not this]
        alone = all(end <= other.start or other.start + other.length <= this.start for other in others)
        inner = _reader_at(read, this.start)
        try:
            kind = kind_of(inner, this.length)
        except OSError:
            kind = ""
        name = f"partition {this.number} of {of.name} ({kind})"
        volumes.append(_Volume(name, kind, this.start, end, alone, inner))
    return volumes


def _reader_at(read: Reader, start: int) -> Reader:
    return lambda offset, length: read(start + offset, length)


def _unused(of: Opened, volume: _Volume) -> Iterator[Run]:
    """The runs of a volume that are not in use, as they lie on the disk.

    Raises:
        Unmapped, RestoreError, OSError: they are not known.
    """
    if not volume.alone:
        raise Unmapped("shares blocks with another partition")
    length = volume.end - volume.start
    facts = facts_of(volume.kind, volume.read, length)
    if facts.known is not None:
        runs = facts.known
    else:
        with loop(of, volume.start, length) as device:
            check_device(facts.kind, device)
            runs = btrfs.unused(device, facts) if facts.kind == "btrfs" else partclone.unused(device, facts)
    if facts.unused is not None and facts.kind != "btrfs" and runs.total > facts.unused:
        raise Unmapped(f"has {runs.total} unused bytes on its map, but counts only {facts.unused}")
    return (
        (volume.start + start, volume.start + end)
        for start, end in runs.without([(0, EDGE), *facts.reserved, (max(length - EDGE, 0), length)])
    )
