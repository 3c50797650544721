"""What is refused, and that nothing was touched then.

Debian packages: e2fsprogs nbdkit util-linux.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.restore.engine import MIB, failed, nbdkit, restore, verify
from tests.serving import pattern, run, serving
from tests.support import assert_same_bytes, free_port, loop_device

SIZE = 4 * MIB


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "source.img"
    path.write_bytes(pattern(2 * MIB))
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of which, when the test is over, not one byte has changed."""
    path = tmp_path / "disk.img"
    content = pattern(SIZE, seed=5)
    path.write_bytes(content)
    yield path
    assert_same_bytes(path.read_bytes(), content)


def test_smaller_target(image: Path, disk: Path, tmp_path: Path) -> None:
    with image.open("ab") as file:
        file.truncate(SIZE + 1)
    expected = f"is too small: it has {SIZE} bytes (4.0 MiB), {image} has {SIZE + 1} (4.0 MiB)"
    with (
        serving(disk, errors=tmp_path / "errors") as server,
        nbdkit("memory", str(SIZE), directory=tmp_path) as foreign,
    ):
        for target in (server.uri(), foreign):
            assert failed(restore(image, target)) == f"{target} {expected}"
            assert failed(verify(image, target)) == f"{target} {expected}"
    assert failed(restore(image, disk)) == f"{disk} {expected}"
    with loop_device(disk) as loop:
        assert failed(restore(image, loop)) == f"{loop} {expected}"


def test_read_only_export(image: Path, disk: Path, tmp_path: Path) -> None:
    options = ("--listen=127.0.0.1:0", "--control=off", "--read-only")
    for engine in ("builtin", "nbdkit"):
        with serving(disk, options=options, engine=engine, errors=tmp_path / "errors") as server:
            assert failed(restore(image, server.uri())) == f"{server.uri()} is exported read-only"
            failed(verify(image, server.uri()), 3)  # reading is another matter
    with nbdkit("--readonly", "file", disk, directory=tmp_path) as uri:
        assert failed(restore(image, uri)) == f"{uri} is exported read-only"


def test_write_protected_device(image: Path, disk: Path) -> None:
    with loop_device(disk) as loop:
        run("blockdev", "--setro", loop)
        assert "is write-protected" in failed(restore(image, loop))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("missing", "No such file or directory"),
        ("directory", "is a directory, not a disk, image or mount point"),
        ("empty", "is empty"),
        ("fifo", "is neither an image file nor a block device"),
        ("/dev/null", "is neither an image file nor a block device"),
        ("image/x", "Not a directory"),
    ],
)
def test_source(source: str, why: str, disk: Path, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "image").touch()
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / source
    assert failed(restore(path, disk, timeout=10)).startswith(f"{path}")
    assert why in failed(restore(path, disk, timeout=10))


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("missing", "does not exist; an image file has to be there first: truncate -s SIZE FILE"),
        ("directory", "is a directory, not a block device or an image file"),
        ("empty", "is an empty file"),
        ("/dev/null", "is a character device"),
    ],
)
def test_local_target(target: str, why: str, image: Path, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "empty").touch()
    assert why in failed(restore(image, tmp_path / target))
    assert (tmp_path / "missing").exists() is False


@pytest.mark.parametrize("target", ["/dev/missing", "/proc/missing", "/proc/self/missing", "/sys/missing"])
def test_target_that_nobody_can_make(target: str, image: Path) -> None:
    assert failed(restore(image, target)) == f"{target} does not exist"


def test_target_in_a_directory_that_is_not_there(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "missing" / "disk.img"
    assert failed(restore(image, target)) == f"{target} does not exist: there is no directory {target.parent}"


def test_target_of_another_scheme(image: Path) -> None:
    message = failed(restore(image, "http://host/x"))
    assert "http://host/x is no target; it may be nbd://HOST/EXPORT, a block device, or an image file" in message


def test_source_in_use_for_writing(image: Path, disk: Path, tmp_path: Path) -> None:
    with serving(image, errors=tmp_path / "errors"):
        assert "is being written by another program" in failed(restore(image, disk))


def test_source_is_target(disk: Path, tmp_path: Path) -> None:
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(disk)
    hard.hardlink_to(disk)
    for source in (disk, link, hard):
        failed(restore(source, disk))
    with serving(disk, errors=tmp_path / "errors") as server:
        failed(restore(disk, server.uri()))
    with loop_device(disk) as loop:
        failed(restore(disk, loop))
        failed(restore(loop, loop))
        failed(restore(loop, disk))


def test_source_is_target_by_way_of_a_server_that_does_not_say_so(disk: Path, tmp_path: Path) -> None:
    same = "are the same disk by two ways; its first MiB, which was zeroed to find that out, is as it was"
    with nbdkit("file", disk, directory=tmp_path) as uri:
        assert failed(restore(uri, disk)) == f"{uri} and {disk} {same}"
        assert failed(restore(uri, disk, "--delta")) == f"{uri} and {disk} {same}"
        assert failed(restore(disk, uri)) == f"{disk} and {uri} {same}"


@pytest.mark.parametrize("engine", ["builtin", "nbdkit"])
def test_unknown_export(engine: str, image: Path, disk: Path, tmp_path: Path) -> None:
    with serving(disk, engine=engine, errors=tmp_path / "errors") as server:
        uri = server.uri("sda")
        message = failed(restore(image, uri))
        assert message.startswith(f"{uri}: ")
        assert "disk.img" in message


def test_unknown_export_elsewhere(image: Path, disk: Path, tmp_path: Path) -> None:
    with nbdkit(
        "--filter=exportname",
        "file",
        disk,
        "exportname=one",
        "exportname=two",
        "exportname-strict=true",
        "exportname-list=explicit",
        directory=tmp_path,
    ) as uri:
        message = failed(restore(image, uri))
        assert message.endswith("; the server has: one, two"), message


def test_no_server(image: Path, tmp_path: Path) -> None:
    uri = f"nbd://127.0.0.1:{free_port()}/disk"
    started = time.monotonic()
    assert failed(restore(image, uri)) == f"{uri}: cannot connect: Connection refused"
    assert time.monotonic() - started < 3
    uri = f"nbd+unix:///disk?socket={tmp_path}/none"
    assert failed(restore(image, uri)) == f"{uri}: cannot connect: No such file or directory"
    assert "cannot connect: " in failed(restore(image, "nbd://no-such-host.invalid/disk"))


@pytest.mark.parametrize(
    "uri",
    ["nbd:", "nbd://", "nbd://[::1", "nbd+unix:///disk", "nbd://host:99999/", "nbd+vsock:///x", "nbds://127.0.0.1/x"],
)
def test_wrong_uris(uri: str, image: Path) -> None:
    started = time.monotonic()
    assert failed(restore(image, uri))
    assert time.monotonic() - started < 3


@contextmanager
def someone(says: bytes, *, stays: bool = True) -> Iterator[str]:
    """A server of something else."""
    listener = socket.create_server(("127.0.0.1", 0))
    guests: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                guests.append(sock)
                sock.sendall(says)
                if not stays:
                    sock.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"nbd://127.0.0.1:{listener.getsockname()[1]}/disk"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for sock in guests:
            sock.close()


def test_no_nbd_server(image: Path) -> None:
    with someone(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n") as uri:
        assert failed(restore(image, uri)).startswith(f"{uri}: ")
    with someone(b"", stays=False) as uri:
        assert "the server closed the connection during the handshake" in failed(restore(image, uri))
    with someone(b"") as uri:
        started = time.monotonic()
        message = failed(restore(image, uri, "--timeout=1"))
        assert message == f"{uri}: no complete handshake within 1 seconds"
        assert time.monotonic() - started < 4


def test_mounted_target(image: Path, tmp_path: Path) -> None:
    disk = tmp_path / "fs.img"
    disk.write_bytes(bytes(SIZE))
    run("mkfs.ext4", "-q", disk)
    directory = tmp_path / "mounted"
    directory.mkdir()
    with loop_device(disk) as loop:
        run("mount", loop, directory)
        try:
            before = disk.read_bytes()
            for target in (loop, disk):
                assert "mounted on" in failed(restore(image, target))
            assert_same_bytes(disk.read_bytes()[: 2 * MIB], before[: 2 * MIB])
        finally:
            run("umount", directory)


def test_target_that_another_restore_writes(image: Path, disk: Path, tmp_path: Path) -> None:
    holder = subprocess.Popen(["flock", "--no-fork", str(disk), "sleep", "60"])
    try:
        time.sleep(0.2)
        assert "locked by" in failed(restore(image, disk))
    finally:
        holder.kill()
        holder.wait()
