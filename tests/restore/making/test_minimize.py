"""A copy that is shrunk to its contents: smaller, whole, restorable; the image stays as it is, byte for byte.

Debian packages: btrfs-progs e2fsprogs fdisk gdisk libnbd-bin mount ntfs-3g qemu-utils util-linux zstd.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.making.minimize import minimize
from restore.manifest.beside import load
from restore.manifest.scan import ScanSettings
from restore.source import Image
from restore.source.detect import open_image
from restore.source.raw import RawStream
from restore.source.storage.file import LocalFile
from restore.source.stream import StreamSource
from tests.restore.engine import asr, failed, restore, succeeded
from tests.restore.filesystems import (
    MIB,
    checked,
    extracted,
    in_filesystem,
    make_filesystem,
    nothing_left_of,
    partitioned,
)
from tests.restore.reports import Remembered
from tests.serving import run
from tests.support import small_filesystem

FILL = "mkdir a; head -c 6000000 /dev/urandom > a/file; head -c 3000000 /dev/urandom > other"
SUMS = "sha256sum a/file other"
ONLY = "only ext2, ext3, ext4, btrfs and ntfs can be made smaller"


@pytest.fixture(autouse=True)
def requires_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices and mounts")


def filled(path: Path, kind: str, size: int) -> str:
    """Make a file system with files in it; their digests."""
    make_filesystem(path, kind, size)
    return in_filesystem(path, kind, f"{FILL}; {SUMS}")


def on_mbr(path: Path, *images: Path, room: int) -> Path:
    """A disk image with an MBR and a primary partition for each image."""
    sizes = [image.stat().st_size for image in images]
    with path.open("wb") as file:
        file.truncate(MIB + sum(sizes) + room)
    rows = "".join(f"size={size >> 20}M, type=83\n" for size in sizes)
    run("sfdisk", path, stdin=f"label: dos\nfirst-lba: 2048\n{rows}")
    offset = 1
    for image, size in zip(images, sizes, strict=True):
        run("dd", f"if={image}", f"of={path}", "bs=1M", f"seek={offset}", "conv=notrunc,sparse", "status=none")
        offset += size >> 20
    return path


def table_is_right(disk: Path) -> None:
    scheme = json.loads(run("sfdisk", "--json", disk).out)["partitiontable"]["label"]
    if scheme == "gpt":
        found = run("sgdisk", "-v", disk).out
        assert "No problems found" in found, found
    said = run("sfdisk", "--verify", disk)
    assert "No errors detected" in said.out, said


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("scheme", "kind", "size", "most"),
    [
        ("gpt", "ext4", 200, 48),
        ("gpt", "btrfs", 400, 270),
        ("mbr", "ntfs", 96, 40),
        ("none", "ext2", 64, 32),
    ],
)
def test_minimized(scheme: str, kind: str, size: int, most: int, tmp_path: Path) -> None:
    """It restores onto a disk of exactly its size, and with --grow onto a larger one."""
    image = tmp_path / "fs.img"
    sums = filled(image, kind, size * MIB)
    number = None
    if scheme != "none":
        other = make_filesystem(tmp_path / "other.img", "vfat", 4 * MIB)
        lay = partitioned if scheme == "gpt" else on_mbr
        image, number = lay(tmp_path / "disk.img", other, image, room=9 * MIB), 2
    before = hashlib.sha256(image.read_bytes()).hexdigest()
    whole, small = image.stat().st_size, tmp_path / "small.img"
    said = succeeded(asr("imagescan", "--minimize", small, image))
    assert hashlib.sha256(image.read_bytes()).hexdigest() == before
    least = small.stat().st_size
    assert f"  {small}: {whole / MIB:.1f} MiB became {least / MIB:.1f} MiB\n" in said
    assert said.endswith(f'  asr: successfully scanned image "{image}"\n')
    assert least <= most * MIB
    assert small.stat().st_blocks * 512 < 20 * MIB, "it is not sparse"
    for scanned in (image, small):
        bmap = load(scanned)
        assert bmap is not None
        assert bmap.image_size == scanned.stat().st_size
    assert not [name for name in names(tmp_path) if name.startswith(".asr")]

    exact, larger = tmp_path / "exact.img", tmp_path / "larger.img"
    for target, room in ((exact, least), (larger, least + 300 * MIB)):
        with target.open("wb") as file:
            file.truncate(room)
        said = succeeded(restore(small, target, *(["--grow"] if target == larger else [])))
        assert ", verified" in said
        if number is not None:
            table_is_right(target)
        part = target if number is None else extracted(target, number)
        checked(part, kind)
        assert in_filesystem(part, kind, SUMS) == sums
        if number is not None:
            checked(extracted(target, 1), "vfat")
    room = int(in_filesystem(part, kind, "df -BM --output=size . | tail -1").strip().removesuffix("M"))
    assert room > 250
    nothing_left_of(tmp_path)


def test_an_image_that_has_to_be_decoded(tmp_path: Path) -> None:
    """A stream: nothing knows what it holds before all of it was."""
    fs = tmp_path / "fs.img"
    sums = filled(fs, "ext4", 100 * MIB)
    disk = partitioned(tmp_path / "disk.img", make_filesystem(tmp_path / "o.img", "ext4", 8 * MIB), fs, room=0)
    small, report = tmp_path / "small.img", Remembered()
    with closing(StreamSource(RawStream(LocalFile(str(disk))))) as source:
        image = Image(source, "gzip", disk)
        bmap = asyncio.run(minimize(image, str(disk), small, ScanSettings(), report))
    assert bmap.image_size == small.stat().st_size < 50 * MIB
    table_is_right(small)
    part = extracted(small, 2)
    checked(part, "ext4")
    assert in_filesystem(part, "ext4", SUMS) == sums
    assert report.notes[0].startswith(f"{disk} is decoded to a temporary file of at most 112.0 MiB in ")
    assert report.notes[1] == f"{small}: 112.0 MiB became {small.stat().st_size / MIB:.1f} MiB"
    assert report.shares["Copying"][-1] == (small.stat().st_size, small.stat().st_size)
    nothing_left_of(tmp_path)


@pytest.mark.parametrize("form", ["qcow2", "zstd"])
def test_images_of_other_formats(form: str, tmp_path: Path) -> None:
    """What qemu knows is read as it lies, what is compressed is decoded first."""
    sums = filled(tmp_path / "fs.img", "ext4", 64 * MIB)
    disk, small = tmp_path / f"disk.{form}", tmp_path / "small.img"
    if form == "qcow2":
        run("qemu-img", "convert", "-O", "qcow2", tmp_path / "fs.img", disk)
    else:
        run("zstd", "-q", "-1", tmp_path / "fs.img", "-o", disk)
    before = disk.read_bytes()
    said = succeeded(asr("imagescan", "--minimize", small, disk))
    assert ("is decoded to a temporary file" in said) is (form == "zstd")
    assert disk.read_bytes() == before
    assert small.stat().st_size < 32 * MIB
    checked(small, "ext4")
    assert in_filesystem(small, "ext4", SUMS) == sums
    nothing_left_of(tmp_path)


def test_nothing_to_gain(tmp_path: Path) -> None:
    """It is copied as it is, once more."""
    fs, small, same = tmp_path / "fs.img", tmp_path / "small.img", tmp_path / "same.img"
    filled(fs, "ext4", 64 * MIB)
    partitioned(tmp_path / "disk.img", fs, room=0)
    succeeded(asr("imagescan", "--minimize", small, tmp_path / "disk.img"))
    said = succeeded(asr("imagescan", "--minimize", same, small))
    assert f"  {same}: nothing could be made smaller, so it is as large as {small}\n" in said
    assert same.stat().st_size == small.stat().st_size
    table_is_right(same)
    checked(extracted(same, 1), "ext4")


def test_what_is_left_of_an_older_copy(tmp_path: Path) -> None:
    """Its map says of what is not there any more that it is not whole, its scan and signature are of other bytes."""
    image, small = tmp_path / "fs.img", tmp_path / "small.img"
    filled(image, "ext4", 64 * MIB)
    Path(f"{small}.map").write_text("0 +\n0 0x1000 -\n")
    for suffix in (".bmap", ".bmap.sshsig"):
        Path(f"{small}{suffix}").write_bytes(b"old")
    succeeded(asr("imagescan", "--minimize", small, image))
    assert names(tmp_path) == {"fs.img", "fs.img.bmap", "small.img", "small.img.bmap"}
    target = tmp_path / "target.img"
    with target.open("wb") as file:
        file.truncate(small.stat().st_size)
    assert ", verified" in succeeded(restore(small, target))


# --- Refusals ---


def refused(image: Path, small: Path) -> str:
    """What it says; nothing was written."""
    there = names(image.parent) | names(small.parent)
    message = failed(asr("imagescan", "--minimize", small, image))
    assert names(image.parent) | names(small.parent) == there
    return message


def test_what_cannot_be_made_smaller(tmp_path: Path) -> None:
    small = tmp_path / "small.img"
    vfat = make_filesystem(tmp_path / "vfat.img", "vfat", 4 * MIB, "-n", "KEYS")
    assert refused(vfat, small) == f'{vfat} cannot be minimized: all of it is vfat "KEYS" 4.0 MiB, and {ONLY}'
    swap = tmp_path / "swap.img"
    swap.write_bytes(bytes(4 * MIB))
    run("mkswap", "-L", "more", swap)
    disk = partitioned(tmp_path / "disk.img", make_filesystem(tmp_path / "fs.img", "ext4", 8 * MIB), swap)
    assert (
        refused(disk, small) == f'{disk} cannot be minimized: its last partition is 2 swap "more" 4.0 MiB, and {ONLY}'
    )
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(5 * MIB))
    assert refused(blank, small) == f"{blank} cannot be minimized: all of it is unknown 5.0 MiB, and {ONLY}"
    run("sgdisk", "-o", blank)
    assert refused(blank, small) == f"{blank} cannot be minimized: its partition table has no partitions"
    run("sgdisk", "-n1:0:0", blank)
    assert refused(blank, small).startswith(f"{blank} cannot be minimized: its last partition is 1 unknown 4.0 MiB")


def test_logical_partition(tmp_path: Path) -> None:
    fs = make_filesystem(tmp_path / "fs.img", "ext4", 8 * MIB)
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(20 * MIB))
    run("sfdisk", disk, stdin="label: dos\nstart=2048, size=16M, type=5\nstart=4096, size=8M, type=83\n")
    run("dd", f"if={fs}", f"of={disk}", "bs=1M", "seek=2", "conv=notrunc", "status=none")
    message = refused(disk, tmp_path / "small.img")
    assert message == f"{disk} cannot be minimized: its last partition, 5 ext4 8.0 MiB, is a logical one"


def test_table_that_is_left_alone(tmp_path: Path) -> None:
    fs = make_filesystem(tmp_path / "fs.img", "ext4", 64 * MIB)
    disk = partitioned(tmp_path / "disk.img", fs)
    run("sgdisk", "-h", "1:EE", disk)
    assert refused(disk, tmp_path / "small.img") == "there is a hybrid MBR beside it"
    nothing_left_of(tmp_path)


def test_where_it_would_go(tmp_path: Path) -> None:
    image = make_filesystem(tmp_path / "fs.img", "ext4", 16 * MIB)
    old = tmp_path / "old.img"
    old.write_bytes(b"old")
    assert refused(image, old) == f"{old} exists; --minimize writes a new file"
    assert old.read_bytes() == b"old"
    assert refused(image, image) == f"{image} exists; --minimize writes a new file"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert refused(image, link) == f"{link} exists; --minimize writes a new file"
    report = Remembered()
    with closing(open_image(str(image)).source) as source, pytest.raises(Refused) as caught:
        work = minimize(Image(source, "raw", image), str(image), tmp_path / "no" / "x", ScanSettings(), report)
        asyncio.run(work)
    assert str(caught.value) == f"{tmp_path}/no/x cannot be written: {tmp_path}/no is no directory"
    (tmp_path / "fs.img.map").write_text("0 +\n0 1 -\n")
    message = refused(image, tmp_path / "small.img")
    assert message == f"{image} may not be whole, as {image}.map says, so no other image is made of it"


def test_no_room(tmp_path: Path) -> None:
    image = tmp_path / "fs.img"
    filled(image, "ext4", 64 * MIB)
    with small_filesystem(tmp_path / "small", 12 * MIB) as directory:
        message = refused(image, directory / "x.img")
    start, _, end = message.partition("up to ")
    assert start == f"{directory} has no room for x.img: "
    assert end.endswith(" MiB are needed, and 12.0 MiB are free")


def test_room_that_is_gone_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of the copy."""
    image = tmp_path / "fs.img"
    filled(image, "ext4", 64 * MIB)

    async def no_check(overlay: Path, path: Path) -> None:
        """There was room when it was looked at."""

    monkeypatch.setattr("restore.making.minimize._check_room", no_check)
    with small_filesystem(tmp_path / "small", 6 * MIB) as directory:
        path = directory / "x.img"
        with closing(open_image(str(image)).source) as source, pytest.raises(RestoreError) as caught:
            asyncio.run(minimize(Image(source, "raw", image), str(image), path, ScanSettings(), Remembered()))
        assert str(caught.value).startswith(f"{path} cannot be written: qemu-img: error while writing at byte ")
        assert str(caught.value).endswith(": No space left on device")
        assert names(directory) == set()


def test_interrupted(tmp_path: Path) -> None:
    image = tmp_path / "fs.img"
    filled(image, "ext4", 64 * MIB)
    there = names(tmp_path)

    async def interrupt() -> None:
        report = Remembered()
        with closing(open_image(str(image)).source) as source:
            made = Image(source, "raw", image)
            work = asyncio.create_task(minimize(made, str(image), tmp_path / "small.img", ScanSettings(), report))
            while not report.phases:
                await asyncio.sleep(0.01)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(interrupt())
    assert names(tmp_path) == there
    nothing_left_of(tmp_path)
