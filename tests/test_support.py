from __future__ import annotations

import re
import time

import pytest

from tests.support import assert_same_bytes


@pytest.mark.parametrize(
    ("have", "want", "said"),
    [
        (b"abc", b"abd", "offset 2 on: 63 instead of 64"),
        (b"abc", b"ab", "3 bytes are to be the same as 2 others, and differ from offset 2 on: 63 instead of nothing"),
        (b"", b"a", "offset 0 on: nothing instead of 61"),
        (bytes(70_000), bytes(65_537) + b"x", "offset 65537 on: 00000000000000000000000000000000 instead of 78"),
    ],
)
def test_bytes_that_differ(have: bytes, want: bytes, said: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        assert_same_bytes(have, want)


def test_many_bytes_are_compared_fast() -> None:
    have = bytearray(48 << 20)
    assert_same_bytes(have, bytes(48 << 20))
    have[-1] = 1
    began = time.monotonic()
    with pytest.raises(AssertionError, match=f"offset {(48 << 20) - 1} on: 01 instead of 00$"):
        assert_same_bytes(have, bytes(48 << 20))
    assert time.monotonic() - began < 5
