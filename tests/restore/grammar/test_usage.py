"""Wrong usage: status 2 and one line, whatever was typed."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.grammar import make_parser, parse
from tests.support import examples

WRONG = [
    ("", "a verb is missing: restore, verify, imagescan, info, capture, server, discover, help, version, completion, "
     "manual (see: asr help)"),
    ("--erase", "a verb is missing before --erase (see: asr help)"),
    ("reboot", "there is no verb reboot (see: asr help)"),
    ("restor -source x", "there is no verb restor; did you mean restore? (see: asr help)"),
    ("xyzzy", "there is no verb xyzzy (see: asr help)"),
    ("restore --sorce x --target y", "there is no option --sorce; did you mean --source? (see: asr help restore)"),
    ("restore -sorce=x -target y", "there is no option -sorce; did you mean --source? (see: asr help restore)"),
    ("-source x -target y -eras", "there is no option -eras; did you mean --erase? (see: asr help restore)"),
    ("restore -s x -t y --sha256", "there is no option --sha256; did you mean --SHA256? (see: asr help restore)"),
    ("restore -s x -t y -v", "there is no option -v (see: asr help restore)"),
    ("restore -s x -t y --xyzzy", "there is no option --xyzzy (see: asr help restore)"),
    ("verify -s x -t y --erase", "--erase goes with restore, not with verify (see: asr help verify)"),
    ("restore -s x -t y -sign k", "-sign goes with imagescan and capture, not with restore (see: asr help restore)"),
    ("restore --source", "--source needs a value: --source SOURCE (see: asr help restore)"),
    ("restore --source --target y", "--source needs a value: --source SOURCE (see: asr help restore)"),
    ("restore -s x -t y --erase=yes", "--erase takes no value, but was given 'yes' (see: asr help restore)"),
    ("restore -s x -t y --json --puppetstrings",
     "--json and --puppetstrings exclude each other (see: asr help restore)"),
    ("verify -s x -t y extra", "extra is one word too many (see: asr help verify)"),
    ("version now", "now is one word too many (see: asr help version)"),
    ("help me", "TOPIC: 'me' is not restore, verify, imagescan, info, capture, server, discover, help, version, "
     "completion, manual or puppetstrings (see: asr help help)"),
    ("completion", "SHELL is missing (see: asr help completion)"),
    ("completion tcsh", "SHELL: 'tcsh' is not bash, zsh or fish (see: asr help completion)"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "line"), WRONG, ids=[words for words, _ in WRONG])
def test_wrong_usage(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words.split())
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"asr: {line}\n")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["imagescan", "x", "--minimize", ""], "--minimize needs a value, not an empty one: --minimize PATH"),
        (["imagescan", "x", "--sign="], "--sign needs a value, not an empty one: --sign KEY"),
        (["capture", "-s", "x", "-t", ""], "--target needs a value, not an empty one: --target FILE"),
        (["restore", "-s", "x", "-t", "y", "-t", ""], "--target needs a value, not an empty one: --target TARGET"),
        (["verify", "-s", "x", "-t", "y", "--connections", ""],
         "--connections needs a value, not an empty one: --connections N"),
        (["info", ""], "IMAGE is empty"),
        (["help", ""], "TOPIC is empty"),
    ],
)  # fmt: skip
def test_an_empty_value(words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"asr: {wrong} (see: asr help {words[0]})\n")


@pytest.mark.parametrize("verb", make_parser().verbs)
def test_no_option_takes_an_empty_value(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"restore": ["-s", "x", "-t", "y"], "verify": ["-s", "x", "-t", "y"], "capture": ["-s", "x", "-t", "y"]}
    for action in make_parser().verbs[verb]._actions:
        if action.option_strings and action.nargs != 0:
            name = max(action.option_strings, key=len)
            with pytest.raises(SystemExit) as caught:
                parse([verb, *needed.get(verb, []), name, ""])
            assert caught.value.code == 2
            assert f"asr: {name} needs a value, not an empty one: {name} " in capsys.readouterr().err


def test_the_other_program_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["restore", "-source", "x"], "targetmode")
    assert capsys.readouterr().err == "targetmode: --target TARGET is missing (see: targetmode restore --help)\n"


VERBS = tuple(make_parser().verbs)
NAMES = sorted({name for verb in make_parser().verbs.values() for name in verb._option_string_actions})
WORDS = [*NAMES, *(name[1:] for name in NAMES), *VERBS, "server", "-imagescan", "-v", "--", "", "=", "-",
         "raw", "5", "x.img"]  # fmt: skip


@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=8))
@examples(150)
def test_anything_is_understood_or_one_line(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            assert parse(words).command in VERBS
        except SystemExit as end:
            if end.code == 0:
                assert out.getvalue().startswith("usage: asr")
                assert err.getvalue() == ""
            else:
                assert (end.code, out.getvalue()) == (2, "")
                (line,) = err.getvalue().splitlines()
                assert line.startswith("asr: ")
                assert line.endswith(")")
