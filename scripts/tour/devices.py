"""Disks and volumes of this machine: sources of which only used blocks are copied, and mount points."""

from __future__ import annotations

from scripts.tour.images import IMAGE, ROOT_SIZE, ROOT_START, SIZE, TREE
from scripts.tour.stage import MIB, Stage, loop


def devices(stage: Stage) -> None:
    """A disk, a mounted volume; a volume's mount point as the target."""
    stage.need("partclone.ext4")
    used = stage.file("used.img", SIZE)
    stage.quiet("cp", "--sparse=always", IMAGE, used)
    stage.say("the root partition of a disk is mounted; 20 MiB of its files are deleted, so that blocks are unused")
    where = (f"--offset={ROOT_START * MIB}", f"--sizelimit={ROOT_SIZE * MIB}")
    with loop(used, *where) as root, stage.mounted(root, "mnt"):
        stage.show("head -c 20M /dev/urandom > mnt/deleted && sync && rm mnt/deleted")
        volume = stage.disk(90)
        stage.say("the volume is unmounted for as long as the copy takes")
        stage.show(f"asr restore --source mnt --target {volume.name} --erase --noprompt", says="verified")
        stage.check("findmnt --noheadings mnt", says="rw")
    stage.check(f"e2fsck -fn {volume.name}", says="files")
    with stage.tree(volume) as restored:
        stage.check(f"diff -r -x lost+found {TREE} {restored}", "the same files")
    stage.say("the whole disk: what is used of it, and then all of it")
    disk = stage.attach(used)
    for options in ("", " --all-blocks"):
        copy = stage.disk(SIZE)
        line = f"asr restore --source {disk.name} --target {copy.name} --erase --noprompt{options}"
        stage.show(line, says="verified", last=None if not options else 1)
        stage.check(f"sgdisk -v {copy.name}", says="No problems found")
        if options:
            stage.check(f"cmp {disk.name} {copy.name}", "not a byte differs")
            continue
        with stage.tree(copy, ROOT_START * MIB, ROOT_SIZE * MIB) as restored:
            stage.check(f"diff -r -x lost+found {TREE} {restored}", "the same files")
    stage.say("a mount point as the target: its device is unmounted for that, and mounted again")
    target = stage.disk(90)
    stage.quiet("mkfs.ext4", "-q", "-F", target.name)
    with stage.mounted(target.name, "data"):
        stage.show("asr restore --source root.img --target data --erase --noprompt", says="Remounting target volume")
        stage.check(f"diff -r -x lost+found {TREE} data", "the same files, where the volume is mounted again")
