"""qemu-img and qemu-io: what is on an export, images written to it and read back, and formats that lie on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.conftest import SIZE, Disk
from tests.serving import Serving, pattern, run
from tests.support import assert_same_bytes

KIB, MIB = 1 << 10, 1 << 20


def qemu_io(uri: str, *commands: str, check: bool = True) -> str:
    words = [word for command in commands for word in ("-c", command)]
    result = run("qemu-io", "--format=raw", "--discard=unmap", *words, uri, check=check)
    if check:
        assert "failed" not in result.out + result.err, result
    return result.out + result.err


@pytest.mark.parametrize("way", ["127.0.0.1", "[::1]", "nbd+unix"])
def test_info(server: Serving, disk: Disk, way: str) -> None:
    told = json.loads(run("qemu-img", "info", "--output=json", server.uri(None, way)).out)
    assert (told["format"], told["virtual-size"]) == ("raw", SIZE)


def test_convert_out_and_compare(server: Serving, full: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri(), copy)
    run("qemu-img", "check", copy)
    assert "identical" in run("qemu-img", "compare", "-F", "raw", copy, server.uri()).out
    run("qemu-img", "convert", "-O", "raw", copy, tmp_path / "raw")
    assert_same_bytes((tmp_path / "raw").read_bytes(), full)


def test_compare_finds_one_byte(server: Serving, disk: Disk, full: bytes, tmp_path: Path) -> None:
    other = bytearray(full)
    other[5 * MIB + 3] ^= 1
    (tmp_path / "other").write_bytes(other)
    result = run("qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "other", server.uri(), check=False)
    assert result.status == 1
    assert f"offset {5 * MIB}" in result.out


def test_convert_in(server: Serving, disk: Disk, full: bytes, tmp_path: Path) -> None:
    data = bytearray(SIZE)
    data[MIB : 2 * MIB] = pattern(MIB, seed=3)
    source = tmp_path / "source"
    source.write_bytes(data)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri())
    assert_same_bytes(disk.read(), data)


def test_a_qcow2_image_on_the_export(server: Serving, disk: Disk, tmp_path: Path) -> None:
    """Written, checked, and its contents right."""
    (tmp_path / "source").write_bytes(pattern(2 * MIB, seed=4))
    run("qemu-img", "create", "-f", "qcow2", server.uri(), "4M")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", tmp_path / "source", server.uri())
    run("qemu-img", "check", "-f", "qcow2", server.uri())
    told = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", server.uri()).out)
    assert (told["format"], told["virtual-size"]) == ("qcow2", 4 * MIB)
    assert "identical" in run("qemu-img", "compare", tmp_path / "source", server.uri()).out
    assert disk.read(0, 4) == b"QFI\xfb"


def test_patterns(server: Serving, disk: Disk) -> None:
    qemu_io(
        server.uri(),
        "write -P 0x11 0 64k",
        "write -P 0x22 64k 1M",
        "write -f -P 0x33 3M 4k",
        "aio_write -P 0x44 4M 512k",
        "aio_write -P 0x55 5M 512",
        "aio_flush",
        "flush",
        "read -P 0x11 0 64k",
        "read -P 0x22 64k 1M",
        "read -P 0x33 3M 4k",
        "read -P 0x44 4M 512k",
        "read -P 0 7M 1M",
    )
    expected = bytearray(SIZE)
    for value, offset, length in (
        (0x11, 0, 64 * KIB),
        (0x22, 64 * KIB, MIB),
        (0x33, 3 * MIB, 4 * KIB),
        (0x44, 4 * MIB, 512 * KIB),
        (0x55, 5 * MIB, 512),
    ):
        expected[offset : offset + length] = bytes([value]) * length
    assert_same_bytes(disk.read(), expected)


def test_zeroes_with_and_without_unmapping(server: Serving, disk: Disk, full: bytes) -> None:
    expected = bytearray(full)
    qemu_io(server.uri(), "write -z 1M 1M", "write -z -u 3M 1M", "write -z 5000k 3k", "flush", "read -P 0 1M 1M")
    for offset, length in ((MIB, MIB), (3 * MIB, MIB), (5000 * KIB, 3 * KIB)):
        expected[offset : offset + length] = bytes(length)
    assert_same_bytes(disk.read(), expected)
    if disk.is_file:
        found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", server.uri()).out)
        holes = [(e["start"], e["length"]) for e in found if e["zero"] and not e["data"]]
        # Without -u the storage stays (NO_HOLE); on ext4, such unwritten extents count as holes too.
        assert (3 * MIB, MIB) in holes
        assert set(holes) <= {(MIB, MIB), (3 * MIB, MIB)}
        allocated = disk.path.stat().st_blocks * 512
        assert SIZE - MIB <= allocated <= SIZE - MIB + 64 * KIB


def test_a_discard_gives_storage_back(server: Serving, disk: Disk, full: bytes) -> None:
    before = disk.path.stat().st_blocks
    qemu_io(server.uri(), "discard 2M 4M", "flush")
    assert_same_bytes(disk.read(0, 2 * MIB), full[: 2 * MIB])
    assert_same_bytes(disk.read(6 * MIB), full[6 * MIB :])
    if disk.is_file:
        assert before - disk.path.stat().st_blocks == 4 * MIB // 512
        assert_same_bytes(disk.read(2 * MIB, 4 * MIB), bytes(4 * MIB))


def test_a_write_past_the_end_fails(server: Serving, disk: Disk, full: bytes) -> None:
    assert "failed" in qemu_io(server.uri(), f"write -P 1 {SIZE - 512} 1024", check=False)
    assert_same_bytes(disk.read(), full)
