"""Power that goes in the middle of a restore: everything is killed, what was not flushed is lost, `--delta` goes on.

Debian packages: nbdkit nbdkit-plugin-python util-linux.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from targetmode.disks.text import format_size
from tests.restore.blocks.test_delta import scattered
from tests.restore.engine import MIB, asr, json_events, restore, restoring, succeeded, verify, wait_for
from tests.serving import Serving, kill_all, pattern, serving
from tests.support import assert_same_bytes, loop_device, wait_until

SIZE = 64 * MIB
RATE = "--max-rate=40M"
HEAD = 2 * MIB  # the first MiB is zeroed first and written last, whatever was there
CONTROL = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(pattern(SIZE, seed=1))
    return path


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    """What holds the disk's bytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE + MIB, seed=2))
    return path


def lose(backing: Path, old: bytes, seed: int) -> None:
    """Put back, here and there, what was there before: writes that never came to the medium."""
    dice = random.Random(seed)
    with backing.open("r+b") as file:
        for at in dice.sample(range(1, SIZE // MIB), 12):  # the first MiB was flushed
            start = at * MIB + dice.randrange(0, MIB, 4096)
            file.seek(start)
            file.write(old[start : (at + 1) * MIB])


def wrong(backing: Path, image: Path) -> int:
    """How much of the image is not on the disk, in bytes of whole MiB; but for the first one, which never is."""
    now, right = backing.read_bytes(), image.read_bytes()
    return sum(MIB for at in range(MIB, SIZE, MIB) if now[at : at + MIB] != right[at : at + MIB])


def missing(backing: Path, image: Path) -> int:
    """The same of a disk that has some of it and looks empty."""
    assert_same_bytes(backing.read_bytes()[:MIB], bytes(MIB))
    found = wrong(backing, image)
    assert 0 < found < SIZE - MIB, "it was not in the middle"
    return found


def has(backing: Path, data: bytes, offset: int) -> bool:
    with backing.open("rb") as file:
        file.seek(offset)
        return file.read(len(data)) == data


def written(server: Serving) -> int:
    """The bytes that clients have written, as the server tells when they leave."""
    wait_until(lambda: any(event["event"] == "disconnect" for event in server.events), "disconnect")
    return sum(event["written"] for event in server.events if event["event"] == "disconnect")


@pytest.mark.parametrize(
    ("engine", "moment", "prepared"),
    [("builtin", "....20", False), ("builtin", "....70", True), ("nbdkit", "....40", False)],
)
def test_of_both_machines(engine: str, moment: str, prepared: bool, image: Path, backing: Path, tmp_path: Path) -> None:
    old = backing.read_bytes()
    if prepared:
        succeeded(asr("imagescan", image))
    with loop_device(backing) as disk:
        with (
            serving(disk, options=CONTROL, engine=engine, errors=tmp_path / "errors", clean=False) as server,
            restoring(image, server.uri(), RATE) as run,
        ):
            wait_for(run, moment)
            run.process.kill()
            kill_all(server)
            run.process.wait()
        lose(disk, old, seed=len(moment))
        gone = missing(disk, image)
        with serving(disk, options=CONTROL, engine=engine, errors=tmp_path / "errors") as server:
            events = json_events(succeeded(restore(image, server.uri(), "--delta", "--json")))
            sent = written(server) - HEAD
        assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[SIZE:])
    assert 0 < sent <= gone, f"{sent} of {gone} bytes that were missing"
    said = f", verified, {format_size(HEAD // 2 + sent)} of it written, the rest was there already"
    assert events[-1]["event"] == "done"
    assert events[-1]["message"].endswith(said)


@pytest.mark.parametrize("kind", ["loop", "file"])
def test_of_the_only_machine(kind: str, image: Path, backing: Path) -> None:
    old = backing.read_bytes()
    with ExitStack() as stack:
        disk = stack.enter_context(loop_device(backing)) if kind == "loop" else backing
        with restoring(image, disk, RATE) as run:
            wait_for(run, "....30")
            run.process.kill()
            run.process.wait()
        lose(disk, old, seed=7)
        gone = missing(disk, image)
        before = _sectors_written(disk) if kind == "loop" else 0
        said = succeeded(restore(image, disk, "--delta"))
        if kind == "loop":
            done = (_sectors_written(disk) - before) * 512
            assert done <= gone + HEAD + MIB, f"{done} of {gone} bytes that were missing"
        assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[SIZE:])
        succeeded(verify(image, disk))
    count = said.rpartition(", verified, ")[2].removesuffix(" of it written, the rest was there already\n")
    assert float(count.split()[0]) <= (gone + HEAD) // MIB + 1


def _sectors_written(device: Path) -> int:
    """Of 512 bytes, since the device was made (the kernel's Documentation/block/stat.rst)."""
    return int((Path("/sys/block") / device.name / "stat").read_text().split()[6])


def test_again_and_again(image: Path, backing: Path, tmp_path: Path) -> None:
    """Each time it comes further, and is empty until it is whole."""
    old, data, left = backing.read_bytes(), image.read_bytes(), SIZE
    for mark in (12 * MIB, 24 * MIB):
        with (
            serving(backing, options=CONTROL, errors=tmp_path / "errors", clean=False) as server,
            restoring(image, server.uri(), "--max-rate=10M", "--delta"),
        ):
            wait_until(partial(has, backing, data[mark : mark + MIB], mark), "some MiB more", 30)
            kill_all(server)
        now = missing(backing, image)
        assert now < left
        left = now
    with serving(backing, options=CONTROL, errors=tmp_path / "errors") as server:
        succeeded(restore(image, server.uri(), "--delta"))
    assert_same_bytes(backing.read_bytes(), image.read_bytes() + old[SIZE:])


# --- What goes over the wire ---


class Counted:
    """A forwarded port that counts.

    Attributes:
        port: to connect to.
        sent: bytes that clients have sent through it.
    """

    def __init__(self, port: int) -> None:
        """Forward to this port of ours."""
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Hang up."""
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [client, server]
                for pair in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=self._forward, args=pair))
                    self._threads[-1].start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        counts = source.getpeername()[1] != self._to
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self.sent += len(data) if counts else 0
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def counted(port: int) -> Iterator[Counted]:
    forwarded = Counted(port)
    try:
        yield forwarded
    finally:
        forwarded.close()


def test_a_disk_that_is_99_percent_the_same(tmp_path: Path) -> None:
    """At most 1.5 % of its bytes are sent, headers and all."""
    size = 256 * MIB
    data = random.Random(9).randbytes(size // 2) + random.Random(10).randbytes(size // 2)
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(data)
    disk.write_bytes(scattered(data, 9))
    with serving(disk, options=CONTROL, errors=tmp_path / "e") as server, counted(server.port) as wire:
        uri = server.uri().replace(f":{server.port}", f":{wire.port}")
        said = succeeded(restore(source, uri, "--delta"))
    assert "read back" not in said
    assert_same_bytes(disk.read_bytes(), data)
    assert size // 100 < wire.sent <= size * 15 // 1000, f"{wire.sent} of {size} bytes"
