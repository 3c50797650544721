"""Memory that is freed is kept for what is decoded next: pages from the kernel anew cost a third of decoding."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Final

# malloc.h of glibc
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT: Final = 256 << 20  # bytes that are free before some are given back
_LARGEST: Final = 32 << 20  # bytes of a piece that is had from what was freed; glibc's most


@cache
def keep_freed() -> None:
    """Have the C library do so, for the whole process; where it is not glibc, nothing happens."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for what, value in ((_M_TRIM_THRESHOLD, _KEPT), (_M_MMAP_THRESHOLD, _LARGEST), (_M_ARENA_MAX, 1)):
            mallopt(what, value)
