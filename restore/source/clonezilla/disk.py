"""A disk put together from an image directory: tables, images of partitions in the order of their place, zeroes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from restore.errors import Refused
from restore.source import SourceError, SourceSettings, Stream, Zeroes
from restore.source.clonezilla.directory import Directory, PartitionImage
from restore.source.clonezilla.layout import read_layout
from restore.source.clonezilla.swap import LINUX_SWAP, swap_header
from restore.source.clonezilla.tables import Tables, read_tables
from restore.source.content import told, unpacked
from restore.source.partclone.stream import PartcloneStream
from restore.source.raw import RawStream
from restore.source.storage import Storage
from targetmode.disks.layout import Partition, partition_name


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of the disk and what is in it.

    Attributes:
        offset: in bytes.
        length: in bytes.
        content: bytes, or a stream of as many or fewer, which zeroes follow.
        exact: the stream has to have as many: it is of all of a partition's bytes.
        what: the partition, for errors.
    """

    offset: int
    length: int
    content: bytes | Stream
    exact: bool = False
    what: str = ""


class DiskStream:
    """A disk as a `Stream`; see `open_disk`."""

    def __init__(self, name: str, size: int, pieces: tuple[Piece, ...]) -> None:
        """Take over the streams among `pieces`, which are in order and do not overlap."""
        self.name = name
        self.size = size
        self._pieces = pieces
        self._position = 0

    def decode(self) -> Iterator[bytes | Zeroes]:
        """One piece after the other, zeroes between them."""
        position = self._position = 0
        for piece in self._pieces:
            yield Zeroes(piece.offset - position)
            self._position = position = piece.offset
            for part in (piece.content,) if isinstance(piece.content, bytes) else piece.content.decode():
                position += part.length if isinstance(part, Zeroes) else len(part)
                if position > piece.offset + piece.length:
                    raise _misfit(piece, "more than")
                yield part
                self._position = position
            rest = piece.offset + piece.length - position
            if rest and piece.exact:
                raise _misfit(piece, f"{rest} bytes less than")
            yield Zeroes(rest)
            position += rest
        yield Zeroes(self.size - position)

    def fraction(self) -> float:
        """Of the disk."""
        return self._position / self.size

    def check_unchanged(self) -> None:
        """Every image of a partition."""
        for piece in self._pieces:
            if not isinstance(piece.content, bytes):
                piece.content.check_unchanged()

    def close(self) -> None:
        """Close the images."""
        for piece in self._pieces:
            if not isinstance(piece.content, bytes):
                piece.content.close()


def open_disk(directory: Directory, disk: str, settings: SourceSettings) -> DiskStream:
    """A disk that was saved, of the size that it had.

    The size is what `parted` told of the disk (`DISK-pt.parted`), or where that is not there, what the GPT tells; for
    an MBR then only the end of its last partition is known.

    Raises:
        Refused: something is missing, does not match, or is of a kind that cannot be read.
        SourceError: an image is damaged.
        OSError: a file cannot be read.
    """
    tables = read_tables(directory, disk, read_layout(directory, disk))
    name = f"{directory.path}/{disk}"
    if not tables.exact:
        settings.notify(f"{name}: the size of the disk is not known; it is taken to end with its last partition")
    pieces = [Piece(region.offset, len(region.data), region.data, what="table") for region in tables.regions]
    with ExitStack() as stack:
        for partition in tables.partitions:
            piece = _partition(directory, partition_name(disk, partition.number), partition, settings)
            if piece is not None:
                pieces.append(piece)
                if not isinstance(piece.content, bytes):
                    stack.callback(piece.content.close)
        ordered = _in_order(directory, disk, tables, pieces)
        stack.pop_all()
    return DiskStream(name, tables.size, ordered)


def _partition(directory: Directory, name: str, partition: Partition, settings: SourceSettings) -> Piece | None:
    image = directory.image(name)
    if image is not None:
        return _imaged(directory, name, partition, image)
    info = f"swappt-{name}.info"
    if directory.has(info):
        page = swap_header(directory.text(info), partition.length, f"{directory.path}/{info}")
        return Piece(partition.start, len(page), page, what=name)
    if name in directory.partitions:
        raise Refused(f"{directory.path}: {name} was saved, but its image {name}.…-img is missing")
    if partition.type in LINUX_SWAP:
        settings.notify(f"{directory.path}: {name} is for swap space, of which nothing was saved; it is left empty")
    else:
        settings.notify(f"{directory.path}: {name} was not saved; it is left empty")
    return None


def _imaged(directory: Directory, name: str, partition: Partition, image: PartitionImage) -> Piece:
    stream, is_raw = _stream(directory.open(image))
    if stream.size is not None and stream.size > partition.length:
        stream.close()
        raise Refused(f"{stream.name} is of {stream.size} bytes; partition {name} has only {partition.length}")
    slices = "BSD_slice" in directory.text(f"{name}.dd-img.info")  # of these only the first sectors are kept
    return Piece(partition.start, partition.length, stream, exact=is_raw and not slices, what=name)


def _stream(storage: Storage) -> tuple[Stream, bool]:
    """An image of a partition, in a storage that is taken over, and whether it is of all its bytes."""
    try:
        storage, _ = unpacked(storage)
        if told(storage) == "partclone":
            return PartcloneStream(storage), False
        return RawStream(storage), True
    except BaseException:
        storage.close()
        raise


def _in_order(directory: Directory, disk: str, tables: Tables, pieces: list[Piece]) -> tuple[Piece, ...]:
    """By their place; partitions that overlap each other or the tables are refused."""
    where = f"{directory.path}/{disk}"
    taken = [(piece.offset, piece.offset + piece.length, piece.what) for piece in pieces if piece.what == "table"]
    for partition in tables.partitions:
        name = partition_name(disk, partition.number)
        taken.append((partition.start, partition.start + partition.length, name))
    taken.sort()
    for (_, end, before), (start, _, behind) in pairwise(taken):
        if start < end:
            raise Refused(f"{where}: {before} and {behind} overlap at byte {start}")
    if taken and taken[-1][1] > tables.size:
        raise Refused(f"{where}: {taken[-1][2]} ends behind the disk's {tables.size} bytes")
    return tuple(sorted(pieces, key=lambda piece: piece.offset))


def _misfit(piece: Piece, how: str) -> SourceError:
    assert not isinstance(piece.content, bytes)
    return SourceError(f"{piece.content.name} holds {how} the {piece.length} bytes of partition {piece.what}")


def disk_or_partition(place: Path, directory: Directory) -> str:
    """Which disk or partition a place means: the directory itself what is alone in it.

    Raises:
        Refused: there are several, or none of that name.
    """
    found = directory.disks or directory.partitions
    if place == directory.path:
        if len(found) == 1:
            return found[0]
        kind = "disks" if directory.disks else "partitions"
        listed = " and ".join(found) or "nothing"
        example = f": choose one, such as {place / found[0]}" if found else ""
        raise Refused(f"{place} holds the {kind} {listed}{example}")
    if place.name in directory.disks or place.name in directory.partitions:
        return place.name
    known = ", ".join(dict.fromkeys((*directory.disks, *directory.partitions)))
    raise Refused(f"{directory.path} has no image of {place.name}; it has {known or 'none'}")
