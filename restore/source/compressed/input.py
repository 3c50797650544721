"""What is stored, read from its start, with the place that each byte has in it for errors to name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NoReturn

from restore.source import SourceError

_ZEROES: Final = bytes(1 << 16)


class Input:
    """The stored bytes of a compressed image, in order.

    Attributes:
        name: of the image.
        position: bytes from the start of what is stored up to what is read next.
    """

    def __init__(self, name: str, pieces: Iterator[bytes]) -> None:
        """Take `pieces`, from the first byte on, as `Storage.stream` gives them."""
        self.name = name
        self.position = 0
        self._pieces = pieces
        self._piece = b""
        self._at = 0

    def some(self, most: int) -> bytes:
        """The next bytes, as many as are at hand, up to `most`; none at the end. Raises as `Storage.stream`."""
        while self._at == len(self._piece):
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece, self._at = piece, 0
        found = self._piece[self._at : self._at + most]  # no copy where that is all of it
        self._at += len(found)
        self.position += len(found)
        return found

    def up_to(self, length: int) -> bytes:
        """The next `length` bytes, fewer only at the end."""
        found = self.some(length)
        if len(found) == length:
            return found
        parts = [found]
        length -= len(found)
        while length and (found := self.some(length)):
            parts.append(found)
            length -= len(found)
        return b"".join(parts)

    def exactly(self, length: int, what: str) -> bytes:
        """The next `length` bytes, which belong to `what`.

        Raises:
            SourceError: there are fewer.
        """
        found = self.up_to(length)
        if len(found) < length:
            self.cut_short(what)
        return found

    def give_back(self, data: bytes) -> None:
        """Have bytes that were read last read again."""
        if self._piece.endswith(data, 0, self._at):  # it is still here
            self._at -= len(data)
        else:
            self._piece, self._at = data + self._piece[self._at :], 0
        self.position -= len(data)

    def peek(self, length: int) -> bytes:
        """The next `length` bytes, fewer only at the end, which are read again."""
        found = self.up_to(length)
        self.give_back(found)
        return found

    def zeroes_to_end(self) -> bool:
        """Whether nothing but zeroes, or nothing at all, is left; all that is left is read if so."""
        while part := self.some(len(_ZEROES)):
            if part != _ZEROES[: len(part)]:
                self.give_back(part)
                return False
        return True

    def damaged(self, why: str, at: int | None = None) -> NoReturn:
        """Raise the error for damage at a place, by default the one that is read next."""
        raise SourceError(damage(self.name, self.position if at is None else at, why))

    def cut_short(self, what: str) -> NoReturn:
        """Raise the error for an end in the middle of something."""
        raise SourceError(f"{self.name} is cut short: it ends at byte {self.position}, in the middle of {what}")


def damage(name: str, at: int, why: str) -> str:
    """The line for damage at a byte of what is stored."""
    return f"{name} is damaged at byte {at} of what is stored: {why}"
