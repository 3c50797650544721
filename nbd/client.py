"""A client that outlives its connection: requests in flight, reconnect, and nothing acknowledged is taken for stable.

A server that was cut off may have lost what it acknowledged and had not flushed. So after a reconnect the client sends
again not only the requests without a reply, but every write since the last successful flush.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nbd.backend import Extent
from nbd.connection import TIMEOUT, Connection, FileRange
from nbd.errors import ConnectionLost, OptionRefused, Stalled
from nbd.negotiation import ExportInfo
from nbd.transmission import Pending
from nbd.uri import NBDURI
from nbd.wire import BASE_ALLOCATION, Command, CommandFlag, StateFlag, TransmissionFlag

DEPTH: Final = 4  # requests in flight
LEAST_PATIENCE: Final = 1.0  # seconds of attempts to reconnect, however long nothing had moved before the cut
REFUSED_LIMIT: Final = 5.0  # seconds after which a server that refuses connections counts as gone for good
UNFLUSHED_LIMIT: Final = 1 << 30  # bytes written before a flush is put in between: as much is sent again after a cut
UNFLUSHED_MEMORY: Final = 64 << 20  # the same, of bytes that are kept in memory until then
FRUITLESS_LIMIT: Final = 10  # connections in a row that end before one reply; then the server counts as gone for good
_PAUSES: Final = (0.05, 0.1, 0.2, 0.5)  # seconds between attempts to reconnect; the last one is repeated
_MODIFYING: Final = frozenset({Command.WRITE, Command.WRITE_ZEROES, Command.TRIM})
_ANSWERED_WITH_DATA: Final = frozenset({Command.READ, Command.BLOCK_STATUS})
_LENGTH_LIMIT: Final = (1 << 32) - (1 << 20)  # BLOCK_STATUS, TRIM and WRITE_ZEROES carry a 32-bit length


@dataclass(frozen=True, slots=True)
class Operation:
    """One request, complete enough to be sent again.

    Attributes:
        command: what to do.
        offset: first byte in the export.
        length: bytes.
        flags: command flags.
        data: the payload of a WRITE; memory has to stay as it is until the next flush, since it may be sent again.
        buffer: where the data of a READ go.
        extents: where the answer to a BLOCK_STATUS goes, as (length, status flags).
    """

    command: Command
    offset: int
    length: int
    flags: int = 0
    data: memoryview | FileRange | None = field(default=None, repr=False)
    buffer: memoryview | None = field(default=None, repr=False)
    extents: list[tuple[int, int]] | None = field(default=None, repr=False)


class Client:
    """One export of a server, for one thread; `abort` alone may be called from another.

    Attributes:
        export: what the server says of the export.
        history: the same, as it was said each time that it was connected to.
    """

    def __init__(
        self,
        uri: NBDURI,
        *,
        timeout: float = TIMEOUT,
        queries: Sequence[str] = (),
        notify: Callable[[str], None] = lambda message: None,
        describe: Callable[[str], str] = lambda description: description,
        reconnect: bool = True,
    ) -> None:
        """Connect.

        Args:
            uri: the server and its export.
            timeout: seconds without movement after which a connection is given up, and after which the attempts to
                reconnect end, counted from when the last one stood still.
            queries: metadata context queries to list; the answers are in `export.contexts`.
            notify: told in one line when a connection is lost and when it is back.
            describe: the part of an export's description that is the same after a reconnect.
            reconnect: a connection that is lost is made again.

        Raises:
            ConnectionLost, OptionRefused, ProtocolError: as for `Connection`.
        """
        self.uri = uri
        self._timeout = timeout
        self._queries = queries
        self._notify = notify
        self._describe = describe
        self._aborted = not reconnect
        self._unflushed: list[Operation] = []
        self._unflushed_bytes = self._unflushed_memory = 0
        self._fruitless = 0
        self._waiting_since = 0.0
        self._connection = Connection(uri, timeout=timeout, queries=queries)
        self.export: ExportInfo = self._connection.ready.export
        self.history: list[ExportInfo] = [self.export]

    @property
    def tells_extents(self) -> bool:
        """Whether the server answers BLOCK_STATUS with `base:allocation`."""
        return BASE_ALLOCATION in self._connection.ready.contexts

    # --- Single requests ---

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the export; `length` within the server's maximum payload.

        Raises:
            RequestFailed: the server could not.
            ConnectionLost, ProtocolError: the connection is gone, and did not come back.
        """
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`; raises as `read`."""
        self.run([Operation(Command.READ, offset, len(buffer), buffer=buffer)])

    def write(self, data: bytes | memoryview, offset: int, *, fua: bool = False) -> None:
        """Write `data` at `offset`, within the server's maximum payload; raises as `read`."""
        view = memoryview(bytes(data))
        self.run([Operation(Command.WRITE, offset, len(view), CommandFlag.FUA if fua else 0, view)])

    def zero(self, offset: int, length: int, *, no_hole: bool = False, fast: bool = False) -> None:
        """Make a range read as zeroes; raises as `read`."""
        flags = (CommandFlag.NO_HOLE if no_hole else 0) | (CommandFlag.FAST_ZERO if fast else 0)
        self._run_in_pieces(Command.WRITE_ZEROES, offset, length, flags)

    def trim(self, offset: int, length: int) -> None:
        """Say that a range's contents are not needed any more; raises as `read`."""
        self._run_in_pieces(Command.TRIM, offset, length)

    def _run_in_pieces(self, command: Command, offset: int, length: int, flags: int = 0) -> None:
        starts = range(offset, offset + length, _LENGTH_LIMIT)
        self.run(Operation(command, at, min(offset + length - at, _LENGTH_LIMIT), flags) for at in starts)

    def flush(self) -> None:
        """Have everything written so far on stable storage; raises as `read`."""
        if self.export.flags & TransmissionFlag.SEND_FLUSH:
            self.run([Operation(Command.FLUSH, 0, 0)])

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The runs that make up a range, in order; all data where the server does not tell. Raises as `read`."""
        while length:
            piece = min(length, _LENGTH_LIMIT)
            if not self.tells_extents:
                found = [(piece, 0)]
            else:
                found = self.run([Operation(Command.BLOCK_STATUS, offset, piece)])[0].extents
            for size, state in found:
                size = min(size, length)
                yield Extent(size, hole=bool(state & StateFlag.HOLE), zero=bool(state & StateFlag.ZERO))
                offset += size
                length -= size
                if not length:
                    break

    # --- Many requests ---

    def run(
        self,
        operations: Iterable[Operation],
        *,
        depth: int = DEPTH,
        done: Callable[[Operation], None] = lambda operation: None,
    ) -> list[Pending]:
        """Carry out operations, several at a time, in any order; all of them are answered when this returns.

        Those that touch the same bytes, one of them to change them, keep their order; a FLUSH covers all before it.

        Args:
            operations: taken one by one as there is room for them.
            depth: how many are in flight.
            done: told of each operation that succeeded, once.

        Returns:
            The last reply; a list so that a single request's reply is at hand.

        Raises:
            RequestFailed: the server could not; operations that were in flight then are answered, later ones not sent.
            Exception: what `operations` raised; likewise.
            PayloadError: the file behind a WRITE failed.
            ConnectionLost, ProtocolError: the connection is gone, and did not come back.
            Stalled: the server is there but did nothing for the time allowed; it is not tried again.
        """
        work = _Work(iter(operations), done)
        try:
            while True:
                try:
                    return self._pump(work, depth)
                except ConnectionLost as error:
                    self._fruitless += 1
                    if self._aborted or isinstance(error, Stalled) or self._fruitless > FRUITLESS_LIMIT:
                        raise
                    if work.failure is not None:
                        raise work.failure from error
                    self._reconnect(error)
                    work.resend(self._unflushed)
                    self._forget_unflushed()
        finally:
            for operation in work.still_unflushed():
                self._account(operation)

    def disconnect(self) -> None:
        """Leave in good order."""
        self._connection.disconnect()

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def abort(self) -> None:
        """Make whatever runs in another thread fail with `ConnectionLost`, without a reconnect."""
        self._aborted = True
        self._connection.abort()

    def _pump(self, work: _Work, depth: int) -> list[Pending]:
        connection = self._connection
        last: list[Pending] = []
        while True:
            while work.failure is None and len(work.in_flight) < depth:
                flush_due = self._unflushed_bytes >= UNFLUSHED_LIMIT or self._unflushed_memory >= UNFLUSHED_MEMORY
                if flush_due and work.in_flight:
                    break  # a flush covers what is answered, so the rest has to be answered first
                item = _Item(Operation(Command.FLUSH, 0, 0), reported=True) if flush_due else work.next()
                if item is None:
                    break
                operation = item.operation
                self._waiting_since = time.monotonic()
                if any(_has_to_wait(operation, other.operation) for other in work.in_flight.values()):
                    work.put_back(item)
                    break
                try:
                    cookie = connection.send(
                        operation.command,
                        operation.offset,
                        operation.length,
                        flags=operation.flags,
                        data=operation.data,
                        buffer=operation.buffer,
                    )
                except ConnectionLost:
                    work.put_back(item)
                    raise
                work.in_flight[cookie] = item
            if not work.in_flight:
                if work.failure is not None:
                    raise work.failure
                return last
            self._waiting_since = time.monotonic()
            reply = connection.receive()
            if reply.failure is not None and reply.failure.errno == errno.ESHUTDOWN:
                # It was not carried out; whoever takes the server's place may do it ("Error values").
                connection.close()
                raise ConnectionLost(f"{self.uri}: the server is being shut down")
            self._fruitless = 0
            item = work.in_flight.pop(reply.cookie)
            if reply.failure is not None:
                work.failure = work.failure or reply.failure
                continue
            self._account(item.operation)
            if item.operation.extents is not None:
                item.operation.extents[:] = reply.extents
            last = [reply]
            work.report(item)

    def _account(self, operation: Operation) -> None:
        if operation.command in _MODIFYING and self.export.flags & TransmissionFlag.SEND_FLUSH:
            self._unflushed.append(operation)
            self._unflushed_bytes += operation.length
            if isinstance(operation.data, memoryview):
                self._unflushed_memory += operation.length
        elif operation.command == Command.FLUSH:
            self._forget_unflushed()

    def _forget_unflushed(self) -> None:
        self._unflushed, self._unflushed_bytes, self._unflushed_memory = [], 0, 0

    def _reconnect(self, reason: ConnectionLost) -> None:
        """Connect again to the same export, or give up.

        Raises:
            ConnectionLost: the time is up, or what is there now is not what was there before.
        """
        self._notify(f"{reason}; connecting again")
        started = time.monotonic()
        # A cut may be what TCP makes of a silence, and that may last no longer than any other.
        patience = max(self._timeout - (started - self._waiting_since), min(LEAST_PATIENCE, self._timeout))
        attempt = 0
        while True:
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            attempt += 1
            time.sleep(pause)
            if self._aborted:
                raise reason
            left = max(started + patience - time.monotonic(), min(LEAST_PATIENCE, self._timeout))
            try:
                connection = Connection(self.uri, timeout=self._timeout, queries=self._queries, patience=left)
            except (ConnectionLost, OptionRefused) as error:
                refused = isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
                took = time.monotonic() - started
                if took > (min(REFUSED_LIMIT, self._timeout) if refused else patience):
                    raise ConnectionLost(f"{reason}; then, for {took:.1f} seconds: {error}") from error
                continue
            if self._identity(connection.ready.export) != self._identity(self.export):
                connection.close()
                raise ConnectionLost(f"{reason}; the export that is there now is a different one") from reason
            self._connection = connection
            self.history.append(connection.ready.export)
            if self._aborted:  # meanwhile, by a thread that knew the old connection alone
                connection.abort()
            self._notify(f"{self.uri}: connected again")
            return

    def _identity(self, export: ExportInfo) -> tuple[object, ...]:
        return export.size, export.flags, self._describe(export.description)


def _has_to_wait(later: Operation, earlier: Operation) -> bool:
    """Whether an operation may be sent only when an earlier one is answered.

    A server may change the order of what is in flight. And while a payload goes out nobody reads the replies: a server
    that cannot get rid of the data it was asked for would not read the payload either.
    """
    if Command.FLUSH in (later.command, earlier.command):
        return True
    if later.command == Command.WRITE and earlier.command in _ANSWERED_WITH_DATA:
        return True
    apart = later.offset + later.length <= earlier.offset or earlier.offset + earlier.length <= later.offset
    return not apart and (later.command in _MODIFYING or earlier.command in _MODIFYING)


@dataclass(slots=True)
class _Item:
    """An operation on its way; `reported` when it has succeeded once already."""

    operation: Operation
    reported: bool = False


class _Work:
    """What one `run` has still to do: items to send again first, then new ones.

    Attributes:
        in_flight: items sent and not answered, by cookie.
        failure: the first error, told by the server or raised by the operations' iterator; it outlives a reconnect.
    """

    def __init__(self, operations: Iterator[Operation], done: Callable[[Operation], None]) -> None:
        self._operations = operations
        self._done = done
        self._again: deque[_Item] = deque()
        self.in_flight: dict[int, _Item] = {}
        self.failure: Exception | None = None

    def next(self) -> _Item | None:
        """The next item to send, None when there is none."""
        if self._again:
            return self._again.popleft()
        try:
            operation = next(self._operations, None)
        except Exception as error:  # what is in flight has to be answered before it is raised
            self.failure = error
            return None
        return None if operation is None else _Item(operation)

    def put_back(self, item: _Item) -> None:
        """Take an item back that could not be sent."""
        self._again.appendleft(item)

    def report(self, item: _Item) -> None:
        """Tell of a success, the first time."""
        if not item.reported:
            item.reported = True
            self._done(item.operation)

    def still_unflushed(self) -> list[Operation]:
        """What succeeded once and was to be sent again, which has not happened."""
        items = (*self.in_flight.values(), *self._again)
        return [item.operation for item in items if item.reported and item.operation.command in _MODIFYING]

    def resend(self, unflushed: list[Operation]) -> None:
        """After a reconnect: all that was not flushed, then all that was in flight, in the order of the first time."""
        items = [_Item(operation, reported=True) for operation in unflushed] + list(self.in_flight.values())
        self._again.extendleft(reversed(items))
        self.in_flight = {}
