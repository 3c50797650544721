"""Disks with partition tables to change: image files.

Debian packages: fdisk gdisk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from restore.partitions import Medium, fd_medium


@pytest.fixture
def open_medium() -> Iterator[Callable[..., Medium]]:
    """Opens an image file as a medium, with a sector size in bytes."""
    with ExitStack() as stack:

        def open_medium(path: Path, sector_size: int = 512) -> Medium:
            fd = os.open(path, os.O_RDWR)
            stack.callback(os.close, fd)
            return fd_medium(fd, path.stat().st_size, sector_size)

        yield open_medium
