"""One client's connection, as its own process sees it: what it may open, when it may write, whom it tells."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from typing import Any

from nbd.backend import FileBackend
from nbd.errors import OptionRefused
from nbd.negotiation import ExportInfo, Ready
from nbd.server import export_info
from nbd.wire import Rep
from nbd.writers import WriterLock
from targetmode.offer import Export, Offer


class ConnectionSession:
    """A `nbd.server.Session` over an `Offer`; events go to the main process as datagrams, one JSON object each.

    Attributes:
        read, written: the connection's place in the counters that it shares with the main process.
    """

    def __init__(
        self,
        offer: Offer,
        *,
        peer: str,
        slot: int,
        counters: memoryview,
        events: socket.socket,
        locks: str,
        contexts: tuple[str, ...],
    ) -> None:
        """Begin to serve `peer`.

        Args:
            offer: what there is.
            peer: the client's address.
            slot: the connection's number.
            counters: 64-bit integers shared with the main process, two for each slot: bytes read, bytes written.
            events: where events are sent.
            locks: directory of the writers' locks.
            contexts: informational metadata contexts.
        """
        self._offer = offer
        self._peer = peer
        self._slot = slot
        self.read = counters[2 * slot : 2 * slot + 1]
        self.written = counters[2 * slot + 1 : 2 * slot + 2]
        self.read[0] = self.written[0] = 0
        self._events = events
        self._locks = locks
        self._contexts = contexts
        self._export: Export | None = None
        self._lock: WriterLock | None = None
        self._opened = False

    def list(self) -> list[ExportInfo]:
        """Every export there is now."""
        return [self._describe(export) for export in self._offer.exports()]

    def find(self, name: str, *, opening: bool) -> ExportInfo:
        """The export of that name.

        Raises:
            OptionRefused: there is none; or it overlaps what is being written.
        """
        export = self._offer.find(name)
        if export is None:
            names = ", ".join(export.name for export in self._offer.exports()[:20])
            raise OptionRefused(Rep.ERR_UNKNOWN, f"there is no export {name!r:.100} here; there are: {names}")
        lock = WriterLock(self._locks, export.disk.name, whole=export.whole, who=self._peer)
        if opening:
            blocker = lock.blocked_by()
            if blocker is not None:
                raise OptionRefused(Rep.ERR_POLICY, self._refusal(export, blocker))
            self._export, self._lock = export, lock
        try:
            return self._describe(export)
        except OSError as error:
            raise OptionRefused(Rep.ERR_PLATFORM, f"{export.name}: {error.strerror}") from None

    def open(self) -> FileBackend:
        """The export that was chosen."""
        assert self._export is not None
        return self._export.open()

    def opened(self, ready: Ready) -> None:
        """Tell of a client that got through the handshake."""
        self._opened = True
        self._tell("connect", peer=self._peer, pid=os.getpid())

    def begin_writing(self) -> str | None:
        """Take a place among the disk's writers; a text refuses it."""
        assert self._lock is not None
        assert self._export is not None
        blocker = self._lock.acquire()
        if blocker is None:
            return None
        refusal = self._refusal(self._export, blocker)
        self._tell("error", command="WRITE", offset=0, length=0, message=refusal)
        return refusal

    def flushed(self) -> None:
        """Tell of a flush."""
        self._tell("flush")

    def failed(self, command: str, offset: int, length: int, error: OSError) -> None:
        """Tell of a request that could not be carried out."""
        message = error.strerror or errno.errorcode.get(error.errno or 0, str(error))
        self._tell("error", command=command, offset=offset, length=length, message=message)

    def closed(self, reason: str) -> None:
        """Tell of the end, if a beginning was told."""
        if self._opened:
            self._tell("disconnect", reason=reason, read=self.read[0], written=self.written[0])
        elif not reason.startswith("client aborted"):
            self._tell("rejected", peer=self._peer, reason=reason)

    def _describe(self, export: Export) -> ExportInfo:
        backend = export.open()
        try:
            return export_info(backend, export.name, description=export.description, contexts=self._contexts)
        finally:
            backend.close()

    @staticmethod
    def _refusal(export: Export, blocker: str) -> str:
        what = "one of its partitions is" if export.whole else f"{export.disk.name}, the whole disk, is"
        return f"{export.name} cannot be used now: {what} being written by {blocker}"

    def _tell(self, event: str, **values: Any) -> None:
        name = self._export.name if self._export is not None else ""
        message = {"event": event, "slot": self._slot, "export": name, **values}
        with contextlib.suppress(OSError):  # the main process is gone, and this one is about to be told so
            self._events.send(json.dumps(message).encode())
