"""Servers and engines that are killed at any moment: right in the end, empty or right in between.

Debian packages: nbdkit nbdkit-plugin-python.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.restore.engine import GO_ON, MIB, Running, failed, restore, started, succeeded, verify
from tests.serving import Serving, kill_all, pattern, serving
from tests.support import assert_same_bytes, free_port, wait_until

SIZE = 48 * MIB
IMAGE_SIZE = 46 * MIB + 4096
RATE = "--max-rate=60M"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with a hole in it."""
    path = tmp_path_factory.mktemp("source") / "source.img"
    with path.open("wb") as file:
        file.write(pattern(20 * MIB, seed=1))
        file.seek(30 * MIB)
        file.write(pattern(IMAGE_SIZE - 30 * MIB, seed=2))
    return path


@pytest.fixture(scope="module")
def old() -> bytes:
    return pattern(SIZE, seed=3)


@pytest.fixture
def disk(tmp_path: Path, old: bytes) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(old)
    return path


@pytest.fixture
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@contextmanager
def served(disk: Path, ports: tuple[int, int], engine: str = "builtin") -> Iterator[Serving]:
    """The disk, each time at the same ports."""
    options = (f"--listen=127.0.0.1:{ports[0]}", f"--control=127.0.0.1:{ports[1]}")
    with serving(disk, options=options, engine=engine, errors=disk.parent / "errors", clean=False) as server:
        yield server


def check_between(disk: Path, image: Path, old: bytes) -> None:
    """Nothing on it can be taken for a disk that is not right."""
    now = disk.read_bytes()
    data = image.read_bytes()
    right = now[:MIB] == bytes(MIB) or now[: len(data)] == data or now == old
    assert right
    assert_same_bytes(now[len(data) :], old[len(data) :])


def writing(engine: Running, disk: Path) -> None:
    """Wait until blocks are being written."""
    wait_until(lambda: "Restoring  ." in engine.out or engine.process.poll() is not None, "some blocks")
    assert engine.process.poll() is None, engine.out


def words(image: Path, target: str, *options: str) -> tuple[str | Path, ...]:
    return ("restore", "--source", image, "--target", target, "--erase", "--noprompt", RATE, *options)


@pytest.mark.parametrize("round_", range(10))
def test_killed_at_any_moment(
    round_: int, image: Path, disk: Path, old: bytes, ports: tuple[int, int], tmp_path: Path
) -> None:
    dice = random.Random(round_)
    engine = "nbdkit" if round_ % 4 == 3 else "builtin"
    victim = ("asr", "server", "connection")[round_ % 3]
    with served(disk, ports, engine) as server, started(*words(image, server.uri()), directory=tmp_path) as run:
        time.sleep(dice.uniform(0.2, 1.3))
        match victim:
            case "asr":
                run.process.kill()
                run.process.wait()
            case "server":
                kill_all(server)
            case _:
                for pid in server.descendants()[1:]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        if victim == "server":
            result = run.end(20)
            if result.status:
                message = failed(result)
                began = "Erasing target device" in result.out
                erased = "Retrieving scan information" in result.out
                ending = " is left empty" if erased else " may still hold what was on it" if began else ""
                assert message.removesuffix(GO_ON).endswith(ending), result
        elif victim == "connection":
            result = run.end(20)
            if "Erasing" in result.out:
                succeeded(result)
                assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])
            else:  # during the first handshake there is nothing yet to go on with
                failed(result)
                assert_same_bytes(disk.read_bytes(), old)
    check_between(disk, image, old)
    with served(disk, ports, engine) as server:
        succeeded(restore(image, server.uri(), *(["--delta"] if round_ % 2 else [])))
        assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])


@pytest.mark.parametrize(
    ("engine", "options"),
    [("builtin", ()), ("builtin", ("--connections=3",)), ("nbdkit", ()), ("nbdkit", ("--noverify",))],
)
def test_server_restarted(
    engine: str, options: tuple[str, ...], image: Path, disk: Path, old: bytes, ports: tuple[int, int], tmp_path: Path
) -> None:
    with (
        served(disk, ports, engine) as server,
        started(*words(image, server.uri(), *options), directory=tmp_path) as run,
    ):
        writing(run, disk)
        time.sleep(0.2)
        kill_all(server)
        time.sleep(1.0)
        assert run.process.poll() is None
        with served(disk, ports, engine):
            said = succeeded(run.end())
    assert "; connecting again\n" in said
    assert ": connected again\n" in said
    assert (", verified" in said) is ("--noverify" not in options)
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])


def test_server_restarted_with_another_disk(image: Path, disk: Path, ports: tuple[int, int], tmp_path: Path) -> None:
    """One of another size; it is not touched."""
    other = tmp_path / "other" / "disk.img"
    other.parent.mkdir()
    content = pattern(SIZE - MIB, seed=8)
    other.write_bytes(content)
    with served(disk, ports) as server, started(*words(image, server.uri()), directory=tmp_path) as run:
        writing(run, disk)
        kill_all(server)
        with served(other, ports):
            message = failed(run.end(10))
    assert "is a different one" in message
    assert message.removesuffix(GO_ON).endswith("is left empty")
    assert_same_bytes(other.read_bytes(), content)
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


@pytest.mark.parametrize("options", [(), ("--noverify", "--connections=2")])
def test_server_gone_for_good(
    options: tuple[str, ...], image: Path, disk: Path, ports: tuple[int, int], tmp_path: Path
) -> None:
    with served(disk, ports) as server, started(*words(image, server.uri(), *options), directory=tmp_path) as run:
        writing(run, disk)
        kill_all(server)
        killed = time.monotonic()
        message = failed(run.end(15))
        assert time.monotonic() - killed < 10
    assert "Connection refused" in message
    assert message.removesuffix(GO_ON).endswith("is left empty")
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def test_server_gone_while_verifying(image: Path, disk: Path, ports: tuple[int, int], tmp_path: Path) -> None:
    with served(disk, ports) as server:
        succeeded(restore(image, server.uri()))
        with started("verify", "--source", image, "--target", server.uri(), directory=tmp_path) as run:
            wait_until(lambda: "Validating source...done" in run.out, "the beginning")
            kill_all(server)
            result = run.end(15)
    assert result.status in (0, 1)  # it may have been done
    if result.status:
        assert failed(result).startswith("the comparison failed: ")


def test_server_stopped_in_good_order(image: Path, disk: Path, ports: tuple[int, int], tmp_path: Path) -> None:
    """SIGTERM to the server in the middle, and it does not come back."""
    with served(disk, ports) as server, started(*words(image, server.uri()), directory=tmp_path) as run:
        writing(run, disk)
        assert server.stop() == 0
        message = failed(run.end(20))
    assert message.removesuffix(GO_ON).endswith("is left empty")
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def test_local_engine_killed(image: Path, disk: Path, old: bytes, tmp_path: Path) -> None:
    dice = random.Random(4)
    for _ in range(3):
        with started(*words(image, str(disk)), directory=tmp_path):
            time.sleep(dice.uniform(0.2, 1.4))
        check_between(disk, image, old)
    succeeded(restore(image, disk))
    succeeded(verify(image, disk))
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])
