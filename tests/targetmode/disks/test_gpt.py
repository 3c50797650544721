import json
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetmode.disks import gpt
from targetmode.disks.layout import Partition, PartitionTable
from targetmode.disks.table import read_table

ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"


def read_image(image: Path, sector_size: int = 512) -> PartitionTable | None:
    raw = image.read_bytes()
    return read_table(lambda offset, length: raw[offset : offset + length], len(raw), sector_size)


def as_sfdisk_sees(run: Callable[..., str], disk: Path) -> PartitionTable:
    """Reads the table as sfdisk does, which is not ours to get wrong."""
    table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    sector_size = table["sectorsize"]
    return PartitionTable(
        "gpt",
        table["id"].lower(),
        tuple(
            Partition(
                number=int(partition["node"].removeprefix(str(disk)).removeprefix("p")),
                start=partition["start"] * sector_size,
                length=partition["size"] * sector_size,
                type=partition["type"].lower(),
                name=partition.get("name", ""),
                uuid=partition["uuid"].lower(),
            )
            for partition in table.get("partitions", [])
        ),
    )


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_table_made_by_sfdisk(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path], sector_size: int
) -> None:
    image = make_image()
    device = attach(image, "--sector-size", str(sector_size))
    script = "label: gpt\nsize=8MiB, type=U, name=EFI\nsize=16MiB, type=L, name=Données\ntype=L, name=rest\n"
    run("sfdisk", device, input=script)
    table = read_image(image, sector_size)
    assert table is not None
    assert table == as_sfdisk_sees(run, device)
    assert [(p.number, p.length, p.type, p.name) for p in table.partitions[:2]] == [
        (1, 8 << 20, ESP, "EFI"),
        (2, 16 << 20, LINUX, "Données"),
    ]
    assert read_image(image, 4096 + 512 - sector_size) == table, "the other sector size is tried too"


def test_table_made_by_sgdisk_with_gaps_in_its_numbers(
    run: Callable[..., str], make_image: Callable[..., Path]
) -> None:
    image = make_image()
    run("sgdisk", "-n3:0:+4M", "-c3:third", "-n7:0:+4M", "-t7:8200", "-n128:0:0", image)
    table = read_image(image)
    assert table is not None
    assert table == as_sfdisk_sees(run, image)
    assert [p.number for p in table.partitions] == [3, 7, 128]


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_table_made_by_sgdisk_and_parted_on_a_device(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path], sector_size: int
) -> None:
    for command in (
        ("sgdisk", "-n1:0:+8M", "-c1:one", "-n2:0:0"),
        ("parted", "--script", "mklabel", "gpt", "mkpart", "one", "ext4", "4MiB", "20MiB", "set", "1", "esp", "on"),
    ):
        image = make_image(name=f"{command[0]}.img")
        device = attach(image, "--sector-size", str(sector_size))
        if command[0] == "parted":
            run(*command[:2], device, *command[2:])
        else:
            run(*command, device)
        table = read_image(image, sector_size)
        assert table is not None
        assert table == as_sfdisk_sees(run, device)
        assert table.partitions[0].name == "one"


def test_empty_table(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("parted", "--script", image, "mklabel", "gpt")
    table = read_image(image)
    assert table is not None
    assert table.partitions == ()


@pytest.mark.parametrize("damage", [512, 512 + 80, 1024, 1024 + 130])
def test_backup_is_used_when_primary_is_damaged(
    run: Callable[..., str], make_image: Callable[..., Path], damage: int
) -> None:
    image = make_image(16 << 20)
    run("sgdisk", "-n1:0:+8M", "-n2:0:0", image)
    expected = read_image(image)
    raw = bytearray(image.read_bytes())
    raw[damage] ^= 0xFF
    image.write_bytes(raw)
    assert expected is not None
    assert read_image(image) == expected
    raw[-512] ^= 0xFF
    image.write_bytes(raw)
    assert read_image(image) is None


def test_backup_is_used_when_primary_cannot_be_read(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("sgdisk", "-n1:0:+8M", image)
    raw = image.read_bytes()

    def read(offset: int, length: int) -> bytes:
        if offset <= 512 < offset + length:
            raise OSError(5, "Input/output error")
        return raw[offset : offset + length]

    table = read_table(read, len(raw), 512)
    assert table is not None
    assert table == read_image(image)


def test_headers_without_protective_mbr_are_no_table(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image(16 << 20)
    run("sgdisk", "-n1:0:+8M", image)
    raw = bytearray(image.read_bytes())
    raw[:512] = bytes(512)
    image.write_bytes(raw)
    assert read_image(image) is None


def test_hybrid_mbr_counts_as_gpt(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("sgdisk", "-n1:0:+8M", "-n2:0:+8M", "-h1", image)
    table = read_image(image)
    assert table is not None
    assert table == as_sfdisk_sees(run, image)


def test_table_of_a_larger_disk_is_refused(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("sgdisk", "-n1:0:0", image)
    with image.open("r+b") as file:
        file.truncate(32 << 20)
    assert read_image(image) is None


def build(fields: dict[str, Any], array: bytes, size: int = 1 << 20) -> bytes:
    """Builds a disk with a protective MBR and a primary GPT header of `fields` whose CRCs are right."""
    header = {
        "revision": 0x10000,
        "header_size": 92,
        "header_crc32": 0,
        "my_lba": 1,
        "alternate_lba": size // 512 - 1,
        "first_usable_lba": 34,
        "last_usable_lba": size // 512 - 34,
        "disk_guid": bytes(range(16)),
        "partition_entry_lba": 2,
        "number_of_partition_entries": len(array) // 128,
        "size_of_partition_entry": 128,
        "partition_entry_array_crc32": zlib.crc32(array),
        **fields,
    }
    raw: bytes = gpt.HEADER.build(header)
    header["header_crc32"] = zlib.crc32(raw.ljust(header["header_size"], b"\0")[: header["header_size"]])
    disk = bytearray(size)
    disk[446:462] = b"\0\0\2\0\xee\xff\xff\xff\1\0\0\0\xff\xff\xff\xff"
    disk[510:512] = b"\x55\xaa"
    disk[512 : 512 + 92] = gpt.HEADER.build(header)
    disk[1024 : 1024 + len(array)] = array
    return bytes(disk[:size])


def entry(start: int, end: int, name: bytes = b"") -> bytes:
    raw: bytes = gpt.ENTRY.build(
        {
            "partition_type_guid": uuid.UUID(LINUX).bytes_le,
            "unique_partition_guid": bytes(range(16)),
            "starting_lba": start,
            "ending_lba": end,
            "attributes": 0,
            "partition_name": name.ljust(72, b"\0")[:72],
        }
    )
    return raw


def read_bounded(disk: bytes, sector_size: int = 512) -> PartitionTable | None:
    """Reads a table and checks what holds for every disk."""

    def read(offset: int, length: int) -> bytes:
        assert length <= gpt.MAX_ENTRIES_BYTES
        assert offset >= 0
        assert offset + length <= len(disk)
        return disk[offset : offset + length]

    table = read_table(read, len(disk), sector_size)
    if table is not None:
        numbers = [partition.number for partition in table.partitions]
        assert numbers == sorted(set(numbers))
        for partition in table.partitions:
            assert partition.length > 0
            assert partition.start >= 0
            assert partition.start + partition.length <= len(disk)
            assert partition.name.isprintable()
    return table


def test_entries_outside_the_disk_are_dropped() -> None:
    entries = entry(40, 50) + entry(60, 55) + entry(100, 1 << 40) + entry(2**64 - 1, 2**64 - 1) + entry(0, 5)
    table = read_bounded(build({}, entries + entry(51, 51)))
    assert table is not None
    assert [(p.number, p.start, p.length) for p in table.partitions] == [(1, 40 * 512, 11 * 512), (6, 51 * 512, 512)]


@pytest.mark.parametrize(
    "fields",
    [
        {"number_of_partition_entries": 0xFFFFFFFF, "size_of_partition_entry": 0x80000000},
        {"number_of_partition_entries": 8193},
        {"number_of_partition_entries": 0},
        {"size_of_partition_entry": 0},
        {"size_of_partition_entry": 64},
        {"size_of_partition_entry": 192},
        {"partition_entry_lba": 0},
        {"partition_entry_lba": 2**63},
        {"my_lba": 2},
        {"last_usable_lba": 2048},
        {"first_usable_lba": 2000, "last_usable_lba": 1000},
        {"header_size": 513},
        {"header_size": 0xFFFFFFFF},
    ],
)
def test_header_that_promises_too_much_is_refused(fields: dict[str, Any]) -> None:
    if fields.get("header_size", 0) > 4096:
        disk = bytearray(build({}, entry(40, 50)))
        disk[524:528] = fields["header_size"].to_bytes(4, "little")
        assert read_bounded(bytes(disk)) is None
    else:
        assert read_bounded(build(fields, entry(40, 50))) is None


def test_name_cannot_steer_a_terminal() -> None:
    table = read_bounded(build({}, entry(40, 50, "\x1b]0;owned\x07".encode("utf-16-le"))))
    assert table is not None
    assert table.partitions[0].name == "\ufffd]0;owned\ufffd"


LBA = st.one_of(st.integers(0, 3000), st.integers(0, 2**64 - 1))


@settings(deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "header_size": st.integers(0, 600),
            "my_lba": st.integers(0, 2),
            "first_usable_lba": LBA,
            "last_usable_lba": LBA,
            "partition_entry_lba": LBA,
            "number_of_partition_entries": st.one_of(st.integers(0, 9000), st.integers(0, 2**32 - 1)),
            "size_of_partition_entry": st.one_of(
                st.integers(0, 32).map(lambda power: 1 << power & 0xFFFFFFFF), st.integers(0, 2**32 - 1)
            ),
        },
    ),
    entries=st.lists(
        st.one_of(st.builds(entry, LBA, LBA, st.binary(max_size=72)), st.binary(min_size=128, max_size=128))
    ),
)
def test_any_header_with_right_checksums_is_none_or_a_valid_table(fields: dict[str, Any], entries: list[bytes]) -> None:
    read_bounded(build(fields, b"".join(entries)[: 200 * 128]))


@settings(deadline=None)
@given(
    size=st.integers(512, 20000),
    flips=st.dictionaries(st.integers(0, 2000), st.integers(0, 255), max_size=20),
    sector_size=st.sampled_from([512, 4096]),
)
def test_any_damage_is_none_or_a_valid_table(size: int, flips: dict[int, int], sector_size: int) -> None:
    disk = bytearray(build({}, entry(40, 50) + entry(51, 99))[:size])
    for offset, value in flips.items():
        if offset < size:
            disk[offset] = value
    read_bounded(bytes(disk), sector_size)
