"""Disks to finish: image files with real partition tables.

Debian packages: fdisk gdisk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from restore.finish import Medium, fd_medium
from tests.restore.filesystems import nothing_left_of


@pytest.fixture
def open_medium() -> Iterator[Callable[..., Medium]]:
    """Opens an image file as a medium, with a sector size in bytes."""
    with ExitStack() as stack:

        def open_medium(path: Path, sector_size: int = 512) -> Medium:
            fd = os.open(path, os.O_RDWR)
            stack.callback(os.close, fd)
            return fd_medium(fd, path.stat().st_size, sector_size)

        yield open_medium


@pytest.fixture
def private(tmp_path: Path) -> Iterator[None]:
    """What needs root; nothing of it is left when the test ends."""
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts")
    yield
    nothing_left_of(tmp_path)
