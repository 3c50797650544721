"""A server started again with another disk of the same name and size: what was found on the first one is worth nothing.

The image has a hole where one disk is empty and the other is not, so nothing would be written there.
Debian packages: nbdkit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.restore.engine import MIB, restoring, succeeded, wait_for
from tests.serving import pattern, serving
from tests.support import assert_same_bytes, free_port, listens, running

HOLE = 8 * MIB
SIZE = 24 * MIB
AGAIN = "so all that was compared is compared once more\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A hole, then data."""
    path = tmp_path / "source.img"
    with path.open("wb") as file:
        file.seek(HOLE)
        file.write(pattern(SIZE - HOLE))
    return path


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    """An empty one and a full one, called the same."""
    paths = [tmp_path / name / "disk.img" for name in ("empty", "full")]
    for path in paths:
        path.parent.mkdir()
    with paths[0].open("wb") as file:
        file.truncate(SIZE)
    paths[1].write_bytes(pattern(SIZE, seed=2))
    return paths


@pytest.mark.parametrize("options", [(), ("--connections=3",)])
def test_ours(options: tuple[str, ...], image: Path, disks: list[Path]) -> None:
    ports = f"--listen=127.0.0.1:{free_port()}", f"--control=127.0.0.1:{free_port()}"

    def served(path: Path) -> AbstractContextManager[object]:
        return serving(path, options=ports, errors=path.with_name("errors"), clean=False)

    uri = f"nbd://127.0.0.1:{ports[0].rpartition(':')[2]}/disk.img"
    check(uri, served(disks[0]), served(disks[1]), options, image, disks[1])


def test_others(image: Path, disks: list[Path], tmp_path: Path) -> None:
    """One that does not say which run of it this is."""
    path = tmp_path / "s"

    @contextmanager
    def served(disk: Path) -> Iterator[None]:
        path.unlink(missing_ok=True)
        command = ["nbdkit", "--foreground", "--exit-with-parent", f"--unix={path}", "file", str(disk)]
        with running(command, ready=lambda: listens(str(path))) as process:
            yield
            process.kill()  # told to end, it would refuse what comes in meanwhile

    check(f"nbd+unix:///?socket={path}", served(disks[0]), served(disks[1]), (), image, disks[1])


def check(
    uri: str,
    first: AbstractContextManager[object],
    second: AbstractContextManager[object],
    options: tuple[str, ...],
    image: Path,
    disk: Path,
) -> None:
    """Restore, changing servers in the middle; the second one's disk has to be right in the end."""
    with ExitStack() as stack:
        with first:
            asr = stack.enter_context(restoring(image, uri, "--max-rate=10M", *options))
            wait_for(asr, "....50")
        with second:
            said = succeeded(asr.end())
    assert said.count(AGAIN) >= 1
    assert ", verified" in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes())
