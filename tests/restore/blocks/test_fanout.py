"""Several targets at once: each succeeds or fails by itself."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.restore.engine import MIB, asr, json_events, restoring, wait_for
from tests.serving import Serving, serving
from tests.support import assert_same_bytes, loop_device

SIZE = 24 * MIB
DATA = random.Random(6).randbytes(SIZE)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(DATA)
    return path


@contextmanager
def disks(directory: Path, count: int, size: int = SIZE) -> Iterator[list[tuple[Path, Serving]]]:
    """Disks, each served by its own server."""
    with ExitStack() as stack:
        found = []
        for number in range(count):
            path = directory / f"disk{number}"
            path.write_bytes(bytes(size))
            options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
            serve = stack.enter_context(serving(path, options=options, errors=directory / f"errors{number}"))
            found.append((path, serve))
        yield found


def words(source: Path, *targets: str | Path) -> list[str]:
    return ["--source", str(source), *(word for t in targets for word in ("--target", str(t))), "--erase", "--noprompt"]


def test_exports_files_and_devices_together(source: Path, tmp_path: Path) -> None:
    file, behind = tmp_path / "file.img", tmp_path / "loop.img"
    file.write_bytes(bytes(SIZE))
    behind.write_bytes(bytes(SIZE))
    with disks(tmp_path, 2) as served, loop_device(behind) as loop:
        targets: list[str | Path] = [served[0][1].uri(), file, served[1][1].uri(), loop]
        result = asr("restore", *words(source, *targets))
        assert (result.status, result.err) == (0, "")
        for path in (served[0][0], served[1][0], file, behind):
            assert_same_bytes(path.read_bytes(), DATA)
    lines = result.out.splitlines()
    assert lines[-5] == "  4 of 4 targets done"
    assert lines[-4:] == [f"  {target}: done (exit status 0)" for target in targets]
    for target in targets:
        mine = [line for line in lines if line.startswith(f"  {target}: ")]
        assert any("Restoring  100 %" in line for line in mine)
        assert any("Verifying  100 %" in line for line in mine)
        assert any("Restored 24.0 MiB" in line and "verified" in line for line in mine)


def test_one_that_fails_does_not_fail_the_others(source: Path, tmp_path: Path) -> None:
    small, missing = tmp_path / "small", tmp_path / "missing"
    small.write_bytes(bytes(MIB))
    with disks(tmp_path, 2) as served:
        good = [serve.uri() for _, serve in served]
        result = asr("restore", *words(source, good[0], small, missing, good[1]))
        assert result.status == 1
        for path, _ in served:
            assert_same_bytes(path.read_bytes(), DATA)
    assert small.read_bytes() == bytes(MIB)
    assert f"asr: {missing} does not exist; an image file has to be the" in result.err
    assert f"asr: {small} is too small: it has 1048576 bytes (1.0 MiB), " in result.err
    assert result.out.splitlines()[-5:] == [
        "  2 of 4 targets done",
        f"  {good[0]}: done (exit status 0)",
        f"  {small}: FAILED (exit status 1)",
        f"  {missing}: FAILED (exit status 1)",
        f"  {good[1]}: done (exit status 0)",
    ]


def test_one_that_crawls_does_not_hold_back_the_others(source: Path, tmp_path: Path) -> None:
    """One of the connections stops in the middle, and later goes on."""
    with disks(tmp_path, 2) as served:
        (slow_path, slow), (path, quick) = served
        with restoring(source, slow.uri(), "--target", quick.uri(), "--max-rate=12M") as run:
            wait_for(run, f"{slow.uri()}: Restoring  10 %")
            os.kill(slow.connection(), signal.SIGSTOP)
            wait_for(run, f"{quick.uri()}: Restored")
            assert_same_bytes(path.read_bytes(), DATA)
            assert f"{slow.uri()}: Restored" not in run.out
            os.kill(slow.connection(), signal.SIGCONT)
            result = run.end(60)
        assert (result.status, result.err) == (0, "")
        assert_same_bytes(slow_path.read_bytes(), DATA)


def test_json_names_the_target_of_each_event(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(bytes(SIZE))
    second.write_bytes(bytes(SIZE - 1))
    result = asr("restore", *words(source, first, second), "--json")
    assert result.status == 1
    events = json_events(result.out)
    assert {event["target"] for event in events} == {str(first), str(second)}
    assert [e["event"] for e in events if e["target"] == str(second)][-2:] == ["error", "note"]
    assert [e["message"] for e in events[-2:]] == ["exit status 0", "exit status 1"]


def test_interrupted(source: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(bytes(SIZE))
    second.write_bytes(bytes(SIZE))
    with restoring(source, first, "--target", str(second), "--max-rate=4M") as run:
        wait_for(run, f"{second}: Restoring  10 %")
        run.process.send_signal(signal.SIGTERM)
        result = run.end()
    assert result.status == 1
    hint = "(the same command with --delta goes on from here)"
    assert sorted(result.err.splitlines()) == sorted(
        [f"asr: {path}: interrupted; {path} is left empty {hint}" for path in (first, second)] + ["asr: interrupted"]
    )
    assert first.read_bytes()[:MIB] == bytes(MIB)


def test_the_same_target_twice(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "a"
    disk.write_bytes(bytes(SIZE))
    result = asr("restore", *words(source, disk, disk))
    line = f"asr: {disk} is named as a target twice; each has to be another disk\n"
    assert (result.status, result.err) == (1, line)
    alias = tmp_path / "alias"
    alias.symlink_to(disk)
    result = asr("restore", *words(source, disk, alias))
    line = f"asr: {alias} is named as a target twice (as {disk}); each has to be another disk\n"
    assert (result.status, result.err) == (1, line)
    assert result.out == ""


def test_more_targets_than_asyncio_has_threads(source: Path, tmp_path: Path) -> None:
    """Each copy keeps one, and with --delta waits for what others do."""
    targets = [tmp_path / f"disk{number}" for number in range(min(32, (os.cpu_count() or 1) + 4) + 1)]
    for target in targets:
        with target.open("wb") as file:
            file.truncate(SIZE)
    result = asr("restore", *words(source, *targets), "--delta")
    assert (result.status, result.err) == (0, "")
    for target in targets:
        assert_same_bytes(target.read_bytes(), DATA)
