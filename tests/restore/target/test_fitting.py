"""Whatever a server takes, what arrives is what was asked for: a model disk that refuses what real servers refuse."""

from __future__ import annotations

import os
import tempfile
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.client import Operation
from nbd.connection import FileRange
from nbd.negotiation import BlockSizes, ExportInfo
from nbd.wire import Command, TransmissionFlag
from restore.target.fitting import Fitting, read_any
from tests.support import assert_same_bytes, examples

KIB = 1 << 10


class Disk:
    """Does what a client is told, and refuses what its block sizes and flags do not allow."""

    def __init__(self, size: int, minimum: int, maximum: int, *, zeroes: bool) -> None:
        flags = TransmissionFlag.SEND_WRITE_ZEROES if zeroes else TransmissionFlag(0)
        self.export = ExportInfo("disk", size, flags, BlockSizes(minimum, max(minimum, 4096), maximum))
        self.data = bytearray(b"\xaa" * size)

    def check(self, offset: int, length: int, *, payload: bool = True) -> None:
        sizes = self.export.sizes
        assert offset % sizes.minimum == 0
        assert length % sizes.minimum == 0
        assert length > 0
        assert offset + length <= len(self.data)
        assert not payload or length <= sizes.maximum

    def read(self, offset: int, length: int) -> bytes:
        self.check(offset, length)
        return bytes(self.data[offset : offset + length])

    def write(self, data: bytes, offset: int) -> None:
        self.check(offset, len(data))
        self.data[offset : offset + len(data)] = data

    def carry_out(self, operation: Operation) -> None:
        offset, length = operation.offset, operation.length
        if operation.command == Command.WRITE_ZEROES:
            assert self.export.flags & TransmissionFlag.SEND_WRITE_ZEROES
            self.check(offset, length, payload=False)
            self.data[offset : offset + length] = bytes(length)
        elif isinstance(operation.data, FileRange):
            self.write(os.pread(operation.data.fd, length, operation.data.offset), offset)
        else:
            assert operation.data is not None
            assert len(operation.data) == length
            self.write(bytes(operation.data), offset)


lengths = st.one_of(st.integers(1, 300 * KIB), st.sampled_from([KIB, 4 * KIB, 64 * KIB, 512, 128 * KIB]))


@given(
    st.lists(st.tuples(lengths, st.sampled_from(["file", "memory", "zeroes", "skip"])), min_size=1, max_size=6),
    st.sampled_from([1, 512, 4096]),
    st.sampled_from([64 * KIB, 128 * KIB, 1 << 20]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@examples(300)
def test_fitting(plan: list[tuple[int, str]], minimum: int, maximum: int, zeroes: bool, order: Any) -> None:
    """Operations that begin and end anywhere, such as a backup GPT in sectors smaller than the server's blocks."""
    disk = Disk(4 << 20, minimum, maximum, zeroes=zeroes)
    content = os.urandom(2 << 20)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        operations, expected, position = [], bytearray(disk.data), 0
        for length, kind in plan:
            end = position + length
            match kind:
                case "file":
                    operations.append(
                        Operation(Command.WRITE, position, length, data=FileRange(file.fileno(), position))
                    )
                    expected[position:end] = content[position:end]
                case "memory":
                    data = memoryview(content)[position:end]
                    operations.append(Operation(Command.WRITE, position, length, data=data))
                    expected[position:end] = data
                case "zeroes":
                    operations.append(Operation(Command.WRITE_ZEROES, position, length))
                    expected[position:end] = bytes(length)
            position = end
        done: list[Operation] = []
        fitting = Fitting(disk.export, done.append)
        parts = list(fitting.cut(operations))
        order.shuffle(parts)
        for part in parts:
            disk.carry_out(part)
            fitting.part_done(part)
        fitting.patch(disk)  # type: ignore[arg-type]
    assert_same_bytes(disk.data, expected)
    assert sorted(operation.offset for operation in done) == [operation.offset for operation in operations]
    assert all(operation in operations for operation in done)


def test_nothing_is_touched_that_fits() -> None:
    fitting = Fitting(Disk(1 << 20, 1, 1 << 20, zeroes=True).export, lambda operation: None)
    operations = [
        Operation(Command.WRITE, 0, 1 << 20, data=FileRange(0, 0)),
        Operation(Command.WRITE_ZEROES, 5, 1 << 26),
    ]
    assert all(a is b for a, b in zip(fitting.cut(operations), operations, strict=True))
    assert fitting.odd == []


def test_a_source_that_ends_early() -> None:
    disk = Disk(1 << 20, 4096, 1 << 20, zeroes=True)
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 5)
        file.flush()
        fitting = Fitting(disk.export, lambda operation: None)
        assert list(fitting.cut([Operation(Command.WRITE, 0, 10, data=FileRange(file.fileno(), 0))])) == []
        with pytest.raises(OSError, match="the source ends at offset 5"):
            fitting.patch(disk)  # type: ignore[arg-type]


@given(st.integers(0, 9000), st.integers(1, 9000), st.sampled_from([1, 512, 4096]))
@examples(100)
def test_read_any(offset: int, length: int, minimum: int) -> None:
    disk = Disk(32 * KIB, minimum, 64 * KIB, zeroes=True)
    disk.data[:] = os.urandom(len(disk.data))
    client: Any = SimpleNamespace(export=disk.export, read=disk.read)
    assert read_any(client, offset, length) == disk.data[offset : offset + length]
