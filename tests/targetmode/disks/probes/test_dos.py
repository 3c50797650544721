from collections.abc import Callable
from pathlib import Path

import pytest

Identify = Callable[[Path], tuple[str, str, str] | None]


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("vfat", "mkfs.vfat -F 12 -n FLOPPY"),
        ("vfat", "mkfs.vfat -F 16 -n SIXTEEN -i 1234abcd"),
        ("vfat", "mkfs.vfat -F 32 -n EFI"),
        ("vfat", "mkfs.vfat -F 32"),
        ("vfat", "mkfs.vfat -S 4096 -s 1 -n LARGE"),
        ("vfat", "mkfs.vfat --mbr=yes -n WITHTABLE"),
        ("exfat", "mkfs.exfat -L Données"),
        ("exfat", "mkfs.exfat -c 512 -L small"),
        ("exfat", "mkfs.exfat"),
        ("ntfs", "mkfs.ntfs -F -Q -L Windows -s 512 -p 0 -H 16 -S 63"),
        ("ntfs", "mkfs.ntfs -F -Q -L Größe -c 65536 -s 512 -p 0 -H 16 -S 63"),
        ("ntfs", "mkfs.ntfs -F -Q -s 4096 -p 0 -H 16 -S 63"),
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
    image = make_image()
    run(*command.split(), image)
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[0] == kind


def test_label_beyond_the_first_cluster_is_found(
    run: Callable[..., str], make_image: Callable[..., Path], identify_file: Identify, as_blkid_sees: Identify
) -> None:
    image = make_image()
    run("mkfs.vfat", "-F", "32", "-s", "1", "-n", "MOVED", image)
    raw = bytearray(image.read_bytes())
    at = raw.rindex(b"MOVED      \x08")
    entry = bytes(raw[at : at + 32])
    raw[at : at + 512] = (b"\xe5" + bytes(31)) * 16
    raw[at + 512 : at + 544] = entry
    fat = int.from_bytes(raw[14:16], "little") * 512
    raw[fat + 8 : fat + 16] = (3).to_bytes(4, "little") + (0x0FFFFFFF).to_bytes(4, "little")
    image.write_bytes(raw)
    found = identify_file(image)
    assert found == as_blkid_sees(image)
    assert found is not None
    assert found[1] == "MOVED"


def test_bitlocker_volume_is_not_taken_for_fat(
    run: Callable[..., str], make_image: Callable[..., Path], identify_file: Identify
) -> None:
    image = make_image()
    run("mkfs.vfat", image)
    with image.open("r+b") as file:
        file.seek(3)
        file.write(b"-FVE-FS-")
    assert identify_file(image) == ("BitLocker", "", "")
