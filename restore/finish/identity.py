"""--new-ids: identifiers of the disk, its partitions and file systems are made new; what refers to them follows."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from restore import tools
from restore.errors import RestoreError
from restore.finish import references
from restore.finish.grow import check_ext, rebuild_directories
from restore.finish.volumes import ROOTS, Volume, device_of, medium_of, mounted_volume, reread, systems_in, volumes
from restore.partitions import gpt, mbr
from restore.partitions.gpt import GPTError
from restore.private.attach import Opened
from restore.private.process import uninterrupted
from targetmode.disks.layout import PartitionTable

_EXT: Final = ("ext2", "ext3", "ext4")
_RENEWED: Final = (*_EXT, "xfs", "btrfs", "vfat", "swap")


def renew(under: Opened, directory: Path) -> Iterator[str]:
    """Make new identifiers and follow them; gives a line for each change.

    Raises:
        RestoreError: one could not be changed.
        OSError: the disk cannot be read or written.
    """
    table, found = volumes(under)
    changed: dict[str, str] = {}
    for volume in found:
        if volume.kind not in _RENEWED or volume.signature is None or not volume.signature.uuid:
            if volume.signature is not None:
                yield f"{volume}: UUID left as it is; only ext, xfs, btrfs, vfat and swap get a new one"
            continue
        old, new = volume.signature.uuid, _fresh(volume)
        _set(under, volume, new, directory)
        changed[old] = new
        yield f"{volume}: UUID {old} is now {new}"
    if table is not None:
        yield from _renew_table(under, table, changed)
    for volume in found:
        yield from _follow(under, volume, changed, directory)


def _fresh(volume: Volume) -> str:
    if volume.kind == "vfat":
        number = secrets.randbelow((1 << 32) - 1) + 1
        return f"{number >> 16:04X}-{number & 0xFFFF:04X}"
    return str(uuid.uuid4())


def _set(under: Opened, volume: Volume, new: str, directory: Path) -> None:
    if volume.kind == "xfs":
        with mounted_volume(under, volume, directory):
            pass  # its log is replayed, without which xfs_admin refuses
    with device_of(under, volume) as device, uninterrupted():
        if volume.kind in _EXT:
            check_ext(device)
            said = tools.run(["tune2fs", "-U", new, device], text="y\n")
            if "e2fsck -fD" in said.out + said.err:
                rebuild_directories(device)
            check_ext(device)
        elif volume.kind == "xfs":
            tools.run(["xfs_admin", "-U", new, device])
        elif volume.kind == "btrfs":
            tools.run(["btrfstune", "-f", "-M", new, device], text="y\n")
        elif volume.kind == "swap":
            tools.run(["swaplabel", "-U", new, device])
        else:
            tools.run(["fatlabel", "-i", device, new.replace("-", "")])  # mlabel would drop the label


def _renew_table(under: Opened, table: PartitionTable, changed: dict[str, str]) -> Iterator[str]:
    medium = medium_of(under)
    if table.scheme == "mbr":
        old, new = mbr.renew(medium)
        changed[old] = new
        for partition in table.partitions:
            changed[f"{old}-{partition.number:02x}"] = f"{new}-{partition.number:02x}"
        yield f"Disk: identifier {old} is now {new}"
    else:
        try:
            found = gpt.load(medium)
            if found is None:
                return
            old = found.disk_guid
            changed.update(found.renew())
            found.store()
        except GPTError as error:
            yield f"Disk: GUIDs left as they are: {error}"
            return
        yield f"Disk: GUID {old} is now {found.disk_guid}"
        for partition in table.partitions:
            if partition.uuid in changed:
                yield f"Partition {partition.number}: GUID {partition.uuid} is now {changed[partition.uuid]}"
    reread(under)


def _follow(under: Opened, volume: Volume, changed: dict[str, str], directory: Path) -> Iterator[str]:
    if volume.kind in ROOTS:
        current = next(same for same in volumes(under)[1] if same.offset == volume.offset)
        try:
            with systems_in(under, current, directory) as (rooted, prefixes):
                for prefix in prefixes:
                    for path in references.follow_in_system(rooted, prefix, changed):
                        yield f"{volume}: {path} refers to the new identifiers"
        except OSError as error:
            raise RestoreError(f"{volume}: {error.filename}: {error.strerror}") from None
    elif volume.kind == "vfat":
        with device_of(under, volume) as device:
            for path in references.follow_in_esp(device, changed):
                yield f"{volume}: {path} refers to the new identifiers"
