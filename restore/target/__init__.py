"""Where an image goes: a disk that another machine exports, a local block device, or an image file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from nbd.backend import Extent
from nbd.client import Operation

if TYPE_CHECKING:
    from targetmode.disks.contents import Contents

ALGORITHM: Final = "xxh3-128"  # of the digests that are compared; one of `targetmode.disks.media.ALGORITHMS`


@dataclass(frozen=True, slots=True)
class Facts:
    """What a target is.

    Attributes:
        kind: `block device`, `image file` or `export`.
        sector_size: logical sector size in bytes, None where that is not known.
        partition_of: the disk that it is a partition of, for people; None where it is none as far as is known.
        access: how it is reached, for people; may be empty.
    """

    kind: str
    sector_size: int | None
    partition_of: str | None = None
    access: str = ""


class Target(Protocol):
    """Something that an image can be written to. Its methods block, but for `verifier`.

    Attributes:
        name: for people.
        size: bytes.
        sector_size: logical sector size in bytes, as far as is known.
    """

    name: str
    size: int

    @property
    def sector_size(self) -> int: ...  # noqa: D102 - see the class

    @property
    def generation(self) -> int:
        """Grows when what is written to may be another than before: nothing that was found on it until then holds."""
        ...

    @property
    def facts(self) -> Facts: ...  # noqa: D102 - see that

    def contents(self) -> Contents:
        """What is on it now; in one line for the one who is about to erase it.

        Raises:
            NBDError, OSError: it cannot be read.
        """
        ...

    def zeroes(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Where, within a range, the target is known to read as zeroes already: (offset, length), in order."""
        ...

    def run(self, operations: Iterable[Operation], done: Callable[[Operation], None]) -> None:
        """Carry out WRITE and WRITE_ZEROES operations in any order; `done` is told of each, from any thread.

        Raises:
            NBDError, OSError: one failed; others may have been carried out.
        """
        ...

    def flush(self) -> None:
        """Have everything on stable storage.

        Raises:
            NBDError, OSError: something is lost.
        """
        ...

    async def verifier(self, note: Callable[[str], None]) -> Verifier:
        """What tells digests of the target's own bytes; `note` is told where that is not the target itself."""
        ...

    def abort(self) -> None:
        """Make `run` and `flush` in other threads fail soon."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Verifier(Protocol):
    """Tells digests of what is on a target."""

    async def digests(self, ranges: Sequence[tuple[int, int]], algorithm: str = ALGORITHM) -> list[str]:
        """The digests of ranges, in lower-case hexadecimal; may be awaited by several tasks at once.

        Args:
            ranges: of (offset, length).
            algorithm: one of `targetmode.disks.media.ALGORITHMS`.

        Raises:
            RestoreError, NBDError, OSError: they cannot be had.
        """
        ...

    async def close(self) -> None:
        """Let go."""
        ...


def zero_ranges(extents: Iterable[Extent], offset: int) -> Iterator[tuple[int, int]]:
    """Those of a target's extents that read as zeroes, as (offset, length); the first extent begins at `offset`."""
    for extent in extents:
        if extent.zero:
            yield offset, extent.length
        offset += extent.length
