"""The file backend beneath nbdkit, as a plugin for its Python plugin API, version 2.

`targetmode serve --engine nbdkit` starts nbdkit with this file and `config=FILE`, a JSON object that holds

- `exports`: path of a JSON list of exports, each with `name`, `description`, `path`, `start`, `size`, `read_only`,
  `disk` and `whole`; read anew for each connection, since a restore changes the partitions;
- `locks`: the directory of the writers' locks;
- `events`: descriptor of a datagram socket on which one JSON object is sent for each event;
- `counters`: descriptor of a file that is shared memory, two 64-bit integers for each connection: bytes read, written.

nbdkit runs this in its own interpreter, so it imports nothing but the standard library and the backend's two modules.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbdkit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from nbd.backend import FileBackend
from nbd.writers import WriterLock

API_VERSION = 2
_PR_SET_PDEATHSIG = 1


class _Refused(Exception):
    """Something that was asked for is not to be had."""


def _format_exception(
    kind: Any, *rest: Any, _whole: Callable[..., list[str]] = traceback.format_exception
) -> list[str]:
    """What nbdkit puts into its log, and tells the client: the words alone, for what is no bug."""
    return [str(rest[0])] if rest and issubclass(kind, _Refused | OSError) else _whole(kind, *rest)


traceback.format_exception = _format_exception  # type: ignore[assignment]  # nbdkit calls it by this name

_config: dict[str, Any] = {}
_slots: set[int] = set()
_lock = threading.Lock()


class _Handle:
    """One connection: its export's backend, its place among the writers and the counters.

    Attributes:
        dirty: something may have been written since the client's last flush.
    """

    def __init__(self, export: dict[str, Any], read_only: bool) -> None:
        self.export = export
        self.read_only = read_only or export["read_only"]
        flags = os.O_RDONLY if self.read_only else os.O_RDWR
        self.backend = FileBackend(
            os.open(export["path"], flags | os.O_CLOEXEC),
            read_only=self.read_only,
            start=export["start"],
            size=export["size"],
        )
        self.counters: memoryview = _config["shared"]
        with _lock:
            self.slot = next(number for number in range(len(self.counters) // 2) if number not in _slots)
            _slots.add(self.slot)
            self.counters[2 * self.slot] = self.counters[2 * self.slot + 1] = 0
        self.writer = WriterLock(_config["locks"], export["disk"], whole=export["whole"], who="another nbdkit client")
        self.dirty = False

    def count(self, *, read: int = 0, written: int = 0) -> None:
        """Count bytes that were moved; requests of one connection run at the same time."""
        with _lock:
            self.counters[2 * self.slot] += read
            self.counters[2 * self.slot + 1] += written

    def leave(self) -> None:
        """Flush what the client may not have flushed, which a failure is told of, and give everything back."""
        try:
            if self.dirty:
                self.attempt("FLUSH", 0, 0, self.backend.flush)
        except OSError as error:
            nbdkit.debug(f"nobody left to tell of it: {error}")
        finally:
            self.writer.release()
            self.backend.close()
            read, written = self.counters[2 * self.slot : 2 * self.slot + 2]
            self.tell("disconnect", reason="disconnected", read=read, written=written)
            with _lock:
                _slots.discard(self.slot)

    def tell(self, event: str, **values: Any) -> None:
        """Send an event to the process that started nbdkit; one that is gone is no reason to fail."""
        message = {"event": event, "slot": self.slot, "export": self.export["name"], **values}
        try:
            _config["socket"].send(json.dumps(message).encode())
        except OSError as error:
            nbdkit.debug(f"event not delivered: {error}")

    def attempt(self, command: str, offset: int, length: int, action: Callable[[], None]) -> None:
        """Carry out a request; a failure goes to the client with its errno, and is told as an event."""
        try:
            action()
        except OSError as error:
            nbdkit.set_error(error.errno or errno.EIO)
            if error.errno != errno.ENOTSUP:
                text = error.strerror or str(error)
                self.tell("error", command=command, offset=offset, length=length, message=text)
            raise

    def begin_writing(self) -> None:
        """Take a place among the writers before the first change.

        Raises:
            OSError: the disk is being written as a whole, or one of its partitions is (`EPERM`).
        """
        blocker = self.writer.acquire()
        if blocker is not None:
            raise OSError(errno.EPERM, f"{self.export['name']} overlaps what is being written by {blocker}")
        self.dirty = True


def config(key: str, value: str) -> None:
    """`config=FILE`."""
    if key != "config":
        raise _Refused(f"unknown parameter {key}")
    _config.update(json.loads(Path(value).read_text()))
    _config["socket"] = socket.socket(fileno=_config["events"])
    # By default it is SIGTERM, upon which nbdkit waits until its clients have left.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _config["shared"] = memoryview(mmap.mmap(_config["counters"], 0)).cast("Q")


def thread_model() -> int:
    """Requests of all connections at the same time: the backend has no state that they share."""
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


def _exports() -> list[dict[str, Any]]:
    exports: list[dict[str, Any]] = json.loads(Path(_config["exports"]).read_text())
    return exports


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    """Every export with its description."""
    return [(export["name"], export["description"]) for export in _exports()]


def default_export(readonly: bool, is_tls: bool) -> str:
    """The first disk."""
    name: str = _exports()[0]["name"]
    return name


def open(readonly: bool) -> _Handle:  # noqa: A001
    """A connection has chosen its export."""
    name = nbdkit.export_name()
    for export in _exports():
        if export["name"] == (name or default_export(readonly, False)):
            handle = _Handle(export, readonly)
            handle.tell("connect", peer="nbdkit client")
            return handle
    nbdkit.set_error(errno.ENOENT)
    raise _Refused(f"there is no export {name!r}")


def close(h: _Handle) -> None:
    """A connection is over."""
    h.leave()


def export_description(h: _Handle) -> str:
    """For people."""
    description: str = h.export["description"]
    return description


def get_size(h: _Handle) -> int:
    """Bytes of the export."""
    return h.backend.size


def block_size(h: _Handle) -> tuple[int, int, int]:
    """Minimum, preferred and maximum request, in bytes."""
    return (h.backend.geometry.logical_sector, h.backend.geometry.preferred, 32 << 20)


def is_rotational(h: _Handle) -> bool:
    """Whether seeks are slow."""
    return h.backend.geometry.rotational


def can_multi_conn(h: _Handle) -> bool:
    """A flush on one connection covers all, since all have the same file open."""
    return True


def can_write(h: _Handle) -> bool:
    """Whether the export may be written."""
    return not h.read_only


def can_flush(h: _Handle) -> bool:
    """Always."""
    return True


def can_trim(h: _Handle) -> bool:
    """Whenever it may be written."""
    return not h.read_only


def can_zero(h: _Handle) -> bool:
    """Whenever it may be written."""
    return not h.read_only


def can_fast_zero(h: _Handle) -> bool:
    """A fast zero that would be slow fails fast."""
    return not h.read_only


def can_fua(h: _Handle) -> int:
    """The backend does it itself."""
    native: int = nbdkit.FUA_NATIVE
    return native


def can_cache(h: _Handle) -> int:
    """The backend does it itself."""
    native: int = nbdkit.CACHE_NATIVE
    return native


def can_extents(h: _Handle) -> bool:
    """Always; a device without holes is one extent."""
    return True


def pread(h: _Handle, buf: Any, offset: int, flags: int) -> None:
    """Fill `buf` from `offset`."""
    view = memoryview(buf)
    h.attempt("READ", offset, len(view), lambda: h.backend.read_into(view, offset))
    h.count(read=len(view))


def pwrite(h: _Handle, buf: Any, offset: int, flags: int) -> None:
    """Write `buf` at `offset`."""

    def action() -> None:
        h.begin_writing()
        h.backend.write(buf, offset, fua=bool(flags & nbdkit.FLAG_FUA))

    h.attempt("WRITE", offset, len(buf), action)
    h.count(written=len(buf))


def flush(h: _Handle, flags: int) -> None:
    """Bring everything written to stable storage."""
    h.attempt("FLUSH", 0, 0, h.backend.flush)
    h.tell("flush")


def trim(h: _Handle, count: int, offset: int, flags: int) -> None:
    """Give the storage of a range back."""

    def action() -> None:
        h.begin_writing()
        h.backend.trim(offset, count, fua=bool(flags & nbdkit.FLAG_FUA))

    h.attempt("TRIM", offset, count, action)


def zero(h: _Handle, count: int, offset: int, flags: int) -> None:
    """Make a range read as zeroes."""

    def action() -> None:
        h.begin_writing()
        h.backend.zero(
            offset,
            count,
            may_trim=bool(flags & nbdkit.FLAG_MAY_TRIM),
            fast=bool(flags & nbdkit.FLAG_FAST_ZERO),
            fua=bool(flags & nbdkit.FLAG_FUA),
        )

    h.attempt("WRITE_ZEROES", offset, count, action)
    h.count(written=count)


def cache(h: _Handle, count: int, offset: int, flags: int) -> None:
    """Begin to read a range ahead."""
    h.attempt("CACHE", offset, count, lambda: h.backend.cache(offset, count))


def extents(h: _Handle, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """The runs of a range, as (offset, length, type)."""
    found: list[tuple[int, int, int]] = []
    for extent in h.backend.extents(offset, count):
        kind = (nbdkit.EXTENT_HOLE if extent.hole else 0) | (nbdkit.EXTENT_ZERO if extent.zero else 0)
        found.append((offset, extent.length, kind))
        offset += extent.length
        if flags & nbdkit.FLAG_REQ_ONE:
            break
    return found
