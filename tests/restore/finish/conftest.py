"""Disks to finish: image files, attached in private."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.restore.filesystems import nothing_left_of


@pytest.fixture
def private(tmp_path: Path) -> Iterator[None]:
    """What needs root; nothing of it is left when the test ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts")
    yield
    nothing_left_of(tmp_path)
