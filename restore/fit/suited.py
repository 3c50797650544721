"""Whether an image and its target are of one kind: a disk with partitions belongs on a disk, not on a partition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from restore.errors import Refused
from restore.source import Source
from restore.source.contents import reader_of
from restore.target import Target
from targetmode.disks.contents import Contents
from targetmode.disks.layout import SECTOR_SIZES

_GPT: Final = b"EFI PART"


def check_suited(source: Source, contents: Contents | None, target: Target) -> None:
    """See that a disk is not put on a partition, where nothing finds the partitions within it.

    An image that is a file system as well, such as a hybrid ISO image, may go anywhere.

    Args:
        source: the image.
        contents: what is on it.
        target: where it goes.

    Raises:
        Refused: it is.
    """
    if contents is None or contents.table is None or not contents.table.partitions or contents.signature is not None:
        return
    disk = target.facts.partition_of
    if disk is not None:
        raise Refused(
            f"{source.name} is a whole disk with a partition table, and {target.name} is a partition of {disk}, where "
            f"its partitions would not be found; name {disk} as the target"
        )


def doubts(source: Source, contents: Contents | None, target: Target) -> Iterator[str]:
    """What is worth a line of how an image and its target go together.

    Raises:
        SourceError, OSError: the source cannot be read, or the target.
    """
    if contents is None:
        return
    if contents.table is not None:
        yield from _sectors(source, contents, target)
    elif contents.signature is not None and target.facts.partition_of is None:
        held = target.contents()
        if held.table is not None and held.table.partitions:
            yield (
                f"{source.name} is a volume without a partition table: {target.name} loses the one it has, and its "
                f"{len(held.table.partitions)} partitions"
            )


def _sectors(source: Source, contents: Contents, target: Target) -> Iterator[str]:
    """A partition table counts in sectors; a GPT tells how large those are by where it begins."""
    size = target.facts.sector_size
    if size not in SECTOR_SIZES or contents.table is None or contents.table.scheme != "gpt":
        return
    read = reader_of(source)
    made_for = next((each for each in SECTOR_SIZES if read(each, len(_GPT)) == _GPT), size)
    if made_for != size:
        yield (
            f"The partition table of {source.name} counts in sectors of {made_for} bytes and {target.name} has {size}: "
            "no system finds the partitions there"
        )
