"""Targets that are smaller or larger, and what is done to a system after its blocks are there."""

from __future__ import annotations

from scripts.tour.images import ESP_ID, IMAGE, ROOT_ID, ROOT_START, TREE
from scripts.tour.stage import MIB, Stage


def sizes(stage: Stage) -> None:
    """A volume onto a smaller one; a disk that is too small."""
    stage.show("ls -l root.img")
    small = stage.disk(66)
    stage.say(f"{small.name} has 66 MiB, which is enough for the contents of root.img")
    stage.show(f"asr restore --source root.img --target {small.name} --erase --noprompt", says="verified")
    stage.check(f"e2fsck -fn {small.name}", says="files")
    with stage.tree(small) as restored:
        stage.check(f"diff -r -x lost+found {TREE} {restored}", "the same files")
    stage.say("20 MiB are not")
    tiny = stage.disk(20)
    stage.show(f"asr restore --source root.img --target {tiny.name} --erase --noprompt", status=1)
    stage.say("a disk's partitions stay as they are, so this is refused before anything is written")
    disk = stage.disk(80)
    stage.quiet("cp", disk.path, "before.img")
    stage.show(f"asr restore --source {IMAGE} --target {disk.name} --erase --noprompt", status=1, says="root")
    stage.check(f"cmp before.img {disk.name}", "nothing was touched")
    (stage.work / "before.img").unlink()


def after(stage: Stage) -> None:
    """A system of its own on every disk."""
    disk = stage.disk(200)
    stage.show(
        f"asr restore --source {IMAGE} --target {disk.name} --erase --noprompt --grow --new-ids --hostname lab-07",
        says=("/etc/hostname is lab-07", "verified"),
    )
    stage.check(f"sgdisk -v {disk.name}", says="No problems found")
    root = stage.attach(disk.path, f"--offset={ROOT_START * MIB}")
    stage.check(f"blkid -p -o value -s UUID {root.name} | grep -v {ROOT_ID}", says="-")
    with stage.tree(disk, ROOT_START * MIB) as restored:
        stage.show(f"cat {restored}/etc/hostname {restored}/etc/fstab; df -h --output=size {restored}", says="lab-07")
        stage.check(f"! grep -re {ROOT_ID} -e {ESP_ID} {restored}/etc {restored}/boot", "no old identifier is left")
        stage.check(f"diff -r -x lost+found -x var {TREE}/usr {restored}/usr", "the same files")
