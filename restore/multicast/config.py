"""The configuration of `asr server`: a property list as asr has it, XML or binary, and options that override it."""

from __future__ import annotations

import ipaddress
import plistlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.parsers.expat import ExpatError

from restore.errors import Refused
from restore.multicast.packet import DEFAULT_PORT

DEFAULT_TTL: Final = 3
_FILE_LIMIT: Final = 1 << 20  # bytes
_TIMES: Final = 2  # loops without a client, at least, after which a stream may be suspended


@dataclass(frozen=True, slots=True)
class Config:
    """How a stream is served.

    Attributes:
        data_rate: bytes per second that are never exceeded; None has the interface's speed decide.
        address: the multicast group; None has one chosen.
        client_data_rate: bytes per second of the slowest client that the stream waits for.
        discovery: announce it by DNS-SD.
        loop_suspend: loops without a client after which the stream stops until one comes; 0 is never.
        ttl: routers that the stream may pass.
        port: TCP port of the control API and UDP port of the stream.
    """

    data_rate: int | None = None
    address: str | None = None
    client_data_rate: int | None = None
    discovery: bool = True
    loop_suspend: int = 0
    ttl: int = DEFAULT_TTL
    port: int = DEFAULT_PORT


def load(path: str) -> Config:
    """Read a property list.

    Raises:
        Refused: it cannot be read, is none, or has a key or a value that it may not; names that.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _FILE_LIMIT:
        raise Refused(f"{path} is no configuration: it has more than {_FILE_LIMIT >> 20} MiB")
    try:
        values = plistlib.loads(data)
    except (plistlib.InvalidFileException, ExpatError, ValueError, TypeError, AttributeError, OverflowError,
            IndexError, KeyError, RecursionError) as error:  # fmt: skip
        what = str(error).splitlines()[0] if str(error) else "it is damaged"
        raise Refused(f"{path} is no property list: {what}") from None
    if not isinstance(values, dict):
        raise Refused(f"{path} is no configuration: its top is not a dictionary")
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _KEYS:
            raise Refused(f"{path}: there is no key {key!r}; there are {', '.join(_KEYS)}")
        name, check = _KEYS[key]
        try:
            found[name] = check(value)
        except ValueError as error:
            raise Refused(f"{path}: {key} is {value!r:.40}, but has to be {error}") from None
    return Config(**found)


def check_group(text: Any) -> str:
    """A multicast address.

    Raises:
        ValueError: it is none; says what it has to be.
    """
    wanted = "an IPv4 multicast address, 224.0.1.0 to 239.255.255.255, such as 239.192.0.1"
    if not isinstance(text, str):
        raise ValueError(wanted)
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError(wanted) from None
    if not address.is_multicast or address in ipaddress.IPv4Network("224.0.0.0/24"):  # never leaves its link's control
        raise ValueError(wanted)
    return text


def _number(least: int, most: int, what: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is str and value.isascii() and value.isdigit():  # as `defaults write` has it without -int
            value = int(value)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(what)
        return int(value)

    return check


def _truth(value: Any) -> bool:
    if type(value) is int and value in (0, 1):
        return bool(value)
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _loops(value: Any) -> int:
    count = _number(0, 1 << 31, f"0 for never, or at least {_TIMES}")(value)
    if 0 < count < _TIMES:
        raise ValueError(f"0 for never, or at least {_TIMES}")
    return count


_RATE: Final = _number(1, 1 << 50, "a number of bytes per second")
_KEYS: Final[dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "Data Rate": ("data_rate", _RATE),
    "Multicast Address": ("address", check_group),
    "Client Data Rate": ("client_data_rate", _RATE),
    "DNS Service Discovery": ("discovery", _truth),
    "Loop Suspend": ("loop_suspend", _loops),
    "Multicast TTL": ("ttl", _number(1, 255, "1 to 255")),
    "Port": ("port", _number(1, 65535, "1 to 65535")),
}
