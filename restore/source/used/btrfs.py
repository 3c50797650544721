"""The used blocks of btrfs, from its extent tree and its chunks, as `btrfs inspect-internal dump-tree` prints them.

Not from partclone.btrfs, whose map lacks second copies of metadata, which `btrfs check` then misses.
"""

from __future__ import annotations

import re
import subprocess
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from restore import tools
from restore.source.used.facts import Facts, Unmapped
from restore.source.used.runs import Runs

_EXTENT: Final = re.compile(rb"\titem \d+ key \((\d{1,20}) (EXTENT_ITEM|METADATA_ITEM) (\d{1,20})\)")
_CHUNK: Final = re.compile(rb"\titem \d+ key \(FIRST_CHUNK_TREE CHUNK_ITEM (\d{1,20})\)")
_LENGTH: Final = re.compile(rb"\t\tlength (\d{1,20}) owner \d+ stripe_len \d+ type (\S+)")
_STRIPE: Final = re.compile(rb"\t\t\tstripe \d+ devid \d+ offset (\d{1,20})")
_PROFILES: Final = (b"single", b"DUP")
_LONGEST: Final = 64 << 10  # bytes of a line


def unused(device: Path, facts: Facts) -> Runs:
    """The runs of a btrfs on one device that are not in use.

    Args:
        device: that it begins at the start of; it is only read.
        facts: what is known of it.

    Raises:
        Unmapped: the extents contradict that.
        RestoreError: btrfs-progs is missing, or fails.
    """
    starts, ends = _extents(device, facts)
    found, position, placed = Runs(), 0, 0
    for physical, logical, length in sorted(_stripes(device)):
        if physical < position or physical + length > facts.size:
            raise Unmapped("has chunks that overlap")
        index = bisect_left(starts, logical)
        while index < len(starts) and starts[index] < logical + length:
            if ends[index] > logical + length:
                raise Unmapped("has an extent that goes on in another chunk")
            start, end = (physical - logical + at for at in (starts[index], ends[index]))
            if position < start:
                found.add(position, start)
            position = end
            placed += 1
            index += 1
    if placed < len(starts):
        raise Unmapped("has extents in no chunk")
    if position < facts.size:
        found.add(position, facts.size)
    return found


def _extents(device: Path, facts: Facts) -> tuple[array[int], array[int]]:
    """Where the allocated extents start and end, in btrfs's own addresses, in order."""
    starts, ends, total = array("Q"), array("Q"), 0
    with _dump(device, "extent") as lines:
        for line in lines:
            match = _EXTENT.match(line)
            if match is None:
                continue
            start = int(match[1])
            length = facts.nodesize if match[2] == b"METADATA_ITEM" else int(match[3])
            if not length or start + length >= 1 << 64 or (ends and start < ends[-1]):
                raise Unmapped("has extents that overlap")
            total += length
            starts.append(start)
            ends.append(start + length)
    if facts.unused is None or total != facts.size - facts.unused:
        raise Unmapped("has other extents than it counts itself")
    return starts, ends


def _stripes(device: Path) -> list[tuple[int, int, int]]:
    """Where chunks lie: offset on the device, in btrfs's own addresses, and length."""
    stripes: list[tuple[int, int, int]] = []
    logical = length = None
    with _dump(device, "chunk") as lines:
        for line in lines:
            if match := _CHUNK.match(line):
                logical, length = int(match[1]), None
            elif match := _LENGTH.match(line):
                length = int(match[1])
                if not match[2].endswith(tuple(b"|" + profile for profile in _PROFILES)):
                    raise Unmapped(
                        f"has chunks of a kind that is not known here: {match[2].decode('ascii', 'replace')}"
                    )
            elif match := _STRIPE.match(line):
                if logical is None or not length:
                    raise Unmapped("has chunks that cannot be read")
                stripes.append((int(match[1]), logical, length))
    return stripes


@contextmanager
def _dump(device: Path, tree: str) -> Iterator[Iterator[bytes]]:
    """The lines of a tree.

    Raises:
        Unmapped: the tree cannot be read.
        RestoreError: btrfs-progs is missing.
    """
    command = [tools.find("btrfs"), "inspect-internal", "dump-tree", "--hide-names", "-t", tree, str(device)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=tools.environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout as out:
            yield iter(lambda: out.readline(_LONGEST), b"")
        if process.wait():
            raise Unmapped(f"has a tree that cannot be read: {tree}")
    finally:
        process.kill()
        process.wait()
