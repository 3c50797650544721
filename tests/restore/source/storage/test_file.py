from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.source.storage.file import LocalFile, SplitFile
from tests.support import assert_same_bytes

DATA = random.Random(4).randbytes(3_000_000)


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """The data as three files, of which the second is small."""
    paths = [tmp_path / f"image.a{letter}" for letter in "abc"]
    for path, (start, end) in zip(paths, ((0, 1_500_000), (1_500_000, 1_500_010), (1_500_010, 3_000_000)), strict=True):
        path.write_bytes(DATA[start:end])
    return [str(path) for path in paths]


def test_parts_read_as_one(parts: list[str]) -> None:
    storage = SplitFile(parts)
    assert storage.size == len(DATA)
    assert_same_bytes(b"".join(storage.stream()), DATA)
    for offset, length in ((0, 10), (1_499_995, 5), (1_499_995, 30), (1_500_002, 3), (2_999_990, 100), (3_000_000, 5)):
        assert_same_bytes(storage.read(offset, length), DATA[offset : offset + length])
        plain = storage.plain(offset, length)
        if plain is not None and length:
            assert_same_bytes(os.pread(plain.fd, length, plain.offset), DATA[offset : offset + length])
    assert storage.plain(1_499_995, 30) is None
    assert storage.plain(1_500_000, 10) is not None
    storage.check_unchanged()
    Path(parts[1]).write_bytes(b"x")
    with pytest.raises(RestoreError, match="ab was changed meanwhile; stop what writes it first"):
        storage.check_unchanged()
    storage.close()


def test_a_part_that_is_not_there(parts: list[str]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    Path(parts[2]).unlink()
    with pytest.raises(Refused, match="ac: No such file or directory"):
        SplitFile(parts)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_cut_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(DATA)
    storage = LocalFile(str(path))
    os.truncate(path, 100)
    assert storage.read(90, 100) == DATA[90:100]
    with pytest.raises(RestoreError, match="was changed meanwhile"):
        storage.check_unchanged()
    storage.close()
