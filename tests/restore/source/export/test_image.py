"""An exported disk as a source, whoever exports it.

Debian packages: libnbd-bin nbdkit nbd-server qemu-utils.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.uri import NBDURI
from nbd.wire import StateFlag
from restore.errors import Refused, RestoreError
from restore.making.capture import CaptureSettings, capture
from restore.manifest.damage import map_path, read_map
from restore.report.text import TextReport
from restore.source import SourceError, SourceSettings
from restore.source.detect import open_image
from restore.source.export.image import ExportSource, _Runs
from restore.target.remote import RemoteTarget
from tests.restore.engine import MIB, failed, nbd_server, nbdkit, qemu_nbd, restore, started, succeeded, verify
from tests.restore.filesystems import make_filesystem, partitioned
from tests.restore.source.exported import SIZE, disk_with_holes, read_all
from tests.serving import Serving, kill_all, pattern, serving
from tests.support import assert_same_bytes, examples, free_port, wait_until

SERVERS: Final = ("builtin", "builtin nbdkit", "nbdkit", "nbdkit blocks", "nbdkit mute", "qemu-nbd", "nbd-server")


def opened(uri: str, **settings: object) -> ExportSource:
    source = open_image(uri, SourceSettings(**settings)).source  # type: ignore[arg-type]
    assert isinstance(source, ExportSource)
    return source


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.mark.parametrize("kind", SERVERS)
def test_every_server(kind: str, image: Path, tmp_path: Path) -> None:
    data = disk_with_holes(image)
    with ExitStack() as stack:
        match kind:
            case "builtin":
                uri = stack.enter_context(serving(image, errors=tmp_path / "errors")).uri()
            case "builtin nbdkit":
                uri = stack.enter_context(serving(image, engine="nbdkit", errors=tmp_path / "errors")).uri()
            case "nbdkit":
                uri = stack.enter_context(nbdkit("file", image, directory=tmp_path))
            case "nbdkit blocks":
                policy = ("--filter=blocksize-policy", "blocksize-error-policy=error", "blocksize-preferred=4096")
                sizes = ("blocksize-minimum=4096", "blocksize-maximum=65536")
                uri = stack.enter_context(nbdkit(*policy[:1], "file", image, *policy[1:], *sizes, directory=tmp_path))
            case "nbdkit mute":
                uri = stack.enter_context(nbdkit("--filter=noextents", "file", image, directory=tmp_path))
            case "qemu-nbd":
                uri = stack.enter_context(qemu_nbd(image, directory=tmp_path))
            case _:
                uri = stack.enter_context(nbd_server(image, directory=tmp_path))
        source = stack.enter_context(closing(opened(uri)))
        assert (source.name, source.size, source.sequential) == (str(NBDURI.parse(uri)), SIZE, False)
        assert_same_bytes(read_all(source), data)
        position, holes = 0, 0
        for extent in source.extents():
            if extent.zero:
                assert not any(data[position : position + extent.length])
                holes += extent.length
            position += extent.length
        assert position == SIZE
        assert holes == (0 if kind in ("nbdkit mute", "nbd-server") else 6 * MIB - 4096)
        order = random.Random(3)
        for _ in range(30):
            offset = order.randrange(SIZE)
            length = min(order.randrange(1, MIB), SIZE - offset)
            payload = source.payload(offset, length)
            assert isinstance(payload, memoryview)
            assert_same_bytes(payload, data[offset : offset + length])
            assert_same_bytes(source.reread(offset, length), data[offset : offset + length])
        source.check_unchanged()


@pytest.mark.parametrize(("asked", "number"), [(None, 2), (1, 1), (5, 5)])
def test_connections(asked: int | None, number: int, image: Path, tmp_path: Path) -> None:
    data = disk_with_holes(image)
    with serving(image, errors=tmp_path / "errors") as server:
        with closing(opened(server.uri(), connections=asked)) as source:
            assert_same_bytes(read_all(source), data)
        for _ in range(number):
            assert server.next("disconnect")["reason"] == "disconnected"
        assert sum(event["event"] == "connect" for event in server.events) == number


def test_one_connection_where_each_might_see_another_disk(tmp_path: Path) -> None:
    """Which it may where CAN_MULTI_CONN is not said."""
    log = tmp_path / "log"
    arguments = ("--filter=log", "--filter=multi-conn", "memory", "4M", "multi-conn-mode=disable", f"logfile={log}")
    with nbdkit(*arguments, directory=tmp_path) as uri, closing(opened(uri, connections=4)) as source:
        assert_same_bytes(read_all(source), bytes(4 * MIB))
    assert log.read_text().count(" Connect ") == 1


Told = list[tuple[int, bool]]


@given(
    st.lists(st.tuples(st.integers(1, 300_000), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([1, 512, 4096, 65536]),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
@examples(200)
def test_runs(kinds: Told, block: int, most: int, order: random.Random) -> None:
    """Whatever a server tells, and in whatever portions: what is called a hole is one, and consists of whole blocks."""
    size = sum(length for length, _ in kinds)
    zero = bytearray()
    for length, hole in kinds:
        zero += bytes([hole]) * length
    questions = 0

    def ask(offset: int, length: int) -> list[tuple[int, int]]:
        nonlocal questions
        questions += 1
        assert 0 <= offset < size
        assert offset % block == 0
        assert length <= size - offset
        found: list[tuple[int, int]] = []
        position = 0
        for run, hole in kinds:
            first, last = max(position, offset), position + run
            position = last
            if first < last and len(found) < most:
                found.append((last - first, int(StateFlag.ZERO) if hole else 0))
        return found

    runs = _Runs(size, block, ask)
    for _ in range(order.randrange(3)):  # asked in the middle, of what may not be known yet
        iterator = iter(runs)
        for _ in range(order.randrange(4)):
            next(iterator, None)
        check_data(runs, zero, block, order)
    extents = list(runs)
    assert extents == list(runs)
    assert sum(extent.length for extent in extents) == size
    assert all(a.zero != b.zero for a, b in pairwise(extents))
    position = 0
    for extent in extents:
        if extent.zero:
            assert all(zero[position : position + extent.length])
            assert position % block == 0
        position += extent.length
        assert position % block == 0 or position == size
    check_data(runs, zero, block, order)
    assert questions <= len(kinds) + size // MIB + 2


def check_data(runs: _Runs, zero: bytearray, block: int, order: random.Random) -> None:
    size = len(zero)
    start = order.randrange(size) // block * block
    end = min(start + order.randrange(1, 20) * 65536, size)
    position = start
    for first, last in (*runs.data(start, end), (end, end)):
        assert position <= first <= last <= end
        assert first % block == 0 or first == end
        assert all(zero[position:first])
        position = last
    assert position == end


def test_a_server_that_tells_a_byte_at_a_time_does_not_hold_us_up() -> None:
    questions = []

    def ask(offset: int, length: int) -> list[tuple[int, int]]:
        questions.append(offset)
        return [(1, 0)]

    assert [e.length for e in _Runs(64 * MIB, 1, ask)] == [64 * MIB]
    assert questions == list(range(0, 64 * MIB, MIB))


# --- What goes wrong ---


def bad_sectors(directory: Path, image: Path, bad: list[tuple[int, int]]) -> Path:
    """A script for nbdkit's sh plugin: an image that cannot be read in places."""
    script = directory / "script"
    checks = " || ".join(f"([ $4 -lt {at + length} ] && [ $(($4 + $3)) -gt {at} ])" for at, length in bad)
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\nget_size) echo {image.stat().st_size} ;;\ncan_multi_conn) exit 0 ;;\n'
        f'pread) if {checks}; then echo "EIO bad sector" >&2; exit 1; fi\n'
        f"dd if={image} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none ;;\n"
        "*) exit 2 ;;\nesac\n"
    )
    script.chmod(0o755)
    return script


def test_bad_sectors(image: Path, tmp_path: Path) -> None:
    """A capture records them; a restore says where, and what can be read is read beside them."""
    data = disk_with_holes(image, 10 * MIB)
    bad = [(MIB + 1024, 512), (6 * MIB, 4096), (10 * MIB - 512, 512)]
    target = tmp_path / "disk.img"
    with nbdkit("sh", bad_sectors(tmp_path, image, bad), directory=tmp_path) as uri:
        with closing(opened(uri)) as source:
            report = TextReport(io.StringIO())
            asyncio.run(capture(source, target, None, CaptureSettings(retries=1), report, reread=source.reread))
        with closing(opened(uri)) as source:
            for offset in (0, 4 * MIB, 6 * MIB + 4096):
                assert_same_bytes(source.payload(offset, MIB - 4096), data[offset : offset + MIB - 4096])  # type: ignore[arg-type]
            with pytest.raises(SourceError) as caught:
                source.payload(MIB, 2048)
        disk = tmp_path / "target"
        disk.write_bytes(bytes(10 * MIB))
        line = failed(restore(uri, disk))
    want = bytearray(data)
    for offset, length in bad:
        want[offset : offset + length] = bytes(length)
    assert_same_bytes(target.read_bytes(), want)
    assert read_map(map_path(target), len(data)) == bad
    assert str(caught.value) == f"{uri}: READ of 2048 bytes at offset {MIB} failed: Input/output error"
    assert line == f"{uri}: READ of {MIB} bytes at offset {MIB} failed: Input/output error; {disk} is left empty"


def test_a_server_that_goes_away_for_good(image: Path, tmp_path: Path) -> None:
    disk_with_holes(image)
    notes: list[str] = []
    with serving(image, errors=tmp_path / "errors", clean=False) as server:
        source = opened(server.uri(), timeout=0.5, notify=notes.append)
        source.payload(0, MIB)
        kill_all(server)
        began = time.monotonic()
        with pytest.raises(SourceError) as caught, closing(source):
            for offset in range(0, SIZE, MIB):
                source.reread(offset, MIB)
        assert time.monotonic() - began < 5
    message = str(caught.value)
    assert message.startswith(f"{server.uri()}: ")
    assert "cannot connect: Connection refused; it was read from offset " in message
    assert "\n" not in message
    assert any("connecting again" in note for note in notes)


def test_a_server_that_was_started_again(image: Path, tmp_path: Path) -> None:
    """Is another one: what was read of the first may not go with what this one has."""
    data = disk_with_holes(image)
    options = (f"--listen=127.0.0.1:{free_port()}", "--control=127.0.0.1:0")
    with serving(image, options=options, errors=tmp_path / "errors", clean=False) as server:
        source = opened(server.uri(), timeout=20)
        assert_same_bytes(source.payload(0, MIB), data[:MIB])  # type: ignore[arg-type]
        source.check_unchanged()
        kill_all(server)
        with serving(image, options=options, errors=tmp_path / "errors2", clean=False):
            with pytest.raises(RestoreError) as caught:
                source.reread(12 * MIB, MIB)
            with pytest.raises(RestoreError) as again:
                source.check_unchanged()
            source.close()
    assert not isinstance(caught.value, SourceError)
    assert str(caught.value) == str(again.value)
    assert str(caught.value) == (
        f"{source.name}: its server may have been started again meanwhile, so that what was read of it may be of two "
        "states; read it anew"
    )


def test_a_connection_that_is_cut(image: Path, tmp_path: Path) -> None:
    """Is made again, to the same run of the server, which is no reason to stop."""
    data = disk_with_holes(image)
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    notes: list[str] = []
    with ExitStack() as stack:
        server = stack.enter_context(serving(image, options=options, errors=tmp_path / "errors", clean=False))
        source = stack.enter_context(closing(opened(server.uri(), notify=notes.append)))
        source.payload(0, 10)
        for pid in children(server.engine()):
            os.kill(pid, signal.SIGKILL)
        source.reread(0, 10)
        assert_same_bytes(read_all(source), data)
        source.check_unchanged()
    assert any(note.endswith("connected again") for note in notes)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_server_without_a_name_that_was_cut(image: Path, tmp_path: Path) -> None:
    """Might be another one."""
    disk_with_holes(image)
    log = tmp_path / "log"
    script = bad_sectors(tmp_path, image, [(SIZE, 1)])
    with nbdkit("--filter=retry-request", "--filter=log", "sh", script, f"logfile={log}", directory=tmp_path) as uri:
        source = opened(uri)
        source._image._clients[0]._connection.abort()  # as a network does
        with pytest.raises(RestoreError, match="may have been started again meanwhile"):
            source.reread(0, 4096)
        source.close()


def test_closing_does_not_wait_for_a_server_that_does_not_answer(image: Path, tmp_path: Path) -> None:
    disk_with_holes(image)
    before = threading.active_count()
    with nbdkit("--filter=delay", "file", image, "rdelay=20", directory=tmp_path) as uri:
        source = opened(uri)
        failures: list[BaseException] = []

        def read() -> None:
            try:
                source.payload(0, MIB)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.2)
        began = time.monotonic()
        source.close()
        thread.join()
        assert time.monotonic() - began < 6
        assert isinstance(failures[0], SourceError)
        assert threading.active_count() == before


# --- Refusals ---


def test_what_cannot_be_opened(image: Path, tmp_path: Path) -> None:
    image.write_bytes(bytes(MIB))
    port = free_port()
    cases = {
        "nbd://": "nbd://: there is no host in it",
        "nbds://127.0.0.1/x": "nbds://127.0.0.1/x: TLS is not supported yet; use nbd:// on a network that you trust",
        f"nbd://127.0.0.1:{port}/x": f"nbd://127.0.0.1:{port}/x: cannot connect: Connection refused",
    }
    with serving(image, errors=tmp_path / "errors") as server, nbdkit("null", directory=tmp_path) as empty:
        cases[server.uri("other")] = f"{server.uri('other')}: there is no export 'other' here; there are: disk"
        cases[empty] = f"{NBDURI.parse(empty)} is empty"
        for uri, message in cases.items():
            with pytest.raises(Refused) as caught:
                opened(uri)
            assert str(caught.value) == message


def test_source_and_target_are_two(image: Path, tmp_path: Path) -> None:
    """Also where one has two names, and whichever is opened first."""
    image.write_bytes(pattern(2 * MIB))
    with serving(image, errors=tmp_path / "errors") as server:
        uri, local = server.uri(), server.uri().replace("127.0.0.1", "localhost")
        for source, target in ((uri, uri), (uri, local), (local, uri)):
            line = failed(restore(source, target))
            also = "" if source == target else f" (as {target})"
            assert line == f"{source} is both source and target{also}; they have to be two disks"
        succeeded(verify(uri, uri))
        with closing(opened(uri)), pytest.raises(Refused) as caught:
            RemoteTarget(NBDURI.parse(local), timeout=5, notify=print)
        assert str(caught.value) == f"{local} is both source and target (as {uri}); they have to be two disks"
    assert image.read_bytes() == pattern(2 * MIB)


# --- As a whole ---


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Serving, Serving, Path]]:
    """Two machines in target mode, each with a disk."""
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    target = tmp_path / "b" / "disk"
    disk_with_holes(tmp_path / "a" / "disk")
    target.write_bytes(pattern(SIZE + MIB, 7))
    with (
        serving(tmp_path / "a" / "disk", options=options, errors=tmp_path / "errors a") as first,
        serving(target, options=options, errors=tmp_path / "errors b") as second,
    ):
        yield first, second, target


def test_a_disk_is_cloned_onto_another(two: tuple[Serving, Serving, Path], tmp_path: Path) -> None:
    source, target, path = two
    printed = succeeded(restore(source.uri(), target.uri()))
    assert "Restored 13.0 MiB" in printed
    assert "verified" in printed
    want = (tmp_path / "a" / "disk").read_bytes()
    assert_same_bytes(path.read_bytes()[:SIZE], want)
    succeeded(verify(source.uri(), target.uri()))
    with path.open("r+b") as file:
        file.seek(11 * MIB)
        file.write(b"not that")
    printed = succeeded(restore(source.uri(), target.uri(), "--delta"))
    assert "of it written, the rest was there already" in printed
    assert_same_bytes(path.read_bytes()[:SIZE], want)


def test_a_clone_whose_source_is_killed_leaves_an_empty_disk(image: Path, tmp_path: Path) -> None:
    image.write_bytes(pattern(64 * MIB))
    target = tmp_path / "target"
    target.write_bytes(pattern(64 * MIB, 2))
    with serving(image, errors=tmp_path / "errors", clean=False) as server:
        words = (
            "--source",
            server.uri(),
            "--target",
            target,
            "--erase",
            "--noprompt",
            "--max-rate=20M",
            "--timeout=0.5",
        )
        with started("restore", *words, directory=tmp_path) as run:
            wait_until(lambda: "Restoring  ." in run.out, "some blocks")
            kill_all(server)
            result = run.end()
    line = failed(result)
    assert line.startswith(f"{server.uri()}: ")
    assert line.endswith(f"; {target} is left empty")
    assert not any(target.read_bytes()[:MIB])


def test_a_disk_and_its_partition_are_one(tmp_path: Path) -> None:
    """As source and target, and as two targets, of which one would be overwritten after it was verified."""
    disk = partitioned(tmp_path / "disk.img", *(make_filesystem(tmp_path / f"p{n}", "ext4", 8 * MIB) for n in (1, 2)))
    before = disk.read_bytes()
    with serving(disk, errors=tmp_path / "errors") as server:
        whole, first, second = (server.uri(name) for name in ("disk.img", "disk.img1", "disk.img2"))
        one = "are a disk and a partition of it; they have to be two disks"
        for source, target in ((whole, first), (first, whole)):
            assert failed(restore(source, target)) == f"{source} and {target} {one}"
        with (
            closing(RemoteTarget(NBDURI.parse(first), timeout=5, notify=print)),
            pytest.raises(Refused) as caught,
        ):
            RemoteTarget(NBDURI.parse(whole), timeout=5, notify=print)
        assert str(caught.value) == f"{whole} and {first} {one}"
        with (
            closing(RemoteTarget(NBDURI.parse(first), timeout=5, notify=print)),
            pytest.raises(Refused) as caught,
        ):
            RemoteTarget(NBDURI.parse(first), timeout=5, notify=print)
        assert str(caught.value) == f"{first} is named as a target twice; each has to be another disk"
        assert disk.read_bytes() == before
        succeeded(restore(first, second))
