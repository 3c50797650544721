"""What a target that is not a Unix file system keeps. The kernel of a test machine need not have vfat: its options are
tried on a directory.

Debian packages: rsync.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restore.errors import Refused
from restore.files.compare import Comparison
from restore.files.copy import _check_fits, _rsync
from restore.files.profile import profile
from restore.private.mounting import Mounted
from tests.restore.reports import Remembered
from tests.serving import run


def trees(tmp_path: Path, script: str) -> tuple[Mounted, Mounted]:
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
    run("sh", "-ec", script, cwd=tmp_path / "source")
    source = Mounted(tmp_path / "source", "ext4", "a.img", "")
    return source, Mounted(tmp_path / "target", "vfat", "b.img", "")


def test_vfat_gets_files_and_directories_alone(tmp_path: Path) -> None:
    script = (
        "mkdir d; echo x > d/f; ln d/f d/h; ln -s f d/l; mkfifo d/p; chmod 600 d/f; touch -d 2001-01-01T00:00:01 d/f"
    )
    source, target = trees(tmp_path, script)
    keeps, report = profile("vfat"), Remembered()
    items, size = _check_fits(source, target, keeps)
    assert (items, size) == (4, 4), "a hard link is a file of its own there"
    _rsync(source, target, keeps, size, None, report)
    assert sorted(path.name for path in (target.root / "d").iterdir()) == ["f", "h"]
    compared = Comparison(os.fsencode(source.root), os.fsencode(target.root), keeps)
    assert compared.run() == []
    (target.root / "d/h").write_text("y\n")
    os.utime(target.root / "d/f", (0, 0))
    found = compared.run()
    assert "d/h: content differs" in found
    assert any(line.startswith("d/f: time is 0, not") for line in found)


def test_names_that_differ_only_in_case(tmp_path: Path) -> None:
    source, target = trees(tmp_path, "mkdir d; touch d/a d/A")
    with pytest.raises(
        Refused, match=r"^d/[aA] and d/[aA] differ only in case, which vfat on b.img cannot tell apart$"
    ):
        _check_fits(source, target, profile("vfat"))


def test_what_is_lost_is_said() -> None:
    assert profile("ext4").lost == profile("xfs").lost == profile("btrfs").lost == ""
    assert profile("vfat").lost == "owners, permissions, links, devices and extended attributes"
    assert profile("hfsplus").lost == "ACLs"
