"""What is refused, before anything is touched; and what other programs read."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.tour.images import IMAGE, SIZE
from scripts.tour.stage import Stage


def refusals(stage: Stage) -> None:
    """The running system's disk; wrong usage; what is no image."""
    disk = stage.disk(SIZE)
    places = ["/"]
    system = subprocess.run(["findmnt", "-no", "SOURCE", "/"], capture_output=True, text=True).stdout.strip()
    if stage.root and Path(system).is_block_device():
        places.append(system)
    for place in places:
        stage.show(f"asr restore --source {IMAGE} --target {place} --erase --noprompt", status=1)
        stage.show(f"asr restore --source {place} --target {disk.name} --erase --noprompt", status=1)
    stage.show(
        f"asr restore --source nowhere.img --target {disk.name} --erase --noprompt", status=1, says="nowhere.img"
    )
    stage.show(f"asr restore --source {IMAGE} --target {disk.name} --erase < /dev/null", status=1, says="--noprompt")
    stage.show(f"head -c 3000000 {IMAGE} > cut.img && printf QFI\\\\xfb | dd of=cut.img conv=notrunc status=none")
    stage.show(f"asr restore --source cut.img --target {disk.name} --erase --noprompt", status=1)
    (stage.work / "cut.img").unlink()
    stage.show(f"asr restore --target {disk.name}", status=2, says="--source")
    stage.show(f"asr restore --source {IMAGE} --target {disk.name} --erase --toSnapshot x", status=2, says="APFS")
    stage.show(f"asr server --source {IMAGE} --address 10.0.0.1", status=2, says="multicast address")


def spellings(stage: Stage) -> None:
    """As it was typed for Mac OS X, and for programs that look on."""
    disk = stage.disk(SIZE)
    stage.show(f"asr -source {IMAGE} -target {disk.name} -erase -noprompt", says="verified")
    stage.check(f"cmp {IMAGE} {disk.name}", "not a byte differs")
    line = f"asr restore --source {IMAGE} --target {disk.name} --erase --noprompt"
    stage.show(f"{line} --puppetstrings", says="DONE\t", most=8)
    stage.show(f"{line} --json", says='"event": "done"', most=8)
