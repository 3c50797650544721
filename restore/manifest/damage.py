"""The map beside an image of a failing disk, `IMAGE.map`: what of it could not be read, and is zeroes in the image.

The format is that of ddrescue's mapfile (GNU ddrescue manual, "Mapfile structure"): comments, a line with the current
position and status, then contiguous blocks as position, size and status: `+` finished, `-` bad sector, `?` non-tried,
`*` non-trimmed, `/` non-scraped. ddrescue and ddrescuelog read ours; an image that ddrescue made has one too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from restore.errors import Refused, join
from restore.manifest import ManifestError
from restore.replacing import replacing
from targetmode.disks.text import format_size, printable

_LIMIT: Final = 256 << 20  # bytes of the file
_NUMBER: Final = r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,19})"
_STATUS: Final = re.compile(rf"{_NUMBER}\s+[?*/\-+FG](?:\s+[0-9]{{1,9}})?")
_BLOCK: Final = re.compile(rf"{_NUMBER}\s+{_NUMBER}\s+([?*/\-+])")


def map_path(image: str | Path) -> Path:
    """Where the map of an image is."""
    return Path(f"{image}.map")


def write_map(path: str | Path, size: int, bad: Iterable[tuple[int, int]]) -> None:
    """Write a map, which appears whole or not at all.

    Args:
        path: of the map.
        size: bytes of the image.
        bad: (offset, length) of what could not be read.

    Raises:
        OSError: it cannot be written.
    """
    lines = [
        "# Mapfile of what an asr capture could read; ddrescue and ddrescuelog read it too",
        "# current_pos  current_status  current_pass",
        "0x00000000     +               1",
        "#      pos        size  status",
    ]
    position = 0
    for offset, length in join(list(bad)):
        if offset > position:
            lines.append(f"0x{position:08X}  0x{offset - position:08X}  +")
        lines.append(f"0x{offset:08X}  0x{length:08X}  -")
        position = offset + length
    if position < size:
        lines.append(f"0x{position:08X}  0x{size - position:08X}  +")
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def read_map(path: str | Path, size: int) -> list[tuple[int, int]] | None:
    """What of an image of `size` bytes was not read, by its map.

    Returns:
        (offset, length), in order, neighbours joined: all that the map does not call finished. None if there is none.

    Raises:
        ManifestError: it is not such a map.
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LIMIT + 1)
    except FileNotFoundError:
        return None
    if len(data) > _LIMIT:
        raise _not_a_map(path, f"it is larger than {_LIMIT >> 20} MiB")
    bad: list[tuple[int, int]] = []
    position: int | None = None  # where the next block begins; None before the status line
    for number, raw in enumerate(data.split(b"\n"), start=1):
        line = raw.partition(b"#")[0].decode("ascii", "replace").strip()
        if not line:
            continue
        if position is None:
            if not _STATUS.fullmatch(line):
                raise _not_a_map(path, f"line {number} is {printable(line[:40])!r}")
            position = 0
            continue
        found = _BLOCK.fullmatch(line)
        if found is None:
            raise _not_a_map(path, f"line {number} is {printable(line[:40])!r}")
        start, length = _integer(found[1]), _integer(found[2])
        if start < position:
            raise _not_a_map(path, f"line {number} is of what came before it")
        if start > position:
            bad.append((position, start - position))
        if found[3] != "+":
            bad.append((start, length))
        position = start + length
    if position is None:
        raise _not_a_map(path, "it is empty")
    if position < size:
        bad.append((position, size - position))
    clipped = [(offset, min(length, size - offset)) for offset, length in bad if offset < size and length]
    return join(clipped)


def check_damage(image: str | Path, size: int, *, allow_bad: bool) -> list[tuple[int, int]]:
    """See whether an image is whole.

    Args:
        image: path of its file.
        size: bytes of the image.
        allow_bad: one that is not is wanted all the same.

    Returns:
        What of it could not be read when it was made, and is zeroes: (offset, length).

    Raises:
        Refused: there is some, and it is not allowed; or the map beside the image cannot be understood.
        OSError: the map cannot be read.
    """
    path = map_path(image)
    bad = read_map(path, size)
    if bad and not allow_bad:
        total, where = sum(length for _, length in bad), f"from byte {bad[0][0]} on"
        ranges = "1 range" if len(bad) == 1 else f"{len(bad)} ranges, the first"
        raise Refused(
            f"{image} is not whole: {format_size(total)} of it could not be read when it was made ({ranges} {where}; "
            f"see {path}); with --allow-bad they are restored as the image has them"
        )
    return bad or []


def _integer(text: str) -> int:
    return int(text, 16) if text[:2] in ("0x", "0X") else int(text)


def _not_a_map(path: str | Path, why: str) -> ManifestError:
    return ManifestError(f"{path} is not a map of ddrescue's ({why}); if it belongs to something else, move it away")
