"""File copy, without --erase: everything else on the target stays."""

from __future__ import annotations

from scripts.tour.images import IMAGE, ROOT_SIZE, ROOT_START, SIZE, TREE
from scripts.tour.stage import MIB, Disk, Stage, loop

_COMPARED = f"rsync -rlnc --out-format=%n --exclude=/lost+found {TREE}/"


def files(stage: Stage) -> None:
    """From an image onto a volume; from a disk onto a partition of another machine's disk."""
    stage.need("rsync")
    volume = stage.disk(120)
    stage.quiet("mkfs.ext4", "-q", "-F", "-L", "data", volume.name)
    with stage.mounted(volume.name, "mnt"):
        _fill(stage)
    stage.say(f"{volume.name} has an older etc/hostname, and home/letter, which the image does not have")
    stage.say("two file systems are in the image: it has to be said which")
    line = f"asr restore --source {IMAGE} --target {volume.name}"
    stage.show(line, status=1, says="--source-partition")
    stage.show(f"{line} --source-partition 2", says="verified")
    stage.check(f"e2fsck -fn {volume.name}", says="files")
    _look(stage, volume, 0, None)
    disk = stage.disk(SIZE + 32)
    stage.quiet("dd", f"if={IMAGE}", f"of={disk.path}", "bs=1M", "conv=notrunc", "status=none")
    where = (f"--offset={ROOT_START * MIB}", f"--sizelimit={ROOT_SIZE * MIB}")
    with loop(disk.path, *where) as root, stage.mounted(root, "mnt"):
        stage.quiet("rm", "-r", "mnt/usr")
        _fill(stage)
    with stage.serving(disk, brief=True) as machine:
        stage.show(f"asr restore --source root.img --target {machine} --target-partition 2", says="verified")
    _look(stage, disk, ROOT_START * MIB, ROOT_SIZE * MIB)


def _fill(stage: Stage) -> None:
    (stage.work / "mnt/home").mkdir()
    (stage.work / "mnt/etc").mkdir(exist_ok=True)
    (stage.work / "mnt/home/letter").write_text("stays\n")
    (stage.work / "mnt/etc/hostname").write_text("before\n")


def _look(stage: Stage, disk: Disk, start: int, length: int | None) -> None:
    with stage.tree(disk, start, length) as there:
        stage.check(f"{_COMPARED} {there}/", "every file of the image is there as it is")
        stage.check(f"cat {there}/home/letter {there}/etc/hostname | tr '\\n' ' '", says="stays master")
