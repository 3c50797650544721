"""Fixtures of the protocol's tests; what they are made of is in `peers.py` and `exporter.py`.

Debian packages: libnbd-bin mount nbd-server nbdkit qemu-utils util-linux.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nbd.peers import Exporting, exporting, random_bytes

MIB = 1 << 20


@pytest.fixture
def requires_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices and mounts")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file of 2 MiB of random bytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(random_bytes(2 * MIB))
    return path


@pytest.fixture
def server(tmp_path: Path, disk: Path) -> Iterator[Exporting]:
    """Exports `disk` as the default export and as `disk`, and read-only as `frozen`, on a Unix socket."""
    whole = {"path": str(disk)}
    with exporting(tmp_path, {"": whole, "disk": whole, "frozen": {**whole, "read_only": True}}) as server:
        yield server


@pytest.fixture
def descriptors() -> Iterator[Callable[[], int]]:
    """Counts this process's open files."""
    yield lambda: len(os.listdir("/proc/self/fd"))  # noqa: PTH208
