"""What the admin of a room sees: a live table on a terminal, lines or JSON events elsewhere.

Debian packages: iproute2.
"""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest

from tests.restore.multicast.rooms import ASR, SERVER, Room, room
from tests.restore.terminal import on_terminal
from tests.support import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

MIB = 1 << 20
SIZE = 16 * MIB
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"  # the cursor


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "lab.img"
    path.write_bytes(random.Random(3).randbytes(SIZE))
    return path


def restore(here: Room, client: int, target: Path) -> None:
    target.write_bytes(bytes(SIZE))
    words = ("restore", "--source", f"asr://{SERVER}", "--target", target, "--erase", "--noprompt")
    here.start(here.clients[client], *words, output=DEVNULL)


def test_a_live_table_on_a_terminal(image: Path, tmp_path: Path) -> None:
    with room(2) as here:
        words = ("server", "--source", image, "--data-rate", "4M", "--no-discovery")
        with on_terminal(*here.server.inside, *ASR, *words, columns=400) as terminal:
            terminal.wait_for(f"Its clients: http://{SERVER}:7800/", 30)
            terminal.wait_for("lab.img: the stream has not begun\n0 clients")
            restore(here, 0, tmp_path / "first.img")
            terminal.wait_for("Starting stream")
            terminal.wait_for("1 client (1 receiving); received ")
            terminal.wait_for("/first.img")
            terminal.wait_for(f"({here.clients[0].address}): done after", 30)
            terminal.wait_for("0 clients; 1 done")
            restore(here, 1, tmp_path / "second.img")
            terminal.wait_for("median; 1 done")
            terminal.type("\x03")
            assert terminal.end() == 0
        raw = terminal.raw.partition("Ready to start accepting clients")[2]  # before it, the scan has its bar
        assert "The stream has ended; at that moment 1 client took part\n" in terminal.shown
        assert raw.count(HIDDEN) == raw.count(SHOWN) == 1
        assert raw.index(HIDDEN) < raw.index(SHOWN)
        assert "%" not in raw[raw.index(SHOWN) :]  # the table is gone, and nothing is drawn after it
        heads = [line for line in terminal.shown.splitlines() if line.startswith("Client ")]
        assert len(heads) > 4
        assert set(heads[0].split()) == {
            "Client", "Address", "Targets", "State", "Received", "Written", "Verified", "Rate", "Loss", "Left",
        }  # fmt: skip


def test_lines_where_there_is_no_terminal(image: Path, tmp_path: Path) -> None:
    with room(1) as here:
        said = tmp_path / "said.txt"
        with said.open("w") as file:
            words = ("server", "--source", image, "--once", "--data-rate", "10M", "--no-discovery")
            server = here.start(here.server, *words, output=file.fileno())
        wait_until(lambda: "Ready to start accepting clients" in said.read_text(), "ready", 20)
        restore(here, 0, tmp_path / "0.img")
        assert server.wait(40) == 0
        text = said.read_text()
    assert "\x1b" not in text
    (line,) = (line for line in text.splitlines() if "at least" in line)
    assert "1 client (1 " in line
    assert ": done after" in text


def test_events(image: Path, tmp_path: Path) -> None:
    with room(1) as here:
        said = tmp_path / "said.txt"
        with said.open("w") as file:
            words = ("server", "--source", image, "--json", "--data-rate", "2M", "--no-discovery")
            server = here.start(here.server, *words, output=file.fileno())

        def events(kind: str) -> list[dict[str, Any]]:
            lines = said.read_text().splitlines(keepends=True)
            found = [json.loads(line) for line in lines if line.endswith("\n")]
            return [event for event in found if event["event"] == kind]

        wait_until(lambda: events("ready"), "ready", 20)
        restore(here, 0, tmp_path / "0.img")
        wait_until(lambda: events("left"), "the end of the client", 40)
        wait_until(lambda: events("status")[-1]["clients"] == 0, "the status after it")
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert [event["clients"] for event in events("stopped")] == [0]
        status = events("status")
    assert 3 <= len(status) <= 7  # at its beginning, every five seconds, at its end
    first, middle, last = status[0], status[1], status[-1]
    assert (first["clients"], first["ends"]) == (1, {})
    (row,) = middle["rows"]
    assert row["state"] == "receiving"
    assert 20 < row["received"] < 100
    assert 1.5 * MIB < row["rate"] < 2.5 * MIB
    assert (last["clients"], last["ends"], last["least"]) == (0, {"done": 1}, None)
