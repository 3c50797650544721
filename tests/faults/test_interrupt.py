"""Ctrl-C and SIGTERM at any moment, whatever is waited for: one line, exit 1, no thread that holds it up.

Debian packages: nbdkit.
"""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nbd.peers import admit, next_request, scripted
from tests.restore.engine import ASR, GO_ON, MIB, Running, nbdkit, started, succeeded, verify
from tests.restore.terminal import on_terminal
from tests.serving import Result, Serving, pattern, serving
from tests.support import assert_same_bytes, wait_until

SIZE = 32 * MIB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.img"
    path.write_bytes(pattern(SIZE))
    return path


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(pattern(SIZE, seed=2))
    return path


@pytest.fixture(scope="module")
def server(disk: Path) -> Iterator[Serving]:
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    with serving(disk, options=options, errors=disk.parent / "errors") as server:
        yield server


def words(image: Path, target: object, *options: str) -> tuple[str | Path, ...]:
    return ("restore", "--source", image, "--target", str(target), "--erase", "--noprompt", *options)


def interrupt(run: Running, number: int = signal.SIGINT, seconds: float = 4) -> Result:
    """Send a signal; it has to end soon, with nothing left of it."""
    began = time.monotonic()
    run.process.send_signal(number)
    result = run.end(seconds)
    assert time.monotonic() - began < seconds
    assert result.status == 1, result
    assert len(result.err.splitlines()) == 1, result.err
    assert result.err.startswith("asr: interrupted; "), result.err
    return result


@pytest.mark.parametrize("round_", range(10))
def test_at_any_moment(round_: int, image: Path, disk: Path, server: Serving, tmp_path: Path) -> None:
    dice = random.Random(round_)
    local = round_ % 5 == 4
    target = tmp_path / "local.img" if local else disk
    if local:
        target.write_bytes(pattern(SIZE, seed=4))
    before = target.read_bytes()
    command = words(image, target if local else server.uri(), "--max-rate=25M", f"--connections={1 + round_ % 2}")
    with started(*command, directory=tmp_path) as run:
        wait_until(lambda: "Validating" in run.out, "its beginning")
        time.sleep(dice.uniform(0, 0.9))
        result = interrupt(run, (signal.SIGINT, signal.SIGTERM)[round_ % 2])
    now = target.read_bytes()
    if "left empty" in result.err:
        assert_same_bytes(now[:MIB], bytes(MIB))
    elif "nothing was touched" in result.err:
        assert_same_bytes(now, before)
    else:
        assert "may still hold what was on it" in result.err


def test_while_verifying(image: Path, server: Serving, tmp_path: Path) -> None:
    with started("verify", "--source", image, "--target", server.uri(), directory=tmp_path) as run:
        wait_until(lambda: "Validating" in run.out, "its beginning")
        interrupt(run)


def test_twice_is_no_more_than_once(image: Path, disk: Path, server: Serving, tmp_path: Path) -> None:
    with started(*words(image, server.uri(), "--max-rate=20M"), directory=tmp_path) as run:
        wait_until(lambda: "Restoring  ." in run.out, "some blocks")
        run.process.send_signal(signal.SIGINT)
        result = interrupt(run)
    assert result.err.strip().removesuffix(GO_ON).endswith("is left empty")
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def test_while_it_waits_to_keep_a_low_rate(image: Path, disk: Path, server: Serving, tmp_path: Path) -> None:
    with started(*words(image, server.uri(), "--max-rate=10K"), directory=tmp_path) as run:
        wait_until(lambda: "Restoring  " in run.out, "the copy's beginning")
        time.sleep(0.3)
        assert interrupt(run).err.strip().removesuffix(GO_ON).endswith("is left empty")
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def test_by_the_keyboard(image: Path, disk: Path, server: Serving) -> None:
    with on_terminal(*ASR, *words(image, server.uri(), "--max-rate=10M")) as terminal:
        terminal.wait_for("Restoring ")
        time.sleep(0.3)
        terminal.type("\x03")
        assert terminal.end(5) == 1
    assert (
        " ".join(terminal.shown.split()).removesuffix(GO_ON).endswith(f"asr: interrupted; {server.uri()} is left empty")
    )
    assert "Traceback" not in terminal.shown
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


# --- Whatever is waited for ---


def test_a_server_that_says_nothing(image: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"nbd://127.0.0.1:{listener.getsockname()[1]}/disk"
        with started(*words(image, uri), directory=tmp_path) as run:
            wait_until(lambda: "Validating target" in run.out, "its beginning")
            time.sleep(0.3)
            assert interrupt(run).err == "asr: interrupted; nothing was touched\n"


@pytest.mark.parametrize("after", [0, 2, 8])
def test_a_server_that_stops_answering(after: int, image: Path, tmp_path: Path) -> None:
    """When it is to zero the first MiB, and when it is to write."""
    stalled = []

    def stall(sock: socket.socket) -> None:
        admit(sock, SIZE)
        for _ in range(after):
            asked = next_request(sock)
            sock.sendall(b"\x67\x44\x66\x98\0\0\0\0" + asked.cookie.to_bytes(8, "big"))
        next_request(sock)
        stalled.append(True)
        while sock.recv(1 << 20):
            pass

    with scripted(stall) as uri, started(*words(image, uri), directory=tmp_path) as run:
        wait_until(lambda: stalled, "a request without an answer")
        time.sleep(0.2)
        result = interrupt(run, seconds=6)
    assert (
        result.err.strip().removesuffix(GO_ON).endswith("is left empty" if after else "may still hold what was on it")
    )


def test_a_server_that_does_not_come_back(image: Path, disk: Path, tmp_path: Path) -> None:
    """While the engine tries to connect again, to one that accepts and says nothing."""

    def cut(sock: socket.socket) -> None:
        admit(sock, SIZE)
        for _ in range(3):
            asked = next_request(sock)
            sock.sendall(b"\x67\x44\x66\x98\0\0\0\0" + asked.cookie.to_bytes(8, "big"))

    def silence(sock: socket.socket) -> None:
        while sock.recv(1 << 20):
            pass

    with scripted(cut, silence) as uri, started(*words(image, uri, "--connections=1"), directory=tmp_path) as run:
        wait_until(lambda: "connecting again" in run.out, "the attempt to connect again")
        time.sleep(0.3)
        result = interrupt(run, seconds=6)
    assert result.err.strip().removesuffix(GO_ON).endswith("is left empty")


def test_a_slow_reader_back(image: Path, tmp_path: Path) -> None:
    """While blocks are read back from a server that takes seconds for each."""
    with (
        nbdkit("--filter=delay", "memory", "32M", "rdelay=20", directory=tmp_path) as uri,
        started(*words(image, uri), directory=tmp_path) as run,
    ):
        wait_until(lambda: "read back" in run.out, "verification")
        time.sleep(0.5)
        result = interrupt(run, seconds=6)
    assert result.err.strip().removesuffix(GO_ON).endswith("is left empty")


def test_nothing_is_left_of_it(image: Path, server: Serving, tmp_path: Path) -> None:
    """No process of its own, nor a connection at the server; and the server goes on."""
    connected = len(server.descendants())
    with started(*words(image, server.uri(), "--max-rate=20M", "--connections=4"), directory=tmp_path) as run:
        wait_until(lambda: "Restoring  ." in run.out, "some blocks")
        assert not Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
        interrupt(run)
    wait_until(lambda: len(server.descendants()) <= connected, "the end of its connections")
    assert server.process.poll() is None
    with started(*words(image, server.uri()), directory=tmp_path) as run:
        succeeded(run.end())
    succeeded(verify(image, server.uri()))
