"""An nbdkit plugin, in nbdkit's own Python: a disk that has half of the size it tells of, and begins again behind that.

Parameter `size`, in bytes, is what it tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nbdkit

API_VERSION = 2
SIZES: list[int] = []
STORE = bytearray()


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_SERIALIZE_ALL_REQUESTS)


def config(key: str, value: str) -> None:
    SIZES.append(int(value))
    STORE.extend(bytes(int(value) // 2))


def open(readonly: int) -> int:  # noqa: A001
    return 1


def get_size(h: int) -> int:
    return SIZES[0]


def pread(h: int, buf: Any, offset: int, flags: int) -> None:
    for at, start, stop in _parts(offset, len(buf)):
        buf[at : at + stop - start] = STORE[start:stop]


def pwrite(h: int, buf: Any, offset: int, flags: int) -> None:
    for at, start, stop in _parts(offset, len(buf)):
        STORE[start:stop] = buf[at : at + stop - start]


def zero(h: int, count: int, offset: int, flags: int) -> None:
    for _, start, stop in _parts(offset, count):
        STORE[start:stop] = bytes(stop - start)


def flush(h: int, flags: int) -> None:
    """It is as stable as it gets."""


def _parts(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Where in a request, and where from and up to in the store."""
    at = 0
    while at < length:
        start = (offset + at) % len(STORE)
        stop = min(start + length - at, len(STORE))
        yield at, start, stop
        at += stop - start
