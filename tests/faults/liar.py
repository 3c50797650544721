"""`targetmode serve` over a disk that lies: `python -m tests.faults.liar JSON serve …`.

The JSON has `start` and `end`, the bytes about which it lies; `how`: `drop` a write, or `flip` a byte of it, and say
that it was done; `zeroes`: whether also about WRITE_ZEROES; `times`: how often at most for each offset, null for
always; and `counts`, a directory for what it has to remember, since each connection has a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nbd import responder
from nbd.backend import FileBackend
from nbd.responder import Responder

LIES: dict[str, Any] = json.loads(sys.argv[1]) if __name__ == "__main__" else {}


def lies_about(offset: int, length: int) -> bool:
    """Whether to lie about a write, which is then counted."""
    if offset + length <= LIES["start"] or LIES["end"] <= offset:
        return False
    if LIES["times"] is None:
        return True
    with (Path(LIES["counts"]) / str(offset)).open("a+b") as file:
        told = os.fstat(file.fileno()).st_size
        if told >= LIES["times"]:
            return False
        file.write(b"x")
        return True


def spoil(backend: FileBackend, offset: int, length: int) -> None:
    """Change a byte of what was just written, near the middle."""
    at = max(LIES["start"], offset + length // 2)
    byte = os.pread(backend.fd, 1, backend.start + at)
    os.pwrite(backend.fd, bytes([byte[0] ^ 0x10]), backend.start + at)


def main() -> int:
    honest_write, honest_bulk, honest_zero = FileBackend.write, Responder._write_bulk, FileBackend.zero
    inside = [False]  # a request for zeroes or bulk data may come down to writes, which are not judged again

    def write(self: FileBackend, data: Any, offset: int, *, fua: bool = False) -> None:
        length = memoryview(data).nbytes
        lie = not inside[0] and lies_about(offset, length)
        if not lie or LIES["how"] == "flip":
            honest_write(self, data, offset, fua=fua)
        if lie and LIES["how"] == "flip":
            spoil(self, offset, length)

    def zero(self: FileBackend, offset: int, length: int, **options: Any) -> None:
        lie = LIES["zeroes"] and lies_about(offset, length)
        if not lie or LIES["how"] == "flip":
            inside[0] = True
            honest_zero(self, offset, length, **options)
            inside[0] = False
        if lie and LIES["how"] == "flip":
            spoil(self, offset, length)

    def write_bulk(self: Responder, offset: int, length: int, flags: int) -> OSError | None:
        lie = lies_about(offset, length)
        if lie and LIES["how"] == "drop":
            self._drain(length)
            return None
        inside[0] = True
        failure = honest_bulk(self, offset, length, flags)
        inside[0] = False
        if lie:
            spoil(self._backend, offset, length)
        return failure

    # Small writes do without the backend as long as they succeed.
    responder.os = SimpleNamespace(**{**vars(os), "pwrite": lambda *_: -1})  # type: ignore[assignment,attr-defined]
    FileBackend.write = write  # type: ignore[method-assign]
    FileBackend.zero = zero  # type: ignore[method-assign]
    Responder._write_bulk = write_bulk  # type: ignore[method-assign]

    from targetmode.cli import main as targetmode

    return targetmode(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
