from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore import cli
from tests.restore.engine import ASR, MIB, asr
from tests.serving import ROOT, pattern, targetmode
from tests.support import examples


@given(st.integers(1, 10**6), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "b", "ib"]))
@examples(100)
def test_rates(number: int, unit: str, rest: str) -> None:
    expected = number * 1024 ** ("KMGT".index(unit) + 1)
    assert cli._rate(f"{number}{unit}{rest}") == expected
    assert cli._rate(f"{number}{unit.lower()}{rest}") == expected
    assert cli._rate(f"{number}.5{unit}{rest}") == expected + 1024 ** ("KMGT".index(unit) + 1) // 2
    assert cli._rate(str(number)) == number


@given(st.text(max_size=12))
@examples(300)
def test_any_text_is_a_rate_or_wrong_usage(text: str) -> None:
    with contextlib.suppress(argparse.ArgumentTypeError):
        assert cli._rate(text) >= 1


@pytest.mark.parametrize("text", ["0", "-1", "", "M", "1P", "0.1", "1e6", "1 M", "inf", "nan", "9" * 400, "٣M"])
def test_wrong_rates(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of bytes per second"):
        cli._rate(text)


@pytest.mark.parametrize(
    ("word", "modern"),
    [
        ("-source", "--source"),
        ("--source", "--source"),
        ("-noprompt", "--noprompt"),
        ("-source=x.img", "--source=x.img"),
        ("-max-rate", "--max-rate"),
        ("-h", "-h"),
        ("-5", "-5"),
        ("-", "-"),
        ("--", "--"),
        ("x-y", "x-y"),
        ("/dev/-sda", "/dev/-sda"),
        ("restore", "restore"),
    ],
)
def test_legacy_spellings(word: str, modern: str) -> None:
    assert cli._modern(word) == modern


USAGE = [
    (),
    ("reboot",),
    ("restore",),
    ("restore", "--source", "x"),
    ("restore", "--source", "x", "--target"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--max-rate", "fast"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--connections", "0"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--connections", "65"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--timeout", "0"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--timeout", "nan"),
    ("restore", "--source", "x", "--target", "y", "--erase", "--timeout", "inf"),
    ("restore", "--source", "x", "--target", "y", "--eras"),
    ("verify", "--source", "x", "--target", "y", "--erase"),
    ("verify", "--source", "x", "--target", "y", "extra"),
]


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: asr" in err
    assert "asr" in err.splitlines()[-1]
    assert "error: " in err


def test_wrong_usage_as_a_command() -> None:
    assert asr("restore", "-source", "x").status == 2
    result = targetmode("restore", "--source", "x")
    assert result.status == 2
    assert "usage: targetmode restore" in result.err or "usage: targetmode" in result.err


def test_help_and_version() -> None:
    assert "Exit status: 0 done, 1 failed, 2 wrong usage, 3" in asr("help").out
    assert asr("--help").out == asr("help").out.rstrip("\n") + "\n"
    assert asr("version").out.startswith("asr 0.")
    assert "--max-rate BYTES" in asr("restore", "-help").out


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
        assert b"\\udcff.img...done" in result.stdout
