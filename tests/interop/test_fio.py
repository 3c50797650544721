"""fio's nbd engine: many requests in flight, every block verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.interop.conftest import SIZE, Disk
from tests.serving import Serving, run


def fio(directory: Path, uri: str, *options: str) -> dict[str, int]:
    """Run one job; the bytes that it read and wrote."""
    words = [
        "--name=job",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--size={SIZE}",
        "--output-format=json",
        "--output=told",
        *options,
    ]
    run("fio", *words, cwd=directory)
    told = json.loads((directory / "told").read_text())
    (job,) = told["jobs"]
    assert job["error"] == 0
    return {"read": job["read"]["io_bytes"], "write": job["write"]["io_bytes"]}


@pytest.mark.parametrize("way", ["127.0.0.1", "nbd+unix"])
@pytest.mark.parametrize(("block", "depth"), [("4k", 64), ("256k", 8), ("512-72k", 16)])
def test_random_writes_verify(server: Serving, disk: Disk, tmp_path: Path, way: str, block: str, depth: int) -> None:
    sizes = f"--bsrange={block}" if "-" in block else f"--bs={block}"
    unaligned = [] if "-" not in block else ["--blockalign=512"]
    moved = fio(
        tmp_path,
        server.uri(None, way),
        "--rw=randwrite",
        sizes,
        *unaligned,
        f"--iodepth={depth}",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--fsync=64",
    )
    assert moved["write"] > 0
    assert moved["read"] >= moved["write"] * 9 // 10
    assert disk.read() != bytes(SIZE)


def test_mixed_reads_and_writes(server: Serving, disk: Disk, tmp_path: Path) -> None:
    moved = fio(tmp_path, server.uri(), "--rw=randrw", "--bs=4k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1")
    assert moved["write"] > SIZE // 4
