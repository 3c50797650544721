"""Verification that can fail: servers that say they have written what they have not, and disks that change.

And whose fault it is: the source's, the transfer's or the medium's.

Debian packages: libnbd-bin nbdkit nbdkit-plugin-python util-linux.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.restore.engine import MIB, asr, failed, named_ranges, nbdkit, restore, succeeded, verify
from tests.restore.source.storage.servers import Liar, asked, partial
from tests.serving import pattern, run, serving
from tests.support import assert_same_bytes, loop_device, running

SIZE = 24 * MIB
IMAGE_SIZE = 20 * MIB + 777
HOLE = (12 * MIB, 16 * MIB)
THEIRS = "the transfer, or a bad write, was at fault"
CONTROL = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Data, a hole of 4 MiB, data."""
    path = tmp_path / "source.img"
    with path.open("wb") as file:
        file.write(pattern(HOLE[0], seed=1))
        file.seek(HOLE[1])
        file.write(pattern(IMAGE_SIZE - HOLE[1], seed=2))
    return path


@contextmanager
def lying(server: str, disk: Path, how: str, start: int, end: int, **options: Any) -> Iterator[str]:
    """A server that lies about these bytes; its URI."""
    counts = disk.parent / "counts"
    counts.mkdir(exist_ok=True)
    lies = {"how": how, "start": start, "end": end, "times": None, "zeroes": False, "counts": str(counts), **options}
    if server == "nbdkit":
        plugin = Path(__file__).with_name("lying_plugin.py")
        with nbdkit("python", plugin, f"file={disk}", f"lies={json.dumps(lies)}", directory=disk.parent) as uri:
            yield uri
    else:
        program = (sys.executable, "-m", "tests.faults.liar", json.dumps(lies))
        with serving(disk, options=CONTROL, program=program, errors=disk.parent / "errors") as ours:
            yield ours.uri()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(SIZE, seed=3))
    return path


SERVERS = ("ours", "nbdkit")


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize(
    ("how", "start", "end", "named"),
    [
        ("drop", 5 * MIB + 5, 7 * MIB, [(5 * MIB, 2 * MIB)]),
        ("flip", 3 * MIB, 3 * MIB + 1, [(3 * MIB, MIB)]),
        ("drop", 20 * MIB, SIZE, [(20 * MIB, 777)]),
        ("flip", 0, 5, [(0, MIB)]),  # what is written last
        ("drop", 0, SIZE, [(MIB, 11 * MIB), (16 * MIB, 4 * MIB + 777)]),
    ],
)
def test_a_server_that_always_lies(
    server: str, how: str, start: int, end: int, named: list[tuple[int, int]], image: Path, disk: Path
) -> None:
    old = disk.read_bytes()
    with lying(server, disk, how, start, end) as uri:
        result = restore(image, uri)
        message = failed(result, 3)
    assert (
        message == f"the medium is at fault: {uri} keeps other data than were sent, 3 times over; {uri} is left empty"
    )
    assert lines(named) == named_ranges(result)
    now = disk.read_bytes()
    assert_same_bytes(now[:MIB], bytes(MIB))
    assert_same_bytes(now[IMAGE_SIZE:], old[IMAGE_SIZE:])


def lines(ranges: list[tuple[int, int]]) -> list[str]:
    said = []
    for offset, length in ranges:
        first, last = offset // MIB, (offset + length - 1) // MIB
        where = f"{first}" if first == last else f"{first} to {last}"
        said.append(f"bytes {offset} to {offset + length - 1} (MiB {where})")
    return said


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_does_not_zero(server: str, image: Path, disk: Path) -> None:
    """The old contents would shine through the image's holes."""
    with lying(server, disk, "drop", MIB, SIZE, zeroes=True, times=0) as uri:
        succeeded(restore(image, uri))
    disk.write_bytes(pattern(SIZE, seed=3))
    with lying(server, disk, "drop", *HOLE, zeroes=True) as uri:
        result = restore(image, uri)
        failed(result, 3)
    assert named_ranges(result) == lines([(HOLE[0], HOLE[1] - HOLE[0])])
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


@pytest.mark.parametrize(
    ("server", "how", "times"), [("ours", "drop", 1), ("ours", "flip", 3), ("nbdkit", "drop", 3), ("nbdkit", "flip", 1)]
)
def test_a_server_that_lies_for_a_while(server: str, how: str, times: int, image: Path, disk: Path) -> None:
    old = disk.read_bytes()
    with lying(server, disk, how, 8 * MIB, 10 * MIB, times=times) as uri:
        said = succeeded(restore(image, uri))
    assert said.count("  2 ranges differ and are sent again\n") == times
    assert said.count(f"  {THEIRS}: 2 ranges were damaged; they are right now\n") == 1
    assert ", verified" in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_lies_once_too_often(server: str, image: Path, disk: Path) -> None:
    with lying(server, disk, "flip", 8 * MIB, 8 * MIB + 1, times=4) as uri:
        result = restore(image, uri)
    failed(result, 3)
    assert result.out.count("  1 range differs and is sent again\n") == 3
    assert THEIRS not in result.out
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def test_a_server_that_lies_about_the_first_mib_for_a_while(image: Path, disk: Path) -> None:
    with lying("ours", disk, "flip", 0, MIB, times=2) as uri:
        said = succeeded(restore(image, uri))
    assert said.count("  1 range differs and is sent again\n") == 2
    assert said.count(f"  {THEIRS}: 1 range was damaged; it is right now\n") == 1
    assert_same_bytes(disk.read_bytes()[:IMAGE_SIZE], image.read_bytes())


@pytest.mark.parametrize("options", [(), ("--max-rate=20M",)], ids=["fast", "slow"])
def test_a_disk_that_is_smaller_than_it_says(options: tuple[str, ...], image: Path, tmp_path: Path) -> None:
    """All that is written goes over what came before it, which was right when it was compared."""
    with nbdkit("python", Path(__file__).with_name("small_plugin.py"), f"size={SIZE}", directory=tmp_path) as uri:
        result = restore(image, uri, *options)
    assert failed(result, 3).endswith(f"3 times over; {uri} is left empty")


@pytest.mark.parametrize("server", SERVERS)
def test_nobody_looks_when_told_not_to(server: str, image: Path, disk: Path) -> None:
    with lying(server, disk, "flip", 8 * MIB, 8 * MIB + 1) as uri:
        said = succeeded(restore(image, uri, "--noverify"))
        assert "Verifying" not in said
        assert ", not verified" in said
        result = verify(image, uri)
    assert failed(result, 3).endswith(f"differs from {image}")
    assert named_ranges(result) == lines([(8 * MIB, MIB)])


# --- Prepared images: which side was wrong ---


@contextmanager
def misread(image: Path, at: int, *, times: int | None, after: int = 0) -> Iterator[Path]:
    """The image as a path whose bytes come from a server that misreads a byte, with its scan beside it."""
    mount, link = image.parent / "mount", image.parent / "far.img"
    mount.mkdir()
    lies = {"how": "misread", "start": at, "end": at + 1, "times": times, "after": after, "zeroes": False}
    plugin = Path(__file__).with_name("lying_plugin.py")
    served = nbdkit("--readonly", "python", plugin, f"file={image}", f"lies={json.dumps(lies)}", directory=image.parent)
    with served as uri:
        command: list[str | Path] = ["nbdfuse", "-r", "-C", "1", mount / "image", uri]
        try:
            with running(command, ready=(mount / "image").exists):
                link.symlink_to(mount / "image")
                succeeded(asr("imagescan", image))
                Path(f"{image}.bmap").rename(f"{link}.bmap")
                yield link
        finally:
            run("umount", "--lazy", mount, check=False)


@pytest.fixture
def requires_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for FUSE")


def test_a_transfer_that_damages_what_is_read_once(requires_root: None, image: Path, disk: Path) -> None:
    old = disk.read_bytes()
    with misread(image, 5 * MIB + 5, times=1) as far:
        said = succeeded(restore(far, disk))
    line = f"the transfer was at fault: MiB 5 of {far} arrived damaged; read once more it is right"
    assert said.count(f"  {line}\n") == 1
    assert ", verified" in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])


def test_a_source_that_is_always_wrong(requires_root: None, image: Path, disk: Path) -> None:
    with misread(image, 5 * MIB + 5, times=None) as far:
        message = failed(restore(far, disk))
    assert message == (
        f"the source is at fault: {far} is damaged or was changed: MiB 5 does not match its scan, nor when read once "
        f"more; {disk} is left empty"
    )
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


def web(image: Path, at: int, times: int) -> Liar:
    """A web server that has the image and its scan, and damages a byte so often on its way."""
    files = {"/image": image.read_bytes(), "/image.bmap": Path(f"{image}.bmap").read_bytes()}
    told = [0]

    def answer(head: str, number: int) -> Iterator[bytes]:
        data = files.get(head.split()[1])
        if data is None:
            yield b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            return
        whole = "\r\nrange:" not in head.lower()
        start, end = (0, len(data)) if whole else asked(head)
        sent = bytearray(data[start:end])
        if data is files["/image"] and start <= at < end and end - start >= MIB and told[0] < times:
            told[0] += 1
            sent[at - start] ^= 0x10
        yield partial(data, start, start + len(sent), 'ETag: "1"') + sent

    return Liar(answer)


def test_a_web_server_s_transfer(image: Path, disk: Path) -> None:
    """Damaged once, it is fetched once more; always, it is the source that is damaged, as far as can be told."""
    old = disk.read_bytes()
    succeeded(asr("imagescan", image))
    with web(image, 9 * MIB + 7, 1).started() as server:
        said = succeeded(restore(server.url(), disk))
    line = f"the transfer was at fault: MiB 9 of {server.url()} arrived damaged; read once more it is right"
    assert said.count(f"  {line}\n") == 1
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + old[IMAGE_SIZE:])
    with web(image, 9 * MIB + 7, 1000).started() as server:
        message = failed(restore(server.url(), disk))
    assert message == (
        f"the source is at fault: {server.url()} is damaged or was changed: MiB 9 does not match its scan, nor when "
        f"read once more; {disk} is left empty"
    )


def test_a_medium_that_is_wrong_while_the_source_is_not(image: Path, disk: Path) -> None:
    succeeded(asr("imagescan", image))
    with lying("ours", disk, "drop", 5 * MIB + 5, 7 * MIB) as uri:
        result = restore(image, uri)
    assert failed(result, 3) == (
        f"the medium is at fault: {uri} keeps other data than were sent, 3 times over, while {image} still matches its "
        f"scan; {uri} is left empty"
    )
    assert named_ranges(result) == lines([(5 * MIB, 2 * MIB)])


def test_a_source_that_turns_wrong_while_the_medium_is(requires_root: None, image: Path, disk: Path) -> None:
    """What was sent was right, and is not any more: the medium alone is not to blame."""
    with (
        misread(image, 5 * MIB + 5, times=None, after=1) as far,
        lying("ours", disk, "drop", 5 * MIB, 6 * MIB) as uri,
    ):
        message = failed(restore(far, uri))
    assert message.startswith(
        f"the source is at fault: {far} is damaged or was changed: MiB 5 does not match its scan, "
    )
    assert message.endswith(f"; {uri} is left empty")


# --- Disks that change after a restore ---


@pytest.fixture(params=["served file", "served loop", "local file", "local loop"])
def target(request: pytest.FixtureRequest, disk: Path, image: Path, tmp_path: Path) -> Iterator[str]:
    """Where the image has been restored to; its bytes are in `disk`."""
    served, _, kind = request.param.partition(" ")
    with ExitStack() as stack:
        path = stack.enter_context(loop_device(disk)) if kind == "loop" else disk
        where = str(path)
        if served == "served":
            where = stack.enter_context(serving(path, options=CONTROL, errors=tmp_path / "errors")).uri()
        succeeded(restore(image, where))
        yield where


def flip(disk: Path, *offsets: int) -> None:
    with disk.open("r+b", buffering=0) as file:
        for offset in offsets:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1]))


FLIPS: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([0], [(0, MIB)]),
    ([IMAGE_SIZE - 1], [(20 * MIB, 777)]),
    ([HOLE[0] + 2 * MIB + 5], [(HOLE[0] + 2 * MIB, MIB)]),
    ([MIB - 1, 5 * MIB, 6 * MIB + 1, 9 * MIB], [(0, MIB), (5 * MIB, 2 * MIB), (9 * MIB, MIB)]),
]


def test_one_flipped_byte(target: str, disk: Path, image: Path) -> None:
    """The first, the last, one in a hole, several."""
    for offsets, named in FLIPS:
        flip(disk, *offsets)
        result = verify(image, target)
        assert failed(result, 3) == f"{target} differs from {image}"
        assert named_ranges(result) == lines(named)
        flip(disk, *offsets)
    flip(disk, IMAGE_SIZE, SIZE - 1)  # behind the image: none of its business
    assert "every block is the same" in succeeded(verify(image, target))


def test_json_names_the_ranges(image: Path, disk: Path, tmp_path: Path) -> None:
    succeeded(restore(image, disk))
    flip(disk, 5 * MIB, 13 * MIB)
    result = verify(image, disk, "--json")
    assert result.status == 3
    assert result.err == ""
    last = json.loads(result.out.splitlines()[-1])
    assert last["event"] == "error"
    assert last["ranges"] == [[5 * MIB, MIB], [13 * MIB, MIB]]
