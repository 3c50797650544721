"""A source that is checked by its scan as it is read: nothing that differs from it is handed out.

Ranges of up to 1 MiB, which are all in a scan of ours, are checked whole before any byte of them is used, in threads a
few ranges ahead of who reads. Longer ones, which bmaptool makes, are hashed from their start on as they are read, so
that damage shows when their end is reached.

A range that is wrong is read once more, past all that keeps what was read. If it is right then, the transfer had
damaged it, and the restore goes on with what is right; if it is not, the source is damaged.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Self

from blake3 import blake3

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.manifest.bmap import UNIT, Bmap, Range
from restore.manifest.scan import zero_digests
from restore.source import Forgetful, Payload, Source, SourceError, Unmapped
from restore.source.payload import add_to, as_memory

_AHEAD: Final = 4  # ranges checked ahead, for each thread
_MOST_AHEAD: Final = 32  # ranges, each of which may be 1 MiB of memory, and as many behind
_ZEROES: Final = memoryview(bytes(UNIT))


class Prepared:
    """A `Source` that is its scan's mapped ranges; what lies between them reads as zeroes.

    With `keep_unmapped` what lies between is `Unmapped` instead.

    Attributes:
        source: the image as it is read, unchecked.
    """

    checked: Final = True

    def __init__(
        self,
        source: Source,
        bmap: Bmap,
        *,
        keep_unmapped: bool = False,
        threads: int | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take over `source`, which `close` closes; it has been found to be as large as `bmap` says, if that is known.

        Args:
            source: the image.
            bmap: its scan.
            keep_unmapped: what lies between mapped ranges is to be left as it is on the target.
            threads: None is one for each processor.
            notify: told in one line of what the transfer damaged, from any thread.
        """
        self._notify = notify
        self.name = source.name
        self.size: int = bmap.image_size
        self.sequential = source.sequential
        self.keep_unmapped = keep_unmapped
        self.bmap = bmap
        self.source = source
        threads = threads or len(os.sched_getaffinity(0))
        # What is decoded from the start is read in its order, by who reads.
        self._pool = None if source.sequential else ThreadPoolExecutor(threads, thread_name_prefix="check")
        self._most = min(_AHEAD * threads, _MOST_AHEAD)
        self._original = True
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._checks: OrderedDict[int, Future[Payload]] = OrderedDict()
        self._next = 0  # the range behind the last one that is checked ahead
        self._long_lock = threading.Lock()
        self._long: dict[int, _Long] = {}

    @property
    def least_size(self) -> int:
        """It is known."""
        return self.size

    @property
    def expected_size(self) -> int:
        """It is known."""
        return self.size

    def extents(self) -> Iterator[Extent]:
        """Mapped ranges, those of zeroes as such, and what lies between."""
        return mapped_extents(self.bmap, keep_unmapped=self.keep_unmapped)

    def payload(self, offset: int, length: int) -> Payload:
        """Checked bytes, where they lie in a file if all of them are mapped.

        Raises:
            SourceError: they are not what was scanned.
            OSError: the source failed.
        """
        end = offset + length
        first = index = self.bmap.find(offset)
        buffer = bytearray()
        while index < len(self.bmap):
            start, stop = self.bmap.span(index)
            if start >= end:
                break
            low, high = max(start, offset), min(stop, end)
            part = self._checked(index, low, high)
            if (low, high) == (offset, end):
                return part
            if index == first:
                buffer = bytearray(length)
            buffer[low - offset : high - offset] = as_memory(part, high - low, self.name)
            index += 1
        if index == first:
            return _ZEROES[:length] if length <= UNIT else memoryview(bytes(length))
        return memoryview(buffer)

    def forget(self, offset: int, length: int) -> None:
        """All ranges that a range touches, here and in the source."""
        first = index = self.bmap.find(offset)
        while index < len(self.bmap) and self.bmap.span(index)[0] < offset + length:
            with self._lock:
                check = self._checks.pop(index, None)
            if check is not None and not check.cancel():
                check.exception()  # it reads what is about to be forgotten
            with self._long_lock:
                self._long.pop(index, None)
            index += 1
        if first < index and isinstance(self.source, Forgetful):
            start = self.bmap.span(first)[0]
            self.source.forget(start, self.bmap.span(index - 1)[1] - start)

    def reader(self) -> Self:
        """Reads and checks for itself."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.source = self.source.reader()
        other._original = False
        other._begin()
        return other

    def check_unchanged(self) -> None:
        """As the source tells."""
        self.source.check_unchanged()

    def close(self) -> None:
        """Stop checking, and close the source."""
        with self._lock:
            for check in self._checks.values():
                check.cancel()
            running = [check for check in self._checks.values() if not check.cancelled()]
        for check in running:
            check.exception()  # it uses the source, and matters to nobody any more
        if self._original and self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.source.close()

    def _checked(self, index: int, low: int, high: int) -> Payload:
        """Bytes within one range."""
        start, end = self.bmap.span(index)
        if end - start > UNIT:
            return self._checked_long(index, low, high)
        data = self._whole(index)
        if isinstance(data, FileRange):
            return FileRange(data.fd, data.offset + low - start)
        return data[low - start : high - start]

    def _whole(self, index: int) -> Payload:
        if self._pool is None:
            return self._check(index)
        with self._lock:
            check = self._submit(index)
            self._look_ahead(index)
        return check.result()

    def _submit(self, index: int) -> Future[Payload]:
        check = self._checks.get(index)
        if check is None:
            assert self._pool is not None
            check = self._checks[index] = self._pool.submit(self._check, index)
        return check

    def _look_ahead(self, index: int) -> None:
        """Have the next ranges checked by the time that they are asked for, and forget those that lie behind."""
        if not index < self._next <= index + self._most:
            self._next = index + 1
        while self._next <= min(index + self._most, len(self.bmap) - 1):
            start, end = self.bmap.span(self._next)
            if end - start <= UNIT and not is_zero(self.bmap, self._next):
                self._submit(self._next)
            self._next += 1
        while len(self._checks) > 2 * self._most and next(iter(self._checks.values())).done():
            self._checks.popitem(last=False)

    def _check(self, index: int) -> Payload:
        """A whole range, which is what was scanned."""
        found = self.bmap[index]
        length = found.end - found.start
        data = self.source.payload(found.start, length)
        if not self._matches(found, data):
            self._forget(found)
            data = self.source.payload(found.start, length)
            if not self._matches(found, data):
                raise self._damaged(found)
            self._notify(
                f"the transfer was at fault: {_where(found)} of {self.name} arrived damaged; read once more it is right"
            )
        return data

    def _checked_long(self, index: int, low: int, high: int) -> Payload:
        data = self.source.payload(low, high - low)
        with self._long_lock:
            long = self._long.get(index)
            if long is None:
                found = self.bmap[index]
                long = self._long[index] = _Long(found, self._digest(found), found.start)
            while long.digest is not None and long.position < high:
                at, until = long.position, high
                if low <= at:
                    add_to(long.digest, _behind(data, at - low), high - at, self.name)
                else:  # it was passed over
                    until = min(low, at + UNIT)
                    add_to(long.digest, self.source.payload(at, until - at), until - at, self.name)
                long.position = until
            if long.digest is not None and long.position == long.found.end:
                if long.digest.digest() != _expected(long.found):
                    long.failure = self._judged(long.found)
                long.digest = None
            if long.failure is not None:
                raise long.failure
        return data

    def _matches(self, found: Range, data: Payload) -> bool:
        digest = self._digest(found)
        if digest is None:
            return True
        add_to(digest, data, found.end - found.start, self.name)
        return bool(digest.digest() == _expected(found))

    def _judged(self, found: Range) -> SourceError:
        """What to say of a long range that was wrong, some of which was handed out already."""
        self._forget(found)
        digest = self._digest(found)
        for at in range(found.start, found.end, UNIT):
            length = min(UNIT, found.end - at)
            add_to(digest, self.source.payload(at, length), length, self.name)
        if digest.digest() != _expected(found):
            return self._damaged(found)
        return SourceError(
            f"the transfer was at fault: {_where(found)} of {self.name} arrived damaged, which shows only at its end; "
            "read once more it is right, so restore it again"
        )

    def _forget(self, found: Range) -> None:
        if not isinstance(self.source, Forgetful):
            raise SourceError(
                f"the source or the transfer was at fault: {_where(found)} of {self.name} does not match its scan"
            )
        self.source.forget(found.start, found.end - found.start)

    def _damaged(self, found: Range) -> SourceError:
        return SourceError(
            f"the source is at fault: {self.name} is damaged or was changed: {_where(found)} does not match its scan, "
            "nor when read once more"
        )

    def _digest(self, found: Range) -> Any:
        """A digest to compare a range by, the faster of those that it has; None if it has none."""
        if found.blake3 is not None:
            return blake3()
        if found.checksum is not None and self.bmap.checksum_type is not None:
            return hashlib.new(self.bmap.checksum_type, usedforsecurity=False)
        return None


def mapped_extents(bmap: Bmap, *, keep_unmapped: bool) -> Iterator[Extent]:
    """The runs of an image: mapped ranges, those of zeroes as such, and what lies between, zeroes or `Unmapped`."""
    gap = Unmapped if keep_unmapped else Extent
    position = length = 0
    zero = False
    for index in range(len(bmap)):
        start, end = bmap.span(index)
        range_zero = is_zero(bmap, index)
        if length and (start > position or range_zero != zero):
            yield Extent(length, hole=False, zero=zero)
            length = 0
        if start > position:
            yield gap(start - position, hole=True, zero=not keep_unmapped)
        length, zero, position = length + end - start, range_zero, end
    if length:
        yield Extent(length, hole=False, zero=zero)
    if position < bmap.image_size:
        yield gap(bmap.image_size - position, hole=True, zero=not keep_unmapped)


def is_zero(bmap: Bmap, index: int) -> bool:
    """Whether a range is known to be zeroes by its digest."""
    found = bmap[index]
    length = found.end - found.start
    if length > UNIT:
        return False
    if found.blake3 is not None:
        return found.blake3 == zero_digests(length)[1]
    return bmap.checksum_type == "sha256" and found.checksum == zero_digests(length)[0]


@dataclass(slots=True)
class _Long:
    """A range that is checked as it is read.

    Attributes:
        found: the range.
        digest: of what lies before `position`; None when it has been compared, or there is nothing to compare.
        position: up to where, in bytes of the image.
        failure: why it may not be used.
    """

    found: Range
    digest: Any
    position: int
    failure: SourceError | None = None


def _where(found: Range) -> str:
    first, last = found.start // UNIT, (found.end - 1) // UNIT
    return f"MiB {first}" if first == last else f"MiB {first} to {last}"


def _expected(found: Range) -> bytes | None:
    return found.checksum if found.blake3 is None else found.blake3


def _behind(data: Payload, count: int) -> Payload:
    if isinstance(data, FileRange):
        return FileRange(data.fd, data.offset + count)
    return data[count:]
