"""Reading a bmap file, ours or bmaptool's, versions 1.0 to 2.x; nothing in it is trusted.

Expat parses it piece by piece, with document types and so all entities refused. Text, depth, single tokens, the number
of ranges and the whole file have limits, and memory grows with the ranges alone.
"""

from __future__ import annotations

import hashlib
import re
from typing import IO, Final
from xml.parsers import expat

from restore.manifest import ManifestError
from restore.manifest.bmap import BLAKE3_SIZE, SIZES, Bmap, ImageFile
from targetmode.disks.text import printable

FILE_LIMIT: Final = 4 << 30  # bytes of the file
_PIECE: Final = 256 << 10
_TOKEN: Final = 2 << 20  # bytes of a tag or comment
_TEXT: Final = 256  # characters of an element that is read
_DEPTH: Final = 16
_NUMBER: Final = re.compile(r"[0-9]{1,19}")
_RANGE: Final = re.compile(r"([0-9]{1,19})(?:\s*-\s*([0-9]{1,19}))?")
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")
_VERSION: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})")
_NEWEST: Final = 2  # major version
_LARGEST_BLOCK: Final = 64 << 20
_LARGEST_IMAGE: Final = (1 << 63) - 1
_NUMBERS: Final = ("ImageSize", "BlockSize", "BlocksCount", "MappedBlocksCount")
_FILE_DIGESTS: Final = ("BmapFileChecksum", "BmapFileSHA1")
_HEADER: Final = frozenset((*_NUMBERS, "ChecksumType", *_FILE_DIGESTS))


def parse(file: IO[bytes], name: str) -> Bmap:
    """Read a bmap file and check it against its own digest.

    Args:
        file: at its start; can seek.
        name: for people.

    Raises:
        ManifestError: it is not one, is damaged, or contradicts itself.
        OSError: it cannot be read.
    """
    try:
        parser = _Parser()
        _feed(parser, file)
        bmap = parser.finish()
        _check_digest(parser, file)
    except _Bad as error:
        raise ManifestError(f"{name} is not a valid block map: {printable(str(error))}") from None
    return bmap


class _Bad(Exception):
    """What is wrong with the file."""


def _feed(parser: _Parser, file: IO[bytes]) -> None:
    total = 0
    try:
        while piece := file.read(_PIECE):
            total += len(piece)
            if total > FILE_LIMIT:
                raise _Bad(f"it is larger than {FILE_LIMIT >> 30} GiB")
            parser.expat.Parse(piece, False)
            if total - parser.expat.CurrentByteIndex > _TOKEN:
                raise _Bad(f"there is a tag or comment of more than {_TOKEN >> 20} MiB")
        parser.expat.Parse(b"", True)
    except expat.ExpatError as error:
        raise _Bad(f"line {error.lineno}: {expat.errors.messages.get(error.code, 'not XML')}") from None
    except UnicodeError:
        raise _Bad("it is not UTF-8") from None


class _Parser:
    """What has been read so far."""

    def __init__(self) -> None:
        self.expat = expat.ParserCreate("utf-8")
        self.expat.buffer_text = True
        self.expat.StartDoctypeDeclHandler = self._refuse_doctype
        self.expat.StartElementHandler = self._start
        self.expat.EndElementHandler = self._end
        self.expat.CharacterDataHandler = self._characters
        self.digest_type: str | None = None
        self.digest_at = 0  # where the element of the file's own digest begins
        self.values: dict[str, str] = {}
        self._path: list[str] = []
        self._text: list[str] | None = None
        self._text_size = 0
        self._depth = 0  # of the element whose text is read
        self._attributes: dict[str, str] = {}
        self._version = ""
        self._image_file: ImageFile | None = None
        self._bmap: Bmap | None = None

    def finish(self) -> Bmap:
        """The map, when all has been read."""
        bmap = self._bmap
        if bmap is None:
            raise _Bad("it has no BlockMap")
        stated = self._number("MappedBlocksCount")
        if bmap.mapped_blocks != stated:
            raise _Bad(f"MappedBlocksCount is {stated}, and its ranges have {bmap.mapped_blocks} blocks")
        bmap.image_file = self._image_file
        return bmap

    def _refuse_doctype(self, *_: object) -> None:
        raise _Bad("it has a document type (DTD), which no block map has")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._path) >= _DEPTH:
            raise _Bad("its elements are nested too deeply")
        self._path.append(name)
        match self._path:
            case ["bmap"]:
                self._begin(attributes)
            case [other]:
                raise _Bad(f"its root is {other[:40]}, not bmap")
            case ["bmap", "BlockMap"]:
                if self._bmap is not None:
                    raise _Bad("it has more than one BlockMap")
                self._bmap = self._header()
            case ["bmap", "BlockMap", "Range"]:
                self._attributes = attributes
                self._collect()
            case ["bmap", "ImageFile"]:
                self._image_file = ImageFile(
                    _number("the size in ImageFile", attributes.get("size", "")),
                    _number("the mtime_ns in ImageFile", attributes.get("mtime_ns", "")),
                )
            case ["bmap", header] if header in _HEADER:
                if header in self.values:
                    raise _Bad(f"it has more than one {header}")
                if header in _FILE_DIGESTS:
                    self.digest_at = self.expat.CurrentByteIndex
                self._collect()
            case ["bmap", "BlockMap", "Range", *_]:
                raise _Bad("there is an element within a Range")

    def _collect(self) -> None:
        self._text, self._text_size, self._depth = [], 0, len(self._path)

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text_size += len(text)
            if self._text_size > _TEXT:
                raise _Bad(f"the text of a {self._path[-1][:40]} is longer than {_TEXT} characters")
            self._text.append(text)

    def _end(self, name: str) -> None:
        self._path.pop()
        if self._text is None or len(self._path) >= self._depth:
            return  # an element within one whose text is read goes on with that
        text = "".join(self._text).strip()
        self._text = None
        if name == "Range":
            self._range(text)
        else:
            self.values[name] = text

    def _begin(self, attributes: dict[str, str]) -> None:
        version = attributes.get("version", "")
        found = _VERSION.fullmatch(version)
        if found is None:
            raise _Bad(f'its version is "{version[:20]}"')
        if not 1 <= int(found[1]) <= _NEWEST:
            raise _Bad(f"its version is {version}, and versions up to {_NEWEST}.x are known")
        self._version = version

    def _header(self) -> Bmap:
        """The map's head, which is complete when the ranges begin."""
        size, block = self._number("ImageSize"), self._number("BlockSize")
        if not 0 < size <= _LARGEST_IMAGE:
            raise _Bad(f"ImageSize is {size}")
        if not 0 < block <= _LARGEST_BLOCK or block % 512:
            raise _Bad(f"BlockSize is {block}")
        bmap = Bmap(size, block, self._checksum_type(), version=self._version)
        stated = self._number("BlocksCount")
        if stated != bmap.blocks:
            raise _Bad(f"BlocksCount is {stated}, and {size} bytes are {bmap.blocks} blocks of {block} bytes")
        self.digest_type = bmap.checksum_type
        return bmap

    def _checksum_type(self) -> str | None:
        """Versions before 1.3 have no digests, 1.3 has SHA-1, and later ones say which."""
        major, minor = (int(number) for number in self._version.split("."))
        if (major, minor) < (1, 3):
            return None
        if (major, minor) == (1, 3):
            return "sha1"
        kind = self._value("ChecksumType").lower()
        if kind not in SIZES:
            raise _Bad(f'its ChecksumType is "{kind[:20]}"; known are {", ".join(SIZES)}')
        return kind

    def _value(self, name: str) -> str:
        if name not in self.values:
            raise _Bad(f"there is no {name} before its ranges")
        return self.values[name]

    def _number(self, name: str) -> int:
        return _number(name, self._value(name))

    def _range(self, text: str) -> None:
        bmap = self._bmap
        assert bmap is not None  # BlockMap began
        found = _RANGE.fullmatch(text)
        if found is None:
            raise _Bad(f'a Range is "{text[:40]}"')
        first = int(found[1])
        last = first if found[2] is None else int(found[2])
        if last >= bmap.blocks:
            raise _Bad(f"range {first}-{last} goes beyond the image's last block, {bmap.blocks - 1}")
        checksum = blake3 = None
        if bmap.checksum_type is not None:
            attribute = "sha1" if self._version == "1.3" else "chksum"
            checksum = self._digest(attribute, SIZES[bmap.checksum_type], text)
            blake3 = self._digest("blake3", BLAKE3_SIZE, text)
        try:
            bmap.append(first, last, checksum, blake3)
        except ValueError as error:
            raise _Bad(str(error)) from None

    def _digest(self, attribute: str, size: int, where: str) -> bytes | None:
        value = self._attributes.get(attribute)
        if value is None:
            return None
        if len(value) != 2 * size or not _HEX.fullmatch(value):
            raise _Bad(f"the {attribute} of range {where} is not {2 * size} hexadecimal digits")
        return bytes.fromhex(value)


def _number(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise _Bad(f'{name} is "{text[:40]}", not a number')
    return int(text)


def _check_digest(parser: _Parser, file: IO[bytes]) -> None:
    """Compute the file's own digest, in which its text counts as zeroes, and compare."""
    kind = parser.digest_type
    if kind is None:
        return
    element = next((name for name in _FILE_DIGESTS if name in parser.values), None)
    if element is None:
        raise _Bad("it has no BmapFileChecksum")
    stated = parser.values[element]
    if len(stated) != 2 * SIZES[kind] or not _HEX.fullmatch(stated):
        raise _Bad(f"its {element} is not {2 * SIZES[kind]} hexadecimal digits")
    file.seek(parser.digest_at)
    # The element is no longer than its tag and its text may be, or has what is not plain text in it.
    at = file.read(_PIECE).find(stated.encode())
    if at < 0:
        raise _Bad(f"its {element} is not written as plain text")
    at += parser.digest_at
    digest = hashlib.new(kind, usedforsecurity=False)
    position = 0
    file.seek(0)
    while piece := file.read(_PIECE):
        first, last = max(at - position, 0), min(at + len(stated) - position, len(piece))
        if first < last:
            piece = piece[:first] + b"0" * (last - first) + piece[last:]
        digest.update(piece)
        position += len(piece)
    if digest.hexdigest() != stated.lower():
        raise _Bad(f"its {element} does not match, so it was damaged or edited")
