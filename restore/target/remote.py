"""A target that another machine exports: blocks over NBD, digests over its control API where it has one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from nbd.client import REFUSED_LIMIT, Client, Operation
from nbd.errors import ConnectionLost, NBDError
from nbd.uri import NBDURI
from nbd.wire import Command, TransmissionFlag
from restore import exports
from restore.errors import Refused, RestoreError
from restore.target import ALGORITHM, Facts, Verifier, zero_ranges
from restore.target.control import ControlVerifier, LastingVerifier
from restore.target.fitting import Fitting, blocks_around, read_any
from targetmode import api
from targetmode.disks.contents import Contents, describe_contents
from targetmode.disks.media import ALGORITHMS

DEPTH: Final = 4  # requests in flight on each connection
OTHERS: Final = 2  # connections to servers that are not ours, and that read payloads of different connections at once
STEP: Final = 8 << 20  # bytes read back and hashed at a time


class RemoteTarget:
    """An NBD export.

    Attributes:
        control: where its digests can be had; None where the server has no control API.
    """

    def __init__(
        self,
        uri: NBDURI,
        *,
        connections: int | None = None,
        timeout: float,
        notify: Callable[[str], None],
        read_only: bool = False,
    ) -> None:
        """Connect.

        Args:
            uri: the export.
            connections: how many to use, where the server allows more than one; None for what suits the server.
            timeout: seconds without movement after which the other side counts as gone.
            notify: told in one line when a connection is lost and when it is back.
            read_only: the target is only to be read.

        Raises:
            Refused: it cannot be reached, is not there, may not be written, or is the source too.
        """
        self._uri = uri
        self._timeout = timeout
        self._notify = notify
        self._clients: list[Client] = []
        self._readers: list[Client] = []  # of what was written, where the server does not verify itself
        self._met: set[api.ControlAddress] = set()  # by verification
        self.name = str(uri)
        self._use: exports.Use | None = None
        export = self._connect().export
        self.size = export.size
        if connections is None:
            connections = 1 if any(c.startswith(api.NAMESPACE) for c in export.contexts) else OTHERS
        try:
            if not read_only:
                if export.flags & TransmissionFlag.READ_ONLY:
                    raise Refused(f"{uri} is exported read-only")
                self._use = exports.use(uri, export, writes=True)
            if export.flags & TransmissionFlag.CAN_MULTI_CONN:
                for _ in range(connections - 1):
                    self._connect()
        except BaseException:
            self.close()
            raise
        self.control = exports.control_address(export)

    @property
    def generation(self) -> int:
        """How many runs of the server there were so far: a later one may have lost data, or have another disk."""
        return exports.generation((*self._clients, *self._readers), self._met)

    @property
    def sector_size(self) -> int:
        """The smallest block that the server takes."""
        return max(self._clients[0].export.sizes.minimum, 512)

    @property
    def facts(self) -> Facts:
        """As the server tells; that it is a partition only ours does."""
        export = self._clients[0].export
        ours = self.control is not None
        count = len(self._clients)
        access = f"{count} connection{'s' if count > 1 else ''}, compared by " + (
            "its own digests" if ours else "reading it back"
        )
        minimum = export.sizes.minimum
        return Facts("export", minimum if minimum >= 512 else None, exports.partition_of(export), access)

    def contents(self) -> Contents:
        """Partition table, file systems and labels, read over the wire."""
        client = self._clients[0]
        return describe_contents(lambda offset, length: read_any(client, offset, length), self.size, self.sector_size)

    def zeroes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What `base:allocation` says."""
        client = self._clients[0]
        first, size = blocks_around(client, offset, length)
        block = client.export.sizes.minimum
        for start, count in zero_ranges(client.extents(first, size), first):
            end = (start + count) // block * block
            start = -(-start // block) * block  # some servers tell of less than a block
            if start < end:
                yield start, end - start

    def run(self, operations: Iterable[Operation], done: Callable[[Operation], None]) -> None:
        """Spread operations over the connections; the first failure ends them all."""
        fitting = Fitting(self._clients[0].export, done)
        self._spread(fitting.cut(operations), fitting.part_done)
        fitting.patch(self._clients[0])

    def _spread(self, operations: Iterator[Operation], done: Callable[[Operation], None]) -> None:
        if len(self._clients) == 1:
            self._clients[0].run(operations, depth=DEPTH, done=done)
            return
        shared = _Shared(operations)
        failures: list[BaseException] = []

        def work(client: Client) -> None:
            try:
                client.run(shared, depth=DEPTH, done=done)
            except BaseException as error:
                failures.append(error)
                shared.stop()

        threads = [threading.Thread(target=work, args=(client,)) for client in self._clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def flush(self) -> None:
        """One flush covers the writes completed on all connections (CAN_MULTI_CONN)."""
        for client in self._clients:
            client.flush()

    async def verifier(self, note: Callable[[str], None]) -> Verifier:
        """The target's own digests where its control API can be used; else what a new connection reads."""
        lasting = LastingVerifier(lambda again: self._find_verifier(note, again=again), note)
        await lasting.open()
        return lasting

    async def _find_verifier(self, note: Callable[[str], None], *, again: bool) -> Verifier:
        """Whoever can tell the target's digests now; `again` when the server may be another run than at the start."""
        if again:
            fresh = await asyncio.to_thread(self._patient_client)
            self.control = exports.control_address(fresh.export)
            if self.control is not None:
                self._met.add(self.control)
            await asyncio.to_thread(fresh.disconnect)
        if self.control is None:
            reason = "the server has no control API"
        else:
            host = self._uri.host or "127.0.0.1"
            control = ControlVerifier(host, self.control, self._clients[0].export.name, self._timeout)
            try:
                await control.open()
                return control
            except RestoreError as error:
                await control.close()
                reason = str(error)
            except asyncio.CancelledError:  # nobody else knows it yet, and its thread must not hold up the end
                await control.close()
                raise
        note(f"{reason}; so every block is read back over a new connection")
        client = await asyncio.to_thread(self._client)
        self._readers.append(client)
        return ReadBackVerifier(client)

    def _patient_client(self) -> Client:
        """A connection to a server that may be about to be there again; raises `NBDError` if it is not soon."""
        deadline = time.monotonic() + min(REFUSED_LIMIT, self._timeout)
        while True:
            try:
                return self._client()
            except NBDError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def abort(self) -> None:
        """Cut the connections."""
        for client in self._clients:
            client.abort()

    def close(self) -> None:
        """Leave in good order."""
        if self._use is not None:
            self._use.end()
        for client in self._clients:
            client.disconnect()

    def _connect(self) -> Client:
        client = exports.connect(self._uri, timeout=self._timeout, notify=self._notify)
        self._clients.append(client)
        return client

    def _client(self) -> Client:
        return exports.client(self._uri, timeout=self._timeout, notify=self._notify)


class _Shared(Iterator[Operation]):
    """An iterator that several threads take from, and that can be ended early."""

    def __init__(self, operations: Iterator[Operation]) -> None:
        self._operations = operations
        self._lock = threading.Lock()
        self._stopped = False

    def __next__(self) -> Operation:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._operations)

    def stop(self) -> None:
        self._stopped = True


class ReadBackVerifier:
    """Digests of what a connection of its own reads back: for servers without a control API."""

    def __init__(self, client: Client) -> None:
        """Take over a connection."""
        self._client = client
        self._lock = threading.Lock()  # a connection is for one thread
        self._closed = False
        self._most = min(1 << 20, client.export.sizes.maximum)

    async def digests(self, ranges: Sequence[tuple[int, int]], algorithm: str = ALGORITHM) -> list[str]:
        """Read and hash, range by range."""
        return [await asyncio.to_thread(self._digest, algorithm, offset, length) for offset, length in ranges]

    async def close(self) -> None:
        """Leave in good order, or as can be while a thread is still reading."""
        self._closed = True
        if self._lock.acquire(blocking=False):
            try:
                self._client.disconnect()
            finally:
                self._lock.release()
        else:
            self._client.abort()

    def _digest(self, algorithm: str, offset: int, length: int) -> str:
        digest = ALGORITHMS[algorithm]()
        with self._lock:
            if self._closed:
                raise ConnectionLost(f"{self._client.uri}: the connection was given up")
            while length:
                count = min(length, STEP)
                digest.update(self._read(offset, count))
                offset += count
                length -= count
        return str(digest.hexdigest())

    def _read(self, offset: int, length: int) -> memoryview:
        first, size = blocks_around(self._client, offset, length)
        buffer = memoryview(bytearray(size))
        pieces = [
            Operation(Command.READ, first + at, len(buffer[at : at + self._most]), buffer=buffer[at : at + self._most])
            for at in range(0, size, self._most)
        ]
        self._client.run(pieces)
        return buffer[offset - first :][:length]
