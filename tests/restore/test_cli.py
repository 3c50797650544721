from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from restore import cli
from tests.restore.engine import ASR, MIB, asr
from tests.serving import ROOT, pattern, targetmode

USAGE = [
    (),
    ("reboot",),
    ("restore",),
    ("restore", "--source", "x"),
    ("restore", "--source", "x", "--target"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--max-rate", "fast"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--connections", "0"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--timeout", "0"),
    ("restore", "--source", "x", "--target", "y", "--eras"),
    ("verify", "--source", "x", "--target", "y", "--erase"),
    ("verify", "--source", "x", "--target", "y", "extra"),
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """More of it is in tests/restore/grammar."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("asr: ")
    assert "(see: asr help" in line


def test_wrong_usage_as_a_command() -> None:
    result = asr("restore", "-source", "x")
    assert (result.status, result.err) == (2, "asr: --target TARGET is missing (see: asr help restore)\n")
    result = targetmode("restore", "-source", "x", "--target", "y", "-eras")
    assert (result.status, result.out) == (2, "")
    hint = "(see: targetmode restore --help)"
    assert result.err == f"targetmode: there is no option -eras; did you mean --erase? {hint}\n"


def test_help() -> None:
    assert "Exit status: 0 done, 1 failed, 2 wrong usage, 3" in asr("help").out
    assert "--max-rate BYTES" in asr("restore", "-help").out
    assert targetmode("restore", "-help").out.startswith("usage: targetmode restore --source SOURCE")


def test_without_a_verb_and_with_one_dash(tmp_path: Path) -> None:
    """As scripts have it since Mac OS X 10.2."""
    source, target = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(pattern(2 * MIB))
    target.write_bytes(bytes(2 * MIB))
    result = asr("-source", source, "-target", target, "-erase", "-noprompt", "-buffers", "1", "-buffersize", "32m")
    assert (result.status, result.err) == (0, "")
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    """No disk takes their place, nor is anything printed on it."""
    source, target = tmp_path / "source.img", tmp_path / "disk.img"
    source.write_bytes(pattern(2 * MIB))
    target.write_bytes(bytes(2 * MIB))
    words = ("restore", f"--source={source}", f"--target={target}", "--erase", "--noprompt")
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *ASR, *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert target.read_bytes() == source.read_bytes()


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    source, target = tmp_path / "source.img", tmp_path / "d\u00efsk\udcff.img"
    for path in (source, target):
        path.write_bytes(pattern(MIB))
    words = ("restore", f"--source={source}", f"--target={target}", "--erase", "--noprompt")
    for encoding in ("utf-8:strict", "ascii:strict"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        command = [*ASR, *words]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
        assert (result.returncode, result.stderr) == (0, b"")
        assert b"\\xff.img...done" in result.stdout
