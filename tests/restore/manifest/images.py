"""Images, and their scans."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from nbd.backend import Extent
from restore.manifest.beside import load
from restore.manifest.bmap import Bmap
from restore.manifest.scan import ScanSettings, imagescan
from restore.report.text import TextReport
from restore.source.detect import open_image

MIB = 1 << 20
ISLANDS = ((0, 8192), (MIB - 4096, 2 * MIB), (4 * MIB + 5, 300_000), (6 * MIB, MIB), (9 * MIB - 100, 100))


def fill(path: Path, size: int, islands: Iterable[tuple[int, int]]) -> None:
    """Make a sparse file with random data, none of them zeroes, in some places."""
    generator = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length in islands:
            file.seek(offset)
            file.write(generator.randbytes(length).replace(b"\0", b"\1"))


def scanned(path: Path, used: Iterable[Extent] | None = None, sign: str | None = None) -> tuple[Bmap, str]:
    """Scan an image; the scan as it is read again, and what was printed."""
    out = io.StringIO()
    with closing(open_image(str(path)).source) as source:
        asyncio.run(imagescan(source, path, used, ScanSettings(sign=sign), TextReport(out, out)))
    bmap = load(path)
    assert bmap is not None
    return bmap, out.getvalue()
