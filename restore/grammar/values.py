"""What the values of options may be."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from typing import Final

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAC_FORMATS: Final = ("hfs", "apfs", "ufs", "ms-dos", "journaled")


def number(kind: str, low: int, high: int) -> Callable[[str], int]:
    """A whole number."""

    def convert(text: str) -> int:
        value = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind} from {low} to {high}")
        return value

    return convert


count = number("a number", 1, 64)
retries = number("a number", 0, 1000)
partition = number("a partition's number", 1, 9999)
buffers = number("a number", 1, 1 << 20)
port = number("a port", 1, 65535)
ttl = number("a number", 1, 255)
clients = number("a number", 1, 100_000)


def seconds(text: str) -> float:
    """Seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return value


def rate(text: str) -> int:
    """Bytes per second, at least 1."""
    if (value := _size(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes per second, such as 100M")
    return value


def size(text: str) -> int:
    """Bytes, at least 1."""
    if (value := _size(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, such as 1M")
    return value


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KMGT]?)", text.upper().removesuffix("B").removesuffix("I"))
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def loops(text: str) -> int:
    """0 for never, or at least 2."""
    value = number("a number", 0, 1 << 31)(text)
    if value == 1:
        raise argparse.ArgumentTypeError("1 is neither 0, for never, nor at least 2")
    return value


def parity(text: str) -> float:
    """A percentage, with or without its sign; as a part of 1."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%?", text)
    if match is None or float(match[1]) > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 100, such as 5%")
    return float(match[1]) / 100


def group(text: str) -> str:
    """A multicast address."""
    from restore.multicast.config import check_group

    try:
        return check_group(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {error}") from None


def one_of(*names: str) -> Callable[[str], str]:
    """One of these words."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not {', '.join(names[:-1])} or {names[-1]}")
        return text

    return convert


class Formats:
    """`restore.source.detect.FORMATS`, looked up when they are wanted: that takes longer than all the rest."""

    def __iter__(self) -> Iterator[str]:
        """The names."""
        from restore.source.detect import FORMATS

        return iter(FORMATS)

    def __contains__(self, name: object) -> bool:
        """Whether it is one."""
        return name in tuple(self)


def image_format(text: str) -> str:
    """A format that an image may have."""
    if text in Formats():
        return text
    names = ", ".join(Formats())
    if text.lower().startswith(_MAC_FORMATS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is a file system, which a block copy keeps as the source has it: leave it out "
            f"(here --format is what the image is: {names})"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is not a format of images: {names}")


def host_name(text: str) -> str:
    """A host name (RFC 1123)."""
    from restore.errors import Refused
    from restore.finish.hostname import check_hostname

    try:
        check_hostname(text)
    except Refused as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
