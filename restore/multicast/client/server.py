"""A multicast server as its client sees it: its control API."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

from blake3 import blake3

from nbd.errors import one_line
from restore.asking import Asker, Refusal, say_fault
from restore.errors import Refused, RestoreError
from restore.manifest.parsing import FILE_LIMIT
from restore.multicast import session as messages
from restore.multicast.layout import CHUNK
from restore.multicast.packet import DEFAULT_PORT

SCHEME: Final = "asr://"
_CONNECT: Final = 10.0  # seconds
_T = TypeVar("_T")
_ADDRESS: Final = re.compile(
    r"asr://(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^/:@\[\]]+))(?::(?P<port>\d{1,5}))?(?:/(?P<image>.*))?"
)


class ServerGone(RestoreError):
    """The server does not answer, or not as it should."""


class NotThere(ServerGone):
    """The server answers, and knows nothing of this client: it is another run of it."""


@dataclass(frozen=True, slots=True)
class Address:
    """What an `asr://` URL says.

    Attributes:
        host: name or address of the server.
        port: of its control API.
        image: which image is wanted; empty for the one that it has.
    """

    host: str
    port: int = DEFAULT_PORT
    image: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `asr://HOST[:PORT][/IMAGE]`.

        Raises:
            Refused: it is none.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or (match["port"] is not None and not 0 < int(match["port"]) < 1 << 16):
            raise Refused(
                f"{text} is no multicast source; it has to be asr://HOST, asr://HOST:PORT or asr://HOST/IMAGE"
            )
        port = DEFAULT_PORT if match["port"] is None else int(match["port"])
        return cls(match["v6"] or match["host"], port, unquote(match["image"] or ""))


class Server:
    """Asks a server; from any thread."""

    def __init__(self, address: Address, timeout: float) -> None:
        """Prepare; `timeout` is in seconds without an answer."""
        self._address = address
        self._asker = Asker(address.host, address.port, timeout)
        self.base = self._asker.base

    def session(self) -> messages.Session:
        """What it streams.

        Raises:
            ServerGone: there is no answer, or not a right one; so do all the others.
        """
        return self._understood(messages.Session.from_json, "GET", messages.SESSION)

    def manifest(self, session: messages.Session) -> bytes:
        """The image's block map, which is the one that the session is named by."""
        data = self._ask("GET", messages.MANIFEST, most=FILE_LIMIT)
        if blake3(data).hexdigest() != session.manifest:
            raise ServerGone(f"{self.base}: its manifest is another one than its session says")
        return data

    def signature(self) -> bytes | None:
        """That of the manifest; None if it has none."""
        try:
            return self._ask("GET", messages.SIGNATURE)
        except NotThere:
            return None

    def join(self, join: messages.Join) -> messages.Directions:
        """Begin."""
        return self._understood(messages.Directions.from_json, "POST", messages.CLIENTS, join.to_json())

    def report(self, client: str, status: messages.Status) -> messages.Directions:
        """Say how far this client is.

        Raises:
            NotThere: the server does not know it.
        """
        path = f"{messages.CLIENTS}/{client}"
        return self._understood(messages.Directions.from_json, "POST", path, status.to_json())

    def leave(self, client: str, end: str) -> None:
        """End, and say how."""
        self._ask("DELETE", f"{messages.CLIENTS}/{client}?end={quote(end, safe='')}")

    def chunk(self, number: int) -> bytes:
        """The bytes of a chunk, whatever they are."""
        return self._ask("GET", f"{messages.CHUNKS}/{number}", most=CHUNK + 1)

    def local_address(self) -> str | None:
        """The address of this machine that the server is reached from; None where that cannot be told."""
        try:
            with socket.create_connection((self._address.host, self._address.port), _CONNECT) as sock:
                return str(sock.getsockname()[0])
        except OSError:
            return None

    def close(self) -> None:
        """Hang up, also on what other threads wait for."""
        self._asker.close()

    def _understood(self, read: Callable[[Any], _T], method: str, path: str, body: object = None) -> _T:
        data = None if body is None else json.dumps(body).encode()
        answer = self._ask(method, path, data)
        try:
            return read(json.loads(answer))
        except (ValueError, RecursionError) as error:
            raise ServerGone(f"{self.base} is no multicast server of ours: {one_line(str(error))[:200]}") from None

    def _ask(self, method: str, path: str, body: bytes | None = None, most: int = 1 << 20) -> bytes:
        try:
            return self._asker.ask(method, path, body, most).body
        except Refusal as error:
            kind = NotThere if error.status == 404 else ServerGone
            raise kind(f"{self.base}: {say_fault(error)}") from None
        except (HTTPException, OSError, ValueError) as error:
            raise ServerGone(f"{self.base} does not answer: {say_fault(error)}") from None
