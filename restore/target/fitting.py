"""Operations made to fit what a server takes: its block sizes, and whether it has WRITE_ZEROES."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nbd.client import Client, Operation
from nbd.connection import FileRange
from nbd.negotiation import ExportInfo
from nbd.wire import Command, TransmissionFlag

_ZEROES: Final = memoryview(mmap.mmap(-1, 1 << 20, prot=mmap.PROT_READ))


@dataclass(slots=True)
class _Whole:
    """An operation that was cut, and the bytes of it that are still to be done."""

    operation: Operation
    left: int


class Fitting:
    """Cuts operations so that a server takes them; tells of each when all its parts are done.

    Payloads above the largest block become several requests, and zeroes are written where there is no WRITE_ZEROES. The
    ends of what does not fill a block of the server are left over in `odd`: to be carried out with `patch` after
    everything else, since it has to read what is around them.

    Attributes:
        odd: parts of operations that begin or end within a block.
    """

    def __init__(self, export: ExportInfo, done: Callable[[Operation], None]) -> None:
        """Fit to this export; `done` is told of each operation of which every part was given to `part_done`."""
        self._block = export.sizes.minimum
        self._most = export.sizes.maximum
        self._zeroes = bool(export.flags & TransmissionFlag.SEND_WRITE_ZEROES)
        self._done = done
        self._wholes: dict[int, _Whole] = {}
        self._lock = threading.Lock()
        self.odd: list[Operation] = []

    def cut(self, operations: Iterable[Operation]) -> Iterator[Operation]:
        """The operations, or parts of them, that can be sent as they are."""
        for operation in operations:
            end = operation.offset + operation.length
            first = min(-(-operation.offset // self._block) * self._block, end)
            last = max(end // self._block * self._block, first)
            passes = self._zeroes if operation.command == Command.WRITE_ZEROES else operation.length <= self._most
            if passes and (first, last) == (operation.offset, end):
                yield operation
                continue
            whole = _Whole(operation, operation.length)
            for start, stop in ((operation.offset, first), (last, end)):
                if start < stop:
                    self.odd.append(self._part(whole, start, stop - start))
            step = operation.length if passes else min(self._most, len(_ZEROES))
            for start in range(first, last, step):
                yield self._part(whole, start, min(step, last - start))

    def part_done(self, part: Operation) -> None:
        """A part, or an operation that was not cut, has succeeded; may be called from any thread."""
        with self._lock:
            whole = self._wholes.pop(part.offset, None)
            if whole is not None:
                whole.left -= part.length
        if whole is None:
            self._done(part)
        elif not whole.left:
            self._done(whole.operation)

    def patch(self, client: Client) -> None:
        """Carry out `odd`: read the blocks, put the parts in, write the blocks.

        Raises:
            NBDError, OSError: it failed.
        """
        for part in self.odd:
            at = part.offset % self._block
            block = bytearray(read_any(client, part.offset - at, self._block))
            block[at : at + part.length] = _payload(part)
            client.write(bytes(block), part.offset - at)
            self.part_done(part)

    def _part(self, whole: _Whole, offset: int, length: int) -> Operation:
        operation = whole.operation
        at = offset - operation.offset
        data = operation.data
        command = operation.command
        if isinstance(data, FileRange):
            data = FileRange(data.fd, data.offset + at)
        elif data is not None:
            data = data[at : at + length]
        elif not self._zeroes or length < self._block:
            command, data = Command.WRITE, _ZEROES[:length]
        with self._lock:
            self._wholes[offset] = whole
        return Operation(command, offset, length, data=data)


def read_any(client: Client, offset: int, length: int) -> bytes:
    """Bytes of an export that need not begin and end where its blocks do; raises as `Client.read`."""
    first, size = blocks_around(client, offset, length)
    return client.read(first, size)[offset - first :][:length]


def blocks_around(client: Client, offset: int, length: int) -> tuple[int, int]:
    """The smallest range, as (offset, length), that contains this one and consists of whole blocks of the export."""
    block = client.export.sizes.minimum
    first = offset // block * block
    return first, -(-(offset + length) // block) * block - first


def _payload(part: Operation) -> bytes | memoryview:
    if not isinstance(part.data, FileRange):
        return part.data if part.data is not None else bytes(part.length)
    data = os.pread(part.data.fd, part.length, part.data.offset)
    if len(data) < part.length:
        raise OSError(errno.EIO, f"the source ends at offset {part.data.offset + len(data)}, earlier than at the start")
    return data
