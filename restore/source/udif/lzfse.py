"""LZFSE, by Apple's reference implementation, which the Python library `lzfse` contains.

Its C function is called itself: it writes to memory of the size that is known here, and no more. The library's own
`decompress` would decode into ever larger memory until all fits, and a hostile run of some KiB may stand for any size.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_END = b"bvx$"


def available() -> bool:
    """Whether the library is there."""
    return _function() is not None


def decompress(data: bytes | memoryview, size: int) -> memoryview:
    """The `size` bytes that `data` stands for; the interpreter is free for other threads meanwhile.

    Raises:
        ValueError: it does not stand for exactly as many, or is no LZFSE.
    """
    data = bytes(data)
    if not data.endswith(_END):
        raise ValueError("cut short")
    out = bytearray(size + 1)  # one more shows that there is more
    room = (ctypes.c_char * len(out)).from_buffer(out)
    function = _function()
    assert function is not None
    count = function(room, len(out), data, len(data), None)
    del room
    if count != size:
        raise ValueError(f"more than {size} bytes" if count > size else f"{count} bytes, not {size}")
    return memoryview(out)[:size]


@cache
def _function() -> Any:
    """`lzfse_decode_buffer` of `lzfse.h`; None where the library is not installed, or does not let it be seen."""
    try:
        import lzfse

        function = ctypes.CDLL(lzfse.__file__).lzfse_decode_buffer
    except (ImportError, OSError, AttributeError):
        return None
    function.restype = ctypes.c_size_t
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    return function
