"""Image directories as Clonezilla makes them, by the same commands, of disks that are files (Clonezilla 3.2 and 5.x).

Debian packages: partclone fdisk gdisk parted dosfstools mtools e2fsprogs util-linux gzip zstd xz-utils bzip2 lz4.
"""

from __future__ import annotations

import json
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.serving import run

MIB: Final = 1 << 20
SWAP_UUID: Final = "0f9d2c4e-5a1b-4c3d-8e7f-102030405060"
SUFFIX: Final = {"gzip": "gz", "bzip2": "bz2", "xz": "xz", "zstd": "zst", "lz4": "lz4", "cat": "uncomp"}

GUID: Final = "2A6C5F3E-{:04}-4222-8333-444455556666"
GPT: Final = f"""label: gpt
label-id: {GUID.format(0)}
start=2048, size=20480, uuid={GUID.format(1)}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI, start= 1"
start=22528, size=49152, uuid={GUID.format(2)}, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="root"
start=71680, size=16384, uuid={GUID.format(3)}, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name="swap"
start=88064, size=8192, uuid={GUID.format(4)}, type=21686148-6449-6E6F-744E-656564454649, name="bios"
"""
GPT_KINDS: Final = {1: "vfat", 2: "ext4", 3: "swap", 4: "dd"}

MBR: Final = """label: dos
label-id: 0x6f9d7a80
start=2048, size=20480, type=c, bootable
start=22528, size=102400, type=5
start=126976, size=2048, type=da
start=24576, size=40960, type=83
start=67584, size=16384, type=82
start=86016, size=38912, type=83
"""
MBR_KINDS: Final = {1: "vfat", 3: "dd", 5: "ext4", 6: "swap", 7: "ext4"}
SIZE: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of a disk image: where it is, in bytes, and what is in it."""

    number: int
    kind: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A disk image, and the directory that was made of it."""

    disk: Path
    directory: Path
    partitions: tuple[Partition, ...]

    def read(self, number: int) -> bytes:
        """All bytes of a partition."""
        return read_partition(self.disk, self.partition(number))

    def partition(self, number: int) -> Partition:
        """A partition by its number."""
        return next(found for found in self.partitions if found.number == number)


def read_partition(disk: Path, partition: Partition) -> bytes:
    """All bytes of a partition of a disk image."""
    with disk.open("rb") as file:
        file.seek(partition.start)
        return file.read(partition.length)


def make_disk(path: Path, script: str, kinds: dict[int, str], junk: bytes = b"") -> tuple[Partition, ...]:
    """A disk with partitions and what belongs into them; `junk` lies between the MBR and the first partition."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    run("sfdisk", "--quiet", path, stdin=script)
    table = json.loads(run("sfdisk", "--json", path).out)["partitiontable"]["partitions"]
    partitions = []
    for row in table:
        number = int(row["node"].removeprefix(str(path)))
        if number in kinds:
            partitions.append(Partition(number, kinds[number], row["start"] * 512, row["size"] * 512))
    with path.open("r+b") as file:
        code = random.Random(5).randbytes(440)
        file.write(code)
        file.seek(512)
        file.write(junk)
    for partition in partitions:
        part = path.with_suffix(f".{partition.number}")
        with part.open("wb") as file:
            file.truncate(partition.length)
        _fill(part, partition)
        run("dd", f"if={part}", f"of={path}", "bs=64K", f"seek={partition.start}", "oflag=seek_bytes", "conv=notrunc")
        part.unlink()
    return tuple(partitions)


def _fill(part: Path, partition: Partition) -> None:
    tree = part.parent / "tree"
    if not tree.exists():
        (tree / "sub").mkdir(parents=True)
        (tree / "sub" / "random").write_bytes(random.Random(1).randbytes(3 * MIB + 17))
        (tree / "text").write_text("Clonezilla\n" * 20_000)
        (tree / "link").symlink_to("text")
    match partition.kind:
        case "ext4":
            run("mkfs.ext4", "-q", "-F", "-d", tree, part)
        case "vfat":
            run("mkfs.vfat", part)
            run("mcopy", "-s", "-i", part, tree / "sub", tree / "text", "::/")
        case "swap":
            run("mkswap", "--quiet", "-U", SWAP_UUID, "-L", "swap-label", part)
        case "dd":
            part.write_bytes(random.Random(2).randbytes(partition.length))


def save_disk(
    disk: Path,
    partitions: tuple[Partition, ...],
    directory: Path,
    *,
    name: str = "sda",
    compress: str = "gzip",
    split: int | None = None,
    options: tuple[str, ...] = ("-z", "10485760"),
) -> Saved:
    """What `ocs-sr savedisk` does with a disk (task_savedisk in ocs-functions)."""
    directory.mkdir(exist_ok=True)
    separator = "p" if name[-1].isdigit() else ""

    def renamed(*command: str | Path) -> str:
        text = run(*command).out
        return (
            text.replace(f"{disk}p", f"/dev/{name}{separator}")
            .replace(str(disk), f"/dev/{name}{separator}")
            .replace(f"/dev/{name}{separator}:", f"/dev/{name}:")
        )

    def dd(file: str, *options: str) -> None:
        run("dd", f"if={disk}", f"of={directory / file}", "bs=512", *options)

    parts = [f"{name}{separator}{found.number}" for found in partitions if found.kind != "swap"]
    (directory / "parts").write_text(" ".join(parts) + "\n")
    (directory / "disk").write_text(f"{name}\n")
    (directory / f"{name}-pt.sf").write_text(renamed("sfdisk", "-d", disk))
    parted = renamed("parted", "-s", disk, "unit", "s", "print")
    (directory / f"{name}-pt.parted").write_text(parted)
    sectors = SIZE // 512
    assert f"Disk /dev/{name}: {sectors}s" in parted
    if "label: gpt" in (directory / f"{name}-pt.sf").read_text():
        dd(f"{name}-gpt-1st", "count=34")
        dd(f"{name}-gpt-2nd", f"skip={sectors - 33 + 1}", "count=33")
        run("sgdisk", "-b", directory / f"{name}-gpt.gdisk", disk)
        (directory / f"{name}-gpt.sgdisk").write_text(renamed("sgdisk", "-p", disk))
    else:
        first = min(found.start for found in partitions) // 512
        dd(f"{name}-hidden-data-after-mbr", "skip=1", f"count={first - 1}")
    dd(f"{name}-mbr", "count=1")
    table = json.loads(run("sfdisk", "--json", disk).out)["partitiontable"]["partitions"]
    for row in table:
        if row["type"] == "5":
            dd(f"{name}{separator}{row['node'].removeprefix(str(disk))}-ebr", f"skip={row['start']}", "count=1")
    for partition in partitions:
        save_partition(disk, partition, directory, f"{name}{separator}{partition.number}", compress, split, options)
    return Saved(disk, directory, partitions)


def save_partition(
    disk: Path,
    partition: Partition,
    directory: Path,
    name: str,
    compress: str,
    split: int | None,
    options: tuple[str, ...],
) -> None:
    """What `image_save` does with a partition."""
    part = directory / "part"
    part.write_bytes(read_partition(disk, partition))
    try:
        if partition.kind == "swap":
            found = run("blkid", "-c", "/dev/null", "-o", "export", part).out.splitlines()
            told = dict(line.split("=", 1) for line in found)
            (directory / f"swappt-{name}.info").write_text(f'UUID="{told["UUID"]}"\nLABEL="{told["LABEL"]}"\n')
            return
        target = f"{directory}/{name}.{partition.kind}-ptcl-img.{SUFFIX[compress]}"
        clone = ["partclone.dd" if partition.kind == "dd" else f"partclone.{partition.kind}"]
        clone += ["-z", "10485760"] if partition.kind == "dd" else [*options, "-c"]
        clone += ["-q", "-L", f"{directory}/log", "-s", str(part), "--output", "-"]
        pack = ["cat"] if compress == "cat" else [compress, "-c"]
        out = f"split -a 2 -b {split} - {target}." if split else f"cat > {target}"
        command = f"{' '.join(clone)} 2>{directory}/err | {' '.join(pack)} | {out}"
        subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)
    finally:
        part.unlink()
