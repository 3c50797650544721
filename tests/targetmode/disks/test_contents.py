from collections.abc import Callable
from pathlib import Path

from targetmode.disks.contents import Contents, PartitionContents, describe_contents
from targetmode.disks.layout import Partition, PartitionTable
from targetmode.disks.signatures import Signature


def describe(image: Path, sector_size: int = 512) -> Contents:
    raw = image.read_bytes()
    return describe_contents(lambda offset, length: raw[offset : offset + length], len(raw), sector_size)


def install(image: Path, offset: int, source: Path) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(source.read_bytes())


def test_partitions_are_named_in_one_line(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("sgdisk", "-n1:1M:+8M", "-n2:9M:+40M", "-n3:49M:+1536K", image)
    efi, root = make_image(8 << 20, "efi.img"), make_image(40 << 20, "root.img")
    run("mkfs.vfat", "-n", "EFI", efi)
    run("mkfs.ext4", "-q", "-L", "root", root)
    install(image, 1 << 20, efi)
    install(image, 9 << 20, root)
    assert str(describe(image)) == 'gpt: 1 vfat "EFI" 8.0 MiB, 2 ext4 "root" 40.0 MiB, 3 unknown 1.5 MiB'


def test_file_system_without_a_table(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("mkfs.ext4", "-q", "-L", "data", image)
    contents = describe(image)
    assert contents.table is None
    assert str(contents) == 'ext4 "data"'


def test_nothing_known(make_image: Callable[..., Path]) -> None:
    assert str(describe(make_image())) == "no partition table, no known file system"


def test_table_without_partitions(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("parted", "--script", image, "mklabel", "msdos")
    assert str(describe(image)) == "mbr: no partitions"


def test_hybrid_iso_image_has_both(run: Callable[..., str], make_image: Callable[..., Path], tmp_path: Path) -> None:
    image = make_image()
    (tmp_path / "files").mkdir()
    run("genisoimage", "-quiet", "-V", "LIVE", "-o", image, tmp_path / "files")
    with image.open("r+b") as file:
        file.truncate(8 << 20)
    run("sfdisk", image, input="label: dos\nstart=8192, size=4096, type=ef\n")
    assert str(describe(image)) == 'iso9660 "LIVE"; mbr: 1 unknown 2.0 MiB'


def test_superblock_at_the_end_of_the_last_partition_is_not_the_disks() -> None:
    size = 8 << 20
    disk = bytearray(size)
    disk[446:462] = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (14336).to_bytes(4, "little")
    disk[510:512] = b"\x55\xaa"
    disk[size - 0x10000 : size - 0x10000 + 4] = (0xA92B4EFC).to_bytes(4, "little")
    contents = describe_contents(lambda offset, length: bytes(disk[offset : offset + length]), size, 512)
    assert contents.signature is None
    assert str(contents) == "mbr: 1 linux_raid_member 7.0 MiB"


def test_partition_that_cannot_be_read_is_unknown(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("sfdisk", image, input="label: dos\nstart=8192, size=4096\n")
    raw = image.read_bytes()

    def read(offset: int, length: int) -> bytes:
        if 8192 * 512 <= offset < 12288 * 512:
            raise OSError(5, "Input/output error")
        return raw[offset : offset + length]

    assert str(describe_contents(read, len(raw), 512)) == "mbr: 1 unknown 2.0 MiB"


def test_many_partitions_are_cut_short() -> None:
    partitions = tuple(Partition(number, number << 20, 1 << 20, "", "", "") for number in range(1, 16))
    held = tuple(PartitionContents(partition, Signature("swap", "", "")) for partition in partitions)
    text = str(Contents(PartitionTable("gpt", "", partitions), None, held))
    assert text.startswith("gpt: 1 swap 1.0 MiB, 2 swap")
    assert text.endswith("12 swap 1.0 MiB, and 3 more")
