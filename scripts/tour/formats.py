"""Images of every format, each packed by its own program."""

from __future__ import annotations

import shutil

from scripts.dmg import build_dmg
from scripts.tour.images import IMAGE, SIZE, TREE
from scripts.tour.stage import MIB, Stage
from tests.restore.source.clonezilla.images import GPT, GPT_KINDS, make_disk, save_disk

_COMPRESSED = (
    ("gz", "gzip -1 -c"),
    ("bz2", "bzip2 -1 -c"),
    ("xz", "xz -0 -T0 --block-size=4MiB -c"),
    ("zst", "zstd -q -T0 -c"),
    ("lz4", "lz4 -q -c"),
)
_VIRTUAL = (("qcow2", "-c "), ("vmdk", ""), ("vhdx", ""), ("vdi", ""), ("vpc", "-o force_size=on "))


def compressed(stage: Stage) -> None:
    """gzip, bzip2, xz, zstd, lz4."""
    for suffix, program in _COMPRESSED:
        stage.need(program.split()[0])
        packed = f"{IMAGE}.{suffix}"
        stage.show(f"{program} {IMAGE} > {packed}")
        _restored(stage, packed)
        if suffix != "zst":
            (stage.work / packed).unlink()


def dmg(stage: Stage) -> None:
    """Images for a Mac."""
    stage.need("7zz")
    for codec in ("zlib", "lzfse"):
        packed = f"lab-{codec}.dmg"
        stage.say(f"scripts/dmg.py writes {packed}, since nothing else outside macOS does; 7-Zip is the witness")
        build_dmg(stage.work / IMAGE, stage.work / packed, codec)
        stage.check(f"7zz t {packed}", says="Everything is Ok")
        _restored(stage, packed, last=None if codec == "zlib" else 1)
        (stage.work / packed).unlink()


def virtual(stage: Stage) -> None:
    """Disks of virtual machines."""
    stage.need("qemu-img", "qemu-nbd")
    for form, options in _VIRTUAL:
        packed = f"lab.{form}"
        stage.show(f"qemu-img convert -f raw -O {form} {options}{IMAGE} {packed}")
        disk = stage.disk(SIZE)
        stage.show(f"asr restore --source {packed} --target {disk.name} --erase --noprompt", says="verified", last=1)
        stage.check(f"qemu-img compare -f {form} -F raw {packed} {disk.name}", says="Images are identical")
        (stage.work / packed).unlink()


def partclone(stage: Stage) -> None:
    """A volume, saved with partclone, onto a partition."""
    stage.need("partclone.ext4", "zstd")
    stage.show("partclone.ext4 -c -L partclone.log -s root.img -O - | zstd -q > root.ptcl.zst", last=1)
    stage.show("asr info root.ptcl.zst", says="partclone")
    disk = stage.file("partitioned.img", 110)
    stage.quiet("sgdisk", "-n1:1M:+90M", disk)
    partition = stage.attach(disk, f"--offset={MIB}", f"--sizelimit={90 * MIB}") if stage.root else stage.disk(90)
    if stage.root:
        stage.say(f"{partition.name} is the only partition of a disk of 110 MiB")
    stage.show(f"asr restore --source root.ptcl.zst --target {partition.name} --erase --noprompt", says="verified")
    stage.check(f"e2fsck -fn {partition.name}", says="files")
    with stage.tree(partition, MIB if stage.root else 0) as restored:
        stage.check(f"diff -r -x lost+found {TREE} {restored}", "the same files")
    stage.check(f"sgdisk -v {disk.name}", says="No problems found")
    (stage.work / "root.ptcl.zst").unlink()


def clonezilla(stage: Stage) -> None:
    """A directory of a Clonezilla library onto a disk."""
    stage.need("partclone.ext4", "partclone.vfat", "partclone.dd", "parted", "sfdisk")
    stage.say("a disk with four partitions, saved by the commands that Clonezilla runs, into the directory classroom")
    (stage.work / "old").mkdir()
    disk, directory = stage.work / "old/disk.img", stage.work / "classroom"
    partitions = make_disk(disk, GPT, GPT_KINDS)
    save_disk(disk, partitions, directory)
    stage.show("ls classroom")
    stage.show("asr info classroom", says="clonezilla")
    target = stage.disk(80)
    stage.show(f"asr restore --source classroom --target {target.name} --erase --noprompt", says="verified")
    stage.check(f"sgdisk -v {target.name}", says="No problems found")
    for found in partitions:
        line = f"cmp -n {found.length} -i {found.start} old/disk.img {target.name}"
        stage.check(line, f"partition {found.number} ({found.kind}) is the same")
    for path in (disk.parent, directory):
        shutil.rmtree(path)


def _restored(stage: Stage, image: str, last: int | None = 1) -> None:
    disk = stage.disk(SIZE)
    stage.show(f"asr restore --source {image} --target {disk.name} --erase --noprompt", says="verified", last=last)
    stage.check(f"cmp {IMAGE} {disk.name}", "not a byte differs")
