"""Connections that are killed one by one, a server that is started again, and several connections at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.restore.engine import MIB, READ_BACK, WRITING, Running, restoring, succeeded, wait_for
from tests.serving import Serving, alive, pattern, serving
from tests.support import assert_same_bytes, free_port, wait_until

SIZE = 24 * MIB
IMAGE_SIZE = 20 * MIB + 777
KILLED = "its process was killed"


@pytest.fixture
def options() -> tuple[str, ...]:
    """Of `serve`: the same ports each time."""
    return f"--listen=127.0.0.1:{free_port()}", f"--control=127.0.0.1:{free_port()}"


@pytest.fixture
def server(disk: Path, options: Sequence[str]) -> Iterator[Serving]:
    with serving(disk, options=options, errors=disk.parent / "errors") as server:
        yield server


def connections(server: Serving) -> list[int]:
    """The processes of the connections that write or have written."""
    return [pid for pid in server.descendants() if pid != server.engine() and alive(pid)]


def check_restored(asr: Running, image: Path, disk: Path) -> str:
    said = succeeded(asr.end())
    assert ", verified" in said
    assert READ_BACK not in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + pattern(SIZE, seed=2)[IMAGE_SIZE:])
    return said


def reasons(server: Serving) -> list[str]:
    """Why connections have ended so far."""
    return [event["reason"] for event in server.events if event["event"] == "disconnect"]


def test_killed_twice(image: Path, disk: Path, server: Serving) -> None:
    """Each time a new connection takes over and sends again what was not flushed; the server serves on."""
    with restoring(image, server.uri(), "--max-rate=20M") as asr:
        wait_for(asr, WRITING)
        for _ in range(2):
            wait_until(lambda: connections(server), "a connection")
            (victim,) = connections(server)
            os.kill(victim, signal.SIGKILL)
            server.next("disconnect", reason=KILLED)
            server.next("connect", export="disk.img")
            time.sleep(0.2)
        said = check_restored(asr, image, disk)
    assert said.count("; connecting again\n") == said.count(": connected again\n") == 2
    assert reasons(server).count(KILLED) == 2


def test_one_of_four_killed(image: Path, disk: Path, server: Serving) -> None:
    with restoring(image, server.uri(), "--max-rate=20M", "--connections=4") as asr:
        wait_for(asr, WRITING)
        before = connections(server)
        assert len(before) == 4
        os.kill(before[2], signal.SIGKILL)
        wait_until(lambda: len({*before, *connections(server)}) == 5, "a connection in its place")
        said = check_restored(asr, image, disk)
    assert said.count("; connecting again\n") == said.count(": connected again\n") == 1


@pytest.mark.parametrize("count", [1, 4])
def test_connections(count: int, image: Path, disk: Path, server: Serving) -> None:
    """There are as many as were asked for, and each carries a part."""
    with restoring(image, server.uri(), f"--connections={count}", "--max-rate=40M") as asr:
        check_restored(asr, image, disk)
    wait_until(lambda: len(reasons(server)) == count, "the end of every connection")
    ended = [event for event in server.events if event["event"] == "disconnect"]
    peers = {event["peer"] for event in server.events if event["event"] == "connect"}
    assert len(peers) == len(ended) == count
    assert all(event["written"] >= MIB for event in ended), ended
    assert sum(event["written"] for event in ended) == IMAGE_SIZE + MIB  # the first MiB was zeroed before


def test_started_again_by_its_owner(image: Path, disk: Path, options: Sequence[str], tmp_path: Path) -> None:
    """It is told to end in the middle of a restore, flushes, and is there again two seconds later."""
    with serving(disk, options=options, errors=tmp_path / "errors") as server:
        uri = server.uri()
        with restoring(image, uri, "--max-rate=20M") as asr:
            wait_for(asr, WRITING)
            assert server.stop() == 0
            time.sleep(2)
            assert asr.process.poll() is None, asr.out
            with serving(disk, options=options, errors=tmp_path / "errors again"):
                said = check_restored(asr, image, disk)
    assert said.count("; connecting again\n") == said.count(": connected again\n") == 1
