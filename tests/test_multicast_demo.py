"""`scripts/demo --multicast`: small, as whoever runs the tests."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT
from tests.support import wait_until

DEMO = (sys.executable, "-m", "scripts.multicast")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "lab.img"
    path.write_bytes(random.Random(3).randbytes(8 << 20))
    return path


def left(work: Path, pid: int) -> list[str]:
    """What there still is of a demo that has ended."""
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    loops = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file") if path.exists()]
    found = [line for line in spaces.splitlines() if f"tm-demo-{pid}-" in line]
    return [*found, *(line for line in loops if str(work) in line), *map(str, work.iterdir())]


def test_a_room(image: Path, tmp_path: Path) -> None:
    """All of it; root has namespaces and loop devices, others have neither and are told."""
    work = tmp_path / "work"
    work.mkdir()
    words = ("--image", str(image), "--clients", "2", "--loss", "0.02", "--data-rate", "4M", "--stagger", "0.5")
    process = subprocess.Popen(
        [*DEMO, *words],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    out = process.communicate(timeout=100)[0]
    assert process.returncode == 0, out
    root = os.geteuid() == 0
    assert ("each client loses 0.02 % of the datagrams" in out) == root, out
    assert ("client2 (10.78.0.3): done after" in out) == root, out
    assert ("not root, so there are no network namespaces" in out) == (not root), out
    assert (out.count("every block is the same"), out.count("cmp: not a byte differs")) == (2, 2), out
    assert ", verified" in out
    assert "==> OK: 2 disks restored by one stream and compared" in out
    assert left(work, process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_ended(image: Path, tmp_path: Path, number: signal.Signals) -> None:
    work = tmp_path / "work"
    work.mkdir()
    said = tmp_path / "said.txt"
    words = ("--image", str(image), "--clients", "2", "--loss", "0", "--data-rate", "100k", "--stagger", "0")
    with said.open("w") as file:
        process = subprocess.Popen(
            [*DEMO, *words], cwd=ROOT, env={**os.environ, "TMPDIR": str(work)}, stdout=file, stderr=file
        )
    try:
        wait_until(lambda: "Starting stream" in said.read_text(), "the stream", 60)
        assert left(work, process.pid) != []
    finally:
        process.send_signal(number)
        status = process.wait(40)
    assert status == 128 + number
    assert f"interrupted by {number.name}" in said.read_text()
    assert left(work, process.pid) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--loss", "100"), "--loss 100: it has to be 0 or more, and less than 100"),
        (("--clients", "0"), "argument --clients: invalid choice: 0"),
        (("--image", "/nothing/there.img"), "--image /nothing/there.img: there is no such file"),
    ],
)
def test_wrong_options(image: Path, words: tuple[str, ...], said: str) -> None:
    done = subprocess.run([*DEMO, "--image", image, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_demo_tells_of_it() -> None:
    done = subprocess.run([ROOT / "scripts/demo", "--help"], capture_output=True, text=True, check=True)
    assert "scripts/demo --multicast" in done.stdout
