import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from targetmode.disks.layout import Partition, PartitionTable
from targetmode.disks.table import read_table

Record = tuple[int, int, int]
"""Type, starting LBA, size in sectors."""


def read_image(image: Path, sector_size: int = 512) -> PartitionTable | None:
    raw = image.read_bytes()
    return read_table(lambda offset, length: raw[offset : offset + length], len(raw), sector_size)


def as_sfdisk_sees(run: Callable[..., str], disk: Path) -> PartitionTable:
    """Reads the table as sfdisk does, without the extended partitions."""
    table = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    sector_size = table.get("sectorsize", 512)
    identifier = table["id"].removeprefix("0x")
    partitions = []
    for partition in table.get("partitions", []):
        number = int(partition["node"].removeprefix(str(disk)).removeprefix("p"))
        if partition["type"] not in ("5", "f", "85"):
            partitions.append(
                Partition(
                    number=number,
                    start=partition["start"] * sector_size,
                    length=partition["size"] * sector_size,
                    type=f"{int(partition['type'], 16):#04x}",
                    name="",
                    uuid=f"{identifier}-{number:02x}",
                )
            )
    return PartitionTable("mbr", identifier, tuple(partitions))


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_table_made_by_sfdisk(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path], sector_size: int
) -> None:
    image = make_image()
    device = attach(image, "--sector-size", str(sector_size))
    script = "label: dos\n,4MiB,c,*\n,8MiB,83\n,,E\n,4MiB,82\n,4MiB,83\n,4MiB,7\n"
    run("sfdisk", device, input=script)
    table = read_image(image, sector_size)
    assert table is not None
    assert table == as_sfdisk_sees(run, device)
    assert [(p.number, p.type) for p in table.partitions] == [
        (1, "0x0c"),
        (2, "0x83"),
        (5, "0x82"),
        (6, "0x83"),
        (7, "0x07"),
    ]


def test_table_made_by_parted(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    steps = "mklabel msdos mkpart extended 8MiB 60MiB mkpart logical 9MiB 20MiB mkpart logical 30MiB 50MiB"
    run("parted", "--script", image, *steps.split(), "mkpart", "primary", "1MiB", "8MiB")
    table = read_image(image)
    assert table is not None
    assert table == as_sfdisk_sees(run, image)
    assert [p.number for p in table.partitions] == [2, 5, 6]


def test_table_as_libblkid_sees_it(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("sfdisk", image, input="label: dos\n,4MiB\n,,5\n" + ",1MiB\n" * 29)
    shown = run("partx", "--noheadings", "--raw", "--output", "NR,START,SECTORS,TYPE,UUID", image)
    expected = [line.split() for line in shown.splitlines()]
    table = read_image(image)
    assert table is not None
    assert [
        [str(p.number), str(p.start // 512), str(p.length // 512), f"{int(p.type, 16):#x}", p.uuid]
        for p in table.partitions
    ] == [row for row in expected if row[3] != "0x5"]
    assert len(table.partitions) == 30


def test_empty_table(run: Callable[..., str], make_image: Callable[..., Path]) -> None:
    image = make_image()
    run("parted", "--script", image, "mklabel", "msdos")
    table = read_image(image)
    assert table is not None
    assert (table.scheme, table.partitions) == ("mbr", ())


@pytest.mark.parametrize(
    "command",
    [
        "mkfs.vfat -F 12",
        "mkfs.vfat -F 16",
        "mkfs.vfat -F 32",
        "mkfs.vfat -S 4096",
        "mkfs.exfat",
        "mkfs.ntfs -F -f -s 512 -p 0 -H 16 -S 63",
    ],
)
def test_boot_sector_of_a_file_system_is_no_table(
    run: Callable[..., str], make_image: Callable[..., Path], command: str
) -> None:
    image = make_image()
    run(*command.split(), image)
    assert image.read_bytes()[510:512] == b"\x55\xaa"
    assert read_image(image) is None


def test_physical_volume_that_can_be_booted_from_is_no_table(
    run: Callable[..., str], make_image: Callable[..., Path], attach: Callable[..., Path]
) -> None:
    image = make_image()
    run("pvcreate", "--config", 'devices { filter = ["a/loop/"] }', attach(image))
    with image.open("r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")
    assert read_image(image) is None


def record(entries: list[Record], disk_id: int = 0x12345678, indicator: int = 0) -> bytes:
    """Builds a boot record."""
    raw = bytes(440) + struct.pack("<IH", disk_id, 0)
    for os_type, start, length in [*entries, *[(0, 0, 0)] * 4][:4]:
        raw += struct.pack("<B3sB3sII", indicator, b"", os_type, b"", start, length)
    return raw + b"\x55\xaa"


def read_bounded(records: dict[int, bytes], size: int = 4 << 20, sector_size: int = 512) -> PartitionTable | None:
    """Reads a table from boot records by LBA and checks what holds for every disk."""
    disk = bytearray(size)
    for lba, raw in records.items():
        if lba * sector_size + 512 <= size:
            disk[lba * sector_size : lba * sector_size + 512] = raw
    reads = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        assert reads < 2000
        assert offset >= 0
        assert offset + length <= size
        return bytes(disk[offset : offset + length])

    table = read_table(read, size, sector_size)
    if table is not None:
        numbers = [partition.number for partition in table.partitions]
        assert numbers == sorted(set(numbers))
        for partition in table.partitions:
            assert partition.length > 0
            assert 0 <= partition.start <= size - partition.length
    return table


def numbers_and_places(table: PartitionTable | None) -> list[tuple[int, int, int]]:
    assert table is not None
    return [(p.number, p.start // 512, p.length // 512) for p in table.partitions]


def test_entries_outside_the_disk_are_dropped_but_keep_their_number() -> None:
    entries = [(0x83, 0, 10), (0x83, 8191, 2), (0x83, 0xFFFFFFFF, 0xFFFFFFFF), (0x83, 8191, 1)]
    assert numbers_and_places(read_bounded({0: record(entries)})) == [(4, 8191, 1)]


def test_logical_partition_outside_the_disk_keeps_its_number() -> None:
    records = {
        0: record([(0x05, 100, 1000000)]),
        100: record([(0x83, 100000, 5), (0x05, 100, 200)]),
        200: record([(0x83, 1, 5)]),
    }
    assert numbers_and_places(read_bounded(records)) == [(6, 201, 5)]


def test_chain_that_leads_back_ends() -> None:
    records = {
        0: record([(0x05, 100, 1000)]),
        100: record([(0x83, 1, 5), (0x05, 50, 100)]),
        150: record([(0x83, 1, 5), (0x05, 50, 100)]),
    }
    assert numbers_and_places(read_bounded(records)) == [(5, 101, 5), (6, 151, 5)]


def test_chain_without_partitions_ends() -> None:
    records = {lba: record([(0x05, lba - 99, 5)]) for lba in range(100, 5000)}
    assert numbers_and_places(read_bounded({**records, 0: record([(0x05, 100, 8000)])})) == []


def test_chain_longer_than_linux_goes_is_cut() -> None:
    records = {lba: record([(0x83, 1, 1), (0x05, lba - 98, 2)]) for lba in range(100, 5000, 2)}
    places = numbers_and_places(read_bounded({**records, 0: record([(0x05, 100, 8000)])}))
    assert [number for number, _, _ in places] == list(range(5, 256))


def test_unreadable_extended_record_leaves_the_primaries() -> None:
    raw = record([(0x83, 8, 8), (0x05, 2000, 1000)])

    def read(offset: int, length: int) -> bytes:
        if offset + length > 1000 * 512:
            raise OSError(5, "Input/output error")
        return raw[offset : offset + length].ljust(length, b"\0")

    assert numbers_and_places(read_table(read, 4 << 20, 512)) == [(1, 8, 8)]


def test_boot_indicator_that_is_none_means_no_table() -> None:
    assert read_bounded({0: record([(0x83, 1, 10)], indicator=0x41)}) is None


def test_table_without_identifier_has_no_uuids() -> None:
    table = read_bounded({0: record([(0x83, 1, 10)], disk_id=0)})
    assert table is not None
    assert (table.uuid, table.partitions[0].uuid) == ("", "")


RECORD = st.builds(
    record,
    st.lists(
        st.tuples(
            st.sampled_from([0, 0x05, 0x0F, 0x85, 0x83, 0xEE]),
            st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1)),
            st.one_of(st.integers(0, 100), st.integers(0, 2**32 - 1)),
        ),
        max_size=4,
    ),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 0, 0, 0x80, 1]),
)


@settings(deadline=None)
@given(
    first=RECORD,
    rest=st.dictionaries(st.integers(1, 60), RECORD, max_size=20),
    sectors=st.integers(1, 200),
    sector_size=st.sampled_from([512, 4096]),
)
def test_any_records_are_none_or_a_valid_table(
    first: bytes, rest: dict[int, bytes], sectors: int, sector_size: int
) -> None:
    read_bounded({**rest, 0: first}, sectors * 512, sector_size)
