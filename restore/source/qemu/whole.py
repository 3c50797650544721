"""Whether a virtual machine's disk image is all there: qemu takes what lies behind the end of its file for zeroes.

Of vhdx and vhd it looks itself when it opens them; of qcow2 when it is told to check them.
"""

from __future__ import annotations

import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from restore import tools
from restore.errors import Refused
from restore.source import SourceError
from restore.source.qemu.headers import Header
from targetmode.disks.text import printable

_SECTOR: Final = 512
_PIECE: Final = 1 << 20  # bytes of a table read at a time
_VDI_UNUSED: Final = 0xFFFFFFFE  # this and the next: a block that is not in the file
_VMDK_AT_END: Final = (1 << 64) - 1  # in the place of the grain directory: the header is at the end of the file
_VMDK_COMPRESSED: Final = 1 << 16
_LEAKS: Final = 3  # qemu-img check: space that nothing refers to
_NO_CHECK: Final = 63  # it has none for this format


def check_whole(header: Header, image: str, begin: Callable[[Sequence[str]], subprocess.Popen[bytes]]) -> None:
    """See whether all that an image's tables refer to is there.

    Args:
        header: of the image.
        image: it alone, as qemu is to open it.
        begin: begins a program, whose complaints can be read.

    Raises:
        SourceError: something is not, or the tables are damaged.
        Refused: it is in use, or qemu-img is not installed.
        OSError: it cannot be read.
    """
    if header.form == "vmdk" and header.read(0, 4) == b"KDMV":
        _vmdk(header)
    elif header.form == "vdi":
        _vdi(header)
    elif header.form == "qcow2":
        _qcow2(header, image, begin)


def check_lock(name: str, words: str) -> None:
    """See whether qemu complains that an image is in use by a virtual machine, which has locks of a kind of its own.

    Raises:
        Refused: it is.
    """
    if words.startswith("Failed to get ") and words.endswith(" lock"):
        raise Refused(f"{name} is being written by another program; stop that first")


def _need(header: Header, end: int) -> None:
    if end > header.size:
        raise SourceError(f"{header.name} is cut short: it has {header.size} bytes, and has to have at least {end}")


def _highest(header: Header, offset: int, entries: int, unused: int) -> int | None:
    """The highest of a table's entries below `unused`, which are 32 bits wide; None where there is none."""
    _need(header, offset + 4 * entries)
    highest = -1
    for start in range(0, 4 * entries, _PIECE):
        table = array("I", header.bytes(offset + start, min(_PIECE, 4 * entries - start)))
        if sys.byteorder == "big":
            table.byteswap()
        highest = max(highest, max(table) if max(table) < unused else max((e for e in table if e < unused), default=-1))
    return highest if highest >= 0 else None


def _vdi(header: Header) -> None:
    (table, data) = header.unpack("<II", 0x154)
    (block, extra, blocks) = header.unpack("<III", 0x178)
    highest = _highest(header, table, blocks, _VDI_UNUSED)
    if highest is not None:
        _need(header, data + (highest + 1) * (block + extra))


def _vmdk(header: Header) -> None:
    at = 0
    if header.unpack("<Q", 56)[0] == _VMDK_AT_END:
        at = max(header.size - 2 * _SECTOR, 0)
        if header.read(at, 4) != b"KDMV":
            raise SourceError(f"{header.name} is cut short: it has no footer")
    flags, capacity, grain = header.unpack("<IQQ", at + 8)
    (per_table,) = header.unpack("<I", at + 44)
    (directory,) = header.unpack("<Q", at + 56)
    if not (0 < grain <= 1 << 20 and 0 < per_table <= 512):
        raise header.damaged(f"grains of {grain} sectors, {per_table} to a table")
    tables = -(-capacity // (grain * per_table))
    _need(header, directory * _SECTOR + 4 * tables)
    highest = 0
    for start in range(0, 4 * tables, _PIECE):
        piece = header.bytes(directory * _SECTOR + start, min(_PIECE, 4 * tables - start))
        for entry in filter(None, memoryview(piece).cast("I") if sys.byteorder == "little" else array("I", piece)):
            highest = max(highest, _highest(header, entry * _SECTOR, per_table, 1 << 32) or 0)
    if (
        highest > 1 and not flags & _VMDK_COMPRESSED
    ):  # 1 is a grain of zeroes; one that is compressed cannot lack its end
        _need(header, (highest + grain) * _SECTOR)


def _qcow2(header: Header, image: str, begin: Callable[[Sequence[str]], subprocess.Popen[bytes]]) -> None:
    """It reads all tables, and says a line for each mistake; the first is enough."""
    with begin([tools.find("qemu-img"), "check", image]) as process:
        assert process.stderr is not None
        said = ""
        while line := process.stderr.readline(1 << 16):
            text = line.decode("utf-8", "replace").strip()
            if text and not text.startswith(("Leaked cluster", "qemu-img: warning")):
                text = text.removeprefix("qemu-img: ").removeprefix(f"Could not open '{image}': ")
                said = printable(text.removeprefix("ERROR: ").removeprefix("ERROR "))
                process.kill()
                break
    check_lock(header.name, said)
    if said or process.returncode not in (0, _LEAKS, _NO_CHECK):
        raise SourceError(f"{header.name} is damaged: qemu-img check: {said or f'ended with {process.returncode}'}")
