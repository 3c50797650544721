"""The map of used blocks that `partclone.<fs> -D` writes: a ddrescue map, `+` for what is in use (partclone(8))."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Final

from restore import tools
from restore.source.used.facts import DIRTY, EXT, Facts, Unmapped
from restore.source.used.runs import Runs
from targetmode.disks.text import printable

PROGRAMS: Final = {
    **dict.fromkeys(EXT, "partclone.extfs"),
    "xfs": "partclone.xfs",
    "ntfs": "partclone.ntfs",
    "vfat": "partclone.fat",
    "exfat": "partclone.exfat",
    "hfsplus": "partclone.hfsp",
    "f2fs": "partclone.f2fs",
}
_LINE: Final = re.compile(rb"0x([0-9A-F]{1,16}) +0x([0-9A-F]{1,16}) +([+?])")
_LONGEST: Final = 256  # bytes of a line
_PATIENCE: Final = 900.0  # seconds; a file system of many TB takes some minutes


def unused(device: Path, facts: Facts) -> Runs:
    """The runs of a file system that are not in use.

    Args:
        device: that it begins at the start of; it is only read.
        facts: what is known of it.

    Raises:
        Unmapped: the map contradicts that.
        RestoreError: partclone is missing, or fails.
    """
    program = tools.find(PROGRAMS[facts.kind])
    # With -f 0 it does not sleep for two seconds once it is done.
    # partclone.extfs minds when the last check was, too; whether it is clean has been looked at.
    options = ["-D", "-q", "-f", "0", "-L", "/dev/null", *(["-I"] if facts.kind in EXT else [])]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [program, *options, "-s", str(device), "-o", "-"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=tools.environment(),
            start_new_session=True,
        )
        assert process.stdout is not None
        limit = threading.Timer(_PATIENCE, process.kill)
        limit.start()
        try:
            found, end = Runs(), 0
            while line := process.stdout.readline(_LONGEST):
                match = _LINE.fullmatch(line.strip())
                if match is None:
                    continue
                start, length = int(match[1], 16), int(match[2], 16)
                if start != end or not length or start + length > facts.size:
                    raise Unmapped("has a map that is not in order")
                end = start + length
                if match[3] == b"?":
                    found.add(start, end)
            status = process.wait()
        finally:
            limit.cancel()
            process.kill()
            process.stdout.close()
            process.wait()
        errors.seek(0)
        said = errors.read(1 << 16).decode("utf-8", "replace")
    if status and "uncleanly" in said:
        raise Unmapped(DIRTY)
    if status:
        raise Unmapped(f"has no map: {Path(program).name}: {_complaint(said, status)}")
    if end != facts.size:
        raise Unmapped(f"has a map of {end} bytes, but says that it has {facts.size}")
    return found


def _complaint(said: str, status: int) -> str:
    """What partclone said was wrong; its last line only names its log."""
    lines = [line.strip() for line in re.split(r"[\r\n]", said) if line.strip()]
    lines = [line for line in lines if not line.startswith(("Partclone", "Starting to", "Elapsed"))]
    return printable(re.sub(r"^\w+\.c: ", "", lines[-1])) if lines else f"ended with status {status}"
