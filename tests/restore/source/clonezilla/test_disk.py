"""Disks restored from image directories, judged by the tools that know tables and file systems.

Debian packages: partclone fdisk gdisk parted dosfstools mtools e2fsprogs util-linux gzip zstd.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from restore.errors import Refused
from restore.source import SourceError, SourceSettings
from restore.source.detect import open_image
from tests.restore.engine import failed, restore, succeeded
from tests.restore.filesystems import checked
from tests.restore.source.clonezilla.images import (
    GPT,
    GPT_KINDS,
    MBR,
    MBR_KINDS,
    MIB,
    SIZE,
    SWAP_UUID,
    Saved,
    make_disk,
    read_partition,
    save_disk,
)
from tests.serving import run
from tests.support import assert_same_bytes, loop_device


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """A disk with a GPT and one with an MBR; images split and whole, compressed in two ways."""
    here = tmp_path_factory.mktemp("clonezilla")

    def make(name: str) -> Saved:
        place = here / name
        place.mkdir()
        if name == "gpt":
            partitions = make_disk(place / "disk.img", GPT, GPT_KINDS)
            return save_disk(place / "disk.img", partitions, place / "image", compress="zstd", name="nvme0n1")
        partitions = make_disk(place / "disk.img", MBR, MBR_KINDS, junk=b"hidden" * 7000)
        return save_disk(place / "disk.img", partitions, place / "image", split=1_000_000)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(("gpt", "mbr"), pool.map(make, ("gpt", "mbr")), strict=True))


def restored(directory: Path, target: Path, size: int = SIZE) -> Path:
    with target.open("wb") as file:
        file.write(b"\xa5" * size)
    assert "verified" in succeeded(restore(directory, target))
    return target


@pytest.mark.parametrize("scheme", ["gpt", "mbr"])
def test_a_whole_disk(saved: dict[str, Saved], tmp_path: Path, scheme: str) -> None:
    """The same tables and contents; swap space has its UUID and label; the checkers find nothing."""
    made = saved[scheme]
    target = restored(made.directory, tmp_path / "disk.img")
    there, wanted = (json.loads(run("sfdisk", "--json", disk).out) for disk in (target, made.disk))
    for table in (there, wanted):
        for row in table["partitiontable"]["partitions"]:
            row["node"] = re.sub(r".*disk\.img", "", row["node"])
        del table["partitiontable"]["device"]
    assert there == wanted
    if scheme == "gpt":
        assert "No problems found" in run("sgdisk", "-v", target).out
    else:
        assert "No errors detected" in run("sfdisk", "--verify", target).out
    with target.open("rb") as left, made.disk.open("rb") as right:
        assert_same_bytes(left.read(MIB), right.read(MIB))  # boot code, and what is hidden behind it
    for partition in made.partitions:
        part = tmp_path / "part"
        part.write_bytes(read_partition(target, partition))
        match partition.kind:
            case "swap":
                told = run("blkid", "-p", "-o", "export", part).out
                assert f"UUID={SWAP_UUID}" in told
                assert "LABEL=swap-label" in told
                assert "TYPE=swap" in told
            case "dd":
                assert_same_bytes(part.read_bytes(), made.read(partition.number))
            case kind:
                checked(part, kind)
    # This is more than Clonezilla promises, and holds as all of this was made on disks of zeroes.
    run("cmp", target, made.disk)


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    """Of such a disk `dd` keeps the first entries of the GPT only; those behind them are empty."""
    image, directory = tmp_path / "disk.img", tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    directory.mkdir()
    script = "label: gpt\nstart=256, size=512, type=21686148-6449-6E6F-744E-656564454649\n"
    with loop_device(image, sector=4096) as loop:
        run("sfdisk", "--quiet", loop, stdin=script)
        for name, command in {"pt.sf": ("sfdisk", "-d"), "pt.parted": ("parted", "-s")}.items():
            words = ("unit", "s", "print") if name == "pt.parted" else ()
            text = run(*command, loop, *words).out.replace(f"{loop}p", "/dev/sda").replace(str(loop), "/dev/sda")
            (directory / f"sda-{name}").write_text(text)
    content = random.Random(9).randbytes(2 * MIB)
    run("dd", f"if={image}", f"of={directory}/sda-gpt-1st", "bs=512", "count=34")
    run("dd", f"if={image}", f"of={directory}/sda-mbr", "bs=512", "count=1")
    (directory / "sda1.dd-ptcl-img.uncomp").write_bytes(content)
    (directory / "parts").write_text("sda1\n")
    (directory / "disk").write_text("sda\n")
    target = restored(directory, tmp_path / "target")
    with image.open("r+b") as file:
        file.seek(MIB)
        file.write(content)
    run("cmp", image, target)
    with loop_device(target, sector=4096) as loop:
        assert "No problems found" in run("sgdisk", "-v", loop).out


def test_a_partition_of_it(saved: dict[str, Saved], tmp_path: Path) -> None:
    made = saved["mbr"]
    found = open_image(str(made.directory / "sda5"))
    assert (found.format, found.path) == ("partclone+gzip", None)
    found.source.close()
    target = restored(made.directory / "sda5", tmp_path / "part", made.partition(5).length)
    checked(target, "ext4")
    assert_same_bytes(target.read_bytes(), made.read(5))
    found = open_image(str(made.directory / "sda3"))
    assert found.format == "gzip"
    assert_same_bytes(bytes(found.source.payload(0, MIB)), made.read(3))  # type: ignore[arg-type]
    found.source.close()


def test_a_disk_by_its_name(saved: dict[str, Saved]) -> None:
    for scheme, name in (("gpt", "nvme0n1"), ("mbr", "sda")):
        found = open_image(str(saved[scheme].directory / name))
        assert (found.format, found.source.size) == ("clonezilla", SIZE)
        found.source.close()


@pytest.fixture
def copy(saved: dict[str, Saved], tmp_path: Path) -> Path:
    """A directory to spoil, of the disk with an MBR."""
    shutil.copytree(saved["mbr"].directory, tmp_path / "image")
    return tmp_path / "image"


@pytest.fixture
def gpt_copy(saved: dict[str, Saved], tmp_path: Path) -> Path:
    """A directory to spoil, of the disk with a GPT."""
    shutil.copytree(saved["gpt"].directory, tmp_path / "image")
    return tmp_path / "image"


def refusal(place: Path) -> str:
    with pytest.raises(Refused) as caught:
        open_image(str(place)).source.close()
    return str(caught.value)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_is_touched_when_refused(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"\xa5" * SIZE)
    part = copy / "sda5.ext4-ptcl-img.gz.ac"
    with part.open("ab") as file:
        file.truncate(999_999)
    line = f"{part} has 999999 bytes, sda5.ext4-ptcl-img.gz.aa 1000000: a part of the image is not whole"
    assert failed(restore(copy, target)) == line
    part.unlink()
    line = failed(restore(copy, target))
    assert line == f"{copy}/sda5.ext4-ptcl-img.gz.ac is missing: the image was split, and goes on after it"
    assert_same_bytes(target.read_bytes(), b"\xa5" * SIZE)


def test_missing_files(copy: Path) -> None:
    for name in ("sda7.ext4-ptcl-img.gz.aa", "sda7.ext4-ptcl-img.gz.ab"):
        (copy / name).unlink()
    assert refusal(copy).endswith("sda7.ext4-ptcl-img.gz.aa is missing: the image was split, and goes on after it")
    for path in copy.glob("sda7.*"):
        path.unlink()
    assert refusal(copy) == f"{copy}: sda7 was saved, but its image sda7.…-img is missing"
    assert refusal(copy / "sda7") == f"{copy}: sda7 was saved, but its image sda7.…-img is missing"
    (copy / "sda-mbr").unlink()
    assert refusal(copy) == f"{copy}/sda-mbr is missing"


def test_what_was_not_saved_is_empty(copy: Path, tmp_path: Path, saved: dict[str, Saved]) -> None:
    for path in copy.glob("sda7.*"):
        path.unlink()
    (copy / "swappt-sda6.info").unlink()
    replace(copy / "parts", " sda7", "")
    said: list[str] = []
    open_image(str(copy), SourceSettings(notify=said.append)).source.close()
    assert said == [
        f"{copy}: sda6 is for swap space, of which nothing was saved; it is left empty",
        f"{copy}: sda7 was not saved; it is left empty",
    ]
    target = restored(copy, tmp_path / "target")
    for number in (6, 7):
        partition = saved["mbr"].partition(number)
        assert_same_bytes(read_partition(target, partition), bytes(partition.length))


def test_size_of_a_disk_that_is_not_told(copy: Path) -> None:
    (copy / "sda-pt.parted").unlink()
    said: list[str] = []
    found = open_image(str(copy), SourceSettings(notify=said.append))
    assert found.source.size == (126_976 + 2048) * 512
    found.source.close()
    line = "the size of the disk is not known; it is taken to end with its last partition"
    assert said == [f"{copy}/sda: {line}"]


def test_size_of_a_disk_that_its_gpt_tells(gpt_copy: Path) -> None:
    (gpt_copy / "nvme0n1-pt.parted").unlink()
    found = open_image(str(gpt_copy))
    assert found.source.size == SIZE
    found.source.close()


def test_tables_that_differ(copy: Path) -> None:
    dump = copy / "sda-pt.sf"
    before = dump.read_text()
    replace(dump, "size=        2048, type=da", "size=        1024, type=da")
    assert refusal(copy) == f"{copy}: sda-pt.sf and sda-mbr differ in partition 3; one was changed"
    dump.write_text(before)
    replace(dump, "start=       67584, size=       16384", "start=       65000, size=       16384")
    assert refusal(copy) == f"{dump}: partition 6 has no room where it is"
    dump.write_text(before.replace("/dev/sda2 :", "# /dev/sda2 :"))
    assert refusal(copy) == f"{dump} lists logical partitions without an extended one"
    dump.write_text(before.replace("label: dos", "label: bsd"))
    assert refusal(copy) == f"{dump} has a partition table of the kind 'bsd'; only dos and gpt are known"
    dump.write_text(before.replace("start=        2048", "start=        2k"))
    assert refusal(copy).startswith(f"{dump} has a line that cannot be understood: '/dev/sda1 : start= ")
    dump.write_text(before.replace("/dev/sda3 ", "/dev/sda1 "))
    assert refusal(copy) == f"{dump} lists a partition twice"
    dump.write_text(before.replace("sector-size: 512", "sector-size: 0"))
    assert refusal(copy) == f"{dump} has sectors of 0 bytes, which cannot be"
    dump.write_text(before.replace("type=da", "type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"))
    assert refusal(copy) == f"{dump} has a partition of a type that cannot be"
    dump.unlink()
    assert refusal(copy / "sda").endswith("its image sda.…-img is missing")


def test_a_gpt_that_is_damaged(gpt_copy: Path) -> None:
    kept = gpt_copy / "nvme0n1-gpt-1st"
    whole = kept.read_bytes()
    for at in (512 + 24, 1024 + 3):
        kept.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        assert refusal(gpt_copy) == f"{kept} is damaged: its GPT's checksums or addresses are not right"
    kept.write_bytes(whole[:512] + bytes(512) + whole[1024:])
    assert refusal(gpt_copy) == f"{kept} has no GPT in sector 1"
    kept.write_bytes(whole)
    replace(gpt_copy / "nvme0n1-pt.sf", "start=       22528", "start=       22529")
    line = "nvme0n1-pt.sf and nvme0n1-gpt-1st differ in partition 2; one was changed"
    assert refusal(gpt_copy) == f"{gpt_copy}: {line}"


def test_an_image_larger_than_its_partition(copy: Path) -> None:
    for path in sorted(copy.glob("sda5.*")):
        shutil.copy(path, copy / path.name.replace("sda5.", "sda7."))
    assert refusal(copy) == (
        f"{copy}/sda7.ext4-ptcl-img.gz.aa is of {20 * MIB} bytes; partition sda7 has only {19 * MIB}"
    )


def test_all_bytes_of_a_partition_that_are_too_few(copy: Path, tmp_path: Path) -> None:
    for path in copy.glob("sda3.*"):
        path.unlink()
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(2048 * 512 - 512))
    image = copy / "sda3.dd-ptcl-img.gz"
    image.write_bytes(run_bytes("gzip", "-c", raw))
    target = tmp_path / "target"
    target.write_bytes(bytes(SIZE))
    line = f"{image} holds 512 bytes less than the 1048576 bytes of partition sda3"
    assert failed(restore(copy, target)) == f"{line}; {target} is left empty"
    image.write_bytes(run_bytes("gzip", "-c", copy / "sda-mbr") + run_bytes("gzip", "-c", raw))
    (copy / "sda3.dd-img.info").write_text("partition=BSD_slice\n")
    succeeded(restore(copy, target))
    raw.write_bytes(bytes(2048 * 512 + 1))
    image.write_bytes(run_bytes("gzip", "-c", raw))
    line = f"{image} holds more than the 1048576 bytes of partition sda3"
    assert failed(restore(copy, target)) == f"{line}; {target} is left empty"


def run_bytes(*command: str | Path) -> bytes:
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_damage_within(copy: Path, tmp_path: Path) -> None:
    part = copy / "sda5.ext4-ptcl-img.gz.ac"
    content = bytearray(part.read_bytes())
    content[500_000] ^= 4
    part.write_bytes(content)
    target = tmp_path / "target"
    target.write_bytes(b"\xa5" * SIZE)
    line = failed(restore(copy, target))
    assert line.startswith(f"{copy}/sda5.ext4-ptcl-img.gz.aa"), line
    assert not any(target.read_bytes()[:MIB])


def test_kinds_that_cannot_be_read(copy: Path) -> None:
    for path in copy.glob("sda3.*"):
        path.unlink()
    for name, message in {
        "sda3.ntfs-img.aa": "is an image of ntfsclone, which asr does not read",
        "sda3.aa": "is an image of partimage, which asr does not read",
        "sda3.000": "is an image of partimage, which asr does not read",
        "sda3": "is an image of partimage, which asr does not read",
        "sda3.ext4-ptcl-img.lrz": "is compressed with lrzip, which asr does not read; decompress it",
        "sda3.ext4-ptcl-img.lzo.aa": "is compressed with lzop, which asr does not read; decompress it",
    }.items():
        (copy / name).write_bytes(b"x")
        assert refusal(copy) == f"{copy}/{name} {message}"
        (copy / name).unlink()
    for name, how in (("lvm_vg_dev.list", "LVM"), ("luks-dev.list", "LUKS")):
        (copy / name).write_text("vg /dev/sda3 9HHxOz-x\n")
        line = f"{copy}: sda3 held {how} volumes, which asr cannot restore; use Clonezilla"
        assert refusal(copy) == line
        (copy / name).unlink()
    for name in ("sda3.ext4-ptcl-img.gz", "sda3.xfs-ptcl-img.gz"):
        (copy / name).write_bytes(b"x")
    assert refusal(copy) == (f"{copy} has several images of sda3: sda3.ext4-ptcl-img.gz, sda3.xfs-ptcl-img.gz")
    (copy / "sda3.xfs-ptcl-img.gz").rename(copy / "sda3.ext4-ptcl-img.gz.aa")
    assert refusal(copy) == f"{copy}/sda3.ext4-ptcl-img.gz is there both whole and split"
    (copy / "ecryptfs.info").write_text("disk_of_img=sda\n")
    assert "is encrypted" not in refusal(copy)  # it is mounted, and can be read
    (copy / "parts").write_bytes(bytes(100))
    assert refusal(copy) == f"{copy} is encrypted with eCryptfs; mount it and restore from there"


def test_several_disks_and_partitions(copy: Path) -> None:
    (copy / "disk").write_text("sda sdb\n")
    assert refusal(copy) == f"{copy} holds the disks sda and sdb: choose one, such as {copy}/sda"
    open_image(str(copy / "sda")).source.close()
    assert refusal(copy / "sdc") == f"{copy} has no image of sdc; it has sda, sdb, sda1, sda3, sda5, sda7"
    assert refusal(copy / "sdb") == f"{copy}: sdb was saved, but its image sdb.…-img is missing"
    (copy / "disk").unlink()
    assert refusal(copy) == (
        f"{copy} holds the partitions sda1 and sda3 and sda5 and sda7: choose one, such as {copy}/sda1"
    )
    (copy / "parts").write_text("sda5\n")
    found = open_image(str(copy))
    assert (found.format, found.source.size) == ("partclone+gzip", 20 * MIB)
    found.source.close()


def test_a_disk_without_partitions(copy: Path, saved: dict[str, Saved]) -> None:
    """A file system on the disk itself is saved as if it were a partition."""
    for path in sorted(copy.glob("sda5.*")):
        path.rename(copy / path.name.replace("sda5.", "sda."))
    (copy / "sda-pt.sf").unlink()
    found = open_image(str(copy))
    assert (found.format, found.source.size) == ("partclone+gzip", 20 * MIB)
    found.source.close()


def test_swap_that_is_damaged(copy: Path) -> None:
    info = copy / "swappt-sda6.info"
    info.write_text('UUID="no"\nLABEL=""\n')
    assert refusal(copy) == f"{info}: 'no' is no UUID"


def test_told_by_force(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"holds the partitions nothing$"):
        open_image(str(tmp_path), SourceSettings(format="clonezilla"))


def test_an_image_that_changes(copy: Path) -> None:
    found = open_image(str(copy))
    try:
        found.source.check_unchanged()
        with (copy / "sda5.ext4-ptcl-img.gz.ab").open("ab") as file:
            file.write(b"x")
        with pytest.raises(Exception, match="was changed meanwhile"):
            found.source.check_unchanged()
    finally:
        found.source.close()


def test_source_errors_name_the_image(copy: Path) -> None:
    (copy / "sda5.ext4-ptcl-img.gz.aa").write_bytes(b"\x1f\x8b\x08\0" + bytes(999_996))
    with pytest.raises(SourceError, match=re.escape(str(copy / "sda5"))):
        open_image(str(copy))
