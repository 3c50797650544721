"""What a compressed file holds, as a storage of its own that is decoded from its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from nbd.connection import FileRange
from restore.source.compressed.input import Input
from restore.source.compressed.parallel import Step, in_order
from restore.source.storage import Interruptible, Storage

_PIECE: Final = 1 << 20

Decode = Callable[[Input], Iterator[Step]]


class DecodedStream:
    """The decoded bytes of a storage: a `Storage` that can only be streamed."""

    seekable: Final = False

    def __init__(self, storage: Storage, decode: Decode, size: int | None = None, least_size: int = 0) -> None:
        """Take over `storage`; `size` and `least_size` are how many bytes are in it, as far as it says."""
        self.name = storage.name
        self.size = size
        self.least_size = least_size
        self._storage = storage
        self._decode = decode
        self._input: Input | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Not possible."""
        raise AssertionError(f"{self.name} can only be read from its start")

    def stream(self) -> Iterator[bytes]:
        """Decoded on all cores where the format lets one, ahead of who reads; raises `SourceError`, `OSError`."""
        source = self._input = Input(self.name, self._storage.stream())
        for piece in in_order(self._decode(source)):
            if len(piece) <= _PIECE:
                yield piece
            else:
                for start in range(0, len(piece), _PIECE):
                    yield piece[start : start + _PIECE]

    def fraction(self) -> float:
        """How far, 0 to 1, the last `stream` has come in what is stored."""
        if self._input is None or not self._storage.size:
            return 0.0
        return self._input.position / self._storage.size

    def plain(self, offset: int, length: int) -> FileRange | None:
        """It does not lie in a file."""
        return None

    def check_unchanged(self) -> None:
        """As what it is stored in tells."""
        self._storage.check_unchanged()

    def interrupt(self) -> None:
        """Have what waits for a server fail now."""
        if isinstance(self._storage, Interruptible):
            self._storage.interrupt()

    def close(self) -> None:
        """Close it."""
        self._storage.close()
