"""Prepared images: scanned, signed, looked at, checked; made as small as their contents."""

from __future__ import annotations

from scripts.tour.images import IMAGE, ROOT_SIZE, ROOT_START, SIZE, TREE, inside_kernel
from scripts.tour.stage import MIB, Stage


def prepared(stage: Stage) -> None:
    """Scan, sign, look at, restore onto a larger disk."""
    stage.show("ssh-keygen -q -t ed25519 -N '' -C admin@lab -f key")
    stage.show(f"asr imagescan {IMAGE} --sign key", says="successfully scanned")
    stage.show('echo "admin@lab $(cat key.pub)" > allowed')
    stage.check(
        f"ssh-keygen -Y verify -f allowed -I admin@lab -n bmap -s {IMAGE}.bmap.sshsig < {IMAGE}.bmap", says="Good"
    )
    stage.show(f"asr info {IMAGE} --verify-signature allowed", says="admin@lab")
    disk = stage.disk(160)
    stage.show(
        f"asr restore --source {IMAGE} --target {disk.name} --erase --noprompt --verify-signature allowed",
        says="verified",
    )
    stage.check(f"sgdisk -v {disk.name}", says="No problems found")
    with stage.tree(disk, ROOT_START * MIB, ROOT_SIZE * MIB) as restored:
        stage.check(f"diff -r -x lost+found {TREE} {restored}", "the same files as the image was made of")
    stage.say("another program reads the same scan, though it knows no signatures but PGP's")
    copy = stage.file("copy.img", SIZE)
    stage.check(f"bmaptool copy {IMAGE} {copy.name}", says="copying time")
    stage.check(f"cmp {IMAGE} {copy.name}", "not a byte differs")
    stage.say("an image that was changed after it was signed:")
    stage.show(f"printf xyz | dd of={IMAGE} bs=1 seek={inside_kernel(stage)} conv=notrunc status=none")
    line = f"asr restore --source {IMAGE} --target {disk.name} --erase --noprompt --verify-signature allowed"
    stage.show(line, status=1, says="is older")
    stage.say("and one that was changed by somebody who knows that:")
    stage.show(f"touch {IMAGE}.bmap")
    stage.show(line, status=1, says="source")
    stage.quiet("cp", "--sparse=always", copy, IMAGE)
    for suffix in (".bmap", ".bmap.sshsig"):
        (stage.work / f"{IMAGE}{suffix}").unlink()


def minimized(stage: Stage) -> None:
    """A copy that is shrunk to its contents."""
    small = "lab-small.img"
    stage.show(f"asr imagescan {IMAGE} --minimize {small}", says="successfully scanned")
    stage.show(f"ls -l {IMAGE} {small}")
    stage.check(f"sgdisk -v {small}", says="No problems found")
    disk = stage.disk(90)
    stage.show(f"asr restore --source {small} --target {disk.name} --erase --noprompt --grow", says="verified")
    stage.check(f"sgdisk -v {disk.name}", says="No problems found")
    with stage.tree(disk, ROOT_START * MIB) as restored:
        stage.check(f"diff -r -x lost+found {TREE} {restored}", "the same files, on a disk smaller than the image")
    for path in stage.work.glob("lab*.bmap"):
        path.unlink()
    (stage.work / small).unlink()
