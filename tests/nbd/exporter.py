"""A server process with the smallest session that there can be: `python -m tests.nbd.exporter JSON`.

The JSON has `exports` (name to `path`, and optionally `start`, `size`, `read_only`, `description`, `minimum`, `claim`,
`flush_fails`, `refuse_writing`, `slow`), `socket` or `host`, `log`, and what `Server` takes. Every event
is a JSON line in the log.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from typing import Any

from nbd.backend import FileBackend
from nbd.errors import OptionRefused
from nbd.negotiation import BlockSizes, ExportInfo, Ready
from nbd.server import Server
from nbd.wire import Rep, TransmissionFlag

FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_FAST_ZERO
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.CAN_MULTI_CONN
)


class Events:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)

    def note(self, event: str, **details: Any) -> None:
        os.write(self._fd, json.dumps({"event": event, "pid": os.getpid(), **details}).encode() + b"\n")


class UnluckyBackend(FileBackend):
    """A disk that loses what it was given to write."""

    def flush(self) -> None:
        raise OSError(5, "no luck")


class Exporter:
    """The session of one connection."""

    def __init__(self, exports: dict[str, dict[str, Any]], events: Events, peer: str, slot: int) -> None:
        self._exports = exports
        self._events = events
        self._chosen: dict[str, Any] = {}
        self.read = memoryview(bytearray(8)).cast("Q")
        self.written = memoryview(bytearray(8)).cast("Q")
        events.note("connected", peer=peer, slot=slot)

    def list(self) -> list[ExportInfo]:
        return [self._info(name) for name in self._exports]

    def find(self, name: str, *, opening: bool) -> ExportInfo:
        if name not in self._exports:
            raise OptionRefused(Rep.ERR_UNKNOWN, "there is no such export")
        if opening:
            self._chosen = self._exports[name]
        return self._info(name)

    def _info(self, name: str) -> ExportInfo:
        export = self._exports[name]
        size = export.get("size", os.stat(export["path"]).st_size - export.get("start", 0))  # noqa: PTH116
        read_only = TransmissionFlag.READ_ONLY if export.get("read_only") else TransmissionFlag(0)
        sizes = BlockSizes(minimum=export.get("minimum", 1))
        return ExportInfo(name, size, FLAGS | read_only, sizes, export.get("description", ""))

    def open(self) -> FileBackend:
        self._events.note("open")
        read_only = bool(self._chosen.get("read_only"))
        path = self._chosen["path"]
        if "claimed" in self._chosen:
            path = f"/proc/self/fd/{self._chosen['claimed']}"
        fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
        kind = UnluckyBackend if self._chosen.get("flush_fails") else FileBackend
        return kind(fd, read_only=read_only, start=self._chosen.get("start", 0), size=self._chosen.get("size"))

    def opened(self, ready: Ready) -> None:
        self._events.note("opened", export=ready.export.name)

    def begin_writing(self) -> str | None:
        self._events.note("begin_writing")
        refusal = self._chosen.get("refuse_writing")
        if self._chosen.get("slow"):
            time.sleep(self._chosen["slow"])
        return None if refusal is None else str(refusal)

    def flushed(self) -> None:
        self._events.note("flushed")

    def failed(self, command: str, offset: int, length: int, error: OSError) -> None:
        self._events.note("failed", command=command, offset=offset, length=length, errno=error.errno)

    def closed(self, reason: str) -> None:
        self._events.note("closed", reason=reason, read=self.read[0], written=self.written[0])


def main() -> None:
    options = json.loads(sys.argv[1])
    events = Events(options.pop("log"))
    exports = options.pop("exports")
    for export in exports.values():
        if export.get("claim"):
            export["claimed"] = os.open(export["path"], os.O_RDWR | os.O_EXCL)
    if "socket" in options:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options.pop("socket"))
        listener.listen()
        port = 0
    else:
        listener = socket.create_server(
            (options["host"], 0), family=socket.AF_INET6 if ":" in options.pop("host") else socket.AF_INET, backlog=64
        )
        port = listener.getsockname()[1]
    server = Server([listener], lambda peer, slot: Exporter(exports, events, peer, slot), **options)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    events.note("ready", port=port)
    server.run()
    events.note("stopped")


if __name__ == "__main__":
    main()
