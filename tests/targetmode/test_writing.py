"""Who may write while others do, and what new connections find afterwards."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.serving import RawClient, Serving, nbdsh, pattern, run
from tests.support import loop_device, wait_until
from tests.targetmode.conftest import MIB, part

EPERM: Final = 1


def try_to_write(uri: str) -> str:
    """What comes of a write: `done`, or why not, at the handshake or at the request."""
    code = """
try:
    h.connect_uri(args[0])
    h.pwrite(b"W" * 512, 7 << 20 if h.get_size() == 8 << 20 else 0)
    h.shutdown()
    print("done")
except nbd.Error as error:
    print(error.string, error.errno)
"""
    return nbdsh(code, uri).out.strip()


@pytest.mark.parametrize("whole_first", [True, False])
def test_writers_of_the_whole_and_of_a_part_keep_each_other_out(
    parted: Path, serve: Callable[..., Serving], engine: str, whole_first: bool
) -> None:
    server = serve(parted, engine=engine)
    first, second = ("parted", "parted1") if whole_first else ("parted1", "parted")
    before = parted.read_bytes()
    with RawClient(server, second) as reader, RawClient(server, first) as writer:
        assert writer.write(MIB + 4096, b"1" * 512) == 0
        refusal = try_to_write(server.uri(second))
        if engine == "builtin":
            assert "server policy" in refusal
            refusal = run("qemu-img", "info", server.uri(second), check=False).err
            assert "cannot be used now" in refusal
            assert "is being written by 127.0.0.1:" in refusal
        else:
            assert "EPERM" in refusal
            assert "being written by" in server.next("error")["message"]
        # One that was there before may read on, and is refused when it writes; the stream stays in step.
        assert reader.read(0, 512)
        assert reader.write(0, b"2" * 512) == EPERM
        assert reader.write(0, b"2" * 300_000) == EPERM
        assert "being written by" in server.next("error")["message"]
        assert reader.read(512, 512)
        # A second writer of the same, and of the other part, are fine.
        assert try_to_write(server.uri(first)) == "done"
        if not whole_first:
            assert try_to_write(server.uri("parted2")) == "done"
        assert writer.write(MIB + 4096, b"3" * 512) == 0
        assert reader.write(0, b"2" * 512) == EPERM
    assert try_to_write(server.uri(second)) == "done"
    assert parted.read_bytes() != before


def test_a_writers_crash_frees_the_disk(parted: Path, serve: Callable[..., Serving]) -> None:
    server = serve(parted)
    with RawClient(server, "parted") as writer:
        writer.write(MIB, b"1" * 512)
        os.kill(server.connection(), signal.SIGKILL)
        assert try_to_write(server.uri("parted1")) == "done"


def test_many_writes_at_once_hold_the_disk_once(parted: Path, serve: Callable[..., Serving], engine: str) -> None:
    """When they have left, the disk is free: nothing that was taken twice stays taken."""
    server = serve(parted, engine=engine)
    for _ in range(3):
        code = """
h.connect_uri(args[0])
buffers = [nbd.Buffer.from_bytearray(bytearray(b"m" * 4096)) for _ in range(64)]
cookies = [h.aio_pwrite(buffer, 6 * 1024 * 1024 + 4096 * n) for n, buffer in enumerate(buffers)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
h.shutdown()
"""
        nbdsh(code, server.uri("parted"))
        assert try_to_write(server.uri("parted1")) == "done"


@pytest.mark.parametrize("kind", ["file", "loop"])
def test_new_partitions_show_up_for_new_connections(
    root: None, tmp_path: Path, serve: Callable[..., Serving], engine: str, kind: str
) -> None:
    """After a restore onto a disk that was empty, and after another that has none."""
    image, source = tmp_path / "blank", tmp_path / "source"
    image.write_bytes(bytes(8 * MIB))
    source.write_bytes(pattern(8 * MIB))
    part(source)
    with loop_device(image) as device:
        server = serve(image if kind == "file" else device, engine=engine) if kind == "loop" else None
        if server is not None:
            restore_and_look(server, source)
            server.stop()
    if kind == "file":
        restore_and_look(serve(image, engine=engine), source)


def restore_and_look(server: Serving, source: Path) -> None:
    def names() -> list[str]:
        return re.findall(r"export=\"(.*)\":", run("nbdinfo", "--list", "--no-content", server.uri("")).out)

    (disk,) = names()
    first = f"{disk}{'p' if disk[-1].isdigit() else ''}1"
    run("nbdcopy", "--flush", source, server.uri(disk))
    wait_until(lambda: len(names()) == 3, "the new partitions")
    assert names()[1] == first
    assert "2097152" in run("nbdinfo", "--size", server.uri(first)).out
    source.write_bytes(bytes(8 * MIB))
    run("nbdcopy", "--flush", source, server.uri(disk))
    wait_until(lambda: len(names()) == 1, "the end of the partitions")
    assert run("nbdinfo", "--size", server.uri(first), check=False).status == 1


def test_several_disks_and_the_first_is_the_default(tmp_path: Path, serve: Callable[..., Serving], engine: str) -> None:
    images = [tmp_path / name for name in ("b.img", "a.img", "ö.img")]
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]) * 4096 * (number + 1))
    server = serve(*images, engine=engine)
    assert server.exports == ["b.img", "a.img", "ö.img"]
    for name, size in (("", 4096), ("a.img", 8192), ("ö.img", 12288)):
        with RawClient(server, name) as client:
            assert client.size == size
    assert "disk.img" not in server.exports


def test_a_disk_with_the_longest_name(tmp_path: Path, serve: Callable[..., Serving], engine: str) -> None:
    image = tmp_path / ("n" * 255)
    image.write_bytes(bytes(8192))
    server = serve(image, engine=engine)
    with RawClient(server, image.name) as client:
        assert client.write(0, b"long" * 128) == 0
