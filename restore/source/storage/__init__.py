"""Where the bytes of an image file lie, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.errors import Refused


class Missing(Refused):
    """There is nothing of that name where it is looked for.

    Attributes:
        forbidden: or it may not be seen: servers tell the two apart only for those who may list a directory.
    """

    def __init__(self, message: str, *, forbidden: bool = False) -> None:
        super().__init__(message)
        self.forbidden = forbidden


class Storage(Protocol):
    """The bytes of an image file at rest; methods may be called from several threads.

    Attributes:
        name: for people; no credentials in it.
        size: bytes; None where that is not known before its end.
        seekable: `read` works; else only `stream` does.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def size(self) -> int | None: ...  # noqa: D102

    @property
    def seekable(self) -> bool: ...  # noqa: D102

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere; fewer only at the end.

        Raises:
            SourceError, OSError: it cannot be read.
        """
        ...

    def stream(self) -> Iterator[bytes]:
        """All of it from the first byte on, in pieces of up to 1 MiB; called anew to begin again. Raises as `read`."""
        ...

    def plain(self, offset: int, length: int) -> FileRange | None:
        """The same bytes as a range of a local file, where they are one."""
        ...

    def check_unchanged(self) -> None:
        """See whether it is still what it was when it was opened; raises `RestoreError` if not."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@runtime_checkable
class Decoded(Storage, Protocol):
    """A storage of what is decoded from another, which is how far its size is known.

    Attributes:
        least_size: bytes that are in it at least, as far as is known beforehand.
    """

    @property
    def least_size(self) -> int: ...  # noqa: D102 - see the class

    def fraction(self) -> float:
        """How far, 0 to 1, the last `stream` has come in what is stored; only to be shown."""
        ...


@runtime_checkable
class InParts(Storage, Protocol):
    """A storage of which parts are decoded each by itself, and best read as such."""

    def chunk(self, offset: int) -> tuple[int, int]:
        """As `Chunks.chunk`."""
        ...

    def extents(self) -> Iterator[Extent]:
        """As `Chunks.extents`."""
        ...


@runtime_checkable
class Interruptible(Protocol):
    """What waits for a server, and may do so for long."""

    def interrupt(self) -> None:
        """Have reads that are under way fail now, and all that follow; `close` is still to be called."""
        ...


@runtime_checkable
class Networked(Storage, Interruptible, Protocol):
    """A storage behind a network.

    Attributes:
        connections: how many ranges are worth reading at once.
    """

    @property
    def connections(self) -> int: ...  # noqa: D102 - see the class


def interrupt(what: object) -> None:
    """Have what waits for a server there fail now, if anything does."""
    if isinstance(what, Interruptible):
        what.interrupt()
