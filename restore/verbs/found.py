"""What `--verbose` says: what was found of source and target, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterator

from restore.source import Image, Source
from restore.source.contents import contents_of
from restore.target import Target
from targetmode.disks.text import format_size


def found(image: Image, source: Source, target: Target) -> Iterator[str]:
    """A line of each of them.

    Args:
        image: as it was opened.
        source: it, or a reader of it.
        target: where it goes.

    Raises:
        RestoreError, NBDError, OSError: one cannot be read.
    """
    yield found_source(image, source)
    facts = target.facts
    words = [target.name, facts.kind]
    if facts.partition_of is not None:
        words.append(f"partition of {facts.partition_of}")
    words.append(_size(target.size))
    if facts.sector_size is not None:
        words.append(f"sectors of {facts.sector_size} bytes")
    if facts.access:
        words.append(facts.access)
    yield f"Target: {', '.join(words)}; {target.contents()}"


def found_source(image: Image, source: Source) -> str:
    """Format, size, scan and what is on it.

    Raises:
        RestoreError, OSError: it cannot be read.
    """
    from restore.manifest.checked import Prepared

    size = "size not known yet" if source.size is None else _size(source.size)
    scan = "checked by its scan" if isinstance(image.source, Prepared) else "no scan"
    return f"Source: {source.name}, {image.format}, {size}, {scan}; {contents_of(source) or 'unreadable'}"


def _size(size: int) -> str:
    return f"{format_size(size)} ({size} bytes)"
