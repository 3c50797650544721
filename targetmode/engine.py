"""The process that speaks NBD: the built-in server, or Debian's nbdkit over the same backend.

Either is a child of the main process, listens on sockets that were opened before, tells its events on a datagram
socket, and ends by SIGTERM after the requests in flight. It is forked before the main process starts a thread or an
event loop.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbd.responder import STOP_LIMIT
from nbd.server import Server, die_with_parent
from targetmode.connection import ConnectionSession
from targetmode.offer import Offer

_PLUGIN: Final = Path(__file__).resolve().parent.parent / "nbd" / "nbdkit_plugin.py"
_FIRST_ACTIVATED: Final = 3  # sd_listen_fds(3): descriptors that a service is handed begin here
_PR_SET_CHILD_SUBREAPER: Final = 36
_NUDGE: Final = 0.2  # seconds between reminders to connections that were left behind


class EngineError(Exception):
    """The engine cannot be started; `str()` is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What an engine is connected to.

    Attributes:
        offer: the disks.
        listeners: sockets that listen.
        counters: shared memory of 64-bit integers, two for each slot.
        counters_fd: the file that `counters` is mapped from.
        events: where events are sent.
        directory: private to this run; the writers' locks, and what nbdkit is told, are in it.
        contexts: informational metadata contexts.
        max_connections: most clients at once.
        foreign: the main process's own sockets, which must not outlive it.
    """

    offer: Offer
    listeners: Sequence[socket.socket]
    counters: mmap.mmap
    counters_fd: int
    events: socket.socket
    directory: Path
    contexts: tuple[str, ...]
    max_connections: int
    foreign: Sequence[socket.socket] = ()


def start_builtin(wiring: Wiring) -> int:
    """Start `nbd.server.Server`; the pid of its process.

    Raises:
        EngineError: there is no room for a process.
    """

    def run() -> int:
        for sock in wiring.foreign:
            sock.close()
        counters = memoryview(wiring.counters).cast("Q")
        server = Server(
            wiring.listeners,
            lambda peer, slot: ConnectionSession(
                wiring.offer,
                peer=peer,
                slot=slot,
                counters=counters,
                events=wiring.events,
                locks=str(wiring.directory),
                contexts=wiring.contexts,
            ),
            max_connections=wiring.max_connections,
        )
        server.run()
        return 0

    return _fork(run)


def start_nbdkit(wiring: Wiring) -> int:
    """Start nbdkit with our plugin; the pid of its process. `tell_nbdkit` has to be called whenever exports change.

    Raises:
        EngineError: it is not installed, or there is no room for a process.
    """
    program = shutil.which("nbdkit", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise EngineError("nbdkit is not installed; apt-get install nbdkit nbdkit-plugin-python")
    tell_nbdkit(wiring)
    config = wiring.directory / "nbdkit.json"

    def run() -> int:
        # Out of the way of the places where the sockets have to be, and inheritable.
        events, counters, log, *sockets = (
            fcntl.fcntl(fd, fcntl.F_DUPFD, 64)
            for fd in (
                wiring.events.fileno(),
                wiring.counters_fd,
                os.open(log_file(wiring), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
                *(listener.fileno() for listener in wiring.listeners),
            )
        )
        places = {"exports": str(_exports_file(wiring)), "locks": str(wiring.directory)}
        config.write_text(json.dumps({**places, "events": events, "counters": counters}))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 2)
        for place, fd in enumerate(sockets, _FIRST_ACTIVATED):
            os.dup2(fd, place)
        environment = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(sockets))}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process says when
        arguments = ["--foreground", "--filter=limit", "python", str(_PLUGIN), f"config={config}"]
        os.execve(program, ["nbdkit", *arguments, f"limit={wiring.max_connections}"], environment)  # noqa: S606

    return _fork(run)


def tell_nbdkit(wiring: Wiring) -> None:
    """Tell nbdkit of the exports there are now; it reads the list anew for each connection.

    nbdkit has no metadata contexts of ours, so what they say stands at the end of the exports' descriptions.
    """
    exports = [
        {
            "name": export.name,
            "description": " ".join((export.description, *wiring.contexts)),
            "path": f"/proc/{os.getpid()}/fd/{export.disk.fd}",
            "start": export.start,
            "size": export.size,
            "read_only": export.disk.read_only,
            "disk": export.disk.name,
            "whole": export.whole,
        }
        for export in wiring.offer.exports()
    ]
    file = _exports_file(wiring)
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps(exports))
    draft.rename(file)


def log_file(wiring: Wiring) -> Path:
    """Where nbdkit writes what it has to say."""
    return wiring.directory / "nbdkit.log"


def adopt_orphans() -> frozenset[int]:
    """Become the parent of connections' processes whose own parent dies, so that they can be waited for.

    Returns:
        The children that there are already, which are somebody else's business.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    return _children()


def wait_for_orphans(strangers: frozenset[int]) -> None:
    """Wait until no child is left but `strangers`; they have been told to end when their parent died, and are again."""
    deadline = time.monotonic() + STOP_LIMIT + 2
    while left := [pid for pid in _children() - strangers if not os.waitpid(pid, os.WNOHANG)[0]]:
        for pid in left:
            os.kill(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(_NUDGE)


def _children() -> frozenset[int]:
    files = Path("/proc/self/task").glob("*/children")
    return frozenset(int(pid) for file in files for pid in file.read_text().split())


def _exports_file(wiring: Wiring) -> Path:
    return wiring.directory / "exports.json"


def _fork(run: Callable[[], int]) -> int:
    """Call `run` in a new process, which ends with the status it returns; the process's pid.

    Raises:
        EngineError: there is no room for a process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        raise EngineError(f"cannot start a process: {error.strerror}") from None
    if pid:
        return pid
    status = 1
    try:
        die_with_parent(parent)
        status = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
