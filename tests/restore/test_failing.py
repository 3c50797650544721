"""How a command that failed says so, and what --verbose and --debug add."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from restore import cli, tools
from restore.verbs.opening import open_target
from tests.restore.engine import MIB, asr, restore, succeeded
from tests.restore.filesystems import make_filesystem
from tests.serving import serving

BUG = "asr: this is a bug in asr (ZeroDivisionError: integer division or modulo by zero); "


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """An image and a target."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(os.urandom(2 * MIB))
    disk.write_bytes(b"\x55" * (2 * MIB))
    return str(image), str(disk)


def test_a_bug(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and where it was only for those who ask; the target does not look like a disk."""
    monkeypatch.setattr("restore.blocks.job._Restore._known_zeroes", lambda self: 1 // 0)
    source, target = pair
    words = ["restore", "--source", source, "--target", target, "--erase", "--noprompt"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert err == BUG + "run the same command with --debug, and report what it prints\n"
    assert f"  {target} is left empty\n" in out
    assert Path(target).read_bytes()[:MIB] == bytes(MIB)
    assert cli.main([*words, "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith(BUG + "report it with the lines above\n")


def test_a_bug_with_one_of_several_targets(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = pair
    other = tmp_path / "other"
    other.write_bytes(bytes(2 * MIB))

    def failing(place: str, *rest: object) -> object:
        return 1 // 0 if place == target else open_target(place, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("restore.verbs.restoring.open_target", failing)
    words = ["restore", "--source", source, "--target", target, "--target", str(other), "--erase", "--noprompt"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"asr: {target}: this is a bug in asr (ZeroDivisionError")
    assert f"  {other}: done (exit status 0)\n" in out
    assert other.read_bytes() == Path(source).read_bytes()


def test_debug_says_how_long_each_phase_took(pair: tuple[str, str]) -> None:
    out = succeeded(restore(*pair, "--debug"))
    for phase in (
        "Validating target",
        "Validating source",
        f"Erasing target device {pair[1]}",
        "Restoring",
        "Verifying",
    ):
        assert re.search(rf"^  {re.escape(phase)} took \d+\.\d{{3}} s$", out, re.MULTILINE), out
    result = restore(f"{pair[0]}.not-there", pair[1], "--debug")
    assert re.search(r"^  Validating source failed after \d+\.\d{3} s$", result.out, re.MULTILINE)
    assert "took" not in succeeded(restore(*pair))


def test_verbose_says_what_was_found(pair: tuple[str, str], tmp_path: Path) -> None:
    source, target = pair
    size = "2.0 MiB (2097152 bytes)"
    nothing = "no partition table, no known file system"
    out = succeeded(restore(source, target, "--verbose"))
    assert f"  Source: {source}, raw, {size}, no scan; {nothing}\n" in out
    assert f"  Target: {target}, image file, {size}; {nothing}\n" in out
    assert "Source:" not in succeeded(restore(source, target))
    assert f"  Source: {source}, raw, {size}, no scan; {nothing}\n" in succeeded(asr("imagescan", source, "--verbose"))
    with serving(
        target, options=("--listen=127.0.0.1:0", "--control=127.0.0.1:0"), errors=tmp_path / "errors"
    ) as server:
        out = succeeded(restore(source, server.uri(), "--verbose"))
    assert f"  Source: {source}, raw, {size}, checked by its scan; {nothing}\n" in out
    assert f"  Target: {server.uri()}, export, {size}, 1 connection, compared by its own digests; {nothing}\n" in out


def test_verbose_file_copy(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for mounts")
    source, target = (make_filesystem(tmp_path / name, "ext4", 8 * MIB) for name in ("source", "target"))
    out = succeeded(asr("restore", "--source", source, "--target", target, "--verbose"))
    assert f"  Source: {source}, ext4, " in out
    assert f"  Target: {target}, ext4\n" in out


def test_file_copy_onto_itself(tmp_path: Path) -> None:
    volume, alias = tmp_path / "volume", tmp_path / "alias"
    volume.write_bytes(bytes(MIB))
    alias.symlink_to(volume)
    result = asr("restore", "--source", alias, "--target", volume)
    line = f"asr: {volume} is both source and target; they have to be two volumes\n"
    assert (result.status, result.err) == (1, line)


def test_block_copy_onto_itself(pair: tuple[str, str], tmp_path: Path) -> None:
    alias = tmp_path / "alias"
    alias.symlink_to(pair[0])
    result = restore(pair[0], alias)
    line = f"asr: {alias} is both source and target (as {pair[0]}); they have to be two disks\n"
    assert (result.status, result.err) == (1, line)


@pytest.mark.parametrize("option", ["--source", "--target"])
def test_an_empty_name(pair: tuple[str, str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"--source": pair[0], "--target": pair[1], option: ""}
    with pytest.raises(SystemExit) as caught:
        cli.main(["restore", *(word for both in places.items() for word in both), "--erase", "--noprompt"])
    assert caught.value.code == 2
    value = f"{option} {option[2:].upper()}"
    line = f"asr: {option} needs a value, not an empty one: {value} (see: asr help restore)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("printed", "line"),
    [
        (
            "mount: /x: unknown filesystem type 'y'.\n       dmesg(1) may have more information after failed mount.\n",
            "mount",
        ),
        ("dmesg(1) may have more information\n", "dmesg(1)"),
        ("first\nlast\n", "last"),
        ("", "ended with status 1"),
    ],
)
def test_what_a_program_complains_of(printed: str, line: str) -> None:
    assert tools.complaint(printed, "", 1).startswith(line)


def test_interrupted_after_the_blocks(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Something was touched by then."""

    async def cancelled(*rest: object, **asked: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr("restore.finish.steps.finish", cancelled)
    monkeypatch.setattr("restore.finish.steps.check", lambda **asked: None)
    source, target = pair
    assert cli.main(["restore", "--source", source, "--target", target, "--erase", "--noprompt", "--grow"]) == 1
    line = f"asr: interrupted; the image itself is on {target}, verified, but not all that was to follow\n"
    assert capsys.readouterr().err == line
    assert Path(target).read_bytes() == Path(source).read_bytes()
