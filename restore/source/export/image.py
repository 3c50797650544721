"""A disk that another machine exports, as a source: read on several connections, without the holes that it tells of."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Final

from nbd.backend import Extent
from nbd.client import Client
from nbd.errors import NBDError, RequestFailed, URIError
from nbd.uri import NBDURI
from nbd.wire import StateFlag, TransmissionFlag
from restore import exports
from restore.errors import Refused, RestoreError
from restore.source import Payload, SourceError, SourceSettings
from restore.source.chunked import ChunkedSource
from restore.source.export.buffers import Buffers
from restore.source.export.reads import Reads

CONNECTIONS: Final = 2  # by default, to a server that allows several
_CHUNK: Final = 4 << 20  # bytes decoded together: so that little is said of each between threads
_GRAIN: Final = 64 << 10  # a hole smaller than this is read as data
_LEAST: Final = (
    1 << 20
)  # bytes of which something is known after each question: what a server keeps quiet about is data
_MOST: Final = 1 << 31  # bytes of one question
_MOST_RUNS: Final = 8 << 20  # runs that are remembered, 8 bytes each; what lies behind them is data


class ExportImage:
    """An export's blocks: `Chunks`."""

    def __init__(
        self,
        clients: Sequence[Client],
        name: str,
        *,
        again: Callable[[], None] = lambda: None,
        explain: Callable[[NBDError], str] = str,
    ) -> None:
        """Take over connections to one export, all of which see the same bytes.

        Args:
            clients: at least one.
            name: for people.
            again: called for `check_unchanged`, and after each reconnect; raises `RestoreError` if what was read until
                then and what is read from now on may be two things.
            explain: what an error says, naming what failed.
        """
        self.name = name
        self.size: int = clients[0].export.size
        self._clients = clients
        self._again = again
        self._explain = explain
        self._met = len(clients)
        self._reads = Reads(clients)
        self._buffers = Buffers(_CHUNK)
        ask = self._reads.status if clients[0].tells_extents else None
        self._runs = _Runs(self.size, clients[0].export.sizes.minimum, ask)

    def extents(self) -> Iterator[Extent]:
        """What `base:allocation` says; all data where the server does not tell."""
        try:
            yield from self._runs
        except NBDError as error:
            raise SourceError(self._explain(error)) from error

    def chunk(self, offset: int) -> tuple[int, int]:
        """A piece of some MiB."""
        start = offset - offset % _CHUNK
        return start, min(start + _CHUNK, self.size)

    def decode(self, start: int, end: int) -> memoryview:
        """Read what is not known to be a hole."""
        view = self._buffers.lend(end - start)
        parts = []
        position = start
        for first, last in (*self._runs.data(start, end), (end, end)):
            if position < first:
                view[position - start : first - start] = bytes(first - position)
            if first < last:
                parts.append((first, view[first - start : last - start]))
            position = last
        try:
            self._reads.fill(parts)
        except NBDError as error:
            raise self._failed(error, start) from error
        self._check_met()
        return view

    def read(self, offset: int, length: int) -> bytes:
        """Read from the server whatever is known; raises as `decode`."""
        try:
            data = self._reads.read(offset, length)
        except NBDError as error:
            raise self._failed(error, offset) from error
        self._check_met()
        return bytes(data)

    def plain(self, offset: int, length: int) -> None:
        """It never lies in a local file."""

    def check_unchanged(self) -> None:
        """As the one who made this can tell."""
        self._again()

    def stop(self, reason: BaseException | None = None) -> None:
        """Have whoever waits for data wait no longer; there will be none any more."""
        self._reads.abort(reason or SourceError(f"{self.name} was closed"))

    def close(self) -> None:
        """Leave in good order."""
        self._reads.close()

    def _failed(self, error: NBDError, offset: int) -> SourceError:
        where = "" if isinstance(error, RequestFailed) else f"; it was read from offset {offset} on"
        return SourceError(f"{self._explain(error)}{where}")

    def _check_met(self) -> None:
        """Nothing goes on with half of one thing and half of another, which would be noticed only at the end."""
        met = sum(len(client.history) for client in self._clients)
        if met != self._met:
            self._again()
            self._met = met


class ExportSource(ChunkedSource):
    """A `Source` over an export; `close` ends what waits for a server that does not answer."""

    def __init__(self, image: ExportImage, connections: int) -> None:
        """Take over `image`, which has so many connections."""
        super().__init__(image, workers=2 * connections)
        self._image = image

    def payload(self, offset: int, length: int) -> Payload:
        """Also beside what cannot be read, though that was asked for together with it."""
        try:
            return super().payload(offset, length)
        except SourceError as error:
            if not isinstance(error.__cause__, RequestFailed):
                raise
        return memoryview(self.reread(offset, length))

    def reread(self, offset: int, length: int) -> bytes:
        """Ask the server anew for a range, whatever came of it before: for `restore.making.capture`.

        Raises:
            SourceError: it cannot be read.
        """
        return self._image.read(offset, length)

    def close(self) -> None:
        """Leave, in good order if the server lets us."""
        if self._original:
            self._image.close()
        super().close()


def open_export(place: str, settings: SourceSettings) -> ExportSource:
    """Connect to an export, to read it.

    Args:
        place: an NBD URI.
        settings: how.

    Raises:
        Refused: it is none, cannot be reached, is not there, is empty, or is what this process restores onto.
    """
    try:
        uri = NBDURI.parse(place)
    except URIError as error:
        raise Refused(str(error)) from None
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(exports.connect(uri, timeout=settings.timeout, notify=settings.notify))
        return clients[-1]

    use = None
    try:
        export = connect().export
        if not export.size:
            raise Refused(f"{uri} is empty")
        use = exports.use(uri, export, writes=False)
        if export.flags & TransmissionFlag.CAN_MULTI_CONN:
            # Without that flag each connection may see something else, as with nbdkit's tmpdisk.
            for _ in range((settings.connections or CONNECTIONS) - 1):
                connect()
        image = _Export(clients, uri, use)
    except BaseException:
        if use is not None:
            use.end()
        for client in clients:
            client.disconnect()
        raise
    return ExportSource(image, len(clients))


class _Export(ExportImage):
    """An export that is named by its URI."""

    def __init__(self, clients: Sequence[Client], uri: NBDURI, use: exports.Use) -> None:
        self._use = use
        at_first = exports.generation(clients[:1])

        def again() -> None:
            if exports.generation(clients) != at_first:
                raise RestoreError(
                    f"{uri}: its server may have been started again meanwhile, so that what was read of it may be of "
                    "two states; read it anew"
                )

        def explain(error: NBDError) -> str:
            return f"{uri}: {error}" if isinstance(error, RequestFailed) else str(error)

        super().__init__(clients, str(uri), again=again, explain=explain)

    def close(self) -> None:
        """Leave in good order."""
        self._use.end()
        super().close()


class _Runs:
    """The runs of data and holes of an export, found out once, from its start on."""

    def __init__(self, size: int, block: int, ask: Callable[[int, int], list[tuple[int, int]]] | None) -> None:
        """Of `size` bytes in blocks of `block`; `ask` is BLOCK_STATUS, None where the server does not tell."""
        self._size = size
        self._block = block
        self._ask = ask
        self._lock = threading.Lock()
        self._ends = array("Q")  # where runs end: data, hole, data, hole …; the first run may be empty
        self._zero = False  # the run that goes on behind them is a hole
        self._known = 0  # up to where that is known

    def __iter__(self) -> Iterator[Extent]:
        """Them all, in order."""
        position = 0
        for index in count():
            with self._lock:
                while index >= self._settled() and self._known < self._size:
                    self._find_out()
                last = index >= len(self._ends)
                end = self._size if last else self._ends[index]
            if end > position:
                yield Extent(end - position, hole=bool(index % 2), zero=bool(index % 2))
            if last:
                return
            position = end

    def data(self, start: int, end: int) -> list[tuple[int, int]]:
        """Those parts of a range, as (start, end), which are not known to be holes."""
        found = []
        with self._lock:
            index = bisect_right(self._ends, start)
            while start < end:
                if index < len(self._ends):
                    stop, zero = self._ends[index], bool(index % 2)
                elif start < self._known and self._zero:
                    stop, zero = self._known, True
                else:
                    stop, zero = end, False
                stop = min(stop, end)
                if not zero:
                    found.append((start, stop))
                start, index = stop, index + 1
        return found

    def _settled(self) -> int:
        """How many of `_ends` stay: a hole that may turn out to be too small is taken back."""
        return len(self._ends) - (self._zero and self._known - self._ends[-1] < _GRAIN and self._known < self._size)

    def _find_out(self) -> None:
        """Ask once, and take down what is said."""
        first = position = self._known
        if self._ask is None or len(self._ends) >= _MOST_RUNS:
            self._add(self._size, zero=False)
            return
        try:
            told = self._ask(first, min(self._size - first, _MOST))
        except RequestFailed:  # what it cannot say anything about may be read nevertheless, or fails then
            told = []
        for length, state in told:
            position += length
            self._add(position, zero=bool(state & StateFlag.ZERO))
        if self._known < min(first + _LEAST, self._size):
            self._add(first + _LEAST, zero=False)

    def _add(self, end: int, *, zero: bool) -> None:
        """All from what is known up to `end` is such. Some servers tell of less than a block, which is data."""
        end = min(end if zero else -(-end // self._block) * self._block, self._size)
        if zero and end < self._size:
            end = end // self._block * self._block
        if end <= self._known:
            return
        if zero != self._zero:
            if self._zero and self._known - self._ends[-1] < _GRAIN:
                self._ends.pop()
            else:
                self._ends.append(self._known)
            self._zero = zero
        self._known = end
