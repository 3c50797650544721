import hashlib
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

Identify = Callable[[Path], tuple[str, str, str] | None]


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("ext2", "mkfs.ext2 -q -L two"),
        ("ext3", "mkfs.ext3 -q -L three"),
        ("ext4", "mkfs.ext4 -q -L sixteen-letters!"),
        ("ext4", "mkfs.ext4 -q"),
        ("ext4", "mkfs.ext4 -q -b 1024 -O ^has_journal -L Größe"),
        ("jbd", "mkfs.ext4 -q -b 4096 -O journal_dev -L journal"),
        ("xfs", "mkfs.xfs -q -L twelve-chars"),
        ("xfs", "mkfs.xfs -q -s size=4096"),
        ("btrfs", "mkfs.btrfs -q -L pool"),
        ("btrfs", "mkfs.btrfs -q --csum sha256"),
        ("swap", "mkswap -L swap-area"),
        ("swap", "mkswap -p 65536"),
    ],
)
def test_same_as_blkid(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    identify_file: Identify,
    as_blkid_sees: Identify,
    kind: str,
    command: str,
) -> None:
    image = make_image(512 << 20)
    run(*command.split(), image)
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[0] == kind


@pytest.mark.parametrize(
    "options", ["-V PLAIN", "-V Debian_12_amd64_with_a_long_name -J", "-V Mixed_Case -J -r", "-J", "-V UDF -udf"]
)
def test_iso_image_as_blkid_sees_it(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    tmp_path: Path,
    identify_file: Identify,
    as_blkid_sees: Identify,
    options: str,
) -> None:
    image = make_image()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "file").write_text("content")
    run("genisoimage", "-quiet", "-o", image, *options.split(), tmp_path / "files")
    found = identify_file(image)
    assert found is not None
    assert found[0] == "iso9660"
    if "-udf" not in options:
        assert found == as_blkid_sees(image)


def test_squashfs_as_blkid_sees_it(
    run: Callable[..., str],
    tmp_path: Path,
    identify_file: Identify,
    as_blkid_sees: Identify,
) -> None:
    image = tmp_path / "image.squashfs"
    (tmp_path / "files").mkdir()
    run("mksquashfs", tmp_path / "files", image)
    assert identify_file(image) == as_blkid_sees(image) == ("squashfs", "", "")


def test_hibernated_swap_as_blkid_sees_it(
    run: Callable[..., str], make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify
) -> None:
    image = make_image()
    run("mkswap", "-L", "asleep", image)
    with image.open("r+b") as file:
        file.seek(4096 - 10)
        file.write(b"S1SUSPEND\0")
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[:2] == ("swsuspend", "asleep")


def test_hfsplus_as_blkid_sees_it(
    make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify
) -> None:
    image = make_image()
    header = bytearray(512)
    struct.pack_into(">2sH", header, 0, b"H+", 4)
    struct.pack_into(">II", header, 40, 4096, (64 << 20) // 4096)
    header[104:112] = b"finderid"
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(header)
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[0] == "hfsplus"


def fletcher64(block: bytes | bytearray) -> bytes:
    """The checksum of an APFS object."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", block):
        low = (low + word) % 0xFFFFFFFF
        high = (high + low) % 0xFFFFFFFF
    first = 0xFFFFFFFF - (low + high) % 0xFFFFFFFF
    return struct.pack("<II", first, 0xFFFFFFFF - (low + first) % 0xFFFFFFFF)


def test_apfs_as_blkid_sees_it(
    make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify
) -> None:
    image = make_image()
    container = uuid.UUID(bytes=hashlib.sha256(b"container").digest()[:16])
    superblock = bytearray(4096)
    struct.pack_into("<QQQHHHH", superblock, 0, 0, 1, 1, 1, 0x8000, 0, 0)
    struct.pack_into("<4sIQ", superblock, 32, b"NXSB", 4096, (64 << 20) // 4096)
    superblock[72:88] = container.bytes
    superblock[:8] = fletcher64(superblock[8:])
    with image.open("r+b") as file:
        file.write(superblock)
    assert identify_file(image) == as_blkid_sees(image) == ("apfs", "", str(container))
