"""The files of a Clonezilla image: what was saved, and where each partition's image is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore.errors import Refused
from restore.source.storage import Storage
from restore.source.storage.file import LocalFile, SplitFile
from targetmode.disks.text import printable

_TEXT_LIMIT: Final = 1 << 20  # bytes of a file that only describes
_COMPRESSIONS: Final = "gz|bz2|lzo|lzma|xz|lzip|lz|lrzip|lrz|lz4|zst|uncomp"
_IMAGE: Final = re.compile(rf"([^.]+?)(-ptcl)?-img(?:\.({_COMPRESSIONS}))?(?:\.([a-z]{{2,3}}))?")
_PARTIMAGE: Final = re.compile(r"(\.([a-z]{2,3}|\d{3}))?")
_UNREADABLE: Final = {"lzo": "lzop", "lzma": "lzma", "lzip": "lzip", "lz": "lzip", "lrzip": "lrzip", "lrz": "lrzip"}
_ENCRYPTED: Final = {"ecryptfs.info": "eCryptfs", "gocryptfs.info": "gocryptfs", "gocryptfs.conf": "gocryptfs"}
_VOLUMES: Final = {"lvm_vg_dev.list": "LVM", "luks-dev.list": "LUKS"}


@dataclass(frozen=True, slots=True)
class PartitionImage:
    """The files of a partition's image.

    Attributes:
        stem: their name without what `split` has appended.
        suffixes: that, empty where it was not split.
        file_system: as in its name, `dd` for all bytes of the partition.
    """

    stem: str
    suffixes: tuple[str, ...]
    file_system: str


class Directory:
    """An image directory.

    Attributes:
        path: of it.
        disks: that were saved as such; empty where only partitions were.
        partitions: of which there are images.
    """

    def __init__(self, path: Path) -> None:
        """Read what was saved.

        Raises:
            Refused: it is encrypted.
            OSError: it cannot be read.
        """
        self.path = path
        self._names = sorted(entry.name for entry in path.iterdir())
        for name, how in _ENCRYPTED.items():
            if name in self._names and not self._readable("parts"):
                raise Refused(f"{path} is encrypted with {how}; mount it and restore from there")
        self.disks = self._words("disk")
        self.partitions = self._words("parts")

    def has(self, name: str) -> bool:
        """Whether there is a file."""
        return name in self._names

    def text(self, name: str) -> str:
        """What a file says; nothing where there is none. Raises `OSError`."""
        return self.data(name, _TEXT_LIMIT).decode("utf-8", "replace") if self.has(name) else ""

    def data(self, name: str, limit: int) -> bytes:
        """What is in a file.

        Raises:
            Refused: it is not there, or longer than `limit` bytes.
            OSError: it cannot be read.
        """
        path = self.path / name
        if not path.is_file():
            raise Refused(f"{path} is missing")
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Refused(f"{path} is larger than it can be")
        return data

    def image(self, partition: str) -> PartitionImage | None:
        """The image of a partition, by the name that Clonezilla gives it, such as `sda1`; None where there is none.

        Raises:
            Refused: it is of a kind that cannot be read, or there are several.
        """
        found: dict[tuple[str, str], list[str]] = {}
        for name in self._names:
            if not name.startswith(partition):
                continue
            rest = name[len(partition) :]
            if _PARTIMAGE.fullmatch(rest):
                raise Refused(f"{self.path / name} is an image of partimage, which asr does not read")
            match = _IMAGE.fullmatch(rest[1:]) if rest.startswith(".") else None
            if match is None:
                continue
            file_system, partclone, compression, suffix = match.groups()
            if file_system == "ntfs" and not partclone:
                raise Refused(f"{self.path / name} is an image of ntfsclone, which asr does not read")
            if compression in _UNREADABLE:
                how = _UNREADABLE[compression]
                raise Refused(f"{self.path / name} is compressed with {how}, which asr does not read; decompress it")
            stem = name.removesuffix(f".{suffix}") if suffix else name
            found.setdefault((stem, file_system), []).extend([suffix] if suffix else [])
        if len(found) > 1:
            raise Refused(f"{self.path} has several images of {partition}: {', '.join(stem for stem, _ in found)}")
        for (stem, file_system), suffixes in found.items():
            if suffixes and self.has(stem):
                raise Refused(f"{self.path / stem} is there both whole and split")
            return PartitionImage(stem, tuple(suffixes), file_system)
        self._refuse_volume(partition)
        return None

    def open(self, image: PartitionImage) -> Storage:
        """The bytes of an image as they are stored.

        Raises:
            Refused: a part of it is missing or too short, or it is in use.
            OSError: it cannot be read.
        """
        whole = self.path / image.stem
        if not image.suffixes:
            return LocalFile(str(whole))
        ordered = sorted(image.suffixes)
        for number, suffix in enumerate(ordered):
            if suffix != (expected := _suffix(number, len(ordered[0]))):
                raise Refused(f"{whole}.{expected} is missing: the image was split, and goes on after it")
        paths = [self.path / f"{image.stem}.{suffix}" for suffix in ordered]
        most = paths[0].stat().st_size
        for path in paths[1:]:
            size = path.stat().st_size
            if size > most or (size < most and path != paths[-1]):
                raise Refused(f"{path} has {size} bytes, {paths[0].name} {most}: a part of the image is not whole")
        return SplitFile([str(path) for path in paths])

    def _refuse_volume(self, partition: str) -> None:
        """A partition that held others has images of those, under names of their own."""
        for name, how in _VOLUMES.items():
            if f"/dev/{partition}" in self.text(name).split():
                raise Refused(f"{self.path}: {partition} held {how} volumes, which asr cannot restore; use Clonezilla")

    def _readable(self, name: str) -> bool:
        """Whether a file is there and is text: a mounted directory may show its own `ecryptfs.info`."""
        return self.has(name) and "\0" not in self.text(name) and "\N{REPLACEMENT CHARACTER}" not in self.text(name)

    def _words(self, name: str) -> tuple[str, ...]:
        """What a file lists, as parts of file names."""
        words = self.text(name).split()
        for word in words:
            if printable(word) != word or word.startswith("."):
                raise Refused(f"{self.path / name} does not list disks or partitions")
        return tuple(dict.fromkeys(word.replace("/", "-") for word in words))


def _suffix(number: int, letters: int) -> str:
    """What `split` appends to the name of a part, counted from 0."""
    text = ""
    for _ in range(letters):
        number, letter = divmod(number, 26)
        text = chr(ord("a") + letter) + text
    return text
