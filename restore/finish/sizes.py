"""Whether a source's partitions fit a target, before anything is written."""

from __future__ import annotations

from restore.errors import Refused
from targetmode.disks.layout import Partition, PartitionTable
from targetmode.disks.text import format_size

_LISTED = 4


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
