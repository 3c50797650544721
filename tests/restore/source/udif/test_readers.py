"""What the builder makes is what independent programs read, bit for bit, and so do we.

Debian packages: 7zip dmg2img dosfstools e2fsprogs gdisk genisoimage mtools qemu-utils.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from restore.errors import Refused
from restore.source import SourceSettings
from restore.source.detect import open_image
from restore.source.payload import as_memory
from scripts.dmg import CODECS, build_dmg
from tests.restore.engine import failed, restore, succeeded
from tests.restore.filesystems import extracted, make_filesystem, partitioned
from tests.restore.source.udif.images import KIB, MIB
from tests.serving import ROOT, run
from tests.support import assert_same_bytes

RUN = 128 * KIB
DMG2IMG = ("raw", "adc", "zlib", "bzip2")
QEMU = ("raw", "zlib")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a GPT, an ext4 file system and a FAT one, with files of this project."""
    directory = tmp_path_factory.mktemp("disk")
    linux = make_filesystem(directory / "ext4", "ext4", 6 * MIB, "-d", str(ROOT / "nbd"))
    other = make_filesystem(directory / "vfat", "vfat", 4 * MIB)
    run("mcopy", "-s", "-i", other, ROOT / "targetmode" / "disks", "::")
    return partitioned(directory / "disk.img", linux, other)


def content(path: Path, expected_format: str = "udif") -> bytes:
    """What we read of an image, in order, with the engine's threads."""
    image = open_image(str(path))
    assert image.format == expected_format
    source = image.source
    try:
        assert source.size is not None
        assert sum(extent.length for extent in source.extents()) == source.size
        ranges = [(offset, min(MIB, source.size - offset)) for offset in range(0, source.size, MIB)]
        return b"".join(as_memory(source.payload(*found), found[1], source.name) for found in ranges)
    finally:
        source.close()


@pytest.mark.parametrize("codec", CODECS)
def test_every_reader_reads_the_same(disk: Path, tmp_path: Path, codec: str) -> None:
    dmg = tmp_path / "disk.dmg"
    blocks = build_dmg(disk, dmg, codec, run=RUN)
    want = disk.read_bytes()
    assert_same_bytes(content(dmg), want)

    assert "Everything is Ok" in run("7zz", "t", dmg).out
    run("7zz", "x", f"-o{tmp_path / 'parts'}", dmg)
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == len(blocks) == 9
    assert_same_bytes(b"".join(path.read_bytes() for path in parts), want)
    out = tmp_path / "out.img"
    if codec in DMG2IMG:
        run("dmg2img", "-s", dmg, out)
        assert_same_bytes(out.read_bytes(), want)
    if codec in QEMU:
        run("qemu-img", "convert", "-f", "dmg", "-O", "raw", dmg, out)
        assert_same_bytes(out.read_bytes(), want)


def test_a_volume_of_the_mac(tmp_path: Path) -> None:
    volume, dmg = tmp_path / "hfs.iso", tmp_path / "hfs.dmg"
    run("genisoimage", "-quiet", "-hfs", "-o", volume, ROOT / "nbd")
    build_dmg(volume, dmg, "mixed")
    assert_same_bytes(content(dmg), volume.read_bytes())
    assert "Everything is Ok" in run("7zz", "t", dmg).out


def test_restore(disk: Path, tmp_path: Path) -> None:
    dmg, target = tmp_path / "disk.dmg", tmp_path / "target.img"
    build_dmg(disk, dmg, "mixed", run=RUN)
    target.write_bytes(b"\xaa" * disk.stat().st_size)
    assert ", verified" in succeeded(restore(dmg, target))
    assert_same_bytes(target.read_bytes(), disk.read_bytes())
    run("e2fsck", "-fn", extracted(target, 1))
    run("fsck.vfat", "-n", extracted(target, 2))


def test_a_damaged_image_never_becomes_a_disk(disk: Path, tmp_path: Path) -> None:
    """A raw run has no checksum of its own, so only the block's shows it."""
    dmg, target = tmp_path / "disk.dmg", tmp_path / "target.img"
    parts = build_dmg(disk, dmg, "raw", run=RUN)
    damage(dmg, parts[4].runs[0].offset + 5000)
    assert "CRC Failed" in run("7zz", "t", dmg, check=False).err
    target.write_bytes(b"\xaa" * disk.stat().st_size)
    said = failed(restore(dmg, target))
    assert said.startswith(f'{dmg} is damaged: "disk image (Apple_HFS : 4)": its checksum is ')
    assert said.endswith(f" by the image's tables; get another copy of it; {target} is left empty")
    assert not any(target.read_bytes()[:MIB])


def damage(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 1,)))


def test_told_by_content_and_by_hand(disk: Path, tmp_path: Path) -> None:
    dmg = tmp_path / "named.raw"
    build_dmg(disk, dmg, run=RUN)
    assert_same_bytes(content(dmg), disk.read_bytes())
    for name, size in (("raw", dmg.stat().st_size), ("udif", disk.stat().st_size)):
        image = open_image(str(dmg), SourceSettings(format=name))
        assert (image.format, image.path, image.source.size) == (name, dmg, size)
        image.source.close()
    with pytest.raises(Refused) as refused:
        open_image(str(disk), SourceSettings(format="udif"))
    assert str(refused.value) == (f"{disk} is no UDIF image: it does not end with a koly trailer; it may be cut short")
