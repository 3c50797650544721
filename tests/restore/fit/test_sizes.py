import pytest

from restore.errors import Refused
from restore.fit.sizes import check_partitions
from targetmode.disks.layout import Partition, PartitionTable

GIB = 1 << 30


def table(*partitions: tuple[int, int, str]) -> PartitionTable:
    made = (Partition(n, start, length, "", name, "") for n, (start, length, name) in enumerate(partitions, 1))
    return PartitionTable("gpt", "", tuple(made))


def test_partitions_that_do_not_fit_are_named_with_sizes() -> None:
    disk = table((1 << 20, GIB, "EFI"), (2 * GIB, 6 * GIB, "root"), (8 * GIB, GIB, ""))
    check_partitions(disk, "a.img", "/dev/sdb", 9 * GIB)
    with pytest.raises(Refused) as refused:
        check_partitions(disk, "a.img", "/dev/sdb", 9 * GIB - 1)
    assert str(refused.value) == (
        "/dev/sdb is too small for a.img: it has 9.0 GiB, where partition 3 (1.0 GiB, ends at 9.0 GiB) does not fit"
    )
    with pytest.raises(Refused) as refused:
        check_partitions(disk, "a.img", "/dev/sdb", 4 * GIB)
    assert str(refused.value) == (
        'a.img: it has 4.0 GiB, where partition 2 "root" (6.0 GiB, ends at 8.0 GiB), '
        "partition 3 (1.0 GiB, ends at 9.0 GiB) do not fit"
    ).join(["/dev/sdb is too small for ", ""])


def test_many_are_counted() -> None:
    disk = table(*((n * GIB, GIB, "") for n in range(1, 8)))
    with pytest.raises(Refused, match="and 3 more do not fit"):
        check_partitions(disk, "a.img", "/dev/sdb", GIB)
