"""The manifest of the image that is served: its scan, or one that is made for the purpose."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from restore.manifest import signature
from restore.manifest.beside import bmap_path
from restore.manifest.bmap import Bmap, write
from restore.manifest.parsing import parse
from restore.manifest.scan import scan
from restore.multicast.layout import is_streamable
from restore.source import Source


@dataclass(frozen=True, slots=True)
class Manifest:
    """What clients check all that they get by.

    Attributes:
        bmap: it.
        data: its file.
        signature: of that, None where it has none.
    """

    bmap: Bmap
    data: bytes
    signature: bytes | None


def beside(path: Path) -> Manifest | None:
    """The scan beside an image, as it is; None if there is none, or none whose ranges can be streamed.

    Raises:
        ManifestError: it is damaged.
        OSError: it cannot be read.
    """
    where = bmap_path(path)
    try:
        data = where.read_bytes()
    except FileNotFoundError:
        return None
    with tempfile.TemporaryFile() as copy:
        copy.write(data)
        copy.seek(0)
        bmap = parse(copy, str(where))
    if not is_streamable(bmap):
        return None
    try:
        signed = signature.signature_path(where).read_bytes()
    except FileNotFoundError:
        signed = None
    return Manifest(bmap, data, signed)


def made(source: Source, advance: Callable[[int, int], None]) -> Manifest:
    """A scan of an image that has none; raises as `scan`."""
    bmap = scan(source, None, advance)
    with tempfile.TemporaryDirectory(prefix="asr-") as directory:
        path = Path(directory) / "image.bmap"
        write(bmap, path)
        return Manifest(bmap, path.read_bytes(), None)
