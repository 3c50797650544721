"""What `targetmode serve` prints: lines for people, or one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shlex
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, TextIO

from nbd.uri import NBDURI
from targetmode.disks.text import format_size, printable
from targetmode.offer import Export, Offer
from targetmode.session import Event

BACKLOG: Final = 10_000  # lines that a slow reader may fall behind before some are left out
PARTING: Final = 1.0  # seconds that a slow reader is given at the end


class Announcer:
    """Prints events as they come, from a thread of its own: a terminal that is stopped must not stop a disk.

    When nobody reads any more, it falls silent.
    """

    def __init__(self, *, as_json: bool, stream: TextIO = sys.stdout) -> None:
        """Print to `stream`, whose descriptor is written to directly."""
        self._json = as_json
        self._fd, self._encoding = stream.fileno(), stream.encoding
        self._lines: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._thread = threading.Thread(target=self._write_lines, name="announcer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Print what is left, if it is being read."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=PARTING)
        self._thread.join(PARTING)

    def event(self, event: Event) -> None:
        """Print one event of the session."""
        if self._json:
            self._print(json.dumps(event))
            return
        text = _sentence(event)
        if text:
            self._print(f"{time.strftime('%H:%M:%S')}  {text}")

    def ready(self, offer: Offer, uris: Sequence[NBDURI]) -> None:
        """Print, for people, what is offered and what to paste on the other machine."""
        if self._json:
            return
        for disk in offer.disks:
            exports = disk.exports()
            held = disk.contents()
            origin = f"from {printable(str(disk.path))}"
            facts = [format_size(disk.size), disk.model, disk.serial and f"serial {disk.serial}", origin]
            self._print(f"\n{disk.name}   {', '.join(fact for fact in facts if fact)}")
            self._print(f"     {'read-only; ' if disk.read_only else ''}{held if held else 'unreadable'}")
            for export in exports:
                if not export.whole:
                    self._print(f"\n{export.name}   {export.description}")
                self._print("")
                for uri in uris:
                    for line in _to_paste(export, uri.with_export(export.name), disk.read_only):
                        self._print(f"    {line}")
        self._print("\nReady. Ctrl-C ends it.")

    def line(self, text: str) -> None:
        """Print a line for people."""
        if not self._json:
            self._print(text)

    def _print(self, text: str) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(text)

    def _write_lines(self) -> None:
        read = True
        while (text := self._lines.get()) is not None:
            # Paths and labels may have letters that the encoding has not.
            data = f"{text}\n".encode(self._encoding, errors="backslashreplace") if read else b""
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:  # a pipe whose reader has gone, a terminal that was closed; the disks are served on
                read = False


def export_facts(export: Export, uris: Sequence[NBDURI]) -> dict[str, Any]:
    """An export as the `ready` event has it."""
    return {
        "name": export.name,
        "size": export.size,
        "model": export.disk.model,
        "read_only": export.disk.read_only,
        "uris": [str(uri.with_export(export.name)) for uri in uris],
    }


def reachable_uris(listeners: Sequence[socket.socket]) -> list[NBDURI]:
    """How clients reach these sockets, one URI for each way: IPv6 loopback is the same way as IPv4 loopback.

    A socket that is bound to every address goes by the address of the default route.
    """
    uris: list[NBDURI] = []
    for listener in listeners:
        if listener.family == socket.AF_UNIX:
            uris.append(NBDURI(socket=str(listener.getsockname())))
            continue
        host, port = listener.getsockname()[:2]
        if host in ("0.0.0.0", "::"):  # noqa: S104
            host = own_address(listener.family)
        if host == "::1" and NBDURI(host="127.0.0.1", port=port) in uris:
            continue
        uris.append(NBDURI(host=host, port=port))
    return list(dict.fromkeys(uris))


def own_address(family: int) -> str:
    """The address that this machine would use towards the outside, its host name if there is none.

    A connected datagram socket learns its own address without sending anything; the far address is one reserved for
    documentation (RFC 5737, RFC 3849).
    """
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def _to_paste(export: Export, uri: NBDURI, read_only: bool) -> list[str]:
    text, name = shlex.quote(str(uri)), shlex.quote(export.name)
    lines = [] if read_only else [f"asr restore --source IMAGE --target {text} --erase"]
    lines += [f"nbdinfo {text}", f"qemu-img info {text}"]
    if uri.socket is not None:
        lines.append(f"nbd-client -unix {shlex.quote(uri.socket)} /dev/nbd0 -name {name}")
    else:
        lines.append(f"nbd-client {shlex.quote(uri.host)} {uri.port} /dev/nbd0 -name {name}")
    return lines


def _sentence(event: Event) -> str:
    export, peer = event.get("export", ""), event.get("peer", "")
    match event["event"]:
        case "connect":
            return f"{export}: {peer} connected"
        case "disconnect":
            moved = f"wrote {format_size(event['written'])}, read {format_size(event['read'])}"
            return f"{export}: {peer} left ({event['reason']}), {moved}"
        case "error":
            where = f" at offset {event['offset']}, {event['length']} bytes" if event["length"] else ""
            return f"{export}: {event['command']} for {peer} failed{where}: {event['message']}"
        case "rejected":
            return f"{peer} turned away: {event['reason']}"
    return ""
