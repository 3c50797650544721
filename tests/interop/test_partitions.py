"""Partitions of a GPT and an MBR are exports of their own, and what is read and written there is at the right place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.conftest import SIZE, Disk
from tests.serving import Serving, nbdsh, pattern, run, serving
from tests.support import assert_same_bytes, loop_device

MIB = 1 << 20


@pytest.fixture(scope="module", params=["gpt", "mbr"])
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served(
    engine: str, kind: str, scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Serving, Disk]]:
    """A disk with two partitions (MBR: one primary, one logical), full of bytes that are all different."""
    directory = tmp_path_factory.mktemp("served")
    image = directory / ("parts" if scheme == "gpt" else "parts7")
    image.write_bytes(pattern(SIZE))
    if scheme == "gpt":
        run("sgdisk", "--clear", "--new=1:2048:6143", "--new=5:6144:+1M", "--change-name=5:last", image)
    else:
        layout = "label: dos\n2048,4096,83\n6144,8192,5\n8192,2048,83\n"
        run("sfdisk", "--quiet", "--wipe=never", image, stdin=layout)
    with ExitStack() as stack:
        path = image if kind == "file" else stack.enter_context(loop_device(image))
        server = stack.enter_context(serving(path, engine=engine, errors=directory / "errors"))
        yield server, Disk(path, kind == "file")


def partitions(disk: Disk) -> list[tuple[str, int, int]]:
    """Name, offset and length of each, as sfdisk has them."""
    table = json.loads(run("sfdisk", "--json", disk.path).out)["partitiontable"]
    return [
        (entry["node"].rpartition("/")[2], entry["start"] * 512, entry["size"] * 512)
        for entry in table["partitions"]
        if entry["type"] not in ("5", "f")
    ]


def test_they_are_listed(served: tuple[Serving, Disk]) -> None:
    server, disk = served
    expected = [(disk.path.name, SIZE), *((name, length) for name, _, length in partitions(disk))]
    told = json.loads(run("nbdinfo", "--list", "--json", server.uri("")).out)
    assert [(e["export-name"], e["export-size"]) for e in told["exports"]] == expected
    assert [(e["name"], e["size"]) for e in server.ready["exports"]] == expected
    assert len(expected) == 3
    assert "partition" in told["exports"][1]["description"]


def test_each_has_its_bytes_and_no_others(served: tuple[Serving, Disk], tmp_path: Path) -> None:
    server, disk = served
    for number, (name, start, length) in enumerate(partitions(disk)):
        run("nbdcopy", server.uri(name), tmp_path / "copy")
        assert_same_bytes((tmp_path / "copy").read_bytes(), disk.read(start, length))
        before = disk.read()
        data = pattern(length, seed=50 + number)
        (tmp_path / "source").write_bytes(data)
        run("nbdcopy", "--flush", tmp_path / "source", server.uri(name))
        assert_same_bytes(disk.read(), before[:start] + data + before[start + length :])


def test_neither_end_of_one_leads_out_of_it(served: tuple[Serving, Disk]) -> None:
    server, disk = served
    name, _, length = partitions(disk)[0]
    before = disk.read()
    code = """
h.set_strict_mode(0)
h.connect_uri(args[0])
size = int(args[1])
assert h.get_size() == size
for action in (lambda: h.pread(1024, size - 512), lambda: h.pwrite(b"X" * 1024, size - 512),
               lambda: h.pwrite(b"X" * 512, (1 << 64) - 512), lambda: h.zero(1024, size - 512),
               lambda: h.trim(1024, size - 512), lambda: h.pwrite(b"X" * 200_000, size - 512)):
    try:
        action()
    except nbd.Error:
        continue
    raise SystemExit("a request past the end went through")
h.pread(512, size - 512)
h.shutdown()
"""
    nbdsh(code, server.uri(name), str(length))
    assert_same_bytes(disk.read(), before)


def test_maps_and_zeroes_of_one(served: tuple[Serving, Disk]) -> None:
    server, disk = served
    name, start, length = partitions(disk)[1]
    before = disk.read()
    run("qemu-io", "-f", "raw", "-c", f"write -z -u 0 {length}", "-c", "flush", server.uri(name))
    assert_same_bytes(disk.read(), before[:start] + bytes(length) + before[start + length :])
    found = json.loads(run("nbdinfo", "--map", "--json", server.uri(name)).out)
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [(0, length, 3 if disk.is_file else 0)]
