import os
from collections.abc import Callable
from pathlib import Path

import pytest

from targetmode.disks.layout import fd_reader, partition_name
from targetmode.disks.table import read_table


@pytest.mark.parametrize(
    ("disk", "number", "name"),
    [("sda", 1, "sda1"), ("nvme0n1", 1, "nvme0n1p1"), ("mmcblk0", 12, "mmcblk0p12"), ("disk.img", 1, "disk.img1")],
)
def test_partition_is_named_as_linux_names_it(disk: str, number: int, name: str) -> None:
    assert partition_name(disk, number) == name


def test_reader_reads_exactly_or_raises(make_image: Callable[..., Path]) -> None:
    image = make_image(size=10)
    image.write_bytes(b"0123456789")
    fd = os.open(image, os.O_RDONLY)
    try:
        read = fd_reader(fd)
        assert read(2, 5) == b"23456"
        with pytest.raises(OSError, match="end of device at byte 10"):
            read(8, 3)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 511])
def test_disk_too_small_for_a_sector_has_no_table(size: int) -> None:
    assert read_table(lambda offset, length: pytest.fail("nothing may be read"), size, 512) is None


def test_unreadable_first_sector_raises() -> None:
    def read(offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        read_table(read, 1 << 20, 512)


def test_zeroes_have_no_table() -> None:
    assert read_table(lambda offset, length: bytes(length), 1 << 20, 512) is None
