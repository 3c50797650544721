"""What is offered: exports by name, the default one, partitions as they are now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from targetmode.disks.preflight import PreflightError
from targetmode.offer import Offer, OfferError
from tests.serving import run
from tests.support import assert_same_bytes
from tests.targetmode.conftest import MIB, part


def names(offer: Offer) -> list[tuple[str, int, int]]:
    return [(export.name, export.start, export.size) for export in offer.exports()]


def test_a_disk_and_its_partitions(parted: Path) -> None:
    offer = Offer.claim([str(parted)], read_only=False)
    try:
        assert names(offer) == [("parted", 0, 8 * MIB), ("parted1", MIB, 2 * MIB), ("parted2", 4 * MIB, MIB)]
        for name, expected in (("", "parted"), ("parted", "parted"), ("parted2", "parted2")):
            export = offer.find(name)
            assert export is not None
            assert export.name == expected
        for name in ("parted3", "parted0", "Parted", " ", "parted/1", "parted1\0"):
            assert offer.find(name) is None
        assert [export.whole for export in offer.exports()] == [True, False, False]
        assert [export.description for export in offer.exports()] == [
            "image file, 8.0 MiB",
            "partition 1 of parted, 2.0 MiB",
            "partition 2 of parted, 1.0 MiB",
        ]
    finally:
        offer.close()


def test_a_new_table_has_its_effect_at_once(tmp_path: Path) -> None:
    image = tmp_path / "disk7"
    image.write_bytes(bytes(8 * MIB))
    offer = Offer.claim([str(image)], read_only=False)
    try:
        assert [name for name, _, _ in names(offer)] == ["disk7"]
        part(image)
        assert [name for name, _, _ in names(offer)] == ["disk7", "disk7p1", "disk7p2"]
        os.truncate(image, 3 * MIB)  # the backup table is gone, and the second partition's end
        assert names(offer)[0] == ("disk7", 0, 3 * MIB)
        assert all(start + size <= 3 * MIB for _, start, size in names(offer))
        os.truncate(image, 0)
        assert names(offer) == [("disk7", 0, 0)]
    finally:
        offer.close()


def test_a_whole_disk_comes_before_a_partition_of_its_name(parted: Path) -> None:
    other = parted.with_name("parted1")
    other.write_bytes(b"x" * 4096)
    for order in ([parted, other], [other, parted]):
        offer = Offer.claim([str(path) for path in order], read_only=False)
        try:
            found = offer.find("parted1")
            assert found is not None
            assert (found.size, found.whole) == (4096, True)
            assert sorted(name for name, _, _ in names(offer)) == ["parted", "parted1", "parted2"]
        finally:
            offer.close()


def test_two_of_the_same_name_are_refused_and_both_are_free_again(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / image.name
    other.parent.mkdir()
    other.write_bytes(b"x" * 4096)
    with pytest.raises(OfferError, match=r"another disk is called disk\.img too"):
        Offer.claim([str(image), str(other)], read_only=False)
    Offer.claim([str(image)], read_only=False).close()
    Offer.claim([str(other)], read_only=False).close()


def test_when_one_is_refused_the_others_are_free_again(image: Path, tmp_path: Path) -> None:
    with pytest.raises(PreflightError):
        Offer.claim([str(image), str(tmp_path / "missing")], read_only=False)
    run("flock", "--nonblock", image, "true")


def test_an_export_is_opened_anew_and_in_its_window(parted: Path) -> None:
    offer = Offer.claim([str(parted)], read_only=False)
    try:
        export = offer.find("parted1")
        assert export is not None
        first, second = export.open(), export.open()
        assert len({first.fd, second.fd, export.disk.fd}) == 3
        first.write(b"anew", 5)
        buffer = bytearray(4)
        second.read_into(memoryview(buffer), 5)
        assert buffer == b"anew"
        first.close()
        second.close()
        with parted.open("rb") as file:
            file.seek(MIB + 5)
            assert file.read(4) == b"anew"
    finally:
        offer.close()


def test_a_read_only_export_cannot_be_written_whatever_is_asked_of_it(image: Path) -> None:
    offer = Offer.claim([str(image)], read_only=True)
    try:
        backend = offer.exports()[0].open()
        assert backend.read_only
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(backend.fd, b"x", 0)
        backend.close()
    finally:
        offer.close()


def test_an_image_that_was_deleted_is_served_on(image: Path) -> None:
    data = image.read_bytes()
    offer = Offer.claim([str(image)], read_only=False)
    try:
        image.unlink()
        backend = offer.exports()[0].open()
        buffer = bytearray(len(data))
        backend.read_into(memoryview(buffer), 0)
        assert_same_bytes(buffer, data)
        backend.close()
    finally:
        offer.close()
