"""The blocks of a UDIF image's property list.

`plistlib` would do, were the list not hostile: it hands the XML to expat by 2 KiB, which takes minutes over one comment
of 16 MiB, and makes an object of everything. This gives it whole, keeps `resource-fork/blkx`, and ends at any excess.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Final
from xml.parsers import expat

from targetmode.disks.text import printable

MAX_BLOCKS: Final = 4096
_MAX_TAGS: Final = 32 * MAX_BLOCKS  # hdiutil writes 24 for a block
_MAX_QUOTES: Final = 1 << 16  # which bounds attributes
_MAX_DEPTH: Final = 32
_MAX_NAME: Final = 80  # characters
_WHERE: Final = ["resource-fork", "blkx", ""]  # the keys that lead to a block; an array has none


@dataclass(frozen=True, slots=True)
class Item:
    """One of `resource-fork/blkx`.

    Attributes:
        name: for people, safe to print.
        data: a `mish` block, if all is well.
    """

    name: str
    data: bytes


def parse_items(data: bytes) -> list[Item]:
    """The blocks, in the order of the list.

    Raises:
        ValueError: it has none, or is no property list that could be an image's; continues "the property list".
    """
    if data.count(b"<") > _MAX_TAGS:
        raise ValueError(f"has more than {_MAX_TAGS} tags")
    if data.count(b'"') + data.count(b"'") > _MAX_QUOTES or b"\0" in data:
        raise ValueError("is no XML as a UDIF image has it")
    found = _Found()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.characters
    parser.EntityDeclHandler = found.entity
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise ValueError(f"is no XML: {error}") from None
    except LookupError:
        raise ValueError("is in an unknown encoding") from None
    if not found.items:
        raise ValueError("has no blkx array of blocks")
    return [_item(number, values) for number, values in enumerate(found.items)]


def _item(number: int, values: dict[str, str]) -> Item:
    name = printable(values.get("Name") or values.get("CFName") or "")[:_MAX_NAME].strip() or f"block {number}"
    try:
        return Item(name, binascii.a2b_base64("".join(values["Data"].split()), strict_mode=True))
    except (KeyError, ValueError):
        raise ValueError(f'has no data of "{name}"') from None


class _Found:
    """Expat's events, and the strings and data of blocks among them."""

    def __init__(self) -> None:
        self.items: list[dict[str, str]] = []
        self._depth = 0
        self._keys: list[str] = []  # of each dictionary and array that is open, the last key
        self._text: list[str] = []

    def start(self, tag: str, attributes: object) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("is nested too deeply")
        self._text = []
        if tag == "dict" and self._keys == _WHERE:
            if len(self.items) == MAX_BLOCKS:
                raise ValueError(f"has more than {MAX_BLOCKS} blocks")
            self.items.append({})
        if tag in ("dict", "array"):
            self._keys.append("")

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag in ("dict", "array"):
            self._keys.pop()
        elif tag == "key" and self._keys:
            self._keys[-1] = "".join(self._text)
        elif tag in ("string", "data") and self._keys[:-1] == _WHERE and self.items:
            self.items[-1][self._keys[-1]] = "".join(self._text)
        self._text = []

    def characters(self, text: str) -> None:
        self._text.append(text)

    def entity(self, *declared: object) -> None:
        raise ValueError("declares entities")
