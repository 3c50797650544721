"""What a source and a target have in common when they are exports: how they are reached, and which run serves them."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbd.client import Client
from nbd.connection import list_exports
from nbd.errors import NBDError, OptionRefused
from nbd.negotiation import ExportInfo
from nbd.uri import NBDURI
from nbd.wire import Rep
from restore.errors import Refused
from targetmode import api

SCHEMES: Final = ("nbd:", "nbds:", "nbd+", "nbds+")
"""What an NBD URI begins with."""

_PARTITION: Final = re.compile(r"partition \d+ of (.+), [^,]+(?:, read-only)?\Z")  # as `targetmode.offer` has it


def client(uri: NBDURI, *, timeout: float, notify: Callable[[str], None]) -> Client:
    """Connect to an export, and learn which run of its server that is.

    Args:
        uri: the export.
        timeout: seconds without movement after which the other side counts as gone.
        notify: told in one line when the connection is lost and when it is back.

    Raises:
        NBDError: it cannot be reached, or is not there.
    """
    return Client(
        uri,
        timeout=timeout,
        queries=[api.NAMESPACE],
        notify=notify,
        describe=lambda text: " ".join(word for word in text.split() if not word.startswith(api.NAMESPACE)),
    )


def connect(uri: NBDURI, *, timeout: float, notify: Callable[[str], None]) -> Client:
    """As `client`, for a user.

    Raises:
        Refused: it cannot be reached, or is not there; in one line, with the exports that are.
    """
    try:
        return client(uri, timeout=timeout, notify=notify)
    except OptionRefused as error:
        raise Refused(f"{uri}: {error}{_others(uri, error, timeout)}") from None
    except NBDError as error:
        raise Refused(str(error)) from None


def control_address(export: ExportInfo) -> api.ControlAddress | None:
    """Where the control API is; nbdkit has no metadata contexts of ours, there it stands in the description."""
    return api.ControlAddress.from_contexts(export.contexts or tuple(export.description.split()))


def partition_of(export: ExportInfo) -> str | None:
    """The export that is the disk an export is a partition of; None where it is none, as far as the server tells."""
    found = _PARTITION.match(export.description)
    return None if found is None else found[1]


def generation(clients: Iterable[Client], met: Iterable[api.ControlAddress] = ()) -> int:
    """How many runs of their server the clients have spoken to so far, as far as can be told.

    Args:
        clients: all to the same export.
        met: runs that somebody else has spoken to.
    """
    named, unnamed = set(met), 0
    for each in clients:
        for number, export in enumerate(each.history):
            if (address := control_address(export)) is not None:
                named.add(address)
            elif number:
                unnamed += 1  # where the server does not say, each reconnect counts
    return len(named) + unnamed


def _others(uri: NBDURI, refusal: OptionRefused, timeout: float) -> str:
    """For an export that is not there: those that are, unless the server has said so itself."""
    if refusal.reply != Rep.ERR_UNKNOWN or "there are" in str(refusal):
        return ""
    try:
        names = list_exports(uri, timeout=timeout)
    except NBDError:
        return ""
    return f"; the server has: {', '.join(names) or 'no exports'}"


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """An export that this process reads as a source or writes as a target, from `use` to `end`.

    Attributes:
        uri: how it was named.
        writes: it is a target.
        places: what it can be told by: every two uses of one export share one of them.
        within: where it is a partition, what its disk can be told by.
    """

    uri: NBDURI
    writes: bool
    places: frozenset[tuple[object, ...]]
    within: frozenset[tuple[object, ...]]

    def clashes(self, other: Use) -> bool:
        """Whether one is written and both have blocks in common."""
        shared = self.places & (other.places | other.within) or self.within & other.places
        return bool(shared) and (self.writes or other.writes)

    def end(self) -> None:
        """It is not used any more; more than once does no harm."""
        with _lock:
            _uses.discard(self)


_lock = threading.Lock()
_uses: Final[set[Use]] = set()  # of this process, as the kernel keeps the claims of local disks


def use(uri: NBDURI, export: ExportInfo, *, writes: bool) -> Use:
    """Say that an export is used.

    Raises:
        Refused: it is the source and the target at once, or two targets, or one of them a partition of the other.
    """
    address, disk = control_address(export), partition_of(export)
    session = None if address is None else address.session
    within = frozenset[tuple[object, ...]]() if disk is None else _places(uri, disk, session, disk)
    this = Use(uri, writes, _places(uri, uri.export, session, export.name), within)
    with _lock:
        for other in _uses:
            if not this.clashes(other):
                continue
            if not other.places & this.places:
                raise Refused(f"{uri} and {other.uri} are a disk and a partition of it; they have to be two disks")
            also = "" if other.uri == uri else f" (as {other.uri})"
            if other.writes and writes:
                raise Refused(f"{uri} is named as a target twice{also}; each has to be another disk")
            raise Refused(f"{uri} is both source and target{also}; they have to be two disks")
        _uses.add(this)
    return this


def _places(uri: NBDURI, asked: str, session: str | None, name: str) -> frozenset[tuple[object, ...]]:
    """What an export can be told by: the name asked for at its server, and its own in this run of the server."""
    places: set[tuple[object, ...]] = set()
    if session:
        places.add((session, name))
    if uri.socket is not None:
        at = uri.socket if uri.socket.startswith("\0") else str(Path(uri.socket).resolve())
        places.add((at, asked))
    else:
        places.add((uri.host.lower(), uri.port, asked))
        try:
            found = socket.getaddrinfo(uri.host, uri.port, type=socket.SOCK_STREAM)
        except OSError:
            found = []
        places |= {(sockaddr[0], uri.port, asked) for *_, sockaddr in found}
    return frozenset(places)
