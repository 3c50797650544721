"""Disks of machines in target mode: cloned, verified, captured; several of them at once."""

from __future__ import annotations

import shutil

from scripts.tour.images import IMAGE, SIZE
from scripts.tour.stage import Stage


def cloned(stage: Stage) -> None:
    """One machine's disk onto another's, from a third."""
    stage.say("127.0.0.x are the machines here; the one at the keyboard is a third")
    source, target = stage.file("first.img", SIZE), stage.disk(SIZE)
    shutil.copyfile(stage.work / IMAGE, source)
    first = stage.attach(source)
    with stage.serving(first, "--read-only") as one, stage.serving(target, brief=True) as other:
        stage.show(f"asr restore --source {one} --target {other} --erase --noprompt", says="verified")
        stage.show(f"asr verify --source {one} --target {other}", says="every block is the same")
        if shutil.which("nbdinfo"):
            stage.check(f"nbdinfo --content {other}", says="content:")
        stage.say("one byte of it changes; asr verify is worth something if it finds that")
        stage.quiet("bash", "-c", f"printf x | dd of={target.path} bs=1 seek=31M conv=notrunc status=none")
        stage.show(f"asr verify --source {IMAGE} --target {other}", status=3, says="MiB 31")
        stage.show(f"asr restore --source {IMAGE} --target {other} --erase --noprompt --delta", last=1)
    stage.check(f"cmp {IMAGE} {target.name}", "not a byte differs")


def several(stage: Stage) -> None:
    """One image onto three machines at once, one of which fails."""
    stage.need("nbdkit")
    first, second = stage.disk(SIZE), stage.disk(SIZE)
    stage.say("two machines in target mode; the third is a disk whose writes fail")
    bad = "bad.sock"
    line = (
        f"nbdkit --unix {bad} --pidfile bad.pid --filter=error memory {SIZE}M "
        "error-pwrite=EIO error-pwrite-rate=100% error-pwrite-file=failing"
    )
    (stage.work / "failing").touch()
    stage.daemon("bad.pid", "failing", bad)
    stage.show(line)
    with stage.serving(first, brief=True) as one, stage.serving(second, brief=True) as other:
        stage.show(
            f"asr restore --source {IMAGE} --erase --noprompt "
            f"--target {one} --target nbd+unix:///?socket={bad} --target {other}",
            status=1,
            says=("2 of 3 targets done", "exit status 1"),
        )
    for disk in (first, second):
        stage.check(f"cmp {IMAGE} {disk.name}", "not a byte differs")


def captured(stage: Stage) -> None:
    """Another machine's disk becomes a prepared image."""
    stage.need("zstd")
    source = stage.file("first.img", SIZE)
    shutil.copyfile(stage.work / IMAGE, source)
    image = "captured.img.zst"
    with stage.serving(stage.attach(source), "--read-only", brief=True) as machine:
        stage.show(f"asr capture --source {machine} --target {image} --compress zstd")
    stage.check(f"zstd -dc {image} | cmp - {IMAGE}", "not a byte differs")
    stage.show(f"asr info {image}", says="Mapped")
    disk = stage.disk(SIZE)
    stage.show(f"asr restore --source {image} --target {disk.name} --erase --noprompt", says="verified")
    stage.check(f"cmp {IMAGE} {disk.name}", "not a byte differs")
    for path in stage.work.glob("captured*"):
        path.unlink()
