"""A stream saved to a file, which is served on: real sockets, in network namespaces on one bridge.

Debian packages: iproute2 nftables ethtool openssh-client zstd.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.restore.multicast.rooms import ASR, SERVER, Machine, Room, room
from tests.restore.multicast.test_rooms import Stream, ended, restoring
from tests.serving import ROOT, run
from tests.support import assert_same_bytes, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

MIB = 1 << 20
SIZE = 8 * MIB + 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with noise, a hole in it, and an odd end."""
    path = tmp_path / "there" / "lab.img"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(3 * MIB))
        file.seek(6 * MIB)
        file.write(random.Random(2).randbytes(SIZE - 6 * MIB))
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def two() -> Iterator[Room]:
    with room(2) as found:
        yield found


def saving(two: Room, path: Path, *options: str, machine: Machine | None = None) -> Popen[str]:
    return two.start(
        machine or two.clients[0], "restore", "--source", f"asr://{SERVER}", "--file", path, "--noprompt", *options
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_it_is_saved_and_served_on(two: Room, image: Path, here: Path) -> None:
    stream = Stream(two, image, "--once")
    saved = here / "saved.img"
    out = ended(saving(two, saved))
    assert "Erasing" not in out
    assert "Saved 8.0 MiB in " in out
    stream.end()
    assert_same_bytes(saved.read_bytes(), image.read_bytes())
    assert saved.stat().st_blocks * 512 <= 6 * MIB  # the hole of 3 MiB is one
    assert names(here) == ["saved.img", "saved.img.bmap"]
    on = Stream(two, saved, "--once", machine=two.clients[0])
    assert "has no scan" not in on.text
    target = here.parent / "0.img"
    target.write_bytes(bytes(SIZE))
    ended(restoring(two, two.clients[1], target, url=f"asr://{two.clients[0].address}"))
    on.end()
    assert_same_bytes(target.read_bytes(), image.read_bytes())


def test_what_is_lost_comes_again(two: Room, image: Path, here: Path) -> None:
    Stream(two, image, "--data-rate", "20M")
    two.clients[0].lose(5)
    ended(saving(two, here / "saved.img", "--multicast-only"))
    assert_same_bytes((here / "saved.img").read_bytes(), image.read_bytes())


def test_a_signature_goes_with_it(two: Room, image: Path, here: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    signers = tmp_path / "signers"
    signers.write_text("lab@example.org " + key.with_suffix(".pub").read_text())
    run(*ASR, "imagescan", image, "--sign", key, cwd=ROOT)
    Stream(two, image)
    saved = here / "saved.img"
    assert "signed by lab@example.org" in ended(saving(two, saved, "--verify-signature", str(signers)))
    assert names(here) == ["saved.img", "saved.img.bmap", "saved.img.bmap.sshsig"]
    for suffix in (".bmap", ".bmap.sshsig"):
        assert Path(f"{saved}{suffix}").read_bytes() == Path(f"{image}{suffix}").read_bytes()
    assert "lab@example.org" in run(*ASR, "info", saved, "--verify-signature", signers, cwd=ROOT).out


def test_of_a_compressed_image(two: Room, image: Path, here: Path, tmp_path: Path) -> None:
    """The scan of a compressed file is not one of the file that is saved; what it says of the image is."""
    key = tmp_path / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    run("zstd", "-q", image)
    packed = Path(f"{image}.zst")
    run(*ASR, "imagescan", packed, "--sign", key, cwd=ROOT)
    Stream(two, packed)
    saved = here / "saved.img"
    out = ended(saving(two, saved))
    assert f"{saved}.bmap is not signed, since the scan that is signed is of the server's file" in out
    assert_same_bytes(saved.read_bytes(), image.read_bytes())
    assert names(here) == ["saved.img", "saved.img.bmap"]
    assert "matches" in run(*ASR, "info", saved, cwd=ROOT).out


def test_what_is_there_stays_unless_it_may_go(two: Room, image: Path, here: Path) -> None:
    Stream(two, image)
    saved = here / "saved.img"
    saved.write_bytes(b"what is there")
    for suffix in (".map", ".bmap", ".bmap.sshsig"):
        Path(f"{saved}{suffix}").write_bytes(b"of what is there")
    before = names(here)
    assert ended(saving(two, saved), status=1) == f"asr: {saved} exists; with --erase it is replaced\n"
    words = ("restore", "--source", f"asr://{SERVER}", "--file", saved, "--erase")
    out = ended(two.start(two.clients[0], *words), status=1)
    assert out == "asr: standard input is not a terminal to ask before erasing; say --noprompt if that is meant\n"
    assert saved.read_bytes() == b"what is there"
    assert names(here) == before
    ended(saving(two, saved, "--erase"))
    assert_same_bytes(saved.read_bytes(), image.read_bytes())
    assert names(here) == ["saved.img", "saved.img.bmap"]


def test_where_it_cannot_be(two: Room, image: Path, here: Path) -> None:
    Stream(two, image)
    out = ended(saving(two, here / "none" / "saved.img"), status=1)
    assert out == f"asr: {here}/none/saved.img cannot be written: {here}/none is no directory\n"
    assert f"{here} is not a file" in ended(saving(two, here), status=1)
    assert "is no file of this machine" in ended(saving(two, Path("nbd://x/y")), status=1)
    assert names(here) == []


def test_no_room(two: Room, image: Path, here: Path) -> None:
    Stream(two, image)
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", here)
    try:
        assert f"{here} has no room for saved.img: up to " in ended(saving(two, here / "saved.img"), status=1)
        assert names(here) == []
    finally:
        run("umount", here)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_cut_short(two: Room, image: Path, here: Path, number: signal.Signals, there: bool) -> None:
    """Nothing half has the name, whatever ends it; interrupted, nothing else is left either."""
    stream = Stream(two, image, "--data-rate", "2M")
    saved = here / "saved.img"
    if there:
        saved.write_bytes(b"what is there")
    process = saving(two, saved, "--erase")
    wait_until(lambda: "Starting stream" in stream.text, "the stream", 20)
    time.sleep(0.5)
    process.send_signal(number)
    out = process.communicate(timeout=20)[0]
    assert process.returncode == (1 if number == signal.SIGINT else -signal.SIGKILL), out
    if number == signal.SIGINT:
        assert names(here) == (["saved.img"] if there else [])
    assert saved.exists() == there
    assert not there or saved.read_bytes() == b"what is there"


def test_as_json(two: Room, image: Path, here: Path) -> None:
    Stream(two, image)
    saved = here / "saved.img"
    process = saving(two, saved, "--json")
    events = [json.loads(line) for line in ended(process).splitlines()]
    assert {event["event"] for event in events} >= {"phase", "progress", "done"}
    assert events[-1]["event"] == "done"
    assert events[-1]["bytes"] == SIZE
    assert_same_bytes(saved.read_bytes(), image.read_bytes())
