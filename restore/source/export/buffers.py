"""Memory for what is decoded, lent again when nobody looks at it any more: fresh memory costs as much as filling it."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import deque
from contextlib import suppress


class Buffers:
    """Buffers of one size, lent to any threads."""

    def __init__(self, size: int) -> None:
        """Of `size` bytes each."""
        self._size = size
        self._type = ctypes.c_char * size
        self._free: deque[mmap.mmap] = deque()
        self._lent: dict[int, weakref.ref[ctypes.Array[ctypes.c_char]]] = {}

    def lend(self, length: int) -> memoryview:
        """Memory of `length` bytes, at most `size`, with anything in it; lent until no view of it is left."""
        memory = None
        with suppress(IndexError):
            memory = self._free.pop()
        if memory is None:
            memory = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        loan = self._type.from_buffer(memory)  # what all views of it keep alive
        key = id(memory)

        def ended(_: object, memory: mmap.mmap = memory, key: int = key) -> None:
            del self._lent[key]
            self._free.append(memory)

        self._lent[key] = weakref.ref(loan, ended)
        return memoryview(loan).cast("B")[:length]
