"""An image behind `http://` or `https://`: ranges over several connections, resumed after a cut, of one version only.

What a server sends is held against what was asked for and against what it said first: the range, the lengths, the size
of all, `ETag` and `Last-Modified`. A server without ranges is read from the start; after a cut that is begun anew, and
what was had already is compared.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Final, NoReturn

import xxhash

from nbd.connection import FileRange
from restore.errors import Refused, RestoreError
from restore.source import SourceError, SourceSettings
from restore.source.storage import Missing
from restore.source.storage.address import Address
from restore.source.storage.ahead import ReadAhead
from restore.source.storage.answers import Version, advice, content_range
from restore.source.storage.outage import Outage, Outages
from restore.source.storage.web import Answer, Lie, Lost, Silent, Unreachable, Web, described
from targetmode.disks.text import printable

CONNECTIONS: Final = 4
_HEAD: Final = 256 << 10  # bytes of the first request, which is to tell everything and to serve who looks at the format
_UNIT: Final = 1 << 20  # bytes of a piece of what comes without ranges
_TICK: Final = 2.0  # seconds after which a connection is looked at
_LAGGING: Final = 16  # times slower than others are: given up for a new one
_OPENINGS: Final = 3  # times that a connection may be lost before anything is known
_STARTS: Final = 5  # times that an image is begun anew without coming further
_NOTHING = re.compile(r"bytes \*/0", re.IGNORECASE)


class HTTPStorage:
    """A resource on a web server: `Storage`."""

    def __init__(self, address: Address, settings: SourceSettings) -> None:
        """Ask for the first bytes.

        Raises:
            Refused: it is not there, or cannot be had.
            RestoreError: the server went away meanwhile.
        """
        self.name = str(address)
        self._settings = settings
        self._closed = threading.Event()
        self._outages = Outages(self.name, settings.timeout, settings.notify, self._closed)
        self._web = Web(address, settings.timeout)
        self._pace = _Pace()
        self._taking = threading.Lock()
        self._first: Answer | None = None  # of a server without ranges: the answer whose beginning `_head` is
        self.size: int | None = None
        self._ahead: ReadAhead | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def seekable(self) -> bool:
        """Whether the server sends ranges."""
        return self._ahead is not None

    @property
    def connections(self) -> int:
        """How many ranges are worth asking for at once."""
        return self._settings.connections or CONNECTIONS

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end.

        Raises:
            SourceError: the server's answers make no sense.
            RestoreError: the server is gone, or has another version now.
        """
        assert self._ahead is not None, "there are no ranges"
        return self._ahead.read(offset, length)

    def stream(self) -> Iterator[bytes]:
        """All of it; raises as `read`."""
        return self._whole() if self._ahead is None else self._ahead.stream()

    def plain(self, offset: int, length: int) -> FileRange | None:
        """It is no local file."""
        return None

    def check_unchanged(self) -> None:
        """Ask the server once more."""
        outage = self._outages.begin()
        while True:
            try:
                with self._ask({"Range": "bytes=0-0", **self._version.condition} if self.seekable else {}) as answer:
                    self._judge(answer, 0, 1)
                return
            except Lost as error:
                outage.failed(error)

    def interrupt(self) -> None:
        """Have what waits for the server fail now."""
        self._closed.set()
        self._web.interrupt()

    def close(self) -> None:
        """Hang up."""
        self.interrupt()
        if self._ahead is not None:
            self._ahead.close()
        self._web.close()

    # --- the first answer ---

    def _open(self) -> None:
        for left in reversed(range(_OPENINGS)):
            try:
                answer = self._ask({"Range": f"bytes=0-{_HEAD - 1}"})
                try:
                    ended = self._learn(answer)
                finally:
                    if answer is not self._first:
                        answer.close()
                if ended:
                    return
                raise Lost("the server closed the connection")
            except Lost as error:
                if not left or isinstance(error, Unreachable | Silent):
                    raise Refused(f"{self.name}: {error}") from None

    def _learn(self, answer: Answer) -> bool:
        """Take what the first answer tells; whether its beginning arrived."""
        self._refuse_status(answer, opening=True)
        self._version = Version.of(answer)
        if answer.status == 206:
            start, end, total = self._range_of(answer)
            if total is None:
                raise SourceError(f"{self.name}: the server does not say how large it is")
            if (start, end) != (0, min(_HEAD, total)):
                self._lies(f"it sends bytes {start} to {end - 1}, and was asked for 0 to {min(_HEAD, total) - 1}")
            head, _ = self._receive(answer, end, self._outages.begin(), all_of_it=True)
            if len(head) < end:
                return False
            self.size = total
            self._ahead = ReadAhead(self._fetch, total, self.connections, head=head)
            return True
        if answer.length == 0:
            raise Refused(f"{self.name} is empty")
        if not answer.bounded:
            raise Refused(
                f"{self.name}: the server tells neither how large it is nor where it ends, so that a cut could not be "
                "noticed; download it first"
            )
        self.size = answer.length
        self._head, ended = self._receive(answer, _HEAD, self._outages.begin())
        if len(self._head) < _HEAD and ended != "whole":
            return False
        if not self._head:
            raise Refused(f"{self.name} is empty")
        self._first = answer
        return True

    # --- ranges ---

    def _fetch(self, offset: int, length: int) -> bytes:
        """All bytes of a range, over as many connections one after the other as it takes."""
        parts: list[bytes] = []
        done = 0
        outage = self._outages.begin()
        while done < length:
            try:
                with self._ask(self._range(offset + done, length - done)) as answer:
                    self._judge(answer, offset + done, length - done)
                    part, ended = self._receive(answer, length - done, outage, all_of_it=True)
                    parts.append(part)
                    done += len(part)
                    if done < length and ended != "slow":
                        raise Lost(_why(ended))
            except Lost as error:
                outage.failed(error)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _range(self, offset: int, length: int) -> dict[str, str]:
        return {"Range": f"bytes={offset}-{offset + length - 1}", **self._version.condition}

    def _ask(self, fields: dict[str, str]) -> Answer:
        try:
            return self._web.get(fields)
        except Lie as error:
            self._lies(str(error))

    def _judge(self, answer: Answer, offset: int, length: int) -> None:
        """See that an answer is for this version and for what was asked for.

        Raises:
            Lost: the server cannot do it now.
            RestoreError: it is another version.
            SourceError: it is something else.
        """
        self._refuse_status(answer)
        if Version.of(answer).contradicts(self._version):
            self._changed()
        if not self.seekable:
            if answer.status != 200 or answer.length != self.size:
                self._changed()
            return
        if answer.status == 200:
            if answer.length != self.size or self._version.condition:
                self._changed()  # which is what a whole answer to If-Range says
            self._lies("it does not send ranges any more")
        start, end, total = self._range_of(answer)
        if total != self.size:
            self._changed()
        if (start, end) != (offset, offset + length):
            self._lies(f"it sends bytes {start} to {end - 1}, and was asked for {offset} to {offset + length - 1}")

    def _range_of(self, answer: Answer) -> tuple[int, int, int | None]:
        try:
            return content_range(answer)
        except Lie as error:
            self._lies(str(error))

    def _receive(
        self, answer: Answer, length: int, outage: Outage, *, all_of_it: bool = False
    ) -> tuple[bytes, str | Exception]:
        """Take bytes from an answer, of which those may be all that there are to be.

        Returns:
            The bytes that came, and if those are fewer why: `whole`, `slow`, or what failed.
        """
        parts: list[bytes] = []
        left = length
        began = time.monotonic()
        ended: str | Exception = ""
        while left and (ended := answer.over()) == "":
            part = answer.read(left, min(_TICK, self._settings.timeout))
            parts.append(part)
            left -= len(part)
            if not left:
                outage.moved()
                break
            outage.arrived(len(part))
            if outage.overdue:
                ended = Lost(f"no movement for {self._settings.timeout:g} seconds")
                break
            if all_of_it and answer.over() == "" and self._pace.lags(length - left, time.monotonic() - began):
                ended = "slow"
                break
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if left:
            return data, ended
        if not all_of_it:
            return data, answer.over()
        self._pace.add(length, time.monotonic() - began)
        try:
            answer.finish(self._settings.timeout)
        except Lie as error:
            self._lies(str(error))
        return data, "whole"

    # --- without ranges ---

    def _whole(self) -> Iterator[bytes]:
        """What the server sends, from the start."""
        yield self._head
        offset = reached = len(self._head)
        passed = xxhash.xxh3_128(self._head)
        with self._taking:
            answer, self._first = self._first, None
        starts = 0
        outage = self._outages.begin()
        while True:
            if answer is None:
                answer = self._again(offset, passed.digest(), outage)
            with answer:
                ended: str | Exception = ""
                while ended == "":
                    piece, ended = self._receive(answer, _UNIT, outage)
                    if piece:
                        passed.update(piece)
                        offset += len(piece)
                        yield piece
                        outage.resume()
                if ended == "more":
                    self._lies("it is longer than it says")
                if ended == "whole":
                    answer.finish(self._settings.timeout)
                    return
            answer = None
            starts = starts + 1 if offset == reached else 0
            reached = offset
            if starts >= _STARTS:
                raise RestoreError(
                    f"{self.name}: the connection was lost {starts} times before byte {offset + 1} had come "
                    f"({_why(ended)}), and the server does not send ranges; download it first"
                )
            outage.failed(_why(ended))

    def _again(self, offset: int, digest: bytes, outage: Outage) -> Answer:
        """A new answer, its first `offset` bytes skipped once they were seen to be the same as before."""
        while True:
            try:
                answer = self._ask({})
            except Lost as error:
                outage.failed(error)
                continue
            try:
                self._judge(answer, 0, 0)
                self._skip(answer, offset, digest, outage)
                return answer
            except Lost as error:
                answer.close()
                outage.failed(error)
            except BaseException:
                answer.close()
                raise

    def _skip(self, answer: Answer, offset: int, digest: bytes, outage: Outage) -> None:
        passed = xxhash.xxh3_128()
        skipped = 0
        while skipped < offset:
            piece, ended = self._receive(answer, min(_UNIT, offset - skipped), outage)
            passed.update(piece)
            skipped += len(piece)
            if ended != "" and skipped < offset:
                raise Lost(_why(ended))
        if passed.digest() != digest:
            self._changed()

    # --- what is wrong ---

    def _refuse_status(self, answer: Answer, *, opening: bool = False) -> None:
        encoding = answer.field("content-encoding")
        status = answer.status
        if status in (200, 206):
            if encoding is None or encoding.lower() == "identity":
                return
            raise (Refused if opening else SourceError)(
                f"{self.name}: the server sends it encoded ({printable(encoding)}), though the plain bytes were asked "
                "for; switch that off there for this file"
            )
        if status == 416 and not opening:
            self._changed()
        if status == 416 and _NOTHING.fullmatch(answer.field("content-range") or ""):
            raise Refused(f"{self.name} is empty")
        if not opening and (status == 429 or status >= 500):
            raise Lost(f"the server answers {described(status)}")
        text = f"{self.name}: {advice(status, answer, self._web.logs_in)} ({described(status)})"
        if opening and status in (403, 404, 410):
            raise Missing(text, forbidden=status == 403)
        raise (Refused if opening else RestoreError)(text)

    def _changed(self) -> NoReturn:
        raise RestoreError(f"{self.name} was changed on the server meanwhile; begin again")

    def _lies(self, how: str) -> NoReturn:
        raise SourceError(f"{self.name}: the server's answer makes no sense: {how}")


class _Pace:
    """How fast connections are; from several threads, an error of little consequence included."""

    def __init__(self) -> None:
        self._rate = 0.0  # bytes per second of one connection, the last ones counting most
        self._given_up = 0.0

    def add(self, length: int, seconds: float) -> None:
        """A range came at one go."""
        rate = length / max(seconds, 1e-6)
        self._rate += (rate - self._rate) / 4 if self._rate else rate

    def lags(self, length: int, seconds: float) -> bool:
        """Whether a connection is that much slower than others that another one is worth a try; now and then one is."""
        now = time.monotonic()
        if seconds < _TICK / 2 or length / seconds * _LAGGING >= self._rate or now - self._given_up < 3 * _TICK:
            return False
        self._given_up = now
        return True


def _why(ended: str | Exception) -> str:
    if isinstance(ended, Lost):
        return str(ended)
    if isinstance(ended, OSError):
        return printable(ended.strerror or str(ended))
    return "the server closed the connection early"
