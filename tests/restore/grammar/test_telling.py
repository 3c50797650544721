"""What only tells: help, version, completions that real shells take and complete with.

Debian packages: bash zsh fish.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from restore import __version__
from restore.grammar import make_parser, parse
from restore.grammar.telling import SHELLS, completion, tell
from restore.grammar.verbs import OLD
from restore.report.puppet import HELP
from targetmode.cli import make_parser as make_targetmode_parser
from tests.restore.engine import asr, succeeded
from tests.serving import ROOT, targetmode

HEAVY = (
    "aiohttp",
    "asyncio",
    "blake3",
    "construct",
    "email",
    "nbd",
    "restore.source",
    "restore.target",
    "rich",
    "shtab",
)


def told(*words: str) -> str | None:
    return tell(parse(words))


def test_help() -> None:
    text = succeeded(asr("help"))
    assert text == succeeded(asr("--help")) == told("-help") == told("-h") == make_parser().format_help()
    assert succeeded(asr("restore", "-help")) == told("help", "restore")
    for verb, parser in make_parser().verbs.items():
        assert f"    {verb}" in text
        assert told("help", verb) == parser.format_help()
    assert "Old spellings are taken too" in text
    assert told("help", "puppetstrings") == HELP


def test_version() -> None:
    assert succeeded(asr("version")) == told("-version") == told("--version") == told("-v") == f"asr {__version__}\n"


@pytest.mark.parametrize("words", [["--help"], ["version"], ["-source"], ["help", "puppetstrings"]], ids=" ".join)
def test_nothing_heavy_is_loaded_to_say_so(words: list[str]) -> None:
    program = (
        "import sys\nfrom restore.cli import main\n"
        f"try:\n    main({words})\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_nobody_has_to_read_to_the_end() -> None:
    command = f"{sys.executable} -m restore.cli manual | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a program for each shell to complete, and with what completes it."""
    directory = tmp_path_factory.mktemp("completion")
    for program, parser in (("asr", make_parser), ("targetmode", make_targetmode_parser)):
        (directory / program).write_text("#!/bin/sh\n")
        (directory / program).chmod(0o755)
        for shell in SHELLS:
            (directory / f"{program}.{shell}").write_text(completion(parser(), shell))
        (directory / "zsh").mkdir(exist_ok=True)
        shutil.copy(directory / f"{program}.zsh", directory / "zsh" / f"_{program}")
    (directory / "lab.img").touch()
    return directory


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")


@pytest.mark.parametrize(
    "command", [["bash", "-n"], ["zsh", "-n"], ["fish", "--no-execute"]], ids=lambda command: str(command[0])
)
def test_a_shell_reads_it(command: list[str], scripts: Path) -> None:
    shell = command[0]
    needs(shell)
    for program in ("asr", "targetmode"):
        done = subprocess.run(
            [*command, scripts / f"{program}.{shell}"], capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_commands_write_it(scripts: Path) -> None:
    assert succeeded(asr("completion", "bash")) == (scripts / "asr.bash").read_text()
    assert succeeded(targetmode("completion", "fish")) == (scripts / "targetmode.fish").read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_all_of_it_is_there(shell: str, scripts: Path) -> None:
    text = (scripts / f"asr.{shell}").read_text()
    kept: set[str] = set()
    old: set[str] = set()
    for verb, parser in make_parser().verbs.items():
        assert verb in text
        for group in parser._action_groups:
            names = {name for action in group._group_actions for name in action.option_strings}
            (old if group.title == OLD else kept).update(name for name in names if name.startswith("--"))
    for name in kept:
        assert re.search(rf"{name}\b" if shell != "fish" else rf"-l {name[2:]}\b", text), name
    assert len(old - kept) > 5
    for name in old - kept:
        assert not re.search(rf"['\"]{name}\b" if shell != "fish" else rf"-l {name[2:]}\b", text), name


def environment(scripts: Path) -> Mapping[str, str]:
    return {
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "HOME": str(scripts),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
    }


def typed(shell: Sequence[str], prepare: str, keys: str, wanted: str, scripts: Path) -> None:
    """Type on an interactive shell's terminal until something is there to be read."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        shell, stdin=theirs, stdout=theirs, stderr=theirs, cwd=scripts, env=environment(scripts), start_new_session=True
    )
    os.close(theirs)
    try:
        for send, until in ((f"{prepare}\necho REA''DY\n", "READY\r\n"), (keys, wanted)):
            os.write(ours, send.encode())
            seen, deadline = "", time.monotonic() + 20
            while until not in seen:
                ready, _, _ = select.select([ours], [], [], deadline - time.monotonic())
                assert ready, f"{until!r} is not in {seen!r}"
                seen += os.read(ours, 1 << 16).decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


COMPLETED = [
    ("asr cap\t", "asr capture"),
    ("asr restore --era\t", "--erase"),
    ("asr restore --source la\t", "lab.img"),
    ("asr capture --compress z\t", "zstd"),
    ("targetmode disk\t", "disks"),
    ("targetmode serve --read\t", "--read-only"),
]


@pytest.mark.parametrize(("keys", "wanted"), COMPLETED)
def test_bash_completes(keys: str, wanted: str, scripts: Path) -> None:
    needs("bash")
    typed(["bash", "--norc", "--noprofile", "-i"], "source asr.bash; source targetmode.bash", keys, wanted, scripts)


@pytest.mark.parametrize(("keys", "wanted"), COMPLETED)
def test_zsh_completes(keys: str, wanted: str, scripts: Path) -> None:
    needs("zsh")
    prepare = f"fpath=({scripts}/zsh $fpath); autoload -U compinit; compinit -u -D"
    typed(["zsh", "-f", "-i"], prepare, keys, wanted, scripts)


@pytest.mark.parametrize(("keys", "wanted"), COMPLETED)
def test_fish_completes(keys: str, wanted: str, scripts: Path) -> None:
    needs("fish")
    program = keys.split()[0]
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {program}.fish; complete -C '{keys.rstrip()}'"],
        cwd=scripts, env=environment(scripts), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [wanted.split()[-1]]


@pytest.mark.parametrize(
    "words", ["asr help", "asr help restore", "asr restore --help", "asr version", "targetmode -h"]
)
def test_what_cannot_be_printed_is_no_success(words: str) -> None:
    program, *arguments = words.split()
    module = {"asr": "restore.cli", "targetmode": "targetmode.cli"}[program]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert (done.returncode, done.stderr) == (1, f"{program}: standard output: No space left on device\n")
