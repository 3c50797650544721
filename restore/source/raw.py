"""A raw image: the bytes of the disk as they are, in a file that may be sparse, or behind a URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from nbd.backend import Extent, FileBackend
from nbd.connection import FileRange
from restore.source import SourceError, Zeroes
from restore.source.storage import Decoded, InParts, Interruptible, Storage

_KOLY: Final = b"koly"  # begins the last 512 bytes of a UDIF image, which tell of all that is before them
_KOLY_SIZE: Final = 512
_CHUNK: Final = 4 << 20  # bytes read at a time where the kernel cannot send them from where they are


class RawImage:
    """A raw image whose bytes can be read from anywhere: `Chunks`."""

    def __init__(self, storage: Storage, size: int) -> None:
        """Take over `storage`, of `size` bytes."""
        self.name = storage.name
        self.size = size
        self._storage = storage
        self._parts = storage if isinstance(storage, InParts) else None

    def extents(self) -> Iterator[Extent]:
        """The runs of data and of holes, as the file system or the compression tells; all data where none does."""
        if self._parts is not None:
            yield from self._parts.extents()
            return
        whole = self._storage.plain(0, self.size)
        if whole is None:
            yield Extent(self.size, hole=False, zero=False)
            return
        backend = FileBackend(os.dup(whole.fd), read_only=True, start=whole.offset, size=self.size)
        try:
            yield from backend.extents(0, self.size)
        finally:
            backend.close()

    def chunk(self, offset: int) -> tuple[int, int]:
        """A piece of some MiB, or what is decoded together."""
        if self._parts is not None:
            return self._parts.chunk(offset)
        start = offset - offset % _CHUNK
        return start, min(start + _CHUNK, self.size)

    def decode(self, start: int, end: int) -> bytes:
        """Just read it."""
        data = self._storage.read(start, end - start)
        if len(data) != end - start:
            raise OSError(f"{self.name} ends at byte {start + len(data)}, earlier than it did at the start")
        return data

    def plain(self, offset: int, length: int) -> FileRange | None:
        """Where the file is a local one, everything."""
        return self._storage.plain(offset, length)

    def check_unchanged(self) -> None:
        """As the storage tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        if isinstance(self._storage, Interruptible):
            self._storage.interrupt()

    def close(self) -> None:
        """Close it."""
        self._storage.close()


class RawStream:
    """A raw image that can only be had from its start, from a server or decoded: a `Stream`."""

    def __init__(self, storage: Storage) -> None:
        """Take over `storage`."""
        self.name = storage.name
        self.size = storage.size
        self.least_size = storage.least_size if isinstance(storage, Decoded) else storage.size or 0
        self._storage = storage
        self._passed = 0

    def decode(self) -> Iterator[bytes | Zeroes]:
        """As it comes. What shows at its end to be a UDIF image was none, and fails then, before it may look right."""
        self._passed = 0
        last = b""
        for piece in self._storage.stream():
            self._passed += len(piece)
            last = bytes(piece[-_KOLY_SIZE:]) if len(piece) >= _KOLY_SIZE else (last + piece)[-_KOLY_SIZE:]
            yield piece
        if len(last) == _KOLY_SIZE and last.startswith(_KOLY):
            raise SourceError(
                f"{self.name} is a udif image, which has to be a file: copy it, decompressed, to one first"
            )

    def fraction(self) -> float:
        """Of what is stored, or of its size where that is known."""
        if isinstance(self._storage, Decoded):
            return self._storage.fraction()
        return self._passed / self.size if self.size else 0.0

    def check_unchanged(self) -> None:
        """As the storage tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        if isinstance(self._storage, Interruptible):
            self._storage.interrupt()

    def close(self) -> None:
        """Close it."""
        self._storage.close()
