"""Image directories of Clonezilla: a whole disk as one image, or one of its partitions.

    directory.py   the files of an image: what was saved, and where each partition's image is
    layout.py      where partitions lie, as `sfdisk` and `parted` wrote it down
    tables.py      the bytes of partition tables: MBR, extended boot records, both copies of a GPT
    swap.py        swap space made anew
    disk.py        all of it put together: a `Stream` of the disk

Clonezilla keeps of a disk: its tables, what lies between the MBR and the first partition, an image of each file system
(partclone's, else all of the partition's bytes), and of swap space only UUID and label. What is in none of them reads
as zeroes. The layout of the directory is that of the functions `task_savedisk`, `save_part_table_mbr_dm_info` and
`image_save` in Clonezilla's `ocs-functions`.
"""

from __future__ import annotations

from pathlib import Path


def is_clonezilla(place: Path) -> bool:
    """Whether a place is an image directory of Clonezilla, or a disk or partition in one, such as `image/sda`."""
    if place.is_dir():
        return _is_directory(place)
    return not place.exists() and _is_directory(place.parent)


def _is_directory(path: Path) -> bool:
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError:
        return False
    return not names.isdisjoint(("parts", "disk")) and any(name.endswith("-pt.sf") or "-img" in name for name in names)
