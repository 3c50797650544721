"""Sockets that `targetmode serve` listens on, and the rule about which addresses need a word of consent."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_FIRST_ACTIVATED: Final = 3  # sd_listen_fds(3)
_BACKLOG: Final = 128


class ListenError(Exception):
    """An address cannot be listened on; `str()` is one line that says which and why.

    Attributes:
        taken: somebody else listens there.
    """

    def __init__(self, message: str, *, taken: bool = False) -> None:
        """Say `message`."""
        super().__init__(message)
        self.taken = taken


def parse_address(text: str, default_port: int) -> tuple[str, int]:
    """HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.

    Raises:
        ValueError: it is none of these.
    """
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is not [IPV6] or [IPV6]:PORT")
        port = rest[1:]
    elif text.count(":") == 1:
        host, port = text.split(":")
    if not host or (port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16)):
        raise ValueError(f"{text!r} is not HOST or HOST:PORT")
    return host, int(port) if port else default_port


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address; a name counts by what it resolves to."""
    try:
        return all(_is_loopback_address(str(info[4][0])) for info in socket.getaddrinfo(host, None))
    except OSError:
        return False


def _is_loopback_address(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Listen on every address that a host name stands for, IPv4 and IPv6 each on a socket of its own.

    Raises:
        ListenError: not one can be listened on, or the port is taken on one of them.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror}") from None
    except UnicodeError:
        raise ListenError(f"cannot listen on {host}: no host can have that name") from None
    sockets: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(infos):
        if port == 0 and sockets:
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            if sock is not None:
                sock.close()
            taken = error.errno == errno.EADDRINUSE
            if family == socket.AF_INET6 and len(infos) > 1 and not taken:
                continue  # a name like localhost on a machine without IPv6
            for other in sockets:
                other.close()
            raise ListenError(f"cannot listen on {host}:{port}: {error.strerror}", taken=taken) from None
        sockets.append(sock)
    if not sockets:
        raise ListenError(f"cannot listen on {host}:{port}: no such address on this machine")
    return sockets


def listen_unix(path: str) -> socket.socket:
    """Listen on a Unix socket that only this user may use; a socket left behind by a dead server is replaced.

    Raises:
        ListenError: something else is there, or a server that lives.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        if _is_left_behind(path):
            Path(path).unlink()
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ListenError(f"cannot listen on {path}: a server or a file is there already", taken=True) from None
        raise ListenError(f"cannot listen on {path}: {error.strerror or error}") from None
    finally:
        os.umask(mask)
    return sock


def _is_left_behind(path: str) -> bool:
    """Whether there is a Unix socket that nobody listens on; one that does not answer for another reason is not it."""
    try:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server with a full backlog lives, too
        return probe.connect_ex(path) == errno.ECONNREFUSED


def activated_sockets() -> list[socket.socket]:
    """The sockets that systemd, or another parent in its manner, has handed over (sd_listen_fds(3)); often none.

    The variables are removed from the environment, so that no child takes them for its own.

    Raises:
        ListenError: something else than listening stream sockets was handed over.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    sockets = []
    for fd in range(_FIRST_ACTIVATED, _FIRST_ACTIVATED + int(count)):
        try:
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise ListenError(f"descriptor {fd}, which was handed over to listen on: {error.strerror}") from None
        sockets.append(sock)
        known = sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if not (known and sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
            raise ListenError(f"descriptor {fd}, which was handed over, does not listen for TCP or Unix connections")
    return sockets


def free_of_consent(sockets: Sequence[socket.socket]) -> list[str]:
    """The addresses among these that machines other than this one can reach."""
    hosts = [str(sock.getsockname()[0]) for sock in sockets if sock.family != socket.AF_UNIX]
    return [host for host in hosts if not _is_loopback_address(host)]
