"""A disk with sectors that cannot be read."""

from __future__ import annotations

from scripts.tour.images import IMAGE, SIZE, inside_kernel
from scripts.tour.stage import MIB, Stage

_SOCKET = "weak.sock"
_LENGTH = 4096  # bytes that cannot be read


def bad(stage: Stage) -> None:
    """A restore of it stops; capture saves what can be read."""
    stage.need("nbdkit", "ddrescuelog")
    at = inside_kernel(stage)
    script = stage.work / "weak.sh"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\nget_size) echo {SIZE * MIB} ;;\n'
        f"pread) if [ $4 -lt {at + _LENGTH} ] && [ $(($4 + $3)) -gt {at} ]; then echo EIO >&2; exit 1; fi\n"
        f"dd if={stage.work / IMAGE} iflag=skip_bytes,count_bytes skip=$4 count=$3 bs=1M status=none ;;\n"
        "*) exit 2 ;;\nesac\n"
    )
    script.chmod(0o755)
    first, last = at // 512, (at + _LENGTH) // 512 - 1
    stage.say(f"an nbdkit exports a disk whose sectors {first} to {last} fail; they belong to /boot/vmlinuz")
    stage.daemon("weak.pid", "weak.sh", _SOCKET)
    stage.quiet("nbdkit", "--unix", _SOCKET, "--pidfile", "weak.pid", "sh", script)
    weak = f"nbd+unix:///?socket={_SOCKET}"
    disk = stage.disk(SIZE)
    stage.show(f"asr restore --source {weak} --target {disk.name} --erase --noprompt", status=1)
    stage.show(f"asr capture --source {weak} --target weak.img", says="could not be read")
    stage.check("ddrescuelog --show-status weak.img.map", says="bad-sector")
    stage.show(f"asr restore --source weak.img --target {disk.name} --erase --noprompt", status=1, says="--allow-bad")
    stage.show(
        f"asr restore --source weak.img --target {disk.name} --erase --noprompt --allow-bad",
        says=("are zeroes", "verified"),
    )
    stage.check(f"cmp weak.img {disk.name}", "not a byte differs")
    stage.check(
        f"[ $(cmp -l {IMAGE} {disk.name} | wc -l) -le {_LENGTH} ]", "at most those bytes are not what they were"
    )
    for path in stage.work.glob("weak.img*"):
        path.unlink()
