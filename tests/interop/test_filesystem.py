"""An export as a file by nbdfuse, beneath a loop device, with a file system on it that is made, filled and checked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.conftest import SIZE, Disk
from tests.serving import Serving, pattern, run
from tests.support import assert_same_bytes, loop_device, wait_until


@contextmanager
def export_as_file(uri: str, directory: Path) -> Iterator[Path]:
    """The export's contents as a file."""
    directory.mkdir()
    (directory / "disk").touch()
    process = subprocess.Popen(["nbdfuse", str(directory / "disk"), uri], cwd="/")
    try:
        wait_until(lambda: (directory / "disk").is_mount() or (directory / "disk").stat().st_size == SIZE, "nbdfuse")
        yield directory / "disk"
    finally:
        subprocess.run(["fusermount3", "-u", str(directory / "disk")], capture_output=True, check=False)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            subprocess.run(["umount", "--lazy", str(directory / "disk")], capture_output=True, check=False)
            process.kill()
            process.wait()


def test_a_file_system_over_fuse_and_loop(server: Serving, disk: Disk, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices and mounts")
    files = {f"file{number}": pattern(200_000 + number, seed=number) for number in range(12)}
    with export_as_file(server.uri(), tmp_path / "fuse") as file, loop_device(file) as device:
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-L", "interop", device)
        directory = tmp_path / "mnt"
        directory.mkdir()
        run("mount", "-t", "ext4", device, directory)
        try:
            for name, data in files.items():
                (directory / name).write_bytes(data)
            (directory / "file3").unlink()
            run("sync", "-f", directory)
            assert_same_bytes((directory / "file7").read_bytes(), files["file7"])
        finally:
            run("umount", directory)
        run("e2fsck", "-f", "-n", device)
    run("e2fsck", "-f", "-n", disk.path)
    assert run("e2label", disk.path).out == "interop\n"
    out = tmp_path / "file5"
    run("debugfs", "-R", f"dump /file5 {out}", disk.path)
    assert_same_bytes(out.read_bytes(), files["file5"])
