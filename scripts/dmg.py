"""Writes UDIF images (`.dmg`) of raw ones, for tests, the demo and the benchmark: nothing outside macOS does.

As a program: python -m scripts.dmg [--codec CODEC] [--run BYTES] RAW DMG

A disk with a GPT becomes blocks as hdiutil makes them, one for each partition and for what is between them; anything
else is one block. Runs that are zeroes are not stored, alternately as types ZERO and IGNORE.
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import os
import plistlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO, Final

from restore.source.udif.format import (
    CRC32,
    KOLY,
    MISH,
    MISH_SIGNATURE,
    RUN,
    SECTOR,
    RunType,
)
from restore.source.udif.recognise import KOLY_SIGNATURE, KOLY_SIZE

RUN_LENGTH: Final = 512 << 10  # bytes, as hdiutil has it
CODECS: Final[dict[str, tuple[RunType, ...]]] = {
    "raw": (RunType.RAW,),
    "adc": (RunType.ADC,),
    "zlib": (RunType.ZLIB,),
    "bzip2": (RunType.BZIP2,),
    "lzfse": (RunType.LZFSE,),
    "lzma": (RunType.LZMA,),
    "mixed": (RunType.ZLIB, RunType.RAW, RunType.BZIP2, RunType.ADC, RunType.LZFSE, RunType.LZMA),
}
_MOST_LITERAL, _MOST_COPY, _WINDOW = 128, 67, 1 << 16  # of ADC


@dataclass
class Run:
    """A run as its block's table has it; sectors from the block's first, bytes from the data fork's beginning."""

    kind: int
    start: int
    sectors: int
    offset: int = 0
    length: int = 0


@dataclass
class Part:
    """A block: so many sectors of the disk from one on, and its runs.

    Attributes:
        checksum: its type, bits and data.
        head: what else its head is to say than what is right.
    """

    name: str
    first: int
    sectors: int
    runs: list[Run] = field(default_factory=list)
    checksum: tuple[int, int, bytes] = (0, 0, b"")
    head: dict[str, object] = field(default_factory=dict)


def build_dmg(raw: Path, dmg: Path, codec: str = "zlib", *, run: int = RUN_LENGTH, ignore: bool = True) -> list[Part]:
    """Write the UDIF image of a raw one, compressing on all cores; returns what it consists of.

    Args:
        raw: its size is a multiple of 512 bytes.
        dmg: written anew.
        codec: one of `CODECS`.
        run: bytes in a run.
        ignore: every other run of zeroes is of type IGNORE.
    """
    workers = len(os.sched_getaffinity(0))
    parts = [Part(name, first, sectors) for name, first, sectors in _divide(raw)]
    kinds = (kind for _ in count() for kind in CODECS[codec])
    holes = (kind for _ in count() for kind in (RunType.ZERO, RunType.IGNORE if ignore else RunType.ZERO))
    offset, fork_crc = 0, 0
    with raw.open("rb") as file, dmg.open("wb") as out, ThreadPoolExecutor(workers) as pool:
        for part in parts:
            crc = 0
            pieces = _pieces(file, part, run)
            while batch := list(islice(pieces, 4 * workers)):
                chosen = [next(kinds) if any(data) else next(holes) for _, data in batch]
                stored = pool.map(compress, chosen, (data for _, data in batch))
                for kind, (start, data), packed in zip(chosen, batch, stored, strict=True):
                    if len(packed) >= len(data):  # as hdiutil does; nor would 7-Zip read such LZFSE
                        kind, packed = RunType.RAW, data
                    part.runs.append(Run(kind, start, len(data) // SECTOR, offset, len(packed)))
                    crc = crc if kind == RunType.IGNORE else zlib.crc32(data, crc)
                    fork_crc = zlib.crc32(packed, fork_crc)
                    offset += out.write(packed)
            part.checksum = (CRC32, 32, crc.to_bytes(4))
            part.runs.append(Run(RunType.END, part.sectors, 0, offset, 0))
        out.write(tail(parts, offset, fork_crc))
    return parts


def tail(parts: Sequence[Part], fork_length: int, fork_crc: int = 0, **changed: object) -> bytes:
    """Property list and trailer behind a data fork that begins at byte 0; some of the trailer's values changed."""
    listed = plist(parts)
    master = b"".join(data for _, _, data in (part.checksum for part in parts))
    sectors = max((part.first + part.sectors for part in parts), default=0)
    values = {
        "plist_offset": fork_length,
        "plist_length": len(listed),
        "data_length": fork_length,
        "data_checksum": checksum(CRC32, 32, fork_crc.to_bytes(4)) if fork_crc else checksum(0, 0, b""),
        "master_checksum": checksum(CRC32, 32, zlib.crc32(master).to_bytes(4)),
        "sectors": sectors,
    }
    return listed + koly(**(values | changed))


def plist(parts: Sequence[Part]) -> bytes:
    """The property list of an image's blocks."""
    items = [
        {"Attributes": "0x0050", "CFName": part.name, "Data": mish(part), "ID": str(number - 1), "Name": part.name}
        for number, part in enumerate(parts)
    ]
    return plistlib.dumps({"resource-fork": {"blkx": items, "plst": []}}, fmt=plistlib.FMT_XML)


def mish(part: Part) -> bytes:
    """A block, head and runs."""
    values: dict[str, object] = {
        "signature": MISH_SIGNATURE,
        "version": 1,
        "first_sector": part.first,
        "sectors": part.sectors,
        "data_start": 0,
        "buffers_needed": RUN_LENGTH // SECTOR + 8,
        "descriptor": -1,
        "reserved": bytes(24),
        "checksum": checksum(*part.checksum),
        "run_count": len(part.runs),
    }
    table = (
        RUN.build(
            {
                "type": run.kind,
                "comment": 0,
                "start": run.start,
                "sectors": run.sectors,
                "offset": run.offset,
                "length": run.length,
            }
        )
        for run in part.runs
    )
    return bytes(MISH.build(values | part.head)) + b"".join(table)


def koly(**changed: object) -> bytes:
    """The trailer, of nothing but what is given."""
    values: dict[str, object] = {
        "signature": KOLY_SIGNATURE,
        "version": 4,
        "size": KOLY_SIZE,
        "flags": 1,
        "running_data_offset": 0,
        "data_offset": 0,
        "data_length": 0,
        "resource_offset": 0,
        "resource_length": 0,
        "segment_number": 1,
        "segment_count": 1,
        "segment_id": bytes(range(16)),
        "data_checksum": checksum(0, 0, b""),
        "plist_offset": 0,
        "plist_length": 0,
        "reserved": bytes(120),
        "master_checksum": checksum(0, 0, b""),
        "variant": 1,
        "sectors": 0,
        "reserved2": bytes(12),
    }
    return bytes(KOLY.build(values | changed))


def checksum(kind: int, bits: int, data: bytes) -> dict[str, object]:
    """A checksum's values for the definitions."""
    return {"type": kind, "bits": bits, "data": data.ljust(128, b"\0")}


def compress(kind: RunType, data: bytes) -> bytes:
    """What a run is stored as."""
    match kind:
        case RunType.ZERO | RunType.IGNORE:
            return b""
        case RunType.RAW:
            return data
        case RunType.ADC:
            return adc_compress(data)
        case RunType.ZLIB:
            return zlib.compress(data, 6)
        case RunType.BZIP2:
            return bz2.compress(data)
        case RunType.LZMA:
            return lzma.compress(data, preset=3)
        case RunType.LZFSE:
            import lzfse

            return bytes(lzfse.compress(data))
    raise ValueError(f"nothing is stored as {kind!r}")


def adc_compress(data: bytes) -> bytes:
    """Apple Data Compression: the nearest earlier place of the next three bytes is copied from. Slow."""
    out = bytearray()
    seen: dict[bytes, int] = {}
    position = literal = 0
    while position < len(data):
        key = data[position : position + 3]
        earlier = seen.get(key, -1)
        seen[key] = position
        length = _same(data, earlier, position) if earlier >= 0 and position - earlier <= _WINDOW else 0
        distance = position - earlier - 1
        if length < (3 if distance < 1024 else 4):
            position += 1
            continue
        _put_literal(out, data[literal:position])
        if distance < 1024 and length <= 18:
            out += bytes(((length - 3) << 2 | distance >> 8, distance & 0xFF))
        else:
            length = max(length, 4)
            out += bytes((0x40 | (length - 4), distance >> 8, distance & 0xFF))
        position += length
        literal = position
    _put_literal(out, data[literal:])
    return bytes(out)


def _same(data: bytes, earlier: int, position: int) -> int:
    length = 0
    while length < _MOST_COPY and position + length < len(data) and data[earlier + length] == data[position + length]:
        length += 1
    return length


def _put_literal(out: bytearray, data: bytes) -> None:
    for start in range(0, len(data), _MOST_LITERAL):
        piece = data[start : start + _MOST_LITERAL]
        out.append(0x7F + len(piece))
        out += piece


def _pieces(file: BinaryIO, part: Part, run: int) -> Iterator[tuple[int, bytes]]:
    """A part's sectors by runs, with where they begin in it."""
    file.seek(part.first * SECTOR)
    for start in range(0, part.sectors, run // SECTOR):
        yield start, file.read(min(run, (part.sectors - start) * SECTOR))


def _divide(raw: Path) -> Iterator[tuple[str, int, int]]:
    """The parts of a disk: name, first sector, number of sectors."""
    total = raw.stat().st_size // SECTOR
    with raw.open("rb") as file:
        file.seek(SECTOR)
        header = file.read(SECTOR)
        if not header.startswith(b"EFI PART"):
            yield "whole disk (unknown partition : 0)", 0, total
            return
        first_usable, last_usable = struct.unpack_from("<QQ", header, 40)
        table, entries, size = struct.unpack_from("<QII", header, 72)
        file.seek(table * SECTOR)
        partitions = []
        for _ in range(entries):
            entry = file.read(size)
            start, end = struct.unpack_from("<QQ", entry, 32)
            if any(entry[:16]):
                partitions.append((start, end + 1, entry[56:128].decode("utf-16-le").rstrip("\0") or "disk image"))
    yield "Protective Master Boot Record (MBR : 0)", 0, 1
    yield "GPT Header (Primary GPT Header : 1)", 1, 1
    yield "GPT Partition Data (Primary GPT Table : 2)", 2, first_usable - 2
    position, number = first_usable, 3
    for start, end, name in [*sorted(partitions), (last_usable + 1, 0, "")]:
        if start > position:
            yield f" (Apple_Free : {number})", position, start - position
            number += 1
        if end:
            yield f"{name} (Apple_HFS : {number})", start, end - start
            position, number = end, number + 1
    yield f"GPT Partition Data (Backup GPT Table : {number})", last_usable + 1, total - last_usable - 2
    yield f"GPT Header (Backup GPT Header : {number + 1})", total - 1, 1


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dmg", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("dmg", type=Path)
    parser.add_argument("--codec", choices=CODECS, default="zlib")
    parser.add_argument("--run", type=int, default=RUN_LENGTH, metavar="BYTES")
    arguments = parser.parse_args()
    build_dmg(arguments.raw, arguments.dmg, arguments.codec, run=arguments.run)


if __name__ == "__main__":
    main()
