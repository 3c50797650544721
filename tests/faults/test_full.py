"""Targets that have no room, that fail, that shrink; and sources that shrink: one line that says where, and no hang.

Debian packages: mount nbdkit util-linux.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.restore.engine import GO_ON, MIB, WRITING, failed, nbdkit, restoring, started, wait_for
from tests.serving import pattern, run, serving
from tests.support import assert_same_bytes, loop_device, small_filesystem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for file systems and loop devices")

SIZE = 24 * MIB
ROOM = 12 * MIB
RATE = "--max-rate=40M"
PLACES = pytest.mark.parametrize("place", ["served", "nbdkit", "local"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(pattern(SIZE))
    return path


@contextmanager
def target(place: str, disk: Path, directory: Path) -> Iterator[str]:
    """The disk as `asr` sees it: behind our server, behind nbdkit, or as it is."""
    with ExitStack() as stack:
        if place == "local":
            yield str(disk)
        elif place == "nbdkit":
            yield stack.enter_context(nbdkit("file", disk, directory=directory))
        else:
            options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
            yield stack.enter_context(serving(disk, options=options, errors=directory / "errors", clean=False)).uri()


def check_left_empty(message: str, where: str, disk: Path) -> None:
    assert message.removesuffix(GO_ON).endswith(f"; {where} is left empty"), message
    assert "Errno" not in message, message
    with disk.open("rb") as file:
        assert_same_bytes(file.read(MIB), bytes(MIB))


def offset_in(message: str) -> int:
    """The offset that a message names."""
    found = re.search(r"(?:offset|byte) ([0-9]+)", message)
    assert found is not None, message
    return int(found[1])


@PLACES
def test_no_room(place: str, image: Path, tmp_path: Path) -> None:
    """The target is a sparse file on a file system that is smaller."""
    with small_filesystem(tmp_path / "small", ROOM) as directory:
        disk = directory / "disk.img"
        with disk.open("wb") as file:
            file.truncate(SIZE)
        with target(place, disk, tmp_path) as where, restoring(image, where) as asr:
            message = failed(asr.end())
            check_left_empty(message, where, disk)
    assert "No space left on device" in message
    assert MIB <= offset_in(message) < SIZE  # any of those under way, when there was no room for all of them


@pytest.mark.parametrize(("error", "said"), [("EIO", "Input/output error"), ("ENOSPC", "No space left on device")])
def test_writes_that_fail_now_and_then(error: str, said: str, image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(pattern(SIZE, seed=2))
    plugin = ("--filter=error", "file", disk, f"error={error}", "error-pwrite-rate=50%")
    with nbdkit(*plugin, directory=tmp_path) as where, restoring(image, where) as asr:
        message = failed(asr.end())
    check_left_empty(message, where, disk)
    assert f": {said}" in message
    assert re.match(rf"WRITE of {MIB} bytes at offset [0-9]+ failed: ", message)


@PLACES
def test_device_that_shrinks(place: str, image: Path, tmp_path: Path) -> None:
    """A loop device that is suddenly half as large."""
    backing = tmp_path / "disk.img"
    backing.write_bytes(pattern(SIZE, seed=2))
    with (
        loop_device(backing) as disk,
        target(place, disk, tmp_path) as where,
        restoring(image, where, RATE) as asr,
    ):
        wait_for(asr, "....20")
        os.truncate(backing, ROOM)
        run("losetup", "--set-capacity", disk)
        message = failed(asr.end())
        check_left_empty(message, where, backing)
    assert offset_in(message) >= MIB


@pytest.mark.parametrize(
    ("place", "options"), [("served", ()), ("served", ("--noverify",)), ("nbdkit", ()), ("local", ("--noverify",))]
)
def test_source_that_shrinks(place: str, options: tuple[str, ...], image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(pattern(SIZE, seed=2))
    with target(place, disk, tmp_path) as where, restoring(image, where, RATE, *options) as asr:
        wait_for(asr, "....20")
        os.truncate(image, 20 * MIB + 5)
        message = failed(asr.end())
    check_left_empty(message, where, disk)
    assert re.search("ends at (offset|byte) 20971525, earlier than it did at the start; ", message)


@pytest.mark.parametrize("options", [(), ("--noverify",)])
def test_source_that_is_written_meanwhile(options: tuple[str, ...], image: Path, tmp_path: Path) -> None:
    """Behind the copy, where nothing is read again: what is on the target is then neither the old nor the new."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(pattern(SIZE, seed=2))
    with restoring(image, disk, RATE, *options) as asr:
        wait_for(asr, WRITING)
        change(image)
        message = failed(asr.end())
    assert message == f"{image} was changed meanwhile; stop what writes it first; {disk} is left empty{GO_ON}"
    check_left_empty(message, str(disk), disk)


def test_source_that_is_written_while_it_is_compared(image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(pattern(SIZE))
    with (
        nbdkit("--filter=delay", "file", disk, "rdelay=100ms", directory=tmp_path) as uri,
        started("verify", "--source", image, "--target", uri, directory=tmp_path) as asr,
    ):
        wait_for(asr, "read back")
        change(image)
        message = failed(asr.end())
    assert message == f"the comparison failed: {image} was changed meanwhile; stop what writes it first"


def change(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"changed")
