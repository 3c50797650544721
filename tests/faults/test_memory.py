"""How much memory an engine and a connection take at most, however large the image is."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.restore.engine import MIB, READ_BACK, nbdkit, started, succeeded
from tests.serving import pattern, serving
from tests.support import small_filesystem, wait_until

GIB = 1 << 30
ENGINE_LIMIT = 200 * MIB
CONNECTION_LIMIT = 40 * MIB

# The engine, which leaves word of the most memory that it ever had. getrusage counts that of whoever started it, too.
ENGINE = """
import sys
from pathlib import Path
from restore.cli import main
status = main(sys.argv[2:])
Path(sys.argv[1]).write_text(Path("/proc/self/status").read_text())
sys.exit(status)
"""


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, so that 1 GiB is no matter of minutes."""
    if os.geteuid() != 0:
        pytest.skip("needs root for a file system in memory")
    with small_filesystem(tmp_path / "memory", 2 * GIB + 64 * MIB) as directory:
        yield directory


def random_image(path: Path) -> None:
    """1 GiB without a hole."""
    data = pattern(32 * MIB)
    with path.open("wb") as file:
        for number in range(GIB // len(data)):
            file.write(bytes([number]))
            file.write(data[1:])


def empty_image(path: Path) -> None:
    """100 GiB, a single hole."""
    with path.open("wb") as file:
        file.truncate(100 * GIB)


def peak(status: str) -> int:
    """The most bytes that were in memory at any time, as /proc tells."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, status
    return int(found[1]) << 10


@pytest.fixture(params=[random_image, empty_image], ids=lambda make: make.__name__)
def image(request: pytest.FixtureRequest, memory: Path) -> Path:
    """The image, and beside it `disk.img` of the same size."""
    make: Callable[[Path], None] = request.param
    path = memory / "source.img"
    make(path)
    with (memory / "disk.img").open("wb") as file:
        file.truncate(path.stat().st_size)
    return path


def measured(image: Path, target: str, directory: Path, watch: Callable[[], None]) -> tuple[str, int]:
    """What an engine says and the most memory that it takes; `watch` is called again and again meanwhile."""
    words = ("restore", "--source", image, "--target", target, "--erase", "--noprompt")
    told = directory / "status"
    with started(told, *words, command=(sys.executable, "-c", ENGINE), directory=directory) as asr:

        def ended() -> bool:
            watch()
            return asr.process.poll() is not None

        wait_until(ended, "the end of the restore", 60)
        said = succeeded(asr.end())
    return said, peak(told.read_text())


def test_served(image: Path, tmp_path: Path) -> None:
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    seen: list[int] = []
    with serving(image.with_name("disk.img"), options=options, errors=tmp_path / "errors") as server:

        def watch() -> None:
            with suppress(ValueError, FileNotFoundError, AssertionError):  # it is not there yet, or no longer
                seen.append(peak(Path(f"/proc/{server.connection()}/status").read_text()))

        said, engine = measured(image, server.uri(), tmp_path, watch)
    assert ", verified" in said
    assert READ_BACK not in said
    assert MIB < engine <= ENGINE_LIMIT
    assert MIB < max(seen) <= CONNECTION_LIMIT


@pytest.mark.parametrize("image", [random_image], ids=lambda make: make.__name__, indirect=True)
def test_read_back(image: Path, tmp_path: Path) -> None:
    with nbdkit("file", image.with_name("disk.img"), directory=tmp_path) as uri:
        said, engine = measured(image, uri, tmp_path, lambda: None)
    assert READ_BACK in said
    assert ", verified" in said
    assert MIB < engine <= ENGINE_LIMIT
