"""Where an image comes from: its size, the parts of it that hold data, and its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from nbd.backend import Extent
from nbd.connection import FileRange


class Source(Protocol):
    """An image, however it is kept.

    Attributes:
        name: for people.
        size: bytes.
    """

    name: str
    size: int

    def extents(self) -> Iterator[Extent]:
        """The runs that make up the image, in order; a hole is zeroes.

        Raises:
            OSError: the source failed.
        """
        ...

    def payload(self, offset: int, length: int) -> FileRange:
        """A range as something that the kernel can send without it passing through here."""
        ...

    def hash(self, digest: Any, offset: int, length: int) -> None:
        """Feed a range to a digest, by its `update`; may be called from several threads.

        Raises:
            OSError: the source failed, or ends inside the range.
        """
        ...

    def check_unchanged(self) -> None:
        """See whether the image is still what it was when it was opened.

        Raises:
            RestoreError: it was written meanwhile, so that what was read of it may be neither the old nor the new.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
