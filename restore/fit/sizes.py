"""Whether an image and its partitions fit a target, before anything is written."""

from __future__ import annotations

from typing import Final

from restore.errors import Refused
from restore.source import Source
from restore.source.contents import reader_of
from restore.target import Target
from targetmode.disks.contents import Contents
from targetmode.disks.layout import Partition, PartitionTable, Reader
from targetmode.disks.table import read_table
from targetmode.disks.text import format_size

ANY_SIZE: Final = 1 << 62  # bytes, of an image whose size is not known
_LISTED: Final = 4
_SECTOR: Final = 512  # bytes, where the table does not tell of others
_CYLINDER: Final = 255 * 63 * 512  # bytes, to which old tools rounded an MBR's last partition, beyond the image's end


def claimed_size(source: Source, contents: Contents | None) -> int:
    """How large an image has to be by what is on it, where only decoding it all would tell; else 0.

    Args:
        source: it.
        contents: what is on it, as if it were of any size.
    """
    if source.size is not None or contents is None:
        return 0
    if contents.table is not None:
        return max((partition.start + partition.length for partition in contents.table.partitions), default=0)
    return _filesystem_size(contents, reader_of(source))


def _filesystem_size(contents: Contents, read: Reader) -> int:
    """Bytes of the file system that an image is; 0 where there is none that tells."""
    if contents.signature is None:
        return 0
    from restore.source.used.facts import Unmapped, facts_of  # which takes long to load

    try:
        return facts_of(contents.signature.kind, read, ANY_SIZE).size
    except (Unmapped, OSError):
        return 0


def check_size(source: Source, target: Target, claimed: int = 0) -> None:
    """See that an image is no larger than a target, as far as its size is known.

    Args:
        source: the image.
        target: where it goes.
        claimed: bytes that it has at least.

    Raises:
        Refused: it is, with the sizes.
    """
    size = max(source.least_size, claimed)
    if target.size < size:
        least = "" if source.size is not None else "at least "
        raise Refused(
            f"{target.name} is too small: it has {target.size} bytes ({format_size(target.size)}), "
            f"{source.name} has {least}{size} ({format_size(size)})"
        )


def check_whole(source: Source, contents: Contents | None) -> None:
    """See that an image is as long as its partition table or file system says.

    Args:
        source: the image.
        contents: what is on it.

    Raises:
        Refused: it is not: it was cut short.
    """
    size = source.size
    if size is None:
        return
    inside = reader_of(source)

    def read(offset: int, length: int) -> bytes:
        return inside(offset, max(min(length, size - offset), 0)).ljust(length, b"\0")

    try:
        table = read_table(read, ANY_SIZE, _SECTOR)
    except OSError:
        return
    if table is None:
        wanted = 0 if contents is None else _filesystem_size(contents, read)
        if contents is not None and contents.signature is not None and wanted > size:
            raise Refused(
                f"{source.name} is cut short: it has {size} bytes ({format_size(size)}), and its file system "
                f"({contents.signature.kind}) {wanted} ({format_size(wanted)}); get a whole copy of it, or add zeroes "
                f"if only those are missing: truncate -s {wanted} FILE"
            )
        return
    room = _CYLINDER if table.scheme == "mbr" else 0
    for partition in table.partitions:
        if partition.start + partition.length > size + room:
            raise Refused(
                f"{source.name} is cut short: it has {format_size(size)}, and its {_say(partition)} goes on behind "
                "that; get a whole copy of it (--keep-table restores it as it is)"
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
