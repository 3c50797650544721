"""Sockets that send to a multicast group and receive from it (Linux, IPv4), and the interfaces that they use."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from restore.errors import Refused

RECEIVE_BUFFER: Final = 32 << 20  # bytes that may wait in the kernel; rmem_max holds for who is not root
SEND_BUFFER: Final = 4 << 20
BATCH_BYTES: Final = 65507  # of one batch at most: it is one datagram to the kernel
BATCH: Final = 44  # datagrams in one batch, of which older kernels allow 64

UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
SO_RCVBUFFORCE: Final = 33
IP_MULTICAST_ALL: Final = 49
_ANY: Final = "0.0.0.0"  # noqa: S104 - the interface is named by its index
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFFLAGS: Final = 0x8913
_IFF_UP: Final = 1
_IFF_LOOPBACK: Final = 8
_NO_SEGMENTATION: Final = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.ENOPROTOOPT})


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface.

    Attributes:
        name: as the kernel has it.
        index: likewise.
        address: its first IPv4 address.
        mtu: bytes of an IP packet on it.
        speed: bits per second, None where that is not known.
    """

    name: str
    index: int
    address: str
    mtu: int
    speed: int | None


def find_interface(wanted: str | None, group: str) -> Interface:
    """The interface of a name or an address; None is the one that the group, or else everything, is routed by.

    Raises:
        Refused: there is none; says which there are.
    """
    there = list(interfaces())
    names = ", ".join(f"{each.name} ({each.address})" for each in there) or "none"
    if wanted is not None:
        for each in there:
            if wanted in (each.name, each.address):
                return each
        raise Refused(f"there is no interface {wanted} with an IPv4 address that is up; there are: {names}")
    address = _source_address(group)
    for each in there:
        if each.address == address:
            return each
    others = [each for each in there if each.name != "lo"]
    if len(others) == 1:
        return others[0]
    raise Refused(
        f"no route says which interface {group} is reached by; say --interface NAME, one of: {names}"
        if there
        else "there is no network interface with an IPv4 address that is up"
    )


def interface_of(address: str) -> Interface | None:
    """The one that has this address."""
    return next((each for each in interfaces() if each.address == address), None)


def interfaces() -> Iterator[Interface]:
    """Those that are up and have an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for index, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
                address = socket.inet_ntoa(fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24])
            except OSError:
                continue
            if flags & _IFF_UP:
                yield Interface(name, index, address, _setting(name, "mtu") or 1500, _speed(name))


def _setting(name: str, what: str) -> int | None:
    try:
        return int(Path("/sys/class/net", name, what).read_text())
    except (OSError, ValueError):
        return None


def _speed(name: str) -> int | None:
    megabits = _setting(name, "speed")
    return megabits * 1_000_000 if megabits is not None and megabits > 0 else None


def _source_address(destination: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((destination, 9))
        except OSError:
            return None
        return str(sock.getsockname()[0])


def sending_socket(interface: Interface, group: str, port: int, ttl: int) -> socket.socket:
    """A socket that sends to a group.

    Raises:
        Refused: the group cannot be sent to by this interface.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _membership(_ANY, interface))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.connect((group, port))
    except OSError as error:
        sock.close()
        raise Refused(f"{group} cannot be sent to by {interface.name}: {error.strerror}") from None
    return sock


def receiving_socket(interface: Interface, group: str, port: int) -> socket.socket:
    """A socket that gets what is sent to a group, several datagrams at a time.

    Raises:
        Refused: the group cannot be joined by this interface.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # several clients on one machine
        sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        with suppress(OSError):  # older kernels hand datagrams over one by one
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        sock.bind((group, port))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, _membership(group, interface))
    except OSError as error:
        sock.close()
        raise Refused(f"{group} port {port} cannot be received by {interface.name}: {error.strerror}") from None
    return sock


def overflowed(sock: socket.socket) -> int:
    """How many batches of datagrams were dropped because nobody came to take them from a socket in time."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:  # of the network namespace of this thread
        fields = line.split()
        if fields[9] == inode:
            return int(fields[12])
    return 0


def _membership(group: str, interface: Interface) -> bytes:
    """A struct ip_mreqn."""
    return socket.inet_aton(group) + socket.inet_aton(_ANY) + struct.pack("@i", interface.index)


class BatchSender:
    """Sends many datagrams of one size by one call, where kernel and interface can."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        """Send by a connected socket; `size` is that of each datagram in bytes."""
        self._sock = sock
        self._size = size
        self.most = max(1, min(BATCH, BATCH_BYTES // size))
        self._segment = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("@H", size))]

    def send(self, parts: Sequence[memoryview | bytes], count: int) -> None:
        """Send `count` datagrams, at most `most`, that lie in parts one behind the other.

        Raises:
            OSError: they could not be sent.
        """
        if count > 1 and self.most > 1:
            try:
                self._sock.sendmsg(parts, self._segment)
                return
            except OSError as error:
                if error.errno not in _NO_SEGMENTATION:
                    raise
                self.most = 1  # what was to be sent now is sent again, one by one
        data = memoryview(b"".join(parts)) if count > 1 else None
        if data is None:
            self._sock.sendmsg(parts)
            return
        for at in range(0, len(data), self._size):
            self._sock.send(data[at : at + self._size])
