"""A control API that cannot be reached, goes away or talks nonsense: read back instead, or a failure; never `verified`.

Debian packages: nbdkit nbdkit-plugin-python.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import control as tricks
from tests.faults.control import Trick, control
from tests.restore.engine import GO_ON, MIB, READ_BACK, WRITING, failed, nbdkit, restore, restoring, succeeded, wait_for
from tests.serving import Result, pattern, serving
from tests.support import assert_same_bytes, free_port

SIZE = 8 * MIB
IMAGE_SIZE = 6 * MIB + 777
CONTROL = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")


@contextmanager
def announcing(disk: Path, description: str, *, lying: bool = False) -> Iterator[str]:
    """nbdkit over the disk, which sends clients to a control API of our choice; it keeps a wrong byte if it lies."""
    about = ("--filter=exportname", f"exportdesc=fixed:{description}")
    what: tuple[str | Path, ...] = ("file", disk)
    if lying:
        lies = {"how": "flip", "start": 5 * MIB, "end": 5 * MIB + 1, "times": None, "zeroes": False}
        plugin = Path(__file__).with_name("lying_plugin.py")
        what = ("python", plugin, f"file={disk}", f"lies={json.dumps({**lies, 'counts': str(disk.parent)})}")
    with nbdkit(about[0], *what, about[1], directory=disk.parent) as uri:
        yield uri


def check_read_back(result: Result, image: Path, disk: Path, reason: str = "") -> str:
    """It was noticed, said in one line, and done in the other way."""
    said = succeeded(result)
    (note,) = (line for line in said.splitlines() if READ_BACK in line)
    assert reason in note
    assert "Errno" not in note
    assert ", verified" in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + pattern(SIZE, seed=2)[IMAGE_SIZE:])
    return note


def check_failed(result: Result, uri: str, disk: Path, reason: str = "", status: int = 1) -> None:
    message = failed(result, status)
    assert reason in message
    assert message.removesuffix(GO_ON).endswith(f"; {uri} is left empty")
    assert "Restored" not in result.out
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


# --- Not there, or not the right one, from the beginning ---


def test_an_honest_one(image: Path, disk: Path) -> None:
    """That the others fail is due to their tricks."""
    with control(disk) as api, announcing(disk, api.description) as uri:
        said = succeeded(restore(image, uri))
        assert api.asked > 0
    assert READ_BACK not in said
    assert ", verified" in said
    with control(disk) as api, announcing(disk, api.description, lying=True) as uri:
        check_failed(restore(image, uri), uri, disk, "keeps other data than were sent, 3 times over", 3)


def test_nobody_listens(image: Path, disk: Path) -> None:
    description = f"targetmode:control={free_port()} targetmode:session={tricks.SESSION}"
    with announcing(disk, description) as uri:
        check_read_back(restore(image, uri), image, disk, "cannot be used (")
    with announcing(disk, description, lying=True) as uri:
        check_failed(restore(image, uri), uri, disk, "keeps other data", 3)


def test_of_another_server(image: Path, disk: Path, tmp_path: Path) -> None:
    """It has the very image on an export of the same name, so its digests would be just right."""
    other = tmp_path / "other" / "disk.img"
    other.parent.mkdir()
    other.write_bytes(image.read_bytes())
    with serving(other, options=CONTROL, errors=tmp_path / "errors") as server:
        description = f"targetmode:control={server.ready['control']} targetmode:session={tricks.SESSION}"
        with announcing(disk, description, lying=True) as uri:
            check_failed(restore(image, f"{uri}"), uri, disk, "keeps other data", 3)
        with announcing(disk, description) as uri:
            check_read_back(restore(image, uri), image, disk, "belongs to another server")


FIRST = [
    tricks.hang_up,
    tricks.no_http,
    tricks.broken,
    tricks.refusal,
    tricks.no_json,
    tricks.deep,
    tricks.odd_charset,
    tricks.nothing,
    tricks.elsewhere,
]


@pytest.mark.parametrize("trick", FIRST, ids=lambda trick: trick.__name__)
def test_nonsense_from_the_beginning(trick: Trick, image: Path, disk: Path) -> None:
    with control(disk, first=trick) as api, announcing(disk, api.description) as uri:
        check_read_back(restore(image, uri), image, disk, "the control API at http://127.0.0.1:")
        assert api.asked == 0


def test_silence_from_the_beginning(image: Path, disk: Path) -> None:
    with control(disk, first=tricks.silence) as api, announcing(disk, api.description) as uri:
        began = time.monotonic()
        check_read_back(restore(image, uri, "--timeout=1"), image, disk, "cannot be used (")
        assert time.monotonic() - began < 12  # and not a minute


# --- In the middle ---


@pytest.mark.parametrize("honest", [0, 1])
def test_vanishing(honest: int, image: Path, disk: Path) -> None:
    with control(disk, honest=honest, trick=tricks.vanish) as api, announcing(disk, api.description) as uri:
        result = restore(image, uri)
        check_read_back(result, image, disk, "cannot be used (")
    assert result.out.count("; looking for it again\n") == 1


NEARLY_RIGHT = [
    tricks.right_but_broken,
    tricks.nothing,
    tricks.too_few,
    tricks.too_many,
    tricks.out_of_order,
    tricks.cut_off,
    tricks.cut_line,
]

MIDDLE = [
    *NEARLY_RIGHT,
    tricks.hang_up,
    tricks.silence,
    tricks.no_http,
    tricks.broken,
    tricks.refusal,
    tricks.no_json,
    tricks.deep,
    tricks.other_json,
    tricks.endless_line,
    tricks.elsewhere,
    tricks.of_another_server,
]


@pytest.mark.parametrize("trick", MIDDLE, ids=lambda trick: trick.__name__)
def test_nonsense_in_the_middle(trick: Trick, image: Path, disk: Path) -> None:
    """A server that talks nonsense is not trusted: the blocks are read back, or the restore fails and says why."""
    with control(disk, honest=1, trick=trick) as api, announcing(disk, api.description) as uri:
        result = restore(image, uri, "--timeout=1")
        if result.status == 0:
            check_read_back(result, image, disk)
        else:
            check_failed(result, uri, disk, f"http://127.0.0.1:{api.port}")
        assert api.asked >= 2


@pytest.mark.parametrize("trick", NEARLY_RIGHT, ids=lambda trick: trick.__name__)
def test_nonsense_about_a_wrong_disk(trick: Trick, image: Path, disk: Path) -> None:
    """Whatever it says, a wrong disk is never verified."""
    with control(disk, trick=trick) as api, announcing(disk, api.description, lying=True) as uri:
        result = restore(image, uri, "--timeout=1")
        assert result.status in (1, 3), result
        check_failed(result, uri, disk, status=result.status)
        assert api.asked >= 1


def test_digests_of_another_disk(image: Path, disk: Path) -> None:
    with control(disk, honest=1, trick=tricks.of_another_disk) as api, announcing(disk, api.description) as uri:
        check_failed(restore(image, uri), uri, disk, "keeps other data than were sent, 3 times over", 3)


# --- Our own server ---


@pytest.mark.parametrize("options", [(), ("--connections=3",)])
def test_our_own_without_one(options: tuple[str, ...], image: Path, disk: Path) -> None:
    with serving(disk, errors=disk.parent / "errors") as server:
        check_read_back(restore(image, server.uri(), *options), image, disk, "the server has no control API")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_our_own_that_hangs(when: str, image: Path, disk: Path) -> None:
    """The process that has the control API is stopped; those that speak NBD go on."""
    with serving(disk, options=CONTROL, errors=disk.parent / "errors") as server:
        uri = server.uri()
        try:
            if when == "before":
                os.kill(server.process.pid, signal.SIGSTOP)
            with restoring(image, uri, "--timeout=1", "--max-rate=5M") as asr:
                wait_for(asr, WRITING)
                if when == "meanwhile":
                    time.sleep(0.3)
                    os.kill(server.process.pid, signal.SIGSTOP)
                result = asr.end()
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        if result.status:
            check_failed(result, uri, disk, "the target's digests cannot be had: ")
        else:
            check_read_back(result, image, disk, "cannot be used (")


def test_one_that_says_nothing_does_not_hold_up_a_failure(image: Path, disk: Path) -> None:
    with control(disk, first=tricks.silence) as api:
        options = (f"exportdesc=fixed:{api.description}", "error-pwrite=EIO", "error-pwrite-rate=100%")
        with nbdkit("--filter=exportname", "--filter=error", "file", disk, *options, directory=disk.parent) as uri:
            started = time.monotonic()
            check_failed(restore(image, uri, "--timeout=20"), uri, disk, "Input/output error")
            assert time.monotonic() - started < 10
