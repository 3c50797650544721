"""The command line: wrong usage is 2, a disk that may not be offered is 1, and both say why in a line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serving import ROOT, TARGETMODE, Serving, run, targetmode
from tests.support import free_port, listens, loop_device, running
from tests.targetmode.conftest import MIB


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "a verb is missing: serve, disks, restore, "),
        (["serf"], "there is no verb serf; did you mean serve? (see: targetmode --help)"),
        (["--json"], "there is no option --json (see: targetmode --help)"),
        (["serve"], "DISK is missing (see: targetmode serve --help)"),
        (["serve", "IMAGE", "--listen", ""], "--listen needs a value, not an empty one"),
        (["serve", "IMAGE", "--listen", "127.0.0.1:65536"], "'127.0.0.1:65536' is not HOST or HOST:PORT"),
        (["serve", "IMAGE", "--listen", "127.0.0.1:-1"], "'127.0.0.1:-1' is not HOST or HOST:PORT"),
        (["serve", "IMAGE", "--listen", "[::1"], "'[::1' is not [IPV6] or [IPV6]:PORT"),
        (["serve", "IMAGE", "--control", "localhost:x"], "'localhost:x' is not HOST or HOST:PORT"),
        (["serve", "IMAGE", "--max-connections", "0"], "--max-connections: '0' is not a number from 1 to 4096"),
        (["serve", "IMAGE", "--max-connections", "5000"], "--max-connections: '5000' is not a number from 1 to 4096"),
        (["serve", "IMAGE", "--max-connections", "many"], "--max-connections: 'many' is not a number from 1 to 4096"),
        (["serve", "IMAGE", "--engine", "steam"], "--engine: 'steam' is not builtin or nbdkit"),
        (["serve", "IMAGE", "-jso"], "there is no option -jso; did you mean --json? (see: targetmode serve --help)"),
        (["disks", "--listen", "x"], "--listen goes with serve, not with disks (see: targetmode disks --help)"),
        (["server"], "--source IMAGE is missing (see: targetmode server --help)"),
        (["imagescan"], "IMAGE is missing (see: targetmode imagescan --help)"),
    ],
)
def test_wrong_usage(image: Path, arguments: list[str], complaint: str) -> None:
    result = targetmode(*(str(image) if word == "IMAGE" else word for word in arguments))
    assert (result.status, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("targetmode: ")
    assert complaint in line


def test_help_says_every_option_and_is_quick() -> None:
    begin = time.monotonic()
    result = targetmode("serve", "--help")
    assert time.monotonic() - begin < 2
    assert result.status == 0
    for option in ("listen", "socket", "control", "name", "read-only", "max-connections", "once", "insecure", "engine"):
        assert f"--{option}" in result.out


def refused(*arguments: str | Path) -> str:
    """The one line that a refusal says."""
    result = targetmode("serve", "--listen=127.0.0.1:0", "--control=off", *arguments)
    assert (result.status, result.out) == (1, ""), result
    (line,) = result.err.splitlines()
    assert line.startswith("targetmode: ")
    return line


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "fifo", "character device", "dangling link"])
def test_what_is_no_disk_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    complaint = "not a block device or an image file"
    match kind:
        case "missing":
            complaint = "does not exist"
        case "directory":
            path.mkdir()
        case "empty":
            path.touch()
            complaint = "is an empty file"
        case "fifo":
            os.mkfifo(path)
        case "character device":
            path = Path("/dev/null")
        case "dangling link":
            path.symlink_to(tmp_path / "nowhere")
            complaint = "does not exist"
    assert complaint in refused(path)


@pytest.mark.parametrize("name", [b"b\xff", b"with\nnewline", b"bell\x07"])
def test_a_name_that_no_export_can_have_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"x" * 4096)
    result = subprocess.run(
        [
            os.fsencode(word)
            for word in ("/bin/sh", "-c", 'exec "$0" -m targetmode.cli serve "$1"', sys.executable, path)
        ],
        capture_output=True,
        timeout=20,
        cwd=ROOT,
        check=False,
    )
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"its name cannot be an export's" in result.stderr
    assert b"Traceback" not in result.stderr


def test_two_disks_of_the_same_name_are_refused(tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other" / "disk.img"
    other.parent.mkdir()
    other.write_bytes(b"x" * 4096)
    assert "another disk is called disk.img too" in refused(image, other)


def test_the_same_disk_twice_is_refused(image: Path) -> None:
    assert "locked by" in refused(image, image)


def test_a_second_serve_is_refused_and_a_third_after_the_first_is_not(
    image: Path, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    first = serve(image)
    line = refused(image)
    assert f"locked by process {first.process.pid}" in line
    link = tmp_path / "link"
    link.symlink_to(image)
    assert "locked by" in refused(link)
    assert "locked by" in refused("--read-only", image)
    assert run("nbdinfo", "--size", first.uri()).out == f"{MIB}\n"
    first.stop()
    assert serve(image).exports == ["disk.img"]


def test_readers_share(image: Path, serve: Callable[..., Serving]) -> None:
    options = ["--listen=127.0.0.1:0", "--control=off", "--read-only"]
    first, second = serve(image, options=options), serve(image, options=options)
    for server in (first, second):
        assert run("nbdinfo", "--size", server.uri()).out == f"{MIB}\n"


@pytest.fixture
def loop(root: None, tmp_path: Path) -> Iterator[Path]:
    backing = tmp_path / "backing.img"
    with backing.open("wb") as file:
        file.truncate(16 * MIB)
    with loop_device(backing) as device:
        yield device


def test_a_mounted_disk_is_refused_and_so_is_what_is_behind_it(loop: Path, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", loop)
    (tmp_path / "mnt").mkdir()
    run("mount", loop, tmp_path / "mnt")
    try:
        assert f"mounted on {tmp_path / 'mnt'}" in refused(loop)
        assert "backing file of" in refused(tmp_path / "backing.img")
        assert f"mounted on {tmp_path / 'mnt'}" in refused("--read-only", "--engine=nbdkit", loop)
        (tmp_path / "mnt" / "file").write_text("still works")
    finally:
        run("umount", tmp_path / "mnt")


def test_swap_is_refused(loop: Path, tmp_path: Path) -> None:
    run("mkswap", "-q", loop)
    run("swapon", loop)
    try:
        assert "used as swap" in refused(loop)
        assert "backing file of" in refused(tmp_path / "backing.img")
    finally:
        run("swapoff", loop)


def test_an_exclusive_opener_keeps_it(loop: Path, serve: Callable[..., Serving]) -> None:
    fd = os.open(loop, os.O_RDWR | os.O_EXCL)
    try:
        assert str(loop) in refused(loop)
    finally:
        os.close(fd)
    server = serve(loop)
    with pytest.raises(OSError, match="busy"):
        os.open(loop, os.O_RDWR | os.O_EXCL)
    assert server.stop() == 0
    os.close(os.open(loop, os.O_RDWR | os.O_EXCL))


def test_one_refused_disk_keeps_the_others_free(image: Path, tmp_path: Path, serve: Callable[..., Serving]) -> None:
    refused(image, tmp_path / "missing")
    assert serve(image).exports == ["disk.img"]


def test_an_address_that_is_taken_is_told(image: Path) -> None:
    with ExitStack() as stack:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = sock.getsockname()[1]
        line = targetmode("serve", "--control=off", f"--listen=127.0.0.1:{port}", image)
        assert (line.status, line.out) == (1, "")
        assert line.err == f"targetmode: cannot listen on 127.0.0.1:{port}: Address already in use\n"
        line = targetmode("serve", "--listen=127.0.0.1:0", f"--control=127.0.0.1:{port}", image)
        assert (line.status, line.out) == (1, "")
        assert "Address already in use" in line.err


def test_no_engine_is_told(image: Path, tmp_path: Path) -> None:
    result = run(
        "env", f"PATH={tmp_path}", f"PYTHONPATH={ROOT}", sys.executable, "-c",
        "import targetmode.engine as e, shutil; e.shutil.which = lambda *a, **k: None\n"
        "from targetmode.cli import main; raise SystemExit(main())",
        "serve", "--listen=127.0.0.1:0", "--engine=nbdkit", image, check=False,
    )  # fmt: skip
    assert (result.status, result.out) == (1, "")
    assert "apt-get install nbdkit nbdkit-plugin-python" in result.err
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("engine", ["builtin", "nbdkit"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, engine: str, image: Path) -> None:
    """No disk takes their place, nor is anything printed on it."""
    before, port = image.read_bytes(), free_port()
    words = ("serve", image, "--listen", f"127.0.0.1:{port}", "--control", "off", "--engine", engine)
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *TARGETMODE, *map(str, words)]
    with running(command, ready=lambda: listens(port), environment={"PYTHONPATH": str(ROOT)}) as process:
        run("nbdinfo", f"nbd://127.0.0.1:{port}/{image.name}")
        run("nbdinfo", f"nbd://127.0.0.1:{port}/missing", check=False)
        process.terminate()
        assert process.wait(10) == 0
    assert image.read_bytes() == before
