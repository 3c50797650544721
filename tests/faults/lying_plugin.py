"""An nbdkit plugin, in nbdkit's own Python: a file that lies as `liar.py` says; parameters `file` and `lies`.

It can also `misread`: of the reads of the byte at `start` the first `after` are right, and `times` after them are not.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from typing import Any

import nbdkit

API_VERSION = 2
SETTINGS: dict[str, str] = {}
LIES: dict[str, Any] = {}
told: Counter[int] = Counter()
lock = threading.Lock()


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    SETTINGS[key] = value


def config_complete() -> None:
    LIES.update(json.loads(SETTINGS["lies"]))


def open(readonly: int) -> int:  # noqa: A001
    return os.open(SETTINGS["file"], os.O_RDWR)


def get_size(h: int) -> int:
    return os.fstat(h).st_size


def pread(h: int, buf: Any, offset: int, flags: int) -> None:
    os.preadv(h, [buf], offset)
    at = LIES["start"] - offset
    if LIES["how"] == "misread" and 0 <= at < len(buf):
        with lock:
            told[-1] += 1
            wrong = LIES["after"] < told[-1] and (LIES["times"] is None or told[-1] <= LIES["after"] + LIES["times"])
        if wrong:
            memoryview(buf)[at] ^= 0x10


def pwrite(h: int, buf: Any, offset: int, flags: int) -> None:
    _change(h, memoryview(buf), offset)


def zero(h: int, count: int, offset: int, flags: int) -> None:
    _change(h, memoryview(bytes(count)), offset, lie=LIES["zeroes"])


def flush(h: int, flags: int) -> None:
    os.fdatasync(h)


def _change(h: int, data: memoryview, offset: int, *, lie: bool = True) -> None:
    if LIES["how"] == "misread" or offset + len(data) <= LIES["start"] or LIES["end"] <= offset:
        lie = False
    if lie and LIES["times"] is not None:
        with lock:
            lie = told[offset] < LIES["times"]
            told[offset] += lie
    if lie and LIES["how"] == "drop":
        return
    os.pwrite(h, data, offset)
    if lie:
        at = max(LIES["start"], offset + len(data) // 2)
        os.pwrite(h, bytes([os.pread(h, 1, at)[0] ^ 0x10]), at)
