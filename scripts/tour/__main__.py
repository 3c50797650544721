"""The stops of `scripts/demo --tour` in their order."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Final, NoReturn

from scripts.tour import again, bad, devices, files, formats, machines, prepared, refusals, sizes, urls
from scripts.tour.images import ESP_SIZE, IMAGE, ROOT_SIZE, SIZE, make_system, make_tree
from scripts.tour.stage import LeftOut, Stage, Stop, TourError

_LOOP: Final = "for loop devices"
_MOUNT: Final = "to mount"
_NEEDED: Final = ("mkfs.ext4", "mkfs.vfat", "mmd", "sgdisk", "debugfs", "losetup")

STOPS: Final = (
    Stop("prepared", "a prepared image, signed, onto a larger disk", prepared.prepared),
    Stop("compressed", "compressed images: gzip, bzip2, xz, zstd, lz4", formats.compressed),
    Stop("dmg", "images for a Mac: .dmg", formats.dmg),
    Stop("virtual", "disks of virtual machines: qcow2, vmdk, vhdx, vdi, vhd", formats.virtual),
    Stop("partclone", "a partclone image onto a partition", formats.partclone),
    Stop("clonezilla", "a directory of Clonezilla's onto a disk", formats.clonezilla),
    Stop("devices", "disks, mounted volumes and mount points of this machine", devices.devices, _LOOP),
    Stop("cloned", "two machines in target mode, cloned from a third", machines.cloned),
    Stop("web", "a web server: http and https", urls.reachable(urls.web)),
    Stop("sftp", "a file server: sftp", urls.reachable(urls.sftp)),
    Stop("smb", "a file server: smb", urls.reachable(urls.smb), "for smbd, which changes users"),
    Stop("s3", "an object store: s3", urls.reachable(urls.s3)),
    Stop("files", "a file copy, where everything else stays", files.files, _MOUNT),
    Stop("sizes", "targets that are smaller", sizes.sizes, _LOOP),
    Stop("after", "a system of its own: --grow --new-ids --hostname", sizes.after, _MOUNT),
    Stop("delta", "only what differs; and going on after a cut", again.delta),
    Stop("several", "three targets at once, one of which fails", machines.several),
    Stop("captured", "the other way: a machine's disk becomes an image", machines.captured),
    Stop("bad", "a disk with bad sectors", bad.bad),
    Stop("minimized", "an image made as small as its contents", prepared.minimized, _LOOP),
    Stop("refusals", "what is refused, before anything is touched", refusals.refusals),
    Stop("spellings", "as it was typed for Mac OS X; lines for other programs", refusals.spellings),
)


def main() -> int:
    """The program; its exit status."""
    options = _arguments()
    chosen = [stop for stop in STOPS if not options.stops or stop.name in options.stops]
    signal.signal(signal.SIGTERM, _interrupted)
    started = time.monotonic()
    left_out: list[str] = []
    status = 1
    with ExitStack() as stack:
        stage = Stage(stack)
        where = "the beginning"
        try:
            stage.stack.close()
            _prepare(stage)
            for number, stop in enumerate(chosen, 1):
                where = f"stop {number} ({stop.name})"
                print(f"\n==> {number}. {stop.title}", flush=True)
                reason = _make(stop, stage)
                if reason:
                    stage.say(f"left out: {reason}")
                    left_out.append(f"{stop.name}: {reason}")
            status = 0
        except (TourError, LeftOut, AssertionError, OSError, subprocess.SubprocessError) as error:
            print(f"\n==> FAILED at {where}: {error}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print(f"\n==> interrupted at {where}", file=sys.stderr, flush=True)
            status = 130
        behind = stage.left_behind()
        stage.kill_what_is_left()
        for line in behind:
            print(f"==> LEFT BEHIND: {line}", file=sys.stderr, flush=True)
        status = status or (1 if behind else 0)
        for line in left_out:
            print(f"==> left out: {line}", flush=True)
        if status == 0:
            done, seconds = len(chosen) - len(left_out), time.monotonic() - started
            print(f"\n==> OK: {done} stops, {stage.lines} command lines, {seconds:.0f} s; nothing is left behind")
    return status


def _make(stop: Stop, stage: Stage) -> str:
    """Make a stop; why it was left out, or nothing."""
    if stop.root and not stage.root:
        return f"it needs root {stop.root}"
    with ExitStack() as stage.stack:
        try:
            stop.make(stage)
        except LeftOut as reason:
            return str(reason)
    return ""


def _prepare(stage: Stage) -> None:
    what = "loop devices" if stage.root else "files, since only root has loop devices"
    print(f"==> the tour takes place in {stage.work}; its disks are {what}")
    missing = [name for name in _NEEDED if not shutil.which(name)]
    if missing:
        raise LeftOut(f"the tour cannot do without {', '.join(missing)}")
    make_tree(stage)
    make_system(stage)
    print(
        f"==> {IMAGE}, {SIZE} MiB: a GPT disk with an EFI system partition of {ESP_SIZE} MiB and a small system of "
        f"{ROOT_SIZE} MiB on ext4, which is in root.img too"
    )


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo --tour", description="One restore of every kind.")
    names = [stop.name for stop in STOPS]
    parser.add_argument("stops", nargs="*", metavar="STOP", help=f"only these: {', '.join(names)}")
    options = parser.parse_args()
    unknown = [name for name in options.stops if name not in names]
    if unknown:
        parser.error(f"there is no stop {unknown[0]!r}; there are {', '.join(names)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
