"""What `asr` prints, in asr's words and order; the question; what a terminal shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.restore.engine import ASR, MIB, READ_BACK, asr, failed, json_events, nbdkit, restore, succeeded, verify
from tests.restore.terminal import on_terminal
from tests.serving import ROOT, TARGETMODE, Serving, pattern, run, serving, targetmode
from tests.support import assert_same_bytes

BAR = "....10....20....30....40....50....60....70....80....90....100"
SIZE = 16 * MIB


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.img"
    path.write_bytes(pattern(3 * MIB))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Serves `disk.img` with a file system on it."""
    directory = tmp_path_factory.mktemp("disk")
    disk = directory / "disk.img"
    disk.write_bytes(bytes(SIZE))
    run("mkfs.ext4", "-q", "-L", "archive", disk)
    with serving(
        disk, options=("--listen=127.0.0.1:0", "--control=127.0.0.1:0"), errors=directory / "errors"
    ) as serving_:
        yield serving_


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A local image with a file system on it."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    run("mkfs.ext4", "-q", "-L", "archive", path)
    return path


def expected(name: str, *, verify: bool = True) -> str:
    lines = [
        "  Validating target...done",
        "  Validating source...done",
        f"  Erasing target device {re.escape(name)}...done",
        "  Retrieving scan information...done",
        "  Validating sizes...done",
        f"  Restoring  {re.escape(BAR)}",
        *([f"  Verifying  {re.escape(BAR)}"] if verify else []),
        rf"  Restored 3\.0 MiB in \d+\.\d s \(\d+\.\d [KMG]iB/s\), {'verified' if verify else 'not verified'}",
    ]
    return "\n".join(lines) + "\n"


def test_restore(image: Path, server: Serving) -> None:
    uri = server.uri()
    assert re.fullmatch(expected(uri), succeeded(restore(image, uri)))
    assert re.fullmatch(expected(uri, verify=False), succeeded(restore(image, uri, "--noverify")))
    legacy = asr("restore", "-source", image, "-target", uri, "-erase", "-noprompt", "-max-rate=1G")
    assert re.fullmatch(expected(uri), succeeded(legacy))


def test_restore_of_targetmode(image: Path, disk: Path) -> None:
    words = ("--source", image, "--target", disk)
    done = targetmode("restore", *words, "--erase", "--noprompt")
    assert re.fullmatch(expected(str(disk)), succeeded(done))
    assert "every block is the same" in succeeded(targetmode("verify", *words))


def test_verify(image: Path, disk: Path) -> None:
    succeeded(restore(image, disk))
    assert re.fullmatch(
        "  Validating target...done\n  Validating source...done\n"
        f"  Verifying  {re.escape(BAR)}\n"
        r"  Compared 3\.0 MiB in \d+\.\d s \(\d+\.\d [KMG]iB/s\), every block is the same\n",
        succeeded(verify(image, disk)),
    )


def test_where_the_target_does_not_verify_itself(image: Path, disk: Path, tmp_path: Path) -> None:
    with nbdkit("file", disk, directory=tmp_path) as uri:
        said = succeeded(restore(image, uri))
    note = f"  the server has no control API; {READ_BACK}\n"
    assert said.count(note) == 1
    said = said.replace(note, "")
    assert re.sub(r"  Restoring  \.*[0-9.]*\n(?=  Restoring)", "", said).count(BAR) == 2


def test_json(image: Path, server: Serving) -> None:
    events = json_events(succeeded(restore(image, server.uri(), "--json")))
    phases = [(event["phase"], event["state"]) for event in events if event["event"] == "phase"]
    erasing = f"Erasing target device {server.uri()}"
    names = ("Validating target", "Validating source", erasing, "Retrieving scan information", "Validating sizes")
    assert phases == [(name, state) for name in names for state in ("begin", "done")]
    rest = events[len(phases) :]
    assert {event["event"] for event in rest[:-1]} == {"progress"}
    for phase, total in (("Restoring", 2 * MIB), ("Verifying", 3 * MIB)):
        done = [event["bytes"] for event in rest if event.get("phase") == phase]
        assert done == sorted(set(done))
        assert done[-1] == total
        assert all(event["total"] == total for event in rest if event.get("phase") == phase)
    assert events[-1]["event"] == "done"
    assert events[-1]["bytes"] == 3 * MIB


def test_json_of_a_failure(image: Path) -> None:
    result = restore(image, "/nowhere", "--json")
    assert result.status == 1
    assert result.err == ""
    last = json_events(result.out)[-1]
    assert last["event"] == "error"
    assert "/nowhere does not exist" in last["message"]
    assert last["ranges"] == []


# --- The question ---


@pytest.mark.parametrize("keys", ["n\n", "\n", "what?\n", "\x04", "no\n"], ids=["n", "enter", "nonsense", "EOF", "no"])
def test_question_answered_with_no(keys: str, image: Path, disk: Path) -> None:
    before = disk.read_bytes()
    with on_terminal(*ASR, "restore", "-source", image, "-target", disk, "-erase") as terminal:
        terminal.wait_for("[ny]: ")
        terminal.type(keys)
        assert terminal.end() == 1
    shown = terminal.shown
    assert f"  Erase contents of {disk} (16.0 MiB, " in shown
    assert 'ext4 "archive"' in shown
    assert "asr: not erased; nothing was touched\n" in shown
    assert "Erasing" not in shown
    assert_same_bytes(disk.read_bytes(), before)


def test_question_answered_with_yes(image: Path, server: Serving) -> None:
    uri = server.uri()
    with on_terminal(*TARGETMODE, "restore", "--source", image, "--target", uri, "--erase") as terminal:
        terminal.wait_for(f"  Erase contents of {uri} (16.0 MiB, ")
        terminal.wait_for("[ny]: ")
        terminal.type("y\n")
        assert terminal.end() == 0
    assert ", verified" in terminal.shown
    succeeded(verify(image, uri))


def test_ctrl_c_at_the_question(image: Path, disk: Path) -> None:
    before = disk.read_bytes()
    with on_terminal(*ASR, "restore", "--source", image, "--target", disk, "--erase") as terminal:
        terminal.wait_for("[ny]: ")
        terminal.type("\x03")
        assert terminal.end(5) == 1
    assert terminal.shown.endswith("asr: interrupted; nothing was touched\n")
    assert_same_bytes(disk.read_bytes(), before)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_no_terminal_to_ask_on(options: tuple[str, ...], image: Path, disk: Path) -> None:
    before = disk.read_bytes()
    result = asr("restore", "--source", image, "--target", disk, "--erase", *options)
    assert result.status == 1
    assert "standard input is not a terminal to ask before erasing; say --noprompt" in result.out + result.err
    assert_same_bytes(disk.read_bytes(), before)


# --- Bars ---


def test_bars_on_a_terminal(server: Serving, tmp_path: Path) -> None:
    image = tmp_path / "source.img"
    image.write_bytes(pattern(SIZE))
    words = ("restore", "--source", image, "--target", server.uri(), "--erase", "--noprompt", "--max-rate=12M")
    with on_terminal(*ASR, *words) as terminal:
        terminal.wait_for("/s ")
        assert terminal.end(30) == 0
    assert re.search(r"Restoring ━.* +\d+% .*MiB.*/s +\d:\d\d:\d\d", terminal.shown), terminal.shown
    assert re.search(r"Restoring ━+ +100%", terminal.shown), terminal.shown
    assert re.search(r"Verifying ━+ +100%", terminal.shown), terminal.shown
    assert BAR not in terminal.shown
    assert terminal.shown.rstrip().endswith(", verified")


# --- Nobody listens ---


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_leaves_does_not_end_a_restore(options: tuple[str, ...], image: Path, disk: Path) -> None:
    words = [*ASR, "restore", "--source", image, "--target", disk, "--erase", "--noprompt", *options]
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), errors) == (0, "")
    assert_same_bytes(disk.read_bytes()[: 3 * MIB], image.read_bytes())


def test_full_log(image: Path, disk: Path) -> None:
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-m", "restore.cli", "restore", "--source", image, "--target", disk]
        done = subprocess.run([*map(str, words), "--erase", "--noprompt"], stdout=full, cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert_same_bytes(disk.read_bytes()[: 3 * MIB], image.read_bytes())


def test_the_image_is_missing_at_last(disk: Path, tmp_path: Path) -> None:
    """The target comes first, as asr has it; both lines are on standard output, the reason on the other."""
    result = restore(tmp_path / "missing.img", disk)
    assert failed(result).startswith(f"{tmp_path / 'missing.img'}: ")
    assert result.out == "  Validating target...done\n  Validating source...\n"
