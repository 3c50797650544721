import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

Identify = Callable[[Path], tuple[str, str, str] | None]

SIZE = 64 << 20
UUID = uuid.UUID("d1a5f7c0-1b2e-4c3d-8e9f-0123456789ab")


def write(image: Path, offset: int, raw: bytes | bytearray) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(raw)


def test_physical_volume_as_blkid_sees_it(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    attach: Callable[..., Path],
    identify_file: Identify,
    as_blkid_sees: Identify,
) -> None:
    image = make_image()
    run("pvcreate", "--config", 'devices { filter = ["a/loop/"] }', attach(image))
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[0] == "LVM2_member"
    with image.open("r+b") as file:
        file.seek(512 + 40)
        file.write(b"!")
    assert identify_file(image) is None, "the label's checksum is wrong"


@pytest.mark.parametrize("options", ["--type luks1", "--type luks2 --label secret"])
def test_luks_as_blkid_sees_it(
    run: Callable[..., str],
    make_image: Callable[..., Path],
    identify_file: Identify,
    as_blkid_sees: Identify,
    options: str,
) -> None:
    image = make_image()
    quick = "--batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000"
    run("cryptsetup", "luksFormat", *options.split(), *quick.split(), image, "-", input="passphrase")
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[0] == "crypto_LUKS"


def md_1(super_offset: int) -> bytes:
    """Builds the superblock of a RAID 1 member with metadata 1.x, as mdadm would write it at `super_offset`."""
    raw = bytearray(256 + 2 * 128)
    struct.pack_into("<IIII16s32s", raw, 0, 0xA92B4EFC, 1, 0, 0, UUID.bytes, b"machine:array")
    struct.pack_into("<QIIQII", raw, 64, 0, 1, 0, 65536, 0, 2)
    struct.pack_into("<QQQ", raw, 128, 2048, 65536, super_offset // 512)
    struct.pack_into("<16s", raw, 168, uuid.uuid4().bytes)
    struct.pack_into("<I", raw, 220, 128)
    total = sum(struct.unpack(f"<{len(raw) // 4}I", raw))
    struct.pack_into("<I", raw, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(raw)


@pytest.mark.parametrize("offset", [0, 0x1000, SIZE - 0x2000])
def test_md_metadata_1_as_blkid_sees_it(
    make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify, offset: int
) -> None:
    image = make_image(SIZE)
    write(image, offset, md_1(offset))
    assert identify_file(image) == as_blkid_sees(image) == ("linux_raid_member", "machine:array", str(UUID))
    write(image, offset + 40, b"!")
    assert identify_file(image) is None, "the checksum is wrong"


@pytest.mark.parametrize("order", ["<", ">"])
def test_md_metadata_0_90_as_blkid_sees_it(
    make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify, order: str
) -> None:
    image = make_image(SIZE)
    words = struct.unpack(">4I", UUID.bytes)
    raw = bytearray(4096)
    struct.pack_into(f"{order}7I", raw, 0, 0xA92B4EFC, 0, 90, 0, 0, words[0], 0)
    struct.pack_into(f"{order}6I", raw, 28, 1, (SIZE - 0x10000) // 1024, 2, 2, 0, 0)
    struct.pack_into(f"{order}3I", raw, 52, *words[1:])
    write(image, SIZE - 0x10000, raw)
    assert identify_file(image) == as_blkid_sees(image) == ("linux_raid_member", "", str(UUID))


def nvpair(name: str, value_type: int, value: bytes) -> bytes:
    """Encodes a name and value as XDR, as OpenZFS does."""
    padded = name.encode().ljust(-(-len(name) // 4) * 4, b"\0")
    size = 12 + len(padded) + 8 + len(value)
    return struct.pack(">III", size, size, len(name)) + padded + struct.pack(">II", value_type, 1) + value


@pytest.mark.parametrize("label", [0, 1 << 18, SIZE - (1 << 19), SIZE - (1 << 18)])
def test_zfs_pool_as_blkid_sees_it(
    make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify, label: int
) -> None:
    guid = 0xF123456789ABCDEF
    image = make_image(SIZE)
    pairs = (
        nvpair("version", 8, struct.pack(">Q", 5000))
        + nvpair("name", 9, struct.pack(">I", 4) + b"tank")
        + nvpair("state", 8, struct.pack(">Q", 0))
        + nvpair("txg", 8, struct.pack(">Q", 4))
        + nvpair("pool_guid", 8, struct.pack(">Q", guid))
        + nvpair("guid", 8, struct.pack(">Q", 7))
    )
    write(image, label + 16384, bytes([1, 1, 0, 0]) + struct.pack(">II", 0, 1) + pairs + bytes(8))
    for block in range(128):
        write(image, label + (128 << 10) + (block << 10), struct.pack("<QQQ", 0x00BAB10C, 5000, block))
    assert identify_file(image) == ("zfs_member", "tank", str(guid))
    if label < SIZE // 2:
        assert as_blkid_sees(image) == ("zfs_member", "tank", str(guid))
