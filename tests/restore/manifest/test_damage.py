"""What could not be read is told as ddrescue tells it, and what ddrescue tells is understood.

Debian package: gddrescue.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.errors import Refused, join
from restore.manifest import ManifestError
from restore.manifest.damage import check_damage, read_map, write_map
from tests.serving import run
from tests.support import examples

MIB = 1 << 20
TAIL = "; if it belongs to something else, move it away"


@given(st.lists(st.tuples(st.integers(0, MIB - 1), st.integers(1, 5000)), max_size=20))
@examples(100)
def test_written_and_read(tmp_path: Path, bad: list[tuple[int, int]]) -> None:
    bad = [(offset, min(length, MIB - offset)) for offset, length in bad]
    write_map(tmp_path / "map", MIB, bad)
    assert read_map(tmp_path / "map", MIB) == join(bad)


def test_ddrescuelog_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "map"
    write_map(path, MIB, [(512, 512), (4096, 4096)])
    listed = run("ddrescuelog", "--list-blocks=-", "--block-size=512", path)
    assert [int(line, 0) for line in listed.out.split()] == [1, *range(8, 16)]
    assert run("ddrescuelog", "--done-status", path, check=False).status == 1
    write_map(path, MIB, [])
    assert run("ddrescuelog", "--done-status", path, check=False).status == 0


def test_ddrescue_s_own(tmp_path: Path) -> None:
    """An image that is only half rescued."""
    (tmp_path / "disk").write_bytes(b"x" * MIB)
    run("ddrescue", "--size=512Ki", tmp_path / "disk", tmp_path / "disk.img", tmp_path / "disk.img.map")
    assert read_map(tmp_path / "disk.img.map", MIB) == [(MIB // 2, MIB // 2)]
    run("ddrescue", tmp_path / "disk", tmp_path / "disk.img", tmp_path / "disk.img.map")
    assert read_map(tmp_path / "disk.img.map", MIB) == []


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("0x00 +\n0 1048576 +\n", []),
        ("0 ? 1\n0x0 0x100000 ?\n", [(0, MIB)]),
        ("0 +\n# x\n\n0 0x1000 + # y\n0x1000 1 *\n0x1001 1 /\n", [(0x1000, MIB - 0x1000)]),
        ("0 +\n0x1000 0x1000 +\n", [(0, 0x1000), (0x2000, MIB - 0x2000)]),
        ("0 +\n0 0x100000 +\n0x100000 0x100000 -\n", []),  # beyond the image
    ],
)
def test_read(tmp_path: Path, text: str, bad: list[tuple[int, int]]) -> None:
    (tmp_path / "map").write_text(text)
    assert read_map(tmp_path / "map", MIB) == bad


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        ("# only\n", "it is empty"),
        ("Memory Configuration\n", "line 1 is 'Memory Configuration'"),
        ("0 +\n0 x +\n", "line 2 is '0 x +'"),
        ("0 +\n0 5 !\n", "line 2 is '0 5 !'"),
        ("0 +\n0 10 +\n5 1 +\n", "line 3 is of what came before it"),
        ("0 +\n0 \x1b[1m +\n", "line 2 is '0 \ufffd[1m +'"),
        ("0 +\n0 0x11111111111111111 +\n", "line 2 is '0 0x11111111111111111 +'"),
    ],
)
def test_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "map").write_text(text)
    with pytest.raises(ManifestError) as caught:
        read_map(tmp_path / "map", MIB)
    assert str(caught.value) == f"{tmp_path}/map is not a map of ddrescue's ({why}){TAIL}"


def test_too_large(tmp_path: Path) -> None:
    with (tmp_path / "map").open("wb") as file:
        file.truncate(300 * MIB)
    with pytest.raises(ManifestError) as caught:
        read_map(tmp_path / "map", MIB)
    assert str(caught.value) == f"{tmp_path}/map is not a map of ddrescue's (it is larger than 256 MiB){TAIL}"


@given(
    st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(["0", "0x10", "+", "-", "\n", " ", "#"])).map("".join))
)
@examples(300)
def test_garbage(tmp_path: Path, data: bytes | str) -> None:
    (tmp_path / "map").write_bytes(data if isinstance(data, bytes) else b"0 +\n" + data.encode())
    try:
        found = read_map(tmp_path / "map", MIB)
    except ManifestError:
        return
    assert found is not None
    assert all(0 <= offset < offset + length <= MIB for offset, length in found)


def test_an_image_that_is_not_whole(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    assert check_damage(image, MIB, allow_bad=False) == []
    write_map(f"{image}.map", MIB, [])
    assert check_damage(image, MIB, allow_bad=False) == []
    write_map(f"{image}.map", MIB, [(512, 1024)])
    with pytest.raises(Refused) as caught:
        check_damage(image, MIB, allow_bad=False)
    assert str(caught.value) == (
        f"{image} is not whole: 1.0 KiB of it could not be read when it was made (1 range from byte 512 on; see "
        f"{image}.map); with --allow-bad they are restored as the image has them"
    )
    write_map(f"{image}.map", MIB, [(512, 1024), (8192, 1)])
    with pytest.raises(Refused, match=r"\(2 ranges, the first from byte 512 on; see "):
        check_damage(image, MIB, allow_bad=False)
    assert check_damage(image, MIB, allow_bad=True) == [(512, 1024), (8192, 1)]
