from __future__ import annotations

import random

from restore.source.export.buffers import Buffers


def test_memory_is_lent_again_when_no_view_of_it_is_left() -> None:
    buffers = Buffers(1 << 16)
    first = buffers.lend(1 << 16)
    first[:] = b"a" * (1 << 16)
    part = memoryview(first)[10:20]
    second = buffers.lend(100)
    second[:] = b"b" * 100
    del first
    assert bytes(buffers.lend(1 << 16)[:1]) != b"b"
    assert bytes(part) == b"a" * 10, "what a part is looked at of was lent to somebody else"
    del part
    assert bytes(buffers.lend(1 << 16)) == b"a" * (1 << 16), "it was not used again"
    assert bytes(second) == b"b" * 100


def test_nobody_sees_what_another_writes() -> None:
    buffers = Buffers(4096)
    order = random.Random(1)
    held: list[tuple[int, memoryview]] = []
    for number in range(3000):
        view = buffers.lend(order.randrange(1, 4097))
        view[:] = bytes([number % 251]) * len(view)
        held.append((number % 251, view))
        if order.random() < 0.45 or len(held) > 20:
            value, view = held.pop(order.randrange(len(held)))
            assert bytes(view) == bytes([value]) * len(view)
    assert all(bytes(view) == bytes([value]) * len(view) for value, view in held)
