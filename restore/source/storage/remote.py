"""An image on an object store or a file server: `s3://`, `sftp://`, `smb://`, each by a library that is an extra.

All of them are handles with a position, over a connection each. Their own modules know the libraries.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NoReturn, Protocol

from nbd.connection import FileRange
from restore.errors import Refused, RestoreError, say
from restore.source import SourceSettings
from restore.source.storage import Missing
from restore.source.storage.address import Address
from restore.source.storage.ahead import ReadAhead
from restore.source.storage.outage import Outages
from targetmode.disks.text import printable

CONNECTIONS: Final = 4


class Gone(Exception):
    """There is no such file; `str()` is empty or says more."""


class Forbidden(Exception):
    """The server does not allow it; `str()` says what and what to do."""


class Changed(Exception):
    """It is another version."""


class Connection(Protocol):
    """A connection with the file open; used by one thread at a time.

    Attributes:
        version: what tells one content of the file from another, its size first.
    """

    version: tuple[object, ...]
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end. Raises as `Door.connect`, and `Changed`."""
        ...

    def look(self) -> tuple[object, ...]:
        """The version that the name stands for now; raises as `read`."""
        ...

    def cut(self) -> None:
        """End what waits for the server, from another thread."""
        ...

    def close(self) -> None:
        """Hang up; raises as `read`."""
        ...


class Door(Protocol):
    """How to connect.

    Attributes:
        piece: bytes that are best read at once.
        lost: what the library raises when a connection is lost, or cannot be had.
    """

    @property
    def piece(self) -> int: ...  # noqa: D102 - see the class

    @property
    def lost(self) -> tuple[type[BaseException], ...]: ...  # noqa: D102

    def connect(self, address: Address, timeout: float) -> Connection:
        """Connect and open the file; raises `Gone`, `Forbidden`, `Refused`, or what is `lost`."""
        ...

    def close(self) -> None:
        """Let go of what connections share; they are closed."""
        ...


class RemoteStorage:
    """A file on a server: `Storage`."""

    seekable: Final = True

    def __init__(self, address: Address, settings: SourceSettings) -> None:
        """Connect and open it.

        Raises:
            Refused: it is not there, or cannot be had.
        """
        self.name = str(address)
        self._address, self._settings = address, settings
        self._closed = threading.Event()
        self._outages = Outages(self.name, settings.timeout, settings.notify, self._closed)
        self._door = _door(address)
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        try:
            first = self._first()
        except BaseException:
            self._door.close()
            raise
        self._version, self.size = first.version, first.size
        self._idle.append(first)
        self._ahead = ReadAhead(self._fetch, self.size, self.connections, piece=self._door.piece)
        if not self.size:
            self.close()
            raise Refused(f"{self.name} is empty")

    def _first(self) -> Connection:
        try:
            return self._connect()
        except Gone:
            raise Missing(f"{self.name}: the server has no such file; check the URL") from None
        except Forbidden as error:
            raise Refused(f"{self.name}: {error}") from None
        except self._door.lost as error:
            raise Refused(f"{self.name}: the server cannot be reached: {_text(error)}") from None

    @property
    def connections(self) -> int:
        """How many ranges are worth reading at once."""
        return self._settings.connections or CONNECTIONS

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end.

        Raises:
            RestoreError: the server is gone, does not allow it any more, or has another version now.
        """
        return self._ahead.read(offset, length)

    def stream(self) -> Iterator[bytes]:
        """All of it; raises as `read`."""
        return self._ahead.stream()

    def plain(self, offset: int, length: int) -> FileRange | None:
        """It is no local file."""
        return None

    def check_unchanged(self) -> None:
        """What the server has under its name now."""

        def look(connection: Connection) -> None:
            if connection.look() != self._version:
                raise Changed

        self._with_connection(look)

    def interrupt(self) -> None:
        """Have what waits for the server fail now."""
        self._closed.set()
        with self._lock:
            for connection in self._all:
                with suppress(Exception):
                    connection.cut()

    def close(self) -> None:
        """Hang up."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._drop(connection)
        self.interrupt()
        self._ahead.close()
        for connection in [*self._all]:
            self._drop(connection)
        self._door.close()

    def _fetch(self, offset: int, length: int) -> bytes:
        parts: list[bytes] = []

        def read(connection: Connection) -> None:
            done = sum(map(len, parts))
            while done < length:
                part = connection.read(offset + done, length - done)
                if not part:
                    raise Changed  # it was longer
                done += len(part)
                parts.append(part)

        self._with_connection(read)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _with_connection(self, work: _Work) -> None:
        """Do something, again on a new connection where one is lost."""
        outage = self._outages.begin()
        while True:
            connection: Connection | None = None
            try:
                with self._lock:
                    connection = self._idle.pop() if self._idle else None
                if connection is None:
                    connection = self._connect()
                    if connection.version != self._version:
                        raise Changed
                with _limit(connection, self._settings.timeout):
                    work(connection)
                outage.moved()
                with self._lock:
                    self._idle.append(connection)
                return
            except (Gone, Forbidden, Changed) as error:
                self._drop(connection)
                self._fail(error)
            except self._door.lost as error:
                self._drop(connection)
                outage.failed(_text(error))
            except BaseException:
                self._drop(connection)
                raise

    def _fail(self, error: Exception) -> NoReturn:
        match error:
            case Gone():
                raise RestoreError(f"{self.name} was removed from the server meanwhile") from None
            case Changed():
                raise RestoreError(f"{self.name} was changed on the server meanwhile; begin again") from None
        raise RestoreError(f"{self.name}: {error}") from None

    def _connect(self) -> Connection:
        connection = self._door.connect(self._address, self._settings.timeout)
        with self._lock:
            self._all.add(connection)
        if self._closed.is_set():
            self._drop(connection)
            raise RestoreError(f"{self.name} was closed")
        return connection

    def _drop(self, connection: Connection | None) -> None:
        if connection is not None:
            with self._lock:
                self._all.discard(connection)
            with suppress(Exception):
                connection.close()


class _Work(Protocol):
    def __call__(self, connection: Connection, /) -> None: ...


class _limit:  # noqa: N801 - a context manager
    """Cut a connection whose server does not answer in time; not every library knows of that."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._timer = threading.Timer(seconds, connection.cut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _door(address: Address) -> Door:
    try:
        match address.scheme:
            case "s3":
                from restore.source.storage.s3 import S3

                return S3()
            case "sftp":
                from restore.source.storage.sftp import SFTP

                return SFTP()
            case _:
                from restore.source.storage.smb import SMB

                return SMB()
    except ModuleNotFoundError as error:
        raise Refused(
            f"{address}: {error.name} is needed and not installed; pip install 'targetmode[{address.scheme}]'"
        ) from None


def _text(error: BaseException) -> str:
    """An error of a library in one line."""
    lines = str(say(error)).strip().splitlines() or [type(error).__name__]
    return printable(lines[0])[:200]
