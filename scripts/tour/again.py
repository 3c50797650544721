"""What is there already is not sent again."""

from __future__ import annotations

from scripts.tour.images import IMAGE, SIZE
from scripts.tour.stage import MIB, Stage


def delta(stage: Stage) -> None:
    """A machine that is nearly right; a restore that is cut."""
    disk = stage.disk(SIZE)
    stage.quiet("dd", f"if={IMAGE}", f"of={disk.path}", "bs=1M", "conv=notrunc", "status=none")
    with disk.path.open("r+b") as file:
        file.seek(40 * MIB)
        file.write(b"a file of somebody's\n" * 5000)
    stage.say("a machine whose disk is what it was restored from, but for one file")
    with stage.serving(disk, brief=True) as machine:
        stage.show(f"asr restore --source {IMAGE} --target {machine} --erase --noprompt --delta", says="there already")
    stage.check(f"cmp {IMAGE} {disk.name}", "not a byte differs")
    other = stage.disk(SIZE)
    line = f"asr restore --source {IMAGE} --target {other.name} --erase --noprompt"
    stage.say("a restore that is killed in the middle, as when the power fails")
    with stage.cut(f"{line} --max-rate 16M", "....30"):
        pass
    stage.check(f"cmp -n {MIB} /dev/zero {other.name}", "its first MiB is empty: it does not look as if it could start")
    stage.say("the same with --delta goes on")
    stage.show(f"{line} --delta", says="there already")
    stage.check(f"cmp {IMAGE} {other.name}", "not a byte differs")
