"""What can go wrong on an NBD connection, one type for each kind of trouble."""

from __future__ import annotations

import os


class NBDError(Exception):
    """Anything that this package raises on purpose."""


class URIError(NBDError, ValueError):
    """A string is not an NBD URI that can be used."""


class ProtocolError(NBDError):
    """Bytes that the specification does not allow, sent by the peer."""


class OptionRefused(NBDError):
    """The server answered an option with an error reply.

    Attributes:
        reply: the reply type, an `NBD_REP_ERR_*` value.
        message: the server's own words, possibly empty.
    """

    def __init__(self, reply: int, message: str) -> None:
        super().__init__(one_line(message) or f"option refused with reply type {reply:#x}")
        self.reply = reply
        self.message = message


class RequestFailed(NBDError):
    """The server answered a request with an error.

    Attributes:
        errno: the local errno of the same name as the wire's error value.
        command: the command's name in the specification without its prefix, such as `WRITE`.
        offset: first byte of the request in the export.
        length: bytes that the request covers.
    """

    def __init__(self, errno: int, command: str, offset: int, length: int, message: str = "") -> None:
        reason, message = os.strerror(errno), one_line(message)
        detail = f": {message}" if message and message != reason else ""
        super().__init__(f"{command} of {length} bytes at offset {offset} failed: {reason}{detail}")
        self.errno = errno
        self.command = command
        self.offset = offset
        self.length = length


class ConnectionLost(NBDError):
    """The connection ended, or could not be made, and could not be made again."""


class Stalled(ConnectionLost):
    """The peer is there but nothing moved within the time allowed."""


def one_line(text: str) -> str:
    """What the other side has said, fit to be part of a message: a string of up to 4096 bytes may hold anything."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())
