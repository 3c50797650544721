"""The verbs: what their options become."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.grammar import make_parser, parse, values
from tests.support import examples

PLAIN = {
    "restore": ["restore", "--source", "x", "--target", "y"],
    "verify": ["verify", "--source", "x", "--target", "y"],
    "imagescan": ["imagescan", "x"],
    "info": ["info", "x"],
    "capture": ["capture", "--source", "x", "--target", "y"],
}
SHARED: dict[str, Any] = {
    "json": False,
    "puppetstrings": False,
    "verbose": False,
    "debug": False,
    "format": None,
    "allow_backing": False,
    "all_blocks": False,
    "keep_unmapped": False,
    "verify_signature": None,
    "connections": None,
    "timeout": 60.0,
}
OWN: dict[str, dict[str, Any]] = {
    "restore": {
        "source": "x",
        "target": ["y"],
        "file": None,
        "erase": False,
        "noprompt": False,
        "noverify": False,
        "sha256": False,
        "buffers": None,
        "buffersize": None,
        "allow_bad": False,
        "source_partition": None,
        "target_partition": None,
        "grow": False,
        "new_ids": False,
        "hostname": None,
        "keep_table": False,
        "delta": False,
        "max_rate": None,
    },
    "verify": {"source": "x", "target": "y", "keep_table": False},
    "imagescan": {"image": "x", "sign": None, "minimize": None, "nostream": False, "sha256": False},
    "info": {"image": "x", "plist": False},
    "capture": {
        "source": "x",
        "target": "y",
        "compress": "none",
        "overwrite": False,
        "retries": 3,
        "sign": None,
        "noprompt": False,
    },
}


@pytest.mark.parametrize("verb", PLAIN)
def test_what_goes_without_saying(verb: str) -> None:
    options = vars(parse(PLAIN[verb]))
    assert options["command"] == verb
    for name, value in (SHARED | OWN[verb]).items():
        assert options[name] == value, name


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("restore -s x -t y -t z", "target", ["y", "z"]),
        ("restore -s x -t y --erase --noprompt --noverify", "noverify", True),
        ("restore -s x -t y --erase --delta", "delta", True),
        ("restore -s x -t y --erase --keep-unmapped", "keep_unmapped", True),
        ("restore -s x -t y --erase --keep-table", "keep_table", True),
        ("restore -s x -t y --erase --grow", "grow", True),
        ("restore -s x -t y --erase --new-ids", "new_ids", True),
        ("restore -s x -t y --erase --hostname lab-7", "hostname", "lab-7"),
        ("restore -s x -t y --SHA256", "sha256", True),
        ("restore -s x -t y --allow-bad", "allow_bad", True),
        ("restore -s x -t y --allow-backing", "allow_backing", True),
        ("restore -s x -t y --erase --all-blocks", "all_blocks", True),
        ("restore -s x -t y --source-partition 2", "source_partition", 2),
        ("restore -s x -t y --target-partition 3", "target_partition", 3),
        ("restore -s x -t y --format raw", "format", "raw"),
        ("restore -s x -t y --timeout 2.5", "timeout", 2.5),
        ("restore -s x -t y --connections 4", "connections", 4),
        ("restore -s x -t y --erase --max-rate 1.5M", "max_rate", 3 << 19),
        ("restore -s x -t y --buffersize 32m", "buffersize", 32 << 20),
        ("restore -s x -t y --verify-signature signers", "verify_signature", "signers"),
        ("restore -s x -t y --verbose --debug", "debug", True),
        ("restore -s x -t y --puppetstrings", "puppetstrings", True),
        ("imagescan --source x.img", "image", "x.img"),
        ("imagescan -s x.img --sign key", "sign", "key"),
        ("imagescan x.img --minimize small.img", "minimize", "small.img"),
        ("info -s x.img --plist", "plist", True),
        ("info --json x.img", "image", "x.img"),
        ("capture -s x -t y --compress zstd", "compress", "zstd"),
        ("capture -s x -t y --retries 0", "retries", 0),
    ],
)
def test_what_is_said(words: str, name: str, value: object) -> None:
    assert getattr(parse(words.split()), name) == value


WRONG = [
    *((f"restore -s x -t y {words}", f"{words.split()[0]} is for a block copy, which replaces all that is on the "
       "target: say --erase if that is meant, or leave it out")
      for words in ("--delta", "--all-blocks", "--keep-unmapped", "--keep-table", "--grow", "--new-ids",
                    "--hostname lab-7")),
    ("restore -s x -t y --erase --grow --keep-table",
     "--grow needs the partition table that --keep-table leaves alone: leave one of them out"),
    ("restore -s x -t y --erase --source-partition 1",
     "--source-partition is for a file copy, and with --erase all is copied: leave one of them out"),
    ("restore -s x -t y --erase --target-partition 1",
     "--target-partition is for a file copy, and with --erase all is copied: leave one of them out"),
    ("restore -s x -t y --target-partition 0", "--target-partition: '0' is not a partition's number from 1 to 9999"),
    ("restore -s x -t y --hostname a_b",
     "--hostname: 'a_b' is no host name: letters, digits and hyphens, up to 64 characters"),
    ("restore -s x -t y --timeout 0", "--timeout: '0' is not a number of seconds from 0.1 to 86400"),
    ("restore -s x -t y --timeout nan", "--timeout: 'nan' is not a number of seconds from 0.1 to 86400"),
    ("restore -s x -t y --timeout inf", "--timeout: 'inf' is not a number of seconds from 0.1 to 86400"),
    ("restore -s x -t y --connections 65", "--connections: '65' is not a number from 1 to 64"),
    ("restore -s x -t y --max-rate fast", "--max-rate: 'fast' is not a number of bytes per second, such as 100M"),
    ("restore -s x -t y --buffersize big", "--buffersize: 'big' is not a number of bytes, such as 1M"),
    ("restore -s x", "--target TARGET is missing"),
    ("restore -t y", "--source SOURCE is missing"),
    ("verify", "--source SOURCE and --target TARGET are missing"),
    ("verify -s x -t y -t z", "--target is given twice"),
    ("capture -s x -s z -t y", "--source is given twice"),
    ("capture -s x -t y --compress lz4", "--compress: 'lz4' is not none or zstd"),
    ("capture -s x -t y --retries -1", "--retries: '-1' is not a number from 0 to 1000"),
    ("imagescan", "IMAGE is missing"),
    ("info x --source z", "two images are named, x and z: say one"),
    ("info x --json --plist", "--json and --plist exclude each other"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), WRONG, ids=[words for words, _ in WRONG])
def test_what_does_not_go_together(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words.split())
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"asr: {line} (see: asr help {words.split()[0]})\n")


def test_a_format_that_is_none_names_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    from restore.source.detect import FORMATS

    with pytest.raises(SystemExit):
        parse(["info", "x", "--format", "floppy"])
    line = f"--format: 'floppy' is not a format of images: {', '.join(FORMATS)}"
    assert capsys.readouterr().err == f"asr: {line} (see: asr help info)\n"
    for name in FORMATS:
        assert parse(["info", "x", "--format", name]).format == name


@pytest.mark.parametrize("verb", PLAIN)
def test_help_describes_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([verb, "-help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: asr {verb} ")
    assert all(len(line) <= 80 for line in text.splitlines())
    for action in make_parser().verbs[verb]._actions:
        assert action.help, action
        for name in action.option_strings:
            assert f"{name} " in text or f"{name}\n" in text or f"{name}," in text, name


@given(st.integers(1, 10**6), st.sampled_from("KMGT"), st.sampled_from(["", "B", "iB", "b", "ib"]))
@examples(100)
def test_rates(number: int, unit: str, rest: str) -> None:
    expected = number * 1024 ** ("KMGT".index(unit) + 1)
    assert values.rate(f"{number}{unit}{rest}") == expected
    assert values.rate(f"{number}{unit.lower()}{rest}") == expected
    assert values.rate(f"{number}.5{unit}{rest}") == expected + 1024 ** ("KMGT".index(unit) + 1) // 2
    assert values.rate(str(number)) == number


@given(st.text(max_size=12))
@examples(300)
def test_any_text_is_a_rate_or_wrong_usage(text: str) -> None:
    with contextlib.suppress(argparse.ArgumentTypeError):
        assert values.rate(text) >= 1


@pytest.mark.parametrize("text", ["0", "-1", "", "M", "1P", "0.1", "1e6", "1 M", "inf", "nan", "9" * 400, "٣M"])
def test_wrong_rates(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of bytes per second"):
        values.rate(text)


def test_what_a_verb_takes_is_what_its_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    def said(verb: str) -> str:
        with pytest.raises(SystemExit):
            parse([verb, "--help"])
        return " ".join(capsys.readouterr().out.split())

    assert "IMAGE image file of this machine" in said("imagescan")
    assert "TARGET block device that is not mounted; image file; or nbd://HOST/EXPORT" in said("verify")
    assert "TARGET block device, or where one is mounted; image file; or" in said("restore")
