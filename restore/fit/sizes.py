"""Whether an image and its partitions fit a target, before anything is written."""

from __future__ import annotations

from restore.errors import Refused
from restore.source import Source
from restore.target import Target
from targetmode.disks.layout import Partition, PartitionTable
from targetmode.disks.text import format_size

_LISTED = 4


def check_size(source: Source, target: Target) -> None:
    """See that an image is no larger than a target, as far as its size is known.

    Raises:
        Refused: it is, with the sizes.
    """
    if target.size < source.least_size:
        least = "" if source.size is not None else "at least "
        raise Refused(
            f"{target.name} is too small: it has {target.size} bytes ({format_size(target.size)}), "
            f"{source.name} has {least}{source.least_size} ({format_size(source.least_size)})"
        )


def check_partitions(table: PartitionTable, source: str, target: str, size: int) -> None:
    """See that every partition of a source's table lies within the target.

    Args:
        table: of the source.
        source, target: names, for people.
        size: of the target, in bytes.

    Raises:
        Refused: some do not; one line that names them, with sizes.
    """
    beyond = [partition for partition in table.partitions if partition.start + partition.length > size]
    if not beyond:
        return
    listed = ", ".join(_say(partition) for partition in beyond[:_LISTED])
    more = f" and {len(beyond) - _LISTED} more" if len(beyond) > _LISTED else ""
    verb = "does" if len(beyond) == 1 else "do"
    raise Refused(
        f"{target} is too small for {source}: it has {format_size(size)}, where {listed}{more} {verb} not fit"
    )


def _say(partition: Partition) -> str:
    name = f' "{partition.name}"' if partition.name else ""
    end = format_size(partition.start + partition.length)
    return f"partition {partition.number}{name} ({format_size(partition.length)}, ends at {end})"
