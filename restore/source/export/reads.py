"""Reads of an export on several connections, enough of them in flight on each to keep the wire full.

    who reads ──requests──▶ queue ──▶ thread and connection ──▶ server
                                 └──▶ thread and connection ──▶ server

A connection takes from the queue whenever it has room, so that it does not fall dry while there is anything to read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from nbd.client import Client, Operation
from nbd.errors import ConnectionLost, RequestFailed
from nbd.wire import Command

DEPTH: Final = 4  # requests in flight on each connection
REQUEST: Final = 1 << 20  # bytes of a request, at most
_PATIENCE: Final = 1.0  # seconds that requests in flight have to be answered when nobody needs them any more


@dataclass(slots=True)
class _Asked:
    """Requests that somebody waits for together."""

    left: int
    failure: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)


_Item = tuple[Operation, _Asked]


class Reads:
    """Connections to one export, for any number of threads that read it."""

    def __init__(self, clients: Sequence[Client]) -> None:
        """Take over connections to the same export; a thread for each is started."""
        export = clients[0].export
        self._clients = clients
        self._size = export.size
        self._block = export.sizes.minimum
        self._step = max(min(REQUEST, export.sizes.maximum) // self._block * self._block, self._block)
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._closed = False
        self._threads = [threading.Thread(target=self._work, args=(c,), name="export", daemon=True) for c in clients]
        for thread in self._threads:
            thread.start()

    def fill(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        """Fill buffers, each from its offset on; offsets are multiples of the export's smallest block, and so are ends.

        Raises:
            RequestFailed: the server could not read some of it; which, it says.
            ConnectionLost, ProtocolError: the server is gone for good, or was when somebody else asked.
        """
        operations = []
        for offset, buffer in parts:
            for at in range(0, len(buffer), self._step):
                piece = buffer[at : at + self._step]
                operations.append(Operation(Command.READ, offset + at, len(piece), buffer=piece))
        self._ask(operations)

    def read(self, offset: int, length: int) -> memoryview:
        """Bytes from anywhere; raises as `fill`."""
        first = offset // self._block * self._block
        last = min(-(-(offset + length) // self._block) * self._block, self._size)
        buffer = memoryview(bytearray(last - first))
        self.fill([(first, buffer)])
        return buffer[offset - first :][:length]

    def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What BLOCK_STATUS tells of a range: (length, status flags), not always of all of it; raises as `fill`."""
        found: list[tuple[int, int]] = []
        self._ask([Operation(Command.BLOCK_STATUS, offset, length, extents=found)])
        return found

    def abort(self, reason: BaseException) -> None:
        """Have all requests fail for a reason, now and from now on, and give the connections up."""
        self._give_up(reason)
        for client in self._clients:
            client.abort()

    def close(self) -> None:
        """Leave in good order, but do not wait for a server that does not answer."""
        self._give_up(ConnectionLost(f"{self._clients[0].uri}: the connection was given up"))
        for thread in self._threads:
            thread.join(_PATIENCE)
        for client, thread in zip(self._clients, self._threads, strict=True):
            if thread.is_alive():
                client.abort()
                thread.join()
            client.disconnect()

    def _ask(self, operations: Sequence[Operation]) -> None:
        if not operations:
            return
        asked = _Asked(len(operations))
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._queue.extend((operation, asked) for operation in operations)
            self._changed.notify(len(operations))
        asked.ended.wait()
        if asked.failure is not None:
            raise asked.failure

    def _work(self, client: Client) -> None:
        """One connection's thread."""
        taken = _Taken(self._queue)
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
            try:
                client.run(taken, depth=DEPTH, done=taken.done)
            except RequestFailed as error:
                with self._changed:
                    self._queue.extendleft(reversed(taken.failed(error)))
                    self._changed.notify_all()
            except BaseException as error:
                taken.all_failed(self._give_up(error))

    def _give_up(self, reason: BaseException) -> BaseException:
        """Nothing is asked any more; the reason that was given first."""
        with self._changed:
            self._closed = True
            self._failure = reason = self._failure or reason
            self._changed.notify_all()
        with suppress(IndexError):
            while True:
                _end(self._queue.popleft()[1], reason)
        return reason


class _Taken(Iterator[Operation]):
    """What one connection has taken from the queue and not done yet. It goes on after it has come to an end once."""

    def __init__(self, queue: deque[_Item]) -> None:
        self._queue = queue
        self._items: dict[int, _Item] = {}  # by the operation's id

    def __next__(self) -> Operation:
        try:
            item = self._queue.popleft()
        except IndexError:
            raise StopIteration from None
        self._items[id(item[0])] = item
        return item[0]

    def done(self, operation: Operation) -> None:
        _end(self._items.pop(id(operation))[1], None)

    def failed(self, error: RequestFailed) -> list[_Item]:
        """One request failed; what was taken beside it, and may have failed with it, to be tried again."""
        items = list(self._items.values())
        self._items.clear()
        where = (error.offset, error.length)
        blamed = next((item for item in items if (item[0].offset, item[0].length) == where), items[0])
        items.remove(blamed)
        _end(blamed[1], error)
        return items

    def all_failed(self, error: BaseException) -> None:
        for _, asked in self._items.values():
            _end(asked, error)
        self._items.clear()


_ending: Final = threading.Lock()


def _end(asked: _Asked, failure: BaseException | None) -> None:
    """One of the requests has come to an end."""
    with _ending:
        asked.left -= 1
        asked.failure = asked.failure or failure
        last = not asked.left
    if last:
        asked.ended.set()
