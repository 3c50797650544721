"""Where an image comes from.

    storage/      the bytes of an image file at rest: a file, its split parts, a URL, what is compressed in another
    a format      makes an image of them: `Chunks`, decoded at random, or a `Stream`, decoded from the start
    chunked.py, stream.py   make a `Source` of either: read ahead on all cores, memory bounded
    detect.py     which of them it is

`Source` is all that the rest of the engine knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar, runtime_checkable

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.errors import RestoreError

Payload = FileRange | memoryview
CHUNK_LIMIT: Final = 64 << 20  # bytes, decoded: what a chunk may be at most


class SourceError(RestoreError):
    """An image that cannot be read or is damaged; names it and where."""


@dataclass(frozen=True, slots=True)
class Unmapped(Extent):
    """A run that is no part of the image: it is neither to be written nor verified, and what it holds is undefined."""


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """How a source is to be opened.

    Attributes:
        format: one of `detect.FORMATS`; None has it told by the content.
        all_blocks: of a device or volume, what its file systems do not use is copied too.
        allow_backing: an image may name other files that hold a part of it.
        connections: to a server, None for what suits it.
        timeout: seconds without movement after which a server counts as gone.
        notify: told in one line what is worth one, such as a lost connection; from any thread.
    """

    format: str | None = None
    all_blocks: bool = False
    allow_backing: bool = False
    connections: int | None = None
    timeout: float = 60.0
    notify: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True)
class Image:
    """An image that was found and opened.

    Attributes:
        source: it; closing that closes all.
        format: which of `detect.FORMATS` it is; of a compressed one such as `zstd` or `partclone+gzip`.
        path: its local file, which scan, map and signature may lie beside; None where it is none.
    """

    source: Source
    format: str
    path: Path | None = None


class Source(Protocol):
    """An image, however it is kept.

    Attributes:
        name: for people.
        size: bytes of the image; None while that is unknown, which for a stream may be until it has ended.
        least_size: bytes that it has at least, as far as is known now; `size` where that is known.
        expected_size: the best guess at `size` now, for progress; only to be shown.
        sequential: reading anything but onwards means to decode again from the start.
    """

    name: str

    @property
    def size(self) -> int | None: ...  # noqa: D102 - see the class

    @property
    def least_size(self) -> int: ...  # noqa: D102

    @property
    def expected_size(self) -> int: ...  # noqa: D102

    @property
    def sequential(self) -> bool: ...  # noqa: D102

    def extents(self) -> Iterator[Extent]:
        """The runs that make up the image, in order; a hole is zeroes, unless it is `Unmapped`.

        Raises:
            SourceError, OSError: the source failed.
        """
        ...

    def payload(self, offset: int, length: int) -> Payload:
        """A range of at most 1 MiB, as a range of a file where it lies plain in one, else as its bytes.

        May be called from several threads. The memory stays as it is for as long as it is held.

        Raises:
            SourceError, OSError: the source failed.
        """
        ...

    def reader(self) -> Source:
        """The same image for one more reader, at a pace of its own; what is decoded once serves all that are near."""
        ...

    def check_unchanged(self) -> None:
        """See whether the image is still what it was when it was opened.

        Raises:
            RestoreError: it was written meanwhile, so that what was read of it may be neither the old nor the new.
        """
        ...

    def close(self) -> None:
        """Let go of it; of a `reader` before what it is one of."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A `Source` that can read a range once more, past what it or the kernel keeps of it: whose fault was it?

    Attributes:
        checked: what is read is compared with a scan, so that what is handed out is right.
    """

    @property
    def checked(self) -> bool: ...  # noqa: D102 - see the class

    def forget(self, offset: int, length: int) -> None:
        """Have a range read anew when it is asked for next; what was handed out of it before stays as it is."""
        ...


class Ranged(Protocol):
    """A range of an image, in bytes."""

    @property
    def offset(self) -> int: ...  # noqa: D102

    @property
    def length(self) -> int: ...  # noqa: D102


R = TypeVar("R", bound=Ranged)


@runtime_checkable
class Arriving(Protocol):
    """A `Source` whose data come in an order of their own: who reads in that order waits for as little as can be."""

    def arrivals(self, ranges: Iterable[R], stopped: Callable[[], bool]) -> Iterator[R]:
        """The same ranges in the order in which they come; the bytes of each are at hand until the next is asked for.

        Args:
            ranges: in order; all that will be read.
            stopped: asked now and then whether they are not wanted any more, so that it ends early.

        Raises:
            SourceError: they do not come.
        """
        ...

    def progressed(self, restored: int, verified: int) -> None:
        """So many bytes are on the target now, and so many of them were compared: whoever sends may want to know."""
        ...


@runtime_checkable
class Described(Protocol):
    """A `Source` whose digests are known before any of it is read."""

    def described(self, offset: int, length: int) -> list[Description] | None:
        """What a range has to be, as parts that make it up; None where that is not known of all of it."""
        ...


@dataclass(frozen=True, slots=True)
class Description:
    """What a part of an image has to be.

    Attributes:
        offset, length: the part, in bytes.
        blake3: its digest, lower-case hexadecimal.
    """

    offset: int
    length: int
    blake3: str


class Chunks(Protocol):
    """A format whose parts can be decoded each by itself; methods may be called from several threads.

    Attributes:
        name: for people.
        size: bytes of the image.
    """

    name: str
    size: int

    def extents(self) -> Iterator[Extent]:
        """The runs that make up the image, in order; raises `SourceError`, `OSError`."""
        ...

    def chunk(self, offset: int) -> tuple[int, int]:
        """Start and end, in bytes of the image, of what is decoded together around `offset`; at most `CHUNK_LIMIT`."""
        ...

    def decode(self, start: int, end: int) -> bytes | bytearray | memoryview:
        """The bytes of one chunk, as `chunk` told it.

        Raises:
            SourceError: it is damaged.
            OSError: it cannot be read.
        """
        ...

    def plain(self, offset: int, length: int) -> FileRange | None:
        """Where this range lies as it is in a local file; None where it has to be decoded."""
        ...

    def check_unchanged(self) -> None:
        """As `Source.check_unchanged`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, slots=True)
class Zeroes:
    """A run of zeroes in a stream.

    Attributes:
        length: bytes.
    """

    length: int


@runtime_checkable
class Promising(Protocol):
    """A stream that tells beforehand how many bytes it has at least.

    Attributes:
        least_size: these bytes.
    """

    @property
    def least_size(self) -> int: ...  # noqa: D102 - see the class


class Stream(Protocol):
    """A format that can only be decoded from its start.

    Attributes:
        name: for people.
        size: bytes of the image, None if the format does not tell beforehand.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class

    @property
    def size(self) -> int | None: ...  # noqa: D102

    def decode(self) -> Iterator[bytes | Zeroes]:
        """The image from its first byte on; called anew to begin again, and left unfinished at will.

        Each runs in a thread of its own, and several may at once. Pieces of bytes are of any length up to
        `CHUNK_LIMIT`, 1 MiB being best.

        Raises:
            SourceError: it is damaged; also where it is cut short, or something follows that does not belong.
            OSError: it cannot be read.
        """
        ...

    def fraction(self) -> float:
        """How far, 0 to 1, the last `decode` has come in what is stored; only to be shown."""
        ...

    def check_unchanged(self) -> None:
        """As `Source.check_unchanged`."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
