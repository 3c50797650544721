"""`scripts/demo --tour`: its list of stops. The tour itself takes minutes; scripts/demo runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from restore.grammar.values import Formats
from scripts.tour.__main__ import STOPS
from tests.serving import ROOT


def test_demo_tells_of_both() -> None:
    done = subprocess.run([ROOT / "scripts/demo", "--help"], capture_output=True, text=True, check=True)
    assert "scripts/demo --tour STOP" in done.stdout
    assert not done.stdout.startswith("#")
    done = subprocess.run([ROOT / "scripts/demo", "--nothing"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "==> FAILED: there is no option --nothing; scripts/demo --help says which there are\n"


def test_stops_are_told_apart() -> None:
    assert len({stop.name for stop in STOPS}) == len({stop.title for stop in STOPS}) == len(STOPS)


def test_every_format_and_option_is_shown() -> None:
    """What the command lines of all stops have in them."""
    text = "".join(path.read_text() for path in sorted(Path(ROOT, "scripts/tour").glob("*.py")))
    names = {"udif": ".dmg", "raw": "lab.img"}
    assert [name for name in Formats() if names.get(name, name) not in text] == []
    options = "sign verify-signature minimize grow new-ids hostname delta all-blocks allow-bad compress"
    assert [name for name in (*options.split(), "json", "puppetstrings") if f"--{name}" not in text] == []
