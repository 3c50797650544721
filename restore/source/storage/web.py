"""One request to a web server and its answer: connections that are kept, TLS, proxies, redirects, who logs in.

RFC 9110 and 9112. What is waited for has to come by a deadline, however slowly a server sends it, and nothing that it
sends is taken for more than it is. Answers are parsed by `http.client`; the bytes of a plain body then go from the
socket straight to where they are wanted.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import Final, Literal, Self

from restore.errors import Refused, say
from restore.source.storage.address import Address
from restore.source.storage.line import Line
from restore.source.storage.proxy import authorization, basic, proxy_for
from targetmode.disks.text import printable

REDIRECTS: Final = 10
_CONNECT: Final = 20.0  # seconds for one address of a host, at most
_CHUNKED: Final = 64 << 10  # bytes of a chunked body that have to come within the time for one wait
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_DENIED: Final = frozenset({401, 403, 404, 410})
_NUMBER = re.compile(r"[0-9]{1,19}")
_AGENT: Final = "asr (targetmode)"


class Lost(Exception):
    """A server that does not answer, or no longer; `str()` says why. It may be back later."""


class Unreachable(Lost):
    """A server to which there is no connection."""


class Silent(Lost):
    """A server that does not answer in time."""


class Lie(Exception):
    """An answer that contradicts itself or the protocol; `str()` says how."""


class Answer:
    """A server's answer, its body still to come; a context manager that hangs up unless all of it was read.

    Attributes:
        status: the three digits.
        place: where it came from, redirects followed.
        length: bytes of the body, None where that is not told.
        bounded: the body has an end that shows whether it is whole.
    """

    def __init__(self, web: Web, line: Line, response: HTTPResponse, place: Address) -> None:
        """Look at its fields.

        Raises:
            Lie: they contradict each other.
        """
        self._web, self._line, self._response = web, line, response
        self._finished = False
        self.status, self.place = response.status, place
        try:
            encodings = [text.strip().lower() for text in self.all("transfer-encoding")]
            if encodings not in ([], ["chunked"]):
                raise Lie(f"it is transferred as {printable(', '.join(encodings))}, which was not asked for")
            lengths = set(self.all("content-length"))
            if len(lengths) > 1 or not all(_NUMBER.fullmatch(length) for length in lengths):
                raise Lie("its length is told in a way that makes no sense")
        except BaseException:
            self.close()
            raise
        self._chunked = bool(encodings)
        self.length = int(lengths.pop()) if lengths and not self._chunked else None
        self.bounded = self._chunked or self.length is not None
        self._left = self.length

    def field(self, name: str) -> str | None:
        """A field of its head."""
        value = self._response.headers.get(name)
        return None if value is None else str(value).strip()

    def all(self, name: str) -> list[str]:
        """All fields of that name."""
        return [str(value).strip() for value in self._response.headers.get_all(name, [])]

    def read(self, most: int, seconds: float) -> bytes:
        """What comes of the body within some time; if that is less than `most`, `over` tells whether more may come."""
        line = self._line
        line.deadline = time.monotonic() + seconds
        if self._chunked:
            return self._read_chunked(most)
        line.body = True
        data = line.reader.read(most if self._left is None else min(most, self._left)) or b""  # None: nothing yet
        if self._left is not None:
            self._left -= len(data)
        return data

    def _read_chunked(self, most: int) -> bytes:
        self._line.deadline = time.monotonic() + self._web.patience
        try:
            return self._response.read(min(most, _CHUNKED))
        except (HTTPException, OSError, ValueError) as error:
            self._line.failure = error
            return b""

    def over(self) -> Literal["", "whole", "more"] | Exception:
        """Whether more can come: no since it is whole, no since it failed; `more`: it is longer than it said.

        An empty string where more can come.
        """
        line = self._line
        if line.failure is not None:
            return line.failure
        if self._chunked:
            return "whole" if self._response.isclosed() else ""
        if self._left == 0:
            line.dry = True
            return "more" if line.reader.peek(1) else "whole"
        if line.ended:
            return "whole" if self._left is None else ConnectionError("the server closed the connection early")
        return ""

    def finish(self, seconds: float) -> None:
        """Nothing more is wanted: see that nothing more is there, and keep the connection.

        Raises:
            Lie: there is more.
        """
        if self.over() == "":  # of a body whose end is in sight only behind it
            extra = self.read(1, seconds)
            if extra or self.over() == "more":
                raise Lie("it is longer than it says")
        if self.over() == "more":
            raise Lie("it is longer than it says")
        if self.over() == "whole" and self.bounded and not self._response.will_close:
            self._finished = True
            self._response.close()
            self._web.keep(self.place, self._line)

    def close(self) -> None:
        """Hang up unless it was finished."""
        if not self._finished:
            self._finished = True
            self._web.drop(self._line)
            with suppress(OSError, ValueError):
                self._response.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up unless it was finished."""
        self.close()


class Web:
    """Requests for one URL; methods may be called from several threads, each request has a connection of its own."""

    def __init__(self, address: Address, patience: float) -> None:
        """Prepare; nothing is sent.

        Args:
            address: of `http` or `https`.
            patience: seconds that a server has for the head of an answer.

        Raises:
            Refused: credentials or proxy cannot be used.
        """
        self.address = address
        self.patience = patience
        self._credentials = address.credentials()
        self._place = address  # where the last redirect led to
        self._context: ssl.SSLContext | None = None
        self._lock = threading.Lock()
        self._idle: list[tuple[str, Line]] = []
        self._lines: set[Line] = set()
        self._cut = False
        proxy_for(address)

    @property
    def logs_in(self) -> bool:
        """Whether there is a user name and password for the server."""
        return self._credentials is not None

    def get(self, fields: Mapping[str, str]) -> Answer:
        """Ask for it, following redirects.

        Raises:
            Lost: no answer.
            Lie: an answer that cannot be one.
            Refused: it leads to where it must not.
        """
        place = self._place
        answer = self._ask(place, fields)
        if (
            place is not self.address and answer.status in _DENIED
        ):  # where it led to may have been good for a while only
            answer.close()
            place = self._place = self.address
            answer = self._ask(place, fields)
        for _ in range(REDIRECTS):
            if answer.status not in _MOVED:
                self._place = place
                return answer
            location = answer.field("location")
            answer.close()
            if location is None:
                raise Lie("it redirects to nowhere")
            place = self._next(place, location)
            answer = self._ask(place, fields)
        if answer.status in _MOVED:
            answer.close()
            raise Refused(f"{self.address}: the server redirects more than {REDIRECTS} times")
        self._place = place
        return answer

    def keep(self, place: Address, line: Line) -> None:
        """A connection may be used again."""
        line.used = True
        with self._lock:
            if not self._cut:
                self._idle.append((place.origin, line))
                return
        self.drop(line)

    def drop(self, line: Line) -> None:
        """Hang up on one connection."""
        with self._lock:
            self._lines.discard(line)
        line.close()

    def interrupt(self) -> None:
        """Have everything that waits for the server fail now, and what is asked for later."""
        with self._lock:
            self._cut = True
            for line in self._lines:
                line.cut()

    def close(self) -> None:
        """Hang up."""
        self.interrupt()
        with self._lock:
            lines, self._idle = [*self._lines], []
        for line in lines:
            self.drop(line)

    def _next(self, place: Address, location: str) -> Address:
        found = place.joined(location)
        if found.scheme not in ("http", "https"):
            raise Refused(f"{self.address}: the server redirects to {found}, which is no web server")
        if place.scheme == "https" and found.scheme == "http":
            raise Refused(
                f"{self.address}: the server redirects to {found}, which is not encrypted; name that URL itself"
            )
        return found

    def _ask(self, place: Address, fields: Mapping[str, str]) -> Answer:
        while True:
            line = self._line(place)
            again = line.used
            try:
                return Answer(self, line, self._exchange(line, place, fields), place)
            except (HTTPException, OSError, ValueError) as error:
                self.drop(line)
                if isinstance(error, TimeoutError | BlockingIOError):
                    raise Silent(f"no answer within {self.patience:g} seconds") from None
                if not again:  # a connection that was kept may have been closed by the server meanwhile
                    raise Lost(_reason(error)) from None
            except BaseException:
                self.drop(line)
                raise

    def _exchange(self, line: Line, place: Address, fields: Mapping[str, str]) -> HTTPResponse:
        proxy = proxy_for(place) if place.scheme == "http" else None
        head = {
            "Host": place.authority,
            "User-Agent": _AGENT,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            **fields,
            **self._authorization(place),
            **(authorization(proxy) if proxy else {}),
        }
        target = f"{place.origin}{place.target}" if proxy else place.target
        text = f"GET {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in head.items()) + "\r\n"
        line.send(text.encode("latin-1"), self.patience)
        return _begun(line, "GET")

    def _authorization(self, place: Address) -> dict[str, str]:
        own = self.address
        same = place.host == own.host and (
            place.origin == own.origin or ((own.scheme, own.port), (place.scheme, place.port)) == _UPGRADE
        )
        if self._credentials is None or not same:
            return {}
        return {"Authorization": basic(self._credentials.user, self._credentials.password)}

    # --- connections ---

    def _line(self, place: Address) -> Line:
        with self._lock:
            if self._cut:
                raise Lost("it was closed")
            mine = [at for at, (origin, _) in enumerate(self._idle) if origin == place.origin]
            line = self._idle.pop(mine[-1])[1] if mine else None
        if line is None:
            return self._connected(place)
        if line.quiet():
            return line
        self.drop(line)
        return self._line(place)

    def _connected(self, place: Address) -> Line:
        proxy = proxy_for(place)
        to = proxy or place
        limit = min(self.patience, _CONNECT)
        try:
            sock = socket.create_connection((to.host, to.port), limit)
        except OSError as error:
            reason = f"no answer within {limit:g} seconds" if isinstance(error, TimeoutError) else say(error)
            via = "the proxy " if proxy else ""
            raise Unreachable(f"{via}{to.netloc} cannot be reached: {reason}") from None
        line = Line(sock)
        try:
            self._add(line)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if place.scheme == "http":
                return line
            if proxy is not None:
                self._tunnel(line, place, proxy)
            with self._lock:
                self._context = self._context or ssl.create_default_context()
            self._lines.discard(line)
            sock.settimeout(limit)
            line = Line(self._context.wrap_socket(sock, server_hostname=place.host.partition("%")[0]))
            self._add(line)
            return line
        except ssl.SSLCertVerificationError as error:
            self.drop(line)
            raise Refused(
                f"{place}: the server's certificate is not to be trusted ({error.verify_message}); "
                f"SSL_CERT_FILE may name the certificate of its authority"
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            self.drop(line)
            raise Unreachable(f"{to.netloc}: {_reason(error)}") from None
        except BaseException:
            self.drop(line)
            sock.close()
            raise

    def _add(self, line: Line) -> None:
        with self._lock:
            self._lines.add(line)
            if self._cut:
                line.cut()

    def _tunnel(self, line: Line, place: Address, proxy: Address) -> None:
        head = {"Host": place.netloc, **authorization(proxy)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        line.send(f"CONNECT {place.netloc} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"), self.patience)
        response = _begun(line, "CONNECT")
        if response.status != HTTPStatus.OK:
            raise Refused(f"{place}: the proxy answers {described(response.status)}; see https_proxy and no_proxy")


_UPGRADE: Final = (("http", 80), ("https", 443))


def described(status: int) -> str:
    """A status in the standard's words, not in the server's."""
    with suppress(ValueError):
        return f"{status} {HTTPStatus(status).phrase}"
    return str(status)


def _begun(line: Line, method: str) -> HTTPResponse:
    """The answer to a request that was sent, up to its body."""
    line.failure = None
    response = HTTPResponse(line, method=method)  # type: ignore[arg-type]
    response.begin()
    return response


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPException):
        closed = isinstance(error, ConnectionError)
        return "the server closed the connection" if closed else "what the server answers is not HTTP"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {printable(error.reason or 'unknown reason')}"
    return printable(say(error))
