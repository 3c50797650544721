"""An image to scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.restore.manifest.images import ISLANDS, MIB, fill


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of 9 MiB and some bytes."""
    path = tmp_path / "disk.img"
    fill(path, 9 * MIB + 12_345, ISLANDS)
    return path
