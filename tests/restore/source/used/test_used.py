"""What is told to be in use is all that a file system needs; what cannot be told counts as used, and that is said.

Debian packages: partclone btrfs-progs dosfstools e2fsprogs exfat-fuse exfatprogs f2fs-tools fdisk gdisk mtools ntfs-3g
util-linux xfsprogs.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore import tools
from restore.errors import Refused
from restore.manifest.beside import bmap_path
from restore.source.used import EDGE, UsedBlocks, used_blocks_of
from restore.source.used.facts import Unmapped, facts_of, kind_of
from tests.restore.filesystems import MIB, extracted, in_filesystem, make_filesystem, partitioned
from tests.restore.making.test_capture import captured
from tests.restore.manifest.images import scanned
from tests.restore.source.used.volumes import FILES, KINDS, checked, copy_used, files_of, filled
from tests.serving import run
from tests.support import examples

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def used(notes: list[str]) -> Callable[[Path], UsedBlocks]:
    """The used blocks of an image of which something is known."""

    def find(image: Path) -> UsedBlocks:
        found = used_blocks_of(image, notes.append)
        assert found is not None, notes
        assert sum(extent.length for extent in found) == found.size == image.stat().st_size
        assert all(a.hole != b.hole for a, b in pairwise(found))
        assert sum(extent.length for extent in found if not extent.hole) == found.used
        return found

    return find


@pytest.mark.parametrize("kind", KINDS)
def test_file_system(kind: str, tmp_path: Path, notes: list[str], used: Callable[[Path], UsedBlocks]) -> None:
    image = filled(tmp_path, kind)
    files = files_of(image, kind)
    assert len(files) >= FILES // 2
    found = used(image)
    assert notes == []
    assert found.used < image.stat().st_size * 0.7
    copy = tmp_path / "copy"
    copy_used(image, copy, found)
    checked(copy, kind)
    assert files_of(copy, kind) == files


@pytest.mark.parametrize(
    "options", [("-b", "1024"), ("-b", "4096", "-O", "^64bit,^flex_bg"), ("-O", "meta_bg,^resize_inode")]
)
def test_ext4_of_other_shapes(options: tuple[str, ...], tmp_path: Path, used: Callable[[Path], UsedBlocks]) -> None:
    image = make_filesystem(tmp_path / "image", "ext4", 40 * MIB, *options)
    in_filesystem(image, "ext4", "for i in $(seq 50); do head -c 90000 /dev/urandom > $i; done; rm ?5 ?7")
    copy_used(image, tmp_path / "copy", used(image))
    checked(tmp_path / "copy", "ext4")


def test_btrfs_with_subvolumes_and_compressed_files(tmp_path: Path, used: Callable[[Path], UsedBlocks]) -> None:
    image = make_filesystem(tmp_path / "image", "btrfs")
    script = """
        for i in $(seq 400); do head -c 5000 /dev/urandom > f$i; done
        btrfs -q subvolume create s; yes | head -c 3000000 > s/y; btrfs property set s/y compression zstd
        btrfs -q subvolume snapshot . t; rm f1?; btrfs -q subvolume delete --commit-after s; sync"""
    in_filesystem(image, "btrfs", script)
    copy_used(image, tmp_path / "copy", used(image))
    run("btrfs", "check", "--readonly", "--check-data-csum", tmp_path / "copy")
    assert files_of(tmp_path / "copy", "btrfs") == files_of(image, "btrfs")


# --- Disks ---


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a GPT: ext4, FAT, swap, and something unknown."""
    tmp_path = tmp_path_factory.mktemp("disk")
    swap, unknown = tmp_path / "swap.img", tmp_path / "unknown.img"
    swap.write_bytes(bytes(8 * MIB))
    run("mkswap", swap)
    with swap.open("r+b") as file:
        file.seek(4 * MIB)
        file.write(b"old pages" * 1000)
    unknown.write_bytes(os.urandom(4 * MIB))
    return partitioned(tmp_path / "disk.img", filled(tmp_path, "ext4"), filled(tmp_path, "fat16"), swap, unknown)


def test_disk(disk: Path, tmp_path: Path, notes: list[str], used: Callable[[Path], UsedBlocks]) -> None:
    found = used(disk)
    assert notes == []
    copy = tmp_path / "copy.img"
    copy_used(disk, copy, found)
    assert "No problems found" in run("sgdisk", "-v", copy).out
    for number, kind in ((1, "ext4"), (2, "fat16")):
        volume = extracted(copy, number)
        checked(volume, kind)
        assert files_of(volume, kind) == files_of(extracted(disk, number), kind)
    assert extracted(copy, 3).read_bytes()[:EDGE] == extracted(disk, 3).read_bytes()[:EDGE]
    assert b"old pages" not in extracted(copy, 3).read_bytes()
    assert extracted(copy, 4).read_bytes() == extracted(disk, 4).read_bytes()


def test_scan_and_capture_of_a_disk(disk: Path, tmp_path: Path, used: Callable[[Path], UsedBlocks]) -> None:
    found = used(disk)
    bmap, _ = scanned(disk, found)
    assert found.used <= bmap.mapped < found.used * 1.2
    run("bmaptool", "copy", "--bmap", bmap_path(disk), disk, tmp_path / "copied.img")
    captured(disk, tmp_path / "captured.img", found)
    for image in (tmp_path / "copied.img", tmp_path / "captured.img"):
        for number, kind in ((1, "ext4"), (2, "fat16")):
            volume = extracted(image, number)
            checked(volume, kind)
            assert files_of(volume, kind) == files_of(extracted(disk, number), kind)


def test_logical_partitions(tmp_path: Path, used: Callable[[Path], UsedBlocks]) -> None:
    volume = filled(tmp_path, "ext4")
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(volume.stat().st_size + 16 * MIB)
    outer, inner = (size >> 10 for size in (volume.stat().st_size + 4 * MIB, volume.stat().st_size))
    script = f"label: dos\nstart=1M, size={outer}K, type=5\nstart=2M, size={inner}K\n"
    subprocess.run(["sfdisk", "-q", disk], input=script, text=True, check=True)
    run("dd", f"if={volume}", f"of={disk}", "bs=1M", "seek=2", "conv=notrunc,sparse", "status=none")
    copy_used(disk, tmp_path / "copy.img", used(disk))
    table = run("sfdisk", "--json", disk).out
    assert run("sfdisk", "--json", tmp_path / "copy.img").out == table.replace("disk.img", "copy.img")
    checked(extracted(tmp_path / "copy.img", 2), "ext4")


def test_partitions_that_overlap_are_used(tmp_path: Path, notes: list[str]) -> None:
    disk = partitioned(tmp_path / "disk.img", make_filesystem(tmp_path / "a", "ext4", 32 * MIB), room=4 * MIB)
    run("sgdisk", "-o", disk)
    with disk.open("r+b") as file:  # an MBR, since tools refuse to write that
        record = b"".join(struct.pack("<B3xB3xII", 0, 0x83, start, 65536) for start in (2048, 4096))
        file.seek(446)
        file.write(record + bytes(32) + b"\x55\xaa")
    assert used_blocks_of(disk, notes.append) is None
    assert notes == [f"partition 1 of {disk} (ext4) shares blocks with another partition, so all of it counts as used"]


def test_nothing_known(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "image").write_bytes(os.urandom(3 * MIB))
    assert used_blocks_of(tmp_path / "image", notes.append) is None
    assert notes == []


# --- What is not to be believed ---


def snapshot(tmp_path: Path, kind: str) -> Path:
    """A file system as it is while it is mounted and written to."""
    image, copy = make_filesystem(tmp_path / "image", kind), tmp_path / "copy"
    write = "head -c 300000 /dev/urandom > a; sync; head -c 300000 /dev/urandom > b; sync b"
    in_filesystem(
        image, kind, f"{write}; dd if=/dev/zero of=c bs=64K count=1 conv=fsync status=none; cp {image} {copy}"
    )
    return copy


def patched(tmp_path: Path, kind: str, offset: int, bits: int) -> Path:
    """A file system with more bits in a byte."""
    image = filled(tmp_path, kind)
    with image.open("r+b") as file:
        file.seek(offset)
        (old,) = file.read(1)
        file.seek(offset)
        file.write(bytes([old | bits]))
    return image


def scheduled_for_a_check(tmp_path: Path) -> Path:
    image = filled(tmp_path, "ntfs")
    run("ntfsfix", image)
    return image


DIRTY: dict[str, Callable[[Path], Path]] = {
    "ext4": lambda path: snapshot(path, "ext4"),
    "xfs": lambda path: snapshot(path, "xfs"),
    "btrfs": lambda path: patched(path, "btrfs", (64 << 10) + 96, 1),  # a log tree
    "vfat": lambda path: patched(path, "fat32", 0x41, 1),
    "exfat": lambda path: patched(path, "exfat", 106, 2),
    "ntfs": scheduled_for_a_check,
}


@pytest.mark.parametrize("kind", DIRTY)
def test_not_unmounted_cleanly(kind: str, tmp_path: Path, notes: list[str]) -> None:
    image = DIRTY[kind](tmp_path)
    assert used_blocks_of(image, notes.append) is None
    assert notes == [f"{image} ({kind}) was not unmounted cleanly, so all of it counts as used"]


def test_bigalloc(tmp_path: Path, notes: list[str]) -> None:
    image = make_filesystem(tmp_path / "image", "ext4", 64 * MIB, "-O", "bigalloc")
    assert used_blocks_of(image, notes.append) is None
    assert notes == [f"{image} (ext4) has clusters of several blocks (bigalloc), so all of it counts as used"]


def test_hfsplus(tmp_path: Path, notes: list[str], used: Callable[[Path], UsedBlocks]) -> None:
    """No tool here makes one: this one has a header and an allocation file, which is all that partclone reads."""
    image, blocks, in_use = tmp_path / "image", 4096, [0, 1, 2, 1000, 1001, 2000, 4095]
    bitmap = bytearray(blocks // 8)
    for block in in_use:
        bitmap[block // 8] |= 0x80 >> block % 8
    header = bytearray(512)
    header[:8] = b"H+\0\4" + struct.pack(">I", 1 << 8)
    header[40:52] = struct.pack(">III", 4096, blocks, blocks - len(in_use))
    header[112:136] = struct.pack(">QIIII", len(bitmap), 0, 1, 1, 1)
    data = bytearray(blocks * 4096)
    data[1024:1536] = data[-1024:-512] = header
    data[4096 : 4096 + len(bitmap)] = bitmap
    image.write_bytes(data)
    position = 0
    for extent in used(image):
        wanted = [block for block in in_use if EDGE <= block * 4096 < len(data) - EDGE]
        if not extent.hole and position:
            assert position in (1000 * 4096, 2000 * 4096, len(data) - EDGE), wanted
        position += extent.length
    assert notes == []
    data[1024 + 6] = 0
    image.write_bytes(data)
    assert used_blocks_of(image, notes.append) is None
    assert notes == [f"{image} (hfsplus) was not unmounted cleanly, so all of it counts as used"]


BAD_MAPS = {
    "overlapping": ("0x00000000 0x00400000 +\n0x00300000 0x03D00000 ?\n", "has a map that is not in order"),
    "with a gap": ("0x00000000 0x00400000 +\n0x00500000 0x03B00000 ?\n", "has a map that is not in order"),
    "too long": ("0x00000000 0x00400000 +\n0x00400000 0x03D00000 ?\n", "has a map that is not in order"),
    "too short": ("0x00000000 0x00400000 +\n", f"has a map of {4 * MIB} bytes, but says that it has {64 * MIB}"),
    "empty": ("", f"has a map of 0 bytes, but says that it has {64 * MIB}"),
    "that forgets": (
        "0x00000000 0x00100000 +\n0x00100000 0x03F00000 ?\n",
        f"has {63 * MIB} unused bytes on its map, but counts only UNUSED",
    ),
}


@pytest.mark.parametrize("what", BAD_MAPS)
def test_maps_that_are_not_believed(
    what: str, tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_filesystem(tmp_path / "image", "ext4", 64 * MIB)
    lines, said = BAD_MAPS[what]
    liar = tmp_path / "partclone.extfs"
    liar.write_text(
        f"#!/bin/sh\nprintf '{lines}'\n".replace("\\", "\\\\").replace("+\n0", "+\\n0").replace("?\n'", "?\\n'")
    )
    liar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with image.open("rb") as file:
        head = file.read(4096)
    unused = struct.unpack_from("<I", head, 1024 + 12)[0] * (1024 << head[1024 + 24])
    assert used_blocks_of(image, notes.append) is None
    assert notes == [f"{image} (ext4) {said.replace('UNUSED', str(unused))}, so all of it counts as used"]


def test_partclone_fails(tmp_path: Path, notes: list[str]) -> None:
    image = make_filesystem(tmp_path / "image", "ext4", 64 * MIB)
    with image.open("r+b") as file:
        file.seek(2048)  # the group descriptors
        file.write(b"\xff" * 4096)
    assert used_blocks_of(image, notes.append) is None
    (note,) = notes
    assert note.startswith(f"{image} (ext4) has no map: partclone.extfs: ")
    assert note.endswith(", so all of it counts as used")


def test_partclone_is_missing(tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    disk = partitioned(
        tmp_path / "disk.img",
        make_filesystem(tmp_path / "a", "ext4", 16 * MIB),
        make_filesystem(tmp_path / "b", "ext2", 16 * MIB),
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_PATH", ())
    assert used_blocks_of(disk, notes.append) is None
    assert notes == [
        f"partclone.extfs is needed and not installed; apt install partclone; as it is, all of partition 1 of {disk} "
        f"(ext4), partition 2 of {disk} (ext2) counts as used"
    ]


def test_without_privilege(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        Path(directory).chmod(0o755)
        image = make_filesystem(Path(directory) / "image", "ext4", 16 * MIB)
        code = f"""
import os
from restore.source.used import used_blocks_of
os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
print(used_blocks_of({str(image)!r}, print))"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (
        f"{image}: only root can find out which blocks its file systems use, so all of it counts as used\nNone\n",
        "",
    )


def test_refusals(tmp_path: Path, notes: list[str]) -> None:
    with pytest.raises(Refused, match="nothing does not exist"):
        used_blocks_of(tmp_path / "nothing", notes.append)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[bytes, int]]]:
    """The first blocks of each kind, and its size."""
    directory = tmp_path_factory.mktemp("heads")
    found = {}
    for kind, options in (("ext4", ()), ("xfs", ()), ("btrfs", ()), ("ntfs", ()), ("vfat", ())):
        image = make_filesystem(directory / kind, kind, None, *options)
        with image.open("rb") as file:
            found[kind] = (file.read(128 << 10), image.stat().st_size)
    for command in (("mkfs.exfat",), ("mkfs.f2fs", "-q")):
        image = directory / command[0]
        with image.open("wb") as file:
            file.truncate(64 * MIB)
        run(*command, image)
        with image.open("rb") as file:
            found[command[0]] = (file.read(4 << 20), 64 * MIB)
    yield found


@examples(150)
@given(data=st.data())
def test_whatever_a_superblock_says(data: st.DataObject, heads: dict[str, tuple[bytes, int]]) -> None:
    head, size = heads[data.draw(st.sampled_from(sorted(heads)))]
    broken = bytearray(head)
    where = st.one_of(
        st.integers(0, 600), st.integers(1024, 2048), st.integers(65536, 65536 + 256), st.integers(0, len(head) - 9)
    )
    for _ in range(data.draw(st.integers(0, 4))):
        at, value = data.draw(where), data.draw(st.binary(min_size=1, max_size=8))
        broken[at : at + len(value)] = value

    def read(offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > size:
            raise OSError(5, "beyond the end")
        return bytes(broken[offset : offset + length]).ljust(length, b"\0")

    try:
        facts = facts_of(kind_of(read, size), read, size)
    except (Unmapped, OSError):
        return
    assert 0 < facts.size <= size
    assert facts.unused is None or 0 <= facts.unused <= facts.size
