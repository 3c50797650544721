"""The man pages: groff and man take them without a warning, and they say all that the parsers know.

Debian packages: groff-base man-db.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from restore.grammar import make_parser, spellings
from restore.grammar.manual import Page, man_page
from restore.grammar.usage import Parser
from targetmode.cli import make_parser as make_targetmode_parser
from tests.restore.engine import asr, succeeded
from tests.serving import ROOT, targetmode

PARSERS = {"asr": make_parser, "targetmode": make_targetmode_parser}


def written(program: str) -> str:
    """What the program writes now."""
    return succeeded(asr("manual") if program == "asr" else targetmode("manual"))


def shown(page: Path) -> str:
    """The page as it is read, wide enough for no word to be cut."""
    if shutil.which("man") is None:
        pytest.skip("needs man")
    environment = {**os.environ, "MANWIDTH": "1000", "LC_ALL": "C.UTF-8"}
    command = ["man", "--warnings", "-E", "UTF-8", "-l", str(page)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


@pytest.fixture(params=PARSERS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_page_that_is_installed_is_the_one_that_is_written(program: str) -> None:
    have = (ROOT / "man" / f"{program}.8").read_text()
    assert have == written(program), "the parsers have changed: run scripts/man"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"man/{program}.8" in project["tool"]["setuptools"]["data-files"]["share/man/man8"]


def test_groff_has_nothing_to_say(program: str, tmp_path: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff")
    page = tmp_path / f"{program}.8"
    page.write_text(written(program), encoding="ascii")
    for device in ("utf8", "ascii"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", f"-T{device}", page], capture_output=True, text=True, timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == ("", "")


def test_it_says_all_that_the_parser_knows(program: str) -> None:
    text = shown(ROOT / "man" / f"{program}.8")
    for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "VERBS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"):
        assert f"\n{title}\n" in text
    parser = PARSERS[program]()
    for verb in parser.verbs.values():
        assert f"       {verb.usage}\n" in text
    brief = (
        ("restore", "verify", "imagescan", "info", "capture", "server", "discover") if program == "targetmode" else ()
    )
    for name, verb in parser.verbs.items():
        if name in brief:
            continue
        (section,) = re.findall(rf"\n   {name}\n(.*?)\n {{0,3}}\S", text, re.DOTALL)
        for action in verb._actions:
            words = action.option_strings or [str(action.metavar)]
            if "--help" not in words:
                assert re.search(rf"^       {re.escape(', '.join(words))}( |$)", section, re.MULTILINE), (name, words)


def test_asr_says_what_is_written_and_what_is_refused() -> None:
    text = shown(ROOT / "man" / "asr.8")
    for name in ("IMAGE.bmap", "IMAGE.bmap.sshsig", "IMAGE.map"):
        assert f"\n       {name}" in text.split("\nFILES\n")[1]
    for name, reason in (spellings.REFUSED_OPTIONS | spellings.REFUSED_VERBS).items():
        assert f"{name}: {reason}." in text
    for name in ("XSTA", "PINF", "NOTE", "FAIL", "DIFF", "DONE"):
        assert f" {name}  " in text.split("\nPUPPETSTRINGS\n")[1]
    from restore.source.detect import FORMATS

    assert f"if its content is not to be asked: {', '.join(FORMATS)}." in text


def test_nothing_that_a_text_has_is_taken_for_a_request(tmp_path: Path) -> None:
    parser = Parser(prog="thing")
    parser.add_verbs("VERB")
    odd = "`.dots`, 'quotes', \"double\", back\\slash, ~home, ^hat and -- dashes"
    verb = parser.add_verb("do", "do it", description=f".so /etc/passwd\n\n'tis {odd}", examples=((odd, ".ex 'a' \\"),))
    verb.add_argument("--odd", metavar="X", help=odd.replace("%", "%%"))
    page = tmp_path / "thing.8"
    plain = odd.replace("`", "")
    page.write_text(man_page(Page("thing", plain, odd, files=(("'file", odd),)), parser, odd), encoding="ascii")
    text = shown(page)
    assert text.count(plain) == 7
    assert "       .so /etc/passwd\n" in text
    assert f"       'tis {plain}\n" in text
    assert "thing .ex 'a' \\\n" in text
    assert "       'file " in text
