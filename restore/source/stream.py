"""A source that can only be decoded from its start: one thread decodes a little ahead of who reads.

    decoder ──units of 1 MiB──▶ window ──▶ readers, each at a pace of its own

The window goes with the reader that is furthest. One that crawls, and needs what has left it, begins a decoder of its
own, from the start; so does, for as long as it takes, who looks back at what has to be compared or sent again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Self

from nbd.backend import Extent
from restore.source import Promising, SourceError, Stream, Zeroes
from restore.source.storage import interrupt

UNIT: Final = 1 << 20
GRAIN: Final = 64 << 10  # runs of zeroes of this size are seen
AHEAD: Final = 32  # units with data that are decoded ahead of the first reader
BEHIND: Final = 64  # units that stay in the window behind it
_PATIENCE: Final = 5.0  # seconds that a decoder may take to end
_RUNS: Final = 4096  # units of zeroes decoded ahead, at most
_ZEROES: Final = bytes(UNIT)
_ZERO_GRAIN: Final = bytes(GRAIN)


class StreamSource:
    """A `Source` over a `Stream`."""

    sequential: Final = True
    checked: Final = False
    _back: _Window | None  # where units are that were asked for again when they had left the other

    def __init__(self, stream: Stream) -> None:
        """Take over `stream`, which `close` closes, and decode the first unit.

        Raises:
            SourceError, OSError: that cannot be decoded.
        """
        self.name = stream.name
        self._stream = stream
        self._known = _Known(stream.size, stream.least_size if isinstance(stream, Promising) else 0)
        self._original = True
        self._begin()
        self._window = _Window(stream, self._known)
        try:
            self._head = self._window.unit(0)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int | None:
        """Known from the format, or when it was decoded once."""
        return self._known.size

    @property
    def least_size(self) -> int:
        """What was decoded so far, or what the format says before that."""
        return self._known.size or max(self._known.decoded, self._known.told)

    @property
    def expected_size(self) -> int:
        """From how much of what is stored was decoded to how much."""
        fraction = self._stream.fraction()
        return self._known.size or max(int(self._known.decoded / max(min(fraction, 1.0), 0.001)), self._known.told)

    def extents(self) -> Iterator[Extent]:
        """Found as it is decoded."""
        index = 0
        while (unit := self._unit(index)) is not None:
            yield from _runs(unit)
            index += 1

    def payload(self, offset: int, length: int) -> memoryview:
        """From the window, or a new one."""
        parts = []
        while length:
            index, at = divmod(offset, UNIT)
            unit = self._unit(index)
            count = min(length, UNIT - at)
            if unit is None or at + count > len(unit):
                raise SourceError(f"{self.name} ends before byte {offset + count}")
            parts.append(memoryview(unit)[at:][:count])
            offset += count
            length -= count
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def forget(self, offset: int, length: int) -> None:
        """All that was decoded: it begins again from the start."""
        with self._looking_back:
            self._leave_back()
        with self._lock:
            self._furthest = offset // UNIT
            self._window.leave()
            self._window = _Window(self._stream, self._known, wanted=self._furthest)
        if offset < UNIT:
            self._head = self._window.unit(0)

    def reader(self) -> Self:
        """Shares the window until one of them is left behind."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._original = False
        other._begin()
        self._window.join()
        return other

    def check_unchanged(self) -> None:
        """As the format tells."""
        self._stream.check_unchanged()

    def close(self) -> None:
        """Stop decoding, and close it."""
        if self._original:
            interrupt(self._stream)
        self._closed = True
        self._window.leave()
        self._leave_back()
        if self._original:
            self._stream.close()

    def _unit(self, index: int) -> bytes | bytearray | None:
        """A unit, shorter at the end; None behind it."""
        if index == 0:
            return self._head
        with self._lock:
            going_on = index >= self._furthest
            self._furthest = max(self._furthest, index)
        return self._next_unit(index) if going_on else self._earlier_unit(index)

    def _next_unit(self, index: int) -> bytes | bytearray | None:
        while True:
            window = self._window
            with suppress(_Gone):
                return window.unit(index)
            with self._lock:
                if self._closed:
                    raise SourceError(f"{self.name} was closed")
                if self._window is window:
                    window.leave()
                    self._window = _Window(self._stream, self._known, wanted=index)

    def _earlier_unit(self, index: int) -> bytes | bytearray | None:
        """By whichever thread, and without taking the window away from the one that goes on."""
        with suppress(_Gone):
            return self._window.unit(index)
        with self._looking_back:
            while not self._closed:
                back = self._back or _Window(self._stream, self._known, wanted=index)
                self._back = back
                with suppress(_Gone):
                    return back.unit(index)
                self._leave_back()
        raise SourceError(f"{self.name} was closed")

    def _begin(self) -> None:
        """What every reader has for itself."""
        self._closed = False
        self._lock: threading.Lock = threading.Lock()
        self._furthest = 0  # unit that was asked for
        self._looking_back: threading.Lock = threading.Lock()
        self._back = None

    def _leave_back(self) -> None:
        back, self._back = self._back, None
        if back is not None:
            back.leave()


class _Gone(Exception):
    """A unit has left the window."""


class _Known:
    """What has become known of a stream's size."""

    def __init__(self, size: int | None, told: int) -> None:
        self.size = size
        self.told = told
        self.decoded = 0


class _Window:
    """The units around the reader that is furthest, and the thread that decodes them."""

    def __init__(self, stream: Stream, known: _Known, wanted: int = 0) -> None:
        self._users = 1
        self._stream = stream
        self._known = known
        self._wanted = wanted  # the furthest unit that a reader has asked for
        self._first = 0  # of the units in the window
        self._units: deque[bytes | bytearray] = deque()
        self._data = 0  # units decoded that are not zeroes, and lie ahead of `_wanted`
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    def unit(self, index: int) -> bytes | bytearray | None:
        """A unit, waiting for it; None behind the end.

        Raises:
            _Gone: it was here.
            SourceError, OSError: it could not be decoded.
        """
        with self._changed:
            if index > self._wanted:
                passed = range(self._wanted + 1 - self._first, index + 1 - self._first)
                self._data -= sum(self._units[i] is not _ZEROES for i in passed if i < len(self._units))
                self._wanted = index
                while self._first < index - BEHIND and self._units:
                    self._units.popleft()
                    self._first += 1
                self._changed.notify_all()
            while True:
                if index < self._first:
                    raise _Gone
                if index < self._first + len(self._units):
                    return self._units[index - self._first]
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    return None
                if self._closed:  # by another thread of its reader, which has made a new one
                    raise _Gone
                self._changed.wait()

    def join(self) -> None:
        """There is one reader more."""
        with self._changed:
            self._users += 1

    def leave(self) -> None:
        """There is one less; with the last one the thread ends."""
        with self._changed:
            self._users -= 1
            self._closed = self._users <= 0
            self._changed.notify_all()
        if self._closed:
            self._thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            total = 0
            for unit in _units(self._stream.decode()):
                total += len(unit)
                if not self._put(unit, total):
                    return
            if self._known.size not in (None, total):
                raise SourceError(f"{self._stream.name} holds {total} bytes, and says that it has {self._known.size}")
            self._known.size = total
            with self._changed:
                self._ended = True
        except BaseException as error:
            self._failure = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _put(self, unit: bytes | bytearray, total: int) -> bool:
        """Add a unit as there is room; False when nobody wants any more."""
        with self._changed:
            while not self._closed:
                index = self._first + len(self._units)
                if index < self._wanted - BEHIND:  # on the way to where a reader is
                    self._first += 1
                    break
                if index <= self._wanted or (self._data < AHEAD and index - self._wanted < _RUNS):
                    self._units.append(unit)
                    self._data += index > self._wanted and unit is not _ZEROES
                    break
                self._changed.wait()
            self._known.decoded = max(self._known.decoded, total)
            self._changed.notify_all()
            return not self._closed


def _units(pieces: Iterator[bytes | Zeroes]) -> Iterator[bytes | bytearray]:
    """Pieces of any length as units of `UNIT`; the last one is shorter, whole ones of zeroes are `_ZEROES` itself."""
    part = bytearray()
    for piece in pieces:
        if isinstance(piece, Zeroes):
            left = piece.length
            if part:
                count = min(left, UNIT - len(part))
                part += _ZEROES[:count]
                left -= count
                if len(part) == UNIT:
                    yield part
                    part = bytearray()
            for _ in range(left // UNIT):
                yield _ZEROES
            part += bytes(left % UNIT) if left else b""
            continue
        if not part and len(piece) == UNIT:
            yield _ZEROES if piece.startswith(_ZEROES) else piece
            continue
        view = memoryview(piece)
        while view:
            count = min(len(view), UNIT - len(part))
            part += view[:count]
            view = view[count:]
            if len(part) == UNIT:
                yield _ZEROES if part.startswith(_ZEROES) else part
                part = bytearray()
    if part:
        yield part


def _runs(unit: bytes | bytearray) -> Iterator[Extent]:
    """The runs of data and zeroes of a unit, by grains."""
    if unit is _ZEROES:
        yield Extent(UNIT, hole=True, zero=True)
        return
    length, zero = 0, False
    for start in range(0, len(unit), GRAIN):
        size = min(GRAIN, len(unit) - start)
        grain_zero = unit.startswith(_ZERO_GRAIN if size == GRAIN else _ZERO_GRAIN[:size], start)
        if length and grain_zero != zero:
            yield Extent(length, hole=zero, zero=zero)
            length = 0
        length, zero = length + size, grain_zero
    if length:
        yield Extent(length, hole=zero, zero=zero)
