"""Writers of a whole disk and of its partitions keep each other out, across threads and processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbd.writers import WriterLock

HOLD = """
import sys
from nbd.writers import WriterLock
lock = WriterLock(sys.argv[1], sys.argv[2], whole=sys.argv[3] == "True", who=sys.argv[4], patience=0)
print(lock.acquire(), flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(
    directory: Path, disk: str, *, whole: bool, who: str = "somebody"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Another process that tries to be a writer; what came of it."""
    words = [sys.executable, "-c", HOLD, str(directory), disk, str(whole), who]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def lock(directory: Path, disk: str = "sda", *, whole: bool, patience: float = 0) -> WriterLock:
    return WriterLock(directory, disk, whole=whole, who="this test", patience=patience)


@pytest.mark.parametrize("whole", [True, False])
def test_the_other_side_is_kept_out_and_told_by_whom(tmp_path: Path, whole: bool) -> None:
    with holder(tmp_path, "sda", whole=whole, who="192.0.2.1:7") as (result, _):
        assert result == "None"
        ours = lock(tmp_path, whole=not whole)
        assert ours.blocked_by() == "192.0.2.1:7"
        assert ours.acquire() == "192.0.2.1:7"
        assert ours.acquire() == "192.0.2.1:7"
        with holder(tmp_path, "sda", whole=whole) as (again, _):
            assert again == "None"  # a refused writer holds nothing
    assert ours.acquire() is None
    ours.release()


@pytest.mark.parametrize("whole", [True, False])
def test_the_same_side_and_other_disks_are_not_kept_out(tmp_path: Path, whole: bool) -> None:
    with holder(tmp_path, "sda", whole=whole) as (first, _), holder(tmp_path, "sda", whole=whole) as (second, _):
        assert (first, second) == ("None", "None")
        with holder(tmp_path, "sdb", whole=not whole) as (third, _):
            assert third == "None"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_writer_that_dies_is_out(tmp_path: Path, number: signal.Signals) -> None:
    ours = lock(tmp_path, whole=False)
    with holder(tmp_path, "sda", whole=True) as (_, process):
        assert ours.acquire() == "somebody"
        process.send_signal(number)
        process.wait()
        assert ours.acquire() is None
    ours.release()


def test_a_writer_that_is_about_to_leave_is_waited_for(tmp_path: Path) -> None:
    first, second = lock(tmp_path, whole=True), lock(tmp_path, whole=False, patience=5)
    assert first.acquire() is None
    leaving = threading.Timer(0.2, first.release)
    leaving.start()
    begin = time.monotonic()
    assert second.acquire() is None
    assert 0.1 < time.monotonic() - begin < 3
    leaving.join()
    second.release()


def test_one_that_stays_is_waited_for_once(tmp_path: Path) -> None:
    first, second = lock(tmp_path, whole=True), lock(tmp_path, whole=False, patience=0.3)
    assert first.acquire() is None
    begin = time.monotonic()
    assert second.acquire() == "this test"
    assert time.monotonic() - begin > 0.2
    begin = time.monotonic()
    assert second.acquire() == "this test"
    assert time.monotonic() - begin < 0.2
    first.release()
    assert second.acquire() is None
    second.release()


def test_acquiring_and_releasing_twice_is_once(tmp_path: Path) -> None:
    ours, other = lock(tmp_path, whole=True), lock(tmp_path, whole=False)
    assert ours.acquire() is None
    assert ours.acquire() is None
    ours.release()
    ours.release()
    assert other.acquire() is None
    other.release()


def test_threads_that_share_one_hold_it_once(tmp_path: Path) -> None:
    for _ in range(20):
        ours = lock(tmp_path, whole=True)
        barrier = threading.Barrier(8)

        def acquire(ours: WriterLock = ours, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            assert ours.acquire() is None

        threads = [threading.Thread(target=acquire) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ours.release()
        assert lock(tmp_path, whole=False).blocked_by() is None


@pytest.mark.parametrize("disk", ["n" * 255, "ö.img", "with space", "..", "a\udcffb"])
def test_any_disks_name_will_do(tmp_path: Path, disk: str) -> None:
    first, second = lock(tmp_path, disk, whole=True), lock(tmp_path, disk, whole=False)
    assert first.acquire() is None
    assert second.acquire() == "this test"
    assert {path.parent for path in tmp_path.rglob("*")} == {tmp_path}
    first.release()
