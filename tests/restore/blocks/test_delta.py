"""`--delta`: what the target has already is not sent, wherever it is, and what is sent is right."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.restore.conftest import FOREIGN, LOCAL, OURS
from tests.restore.engine import (
    IMAGES,
    MIB,
    WRITING,
    Disk,
    failed,
    image,
    json_events,
    restore,
    restoring,
    succeeded,
    verify,
    wait_for,
)
from tests.serving import kill_all, pattern, serving
from tests.support import assert_same_bytes, wait_until


@pytest.mark.parametrize("source", ["random, odd size", "holes", "one byte", "empty"])
@pytest.mark.parametrize("disk", [OURS[0], OURS[3], FOREIGN[0], FOREIGN[2], *LOCAL], indirect=True)
@pytest.mark.parametrize("there", ["nothing of it", "half of it", "all of it"])
def test_delta(disk: Disk, source: str, there: str, tmp_path: Path) -> None:
    old = pattern(disk.size, seed=13)
    with image(source, tmp_path) as (path, data):
        if there == "half of it":
            old = (
                bytes(a if (at // 65536) % 2 else b for at, (a, b) in enumerate(zip(old, data, strict=False)))
                + old[len(data) :]
            )
        elif there == "all of it":
            old = data + old[len(data) :]
        disk.fill(old)
        said = succeeded(restore(path, disk.target, "--delta"))
        assert_same_bytes(disk.read(), data + old[len(data) :])
    assert ", verified, " in said
    assert "of it written, the rest was there already" in said


def scattered(data: bytes, seed: int) -> bytes:
    """The same, but for one percent of it in runs of 64 KiB."""
    changed = bytearray(data)
    order = random.Random(seed)
    grains = len(data) >> 16
    for grain in order.sample(range(grains), grains // 100):
        changed[grain << 16 : (grain + 1) << 16] = order.randbytes(1 << 16)
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_of_a_disk_that_is_99_percent_the_same_at_most_1_5_percent_are_sent(seed: int, tmp_path: Path) -> None:
    size = 192 * MIB
    data = random.Random(seed).randbytes(size)
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(data)
    disk.write_bytes(scattered(data, seed))
    with serving(disk, options=("--listen=127.0.0.1:0", "--control=127.0.0.1:0"), errors=tmp_path / "e") as serve:
        succeeded(restore(source, serve.uri(), "--delta"))
        wait_until(lambda: any(event["event"] == "disconnect" for event in serve.events), "disconnect")
        written = sum(event["written"] for event in serve.events if event["event"] == "disconnect")
    assert_same_bytes(disk.read_bytes(), data)
    first_mib = 2 * MIB  # zeroed first, written last
    assert written - first_mib <= size * 15 // 1000, f"{written} of {size} bytes"


def test_a_restore_that_was_cut_goes_on(tmp_path: Path) -> None:
    """Everything killed with kill -9, then the same command with --delta."""
    size = 192 * MIB
    data = random.Random(5).randbytes(size)
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(data)
    disk.write_bytes(bytes(size))
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    with serving(disk, options=options, errors=tmp_path / "e", clean=False) as serve:
        with restoring(source, serve.uri(), "--max-rate=64M") as run:
            wait_for(run, "....10....20....30")
            run.process.kill()
            run.process.wait()
        kill_all(serve)
    assert disk.read_bytes()[:MIB] == bytes(MIB), "a disk that is not whole looks like one"
    with serving(disk, options=options, errors=tmp_path / "e") as serve:
        events = json_events(succeeded(restore(source, serve.uri(), "--delta", "--json")))
        wait_until(lambda: any(event["event"] == "disconnect" for event in serve.events), "disconnect")
        written = sum(event["written"] for event in serve.events if event["event"] == "disconnect")
    assert_same_bytes(disk.read_bytes(), data)
    assert written < size * 8 // 10, "what was there was sent again"
    assert "the rest was there already" in events[-1]["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_cut_restore_says_how_to_go_on(number: int, tmp_path: Path) -> None:
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(pattern(64 * MIB))
    disk.write_bytes(bytes(64 * MIB))
    with restoring(source, disk, "--max-rate=16M") as run:
        wait_for(run, WRITING)
        run.process.send_signal(number)
        message = failed(run.end())
    assert message == f"interrupted; {disk} is left empty (the same command with --delta goes on from here)"
    succeeded(restore(source, disk, "--delta"))
    succeeded(verify(source, disk))


def test_nohup(tmp_path: Path) -> None:
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(pattern(8 * MIB))
    disk.write_bytes(bytes(8 * MIB))
    with restoring(source, disk, "--max-rate=8M", prefix=("nohup",)) as run:
        wait_for(run, WRITING)
        run.process.send_signal(signal.SIGHUP)
        succeeded(run.end())
    assert_same_bytes(disk.read_bytes(), source.read_bytes())


def test_nothing_is_compared_twice_without_need(tmp_path: Path) -> None:
    """A blank disk: it is not asked about ever smaller parts of what is different anyway."""
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(pattern(100 * MIB))
    disk.write_bytes(pattern(100 * MIB, seed=99))
    said = succeeded(restore(source, disk, "--delta"))
    assert ", 100.0 MiB of it written" in said
    assert_same_bytes(disk.read_bytes(), source.read_bytes())


def test_with_noverify_what_differs_is_sent_all_the_same(tmp_path: Path) -> None:
    source, disk = tmp_path / "source.img", tmp_path / "disk.img"
    make, size = IMAGES["holes"]
    make(source, size)
    disk.write_bytes(pattern(size))
    said = succeeded(restore(source, disk, "--delta", "--noverify"))
    assert ", not verified" in said
    assert_same_bytes(disk.read_bytes(), source.read_bytes())
