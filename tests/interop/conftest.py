"""A `targetmode serve` for each engine and each kind of disk, shared by the tests of a module.

Debian packages: e2fsprogs fdisk fio fuse3 gdisk libnbd-bin mount nbdfuse nbdkit nbdkit-plugin-python python3-libnbd
qemu-utils util-linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.serving import ENGINES, Serving, pattern, run, serving
from tests.support import loop_device

SIZE: Final = 8 << 20
KINDS: Final = ("file", "loop")


@dataclass(frozen=True, slots=True)
class Disk:
    """What is served.

    Attributes:
        path: what the server is given: the image, or the loop device over it.
        is_file: whether it is the image.
    """

    path: Path
    is_file: bool

    def fill(self, data: bytes) -> None:
        """Put these bytes on the disk, from its beginning."""
        with self.path.open("r+b") as file:
            file.write(data)

    def clear(self) -> None:
        """Make it read as zeroes; an image file is one hole then."""
        if self.is_file:
            run("fallocate", "--punch-hole", "--offset=0", f"--length={SIZE}", self.path)
        else:
            self.fill(bytes(SIZE))

    def read(self, offset: int = 0, length: int = SIZE) -> bytes:
        """What is on it now."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served(engine: str, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, Disk]]:
    directory = tmp_path_factory.mktemp("served")
    image = directory / "disk.img"
    image.write_bytes(bytes(SIZE))
    with ExitStack() as stack:
        path = image if kind == "file" else stack.enter_context(loop_device(image))
        options = ["--listen=127.0.0.1:0", "--listen=[::1]:0", f"--socket={directory / 'nbd.sock'}", "--control=off"]
        server = stack.enter_context(serving(path, options=options, engine=engine, errors=directory / "errors"))
        yield server, Disk(path, kind == "file")


@pytest.fixture
def server(served: tuple[Serving, Disk]) -> Serving:
    return served[0]


@pytest.fixture
def disk(served: tuple[Serving, Disk]) -> Disk:
    """The disk that is served, empty."""
    served[1].clear()
    return served[1]


@pytest.fixture
def full(disk: Disk) -> bytes:
    """What is on the disk, after it was filled with bytes that are all different."""
    data = pattern(SIZE)
    disk.fill(data)
    return data
