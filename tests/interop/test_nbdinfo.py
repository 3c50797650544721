"""nbdinfo: what the handshake says, over every way in; maps of holes and data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.interop.conftest import SIZE, Disk
from tests.serving import Serving, run

MIB = 1 << 20
HOLE = 3


def nbdinfo(*arguments: str) -> Any:
    return json.loads(run("nbdinfo", "--json", *arguments).out)


@pytest.mark.parametrize(
    ("way", "default"), [("127.0.0.1", False), ("127.0.0.1", True), ("[::1]", False), ("nbd+unix", True)]
)
def test_the_handshake_says_all_there_is(server: Serving, disk: Disk, way: str, default: bool) -> None:
    told = nbdinfo("--no-content", server.uri("" if default else None, way))
    (export,) = told["exports"]
    assert (told["protocol"], told["TLS"], told["structured"]) == ("newstyle-fixed", False, True)
    assert export["export-name"] == disk.path.name
    assert export["export-size"] == SIZE
    assert not export["is_read_only"]
    for ability in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert export[f"can_{ability}"], ability
    assert export["block_size_minimum"] == (1 if disk.is_file else 512)
    assert export["block_size_preferred"] >= 4096
    assert export["block_size_maximum"] == 32 * MIB
    assert "base:allocation" in export["contexts"]
    assert export["description"].startswith(("image file, 8.0 MiB", "disk, 8.0 MiB"))


def test_a_list_has_every_export(server: Serving, disk: Disk) -> None:
    told = nbdinfo("--list", server.uri(""))
    assert [(e["export-name"], e["export-size"]) for e in told["exports"]] == [(disk.path.name, SIZE)]


def test_an_unknown_export_is_refused(server: Serving) -> None:
    result = run("nbdinfo", server.uri("no-such-export"), check=False)
    assert result.status == 1
    assert "no-such-export" in result.err


def test_a_map_shows_holes_and_data(server: Serving, disk: Disk) -> None:
    with disk.path.open("r+b") as file:
        for offset in (0, 3 * MIB, SIZE - 4096):
            file.seek(offset)
            file.write(b"\xa5" * 4096)
    found = [(e["offset"], e["length"], e["type"]) for e in nbdinfo("--map", server.uri())]
    if not disk.is_file:  # block devices do not tell
        assert found == [(0, SIZE, 0)]
        return
    assert found == [
        (0, 4096, 0),
        (4096, 3 * MIB - 4096, HOLE),
        (3 * MIB, 4096, 0),
        (3 * MIB + 4096, 5 * MIB - 8192, HOLE),
        (SIZE - 4096, 4096, 0),
    ]


def test_a_map_of_an_empty_and_of_a_full_disk_is_one_extent(server: Serving, disk: Disk) -> None:
    def found() -> list[tuple[int, int, int]]:
        return [(e["offset"], e["length"], e["type"]) for e in nbdinfo("--map", server.uri())]

    assert found() == [(0, SIZE, HOLE if disk.is_file else 0)]
    disk.fill(b"\x01" * SIZE)
    assert found() == [(0, SIZE, 0)]
