"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

from tests.restore.engine import asr, failed
from tests.serving import pattern


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    image, scan = tmp_path / "image", tmp_path / "image.bmap"
    image.write_bytes(pattern(1 << 20))
    scan.mkdir()
    assert failed(asr("imagescan", image)) == f"{scan}: it cannot be written: Is a directory"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image", "image.bmap"]
