"""What an image is, is told by its content.

Debian packages: bzip2 gzip lz4 nginx-light xz-utils zstd.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from nbd.connection import FileRange
from restore.errors import Refused
from restore.source import SourceError, SourceSettings
from restore.source.compressed import FORMATS
from restore.source.detect import open_image
from restore.source.payload import as_memory
from scripts.dmg import build_dmg
from tests.restore.engine import asr, failed, restore, succeeded
from tests.restore.source.compressed.files import TOOLS, compressed_content, content
from tests.restore.source.storage.servers import nginx
from tests.support import assert_same_bytes, loop_device

SMALL = 70_000


def whole(place: Path, form: str | None = None) -> tuple[str, bytes]:
    """The format of an image, and what is in it."""
    image = open_image(str(place), SourceSettings(format=form))
    with closing(image.source) as source:
        data, position = bytearray(), 0
        for extent in source.extents():
            payload = source.payload(position, extent.length)
            data += as_memory(payload, extent.length, source.name)
            position += extent.length
        assert source.size == position
        assert image.path == place
        return image.format, bytes(data)


@pytest.mark.parametrize("form", FORMATS)
def test_compressed(form: str, tmp_path: Path) -> None:
    """Whatever it is called, with `--format` and without."""
    path = tmp_path / "image.bin"
    path.write_bytes(compressed_content(TOOLS[form], SMALL))
    assert whole(path) == (form, content(SMALL))
    assert whole(path, form) == (form, content(SMALL))
    assert whole(path, "raw") == ("raw", path.read_bytes())


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_is_compressed(form: str, tmp_path: Path) -> None:
    """As of `dd if=MISTYPED | gzip > image.gz`."""
    path, target = tmp_path / "image.bin", tmp_path / "target"
    path.write_bytes(compressed_content(TOOLS[form], 0))
    target.write_bytes(content(SMALL))
    assert failed(restore(path, target)) == f"{path} is empty"
    assert target.read_bytes() == content(SMALL)


def test_a_dmg_without_its_end(tmp_path: Path) -> None:
    """Its name is all that tells it from a raw disk that nobody knows what is on."""
    path, target = tmp_path / "image.dmg", tmp_path / "target"
    path.write_bytes(b"\x78\x9c" + content(SMALL))
    target.write_bytes(bytes(2 * SMALL))
    assert failed(restore(path, target)) == (
        f"{path} is no UDIF image, and has no partition table or file system either: it may be cut short; "
        "--format raw takes it as it is"
    )
    assert not any(target.read_bytes())
    succeeded(restore(path, target, "--format", "raw"))
    assert_same_bytes(target.read_bytes()[: SMALL + 2], path.read_bytes())


def test_a_dmg_from_a_server_without_ranges(tmp_path: Path) -> None:
    """Refused before anything is touched, although only its last bytes tell for sure what it is."""
    size = 6 << 20
    raw, target = tmp_path / "raw", tmp_path / "target"
    raw.write_bytes(content(size))
    target.write_bytes(b"t" * (2 * size))
    with nginx(tmp_path) as server:
        build_dmg(raw, server.files / "image.dmg")
        assert failed(restore(server.url("whole/image.dmg"), target)) == (
            f"{server.url('whole/image.dmg')} begins with no partition table or file system, and is no raw image "
            "then; a UDIF image cannot be read from a server that sends no ranges: download it first (--format raw "
            "takes it as it is)"
        )
        assert target.read_bytes() == b"t" * (2 * size)
        succeeded(restore(server.url("image.dmg"), target))
    assert_same_bytes(target.read_bytes()[:size], raw.read_bytes())


@pytest.mark.parametrize("form", FORMATS)
def test_another_format_than_it_is(form: str, tmp_path: Path) -> None:
    path = tmp_path / "image.bin"
    path.write_bytes(content(SMALL))
    assert whole(path)[0] == "raw"
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(SourceError) as caught:
        open_image(str(path), SourceSettings(format=form))
    assert str(caught.value).startswith(f"{path} is damaged at byte 0 of what is stored: no {form} ")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_disk_that_begins_like_a_compressed_file(tmp_path: Path) -> None:
    data = compressed_content(TOOLS["gzip"], SMALL)
    (tmp_path / "disk").write_bytes(data + bytes(-len(data) % 512))
    with loop_device(tmp_path / "disk") as device:
        image = open_image(str(device))
        with closing(image.source) as source:
            assert image.format == "raw"
            assert isinstance(source.payload(0, 512), FileRange)


def split(path: Path, count: int) -> list[Path]:
    """A file in `count` parts, as `split` calls them."""
    data = path.read_bytes()
    size = -(-len(data) // count)
    letters = "abcdefghijklmnopqrstuvwxyz"
    parts = [path.with_name(f"{path.name}.{letters[n // 26]}{letters[n % 26]}") for n in range(count)]
    for number, part in enumerate(parts):
        part.write_bytes(data[number * size : (number + 1) * size])
    path.unlink()
    return parts


@pytest.mark.parametrize("count", [2, 30])
def test_split(count: int, tmp_path: Path) -> None:
    path = tmp_path / "image.xz"
    path.write_bytes(compressed_content(TOOLS["xz"], SMALL))
    parts = split(path, count)
    (tmp_path / "image.xz.gz").write_bytes(b"not one of them")
    assert whole(parts[0]) == ("xz", content(SMALL))


def test_split_raw(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(content(SMALL))
    assert whole(split(path, 3)[0]) == ("raw", content(SMALL))


def test_a_part_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "image.gz"
    path.write_bytes(compressed_content(TOOLS["gzip"], SMALL))
    parts = split(path, 30)
    parts[25].unlink()
    with pytest.raises(Refused) as caught:
        open_image(str(parts[0]))
    assert str(caught.value) == (
        f"{tmp_path}/image.gz.az is missing: {tmp_path}/image.gz.ba is there, which is a later part of the same image"
    )


def test_the_last_part_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "image.gz"
    path.write_bytes(compressed_content(TOOLS["gzip"], SMALL))
    parts = split(path, 3)
    parts[2].unlink()
    with pytest.raises(SourceError, match=r"image\.gz\.aa is cut short: it ends at byte \d+, in the middle of a gzip"):
        whole(parts[0])


def test_only_one(tmp_path: Path) -> None:
    """Is no part of anything, whatever it is called."""
    path = tmp_path / "image.aa"
    path.write_bytes(content(SMALL))
    assert whole(path) == ("raw", content(SMALL))


@pytest.mark.parametrize("tool", ["gzip", "xz, several blocks", "pzstd"])
def test_restore(tool: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(compressed_content(tool))
    target = tmp_path / "target"
    target.write_bytes(b"\xff" * (len(content()) // 512 * 512 + 512))
    succeeded(restore(tmp_path / "image", target))
    assert_same_bytes(target.read_bytes()[: len(content())], content())


def test_restore_onto_what_is_too_small(tmp_path: Path) -> None:
    """Where the format tells the size, nothing is touched."""
    (tmp_path / "image").write_bytes(compressed_content("xz"))
    target = tmp_path / "target"
    target.write_bytes(b"\xff" * (2 << 20))
    said = failed(restore(tmp_path / "image", target))
    assert f"{tmp_path}/image has {len(content())} (" in said
    assert target.read_bytes() == b"\xff" * (2 << 20)


def test_restore_of_a_damaged_image(tmp_path: Path) -> None:
    data = bytearray(compressed_content("gzip"))
    data[-5] ^= 1
    (tmp_path / "image").write_bytes(data)
    (tmp_path / "target").write_bytes(bytes(len(content()) + 5000))
    said = failed(restore(tmp_path / "image", tmp_path / "target"))
    assert said.startswith(f"{tmp_path}/image is damaged at byte "), said
    said = failed(asr("verify", "--source", tmp_path / "image", "--target", tmp_path / "target"))
    assert f"{tmp_path}/image is damaged at byte " in said, said
