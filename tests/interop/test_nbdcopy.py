"""nbdcopy in and out, over one and several connections, and with a server that it starts itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.conftest import SIZE, Disk
from tests.serving import ROOT, TARGETMODE, Serving, pattern, run
from tests.support import assert_same_bytes, wait_until

WAYS = ["127.0.0.1", "[::1]", "nbd+unix"]


@pytest.mark.parametrize("way", WAYS)
def test_out(server: Serving, full: bytes, tmp_path: Path, way: str) -> None:
    run("nbdcopy", server.uri(None, way), tmp_path / "copy")
    assert_same_bytes((tmp_path / "copy").read_bytes(), full)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connections", [1, 4])
def test_in(server: Serving, disk: Disk, tmp_path: Path, way: str, connections: int) -> None:
    data = pattern(SIZE, seed=connections)
    source = tmp_path / "source"
    source.write_bytes(data)
    sizes = ["--request-size=65536", "--requests=8"] if connections > 1 else []
    run("nbdcopy", "--flush", f"--connections={connections}", *sizes, source, server.uri(None, way))
    assert_same_bytes(disk.read(), data)


def test_a_sparse_image_replaces_what_was_there(server: Serving, disk: Disk, full: bytes, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(SIZE)
        file.seek(5 << 20)
        file.write(b"\x5a" * 70_000)
    run("nbdcopy", "--flush", source, server.uri())
    assert_same_bytes(disk.read(), source.read_bytes())
    if disk.is_file:
        assert disk.path.stat().st_blocks * 512 < 1 << 20


def test_between_two_connections_of_the_same_server(server: Serving, full: bytes, tmp_path: Path) -> None:
    assert run("nbdcopy", server.uri(), server.uri()).status == 0
    run("nbdcopy", server.uri(), tmp_path / "copy")
    assert_same_bytes((tmp_path / "copy").read_bytes(), full)


def test_no_payload_is_lost_in_the_connections_byte_counts(server: Serving, disk: Disk, tmp_path: Path) -> None:
    """Several connections, many small requests in flight."""
    (tmp_path / "source").write_bytes(b"\x77" * SIZE)
    before = len(server.events)
    run("nbdcopy", "--connections=2", "--request-size=8192", "--requests=64", tmp_path / "source", server.uri())

    def counts() -> list[int]:
        return [event["written"] for event in server.events[before:] if event["event"] == "disconnect"]

    wait_until(lambda: sum(counts()) >= SIZE, "all bytes to be counted")
    assert sum(counts()) == SIZE


@pytest.mark.parametrize("engine_option", ["builtin", "nbdkit"])
@pytest.mark.parametrize("incoming", [True, False])
def test_bracketed_it_is_handed_a_socket(tmp_path: Path, engine_option: str, incoming: bool) -> None:
    data = pattern(SIZE)
    served, other = tmp_path / "served.img", tmp_path / "other"
    served.write_bytes(bytes(SIZE) if incoming else data)
    other.write_bytes(data if incoming else b"")
    ours = ["[", "env", f"PYTHONPATH={ROOT}", *TARGETMODE, "serve", "--engine", engine_option, str(served), "]"]
    run("nbdcopy", "--flush", "--", *([str(other), *ours] if incoming else [*ours, str(other)]))
    assert_same_bytes((served if incoming else other).read_bytes(), data)
