"""`targetmode serve`: claims the disks, listens, starts the engine, and stays until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbd.responder import STOP_LIMIT, STOP_QUIET, STOPPED
from nbd.wire import DEFAULT_PORT
from targetmode import api
from targetmode.announce import Announcer, export_facts, reachable_uris
from targetmode.disks.preflight import PreflightError
from targetmode.engine import (
    EngineError,
    Wiring,
    adopt_orphans,
    log_file,
    start_builtin,
    start_nbdkit,
    tell_nbdkit,
    wait_for_orphans,
)
from targetmode.listening import ListenError, activated_sockets, free_of_consent, listen_tcp, listen_unix
from targetmode.offer import Offer, OfferError
from targetmode.session import Event, Session

_BLKRRPART: Final = 0x125F
_PULSE: Final = 0.2  # seconds between looks at whether anything still moves


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `targetmode serve`.

    Attributes:
        disks: paths of block devices and image files.
        listen: (host, port) pairs; empty for the default.
        socket: path of a Unix socket.
        control: (host, port) of the control API, None for none, `"default"` for port 10810 where NBD listens.
        name: what this machine calls itself.
        read_only: nobody may write.
        max_connections: most clients at once.
        once: end when the last client has gone.
        insecure: addresses that others can reach are allowed.
        nbdkit: use that engine.
        json: print events as JSON.
    """

    disks: list[str]
    listen: list[tuple[str, int]]
    socket: str | None
    control: tuple[str, int] | str | None
    name: str
    read_only: bool
    max_connections: int
    once: bool
    insecure: bool
    nbdkit: bool
    json: bool


def serve(options: Options) -> int:
    """Run the command; its exit status."""
    with contextlib.ExitStack() as stack:
        try:
            offer = Offer.claim(options.disks, read_only=options.read_only)
            stack.callback(offer.close)
            listeners, activated = _listen(options, stack)
            controls = [] if activated and options.control == "default" else _listen_control(options, listeners)
            for control in controls:
                stack.enter_context(control)
            exposed = free_of_consent([*listeners, *controls])
            if exposed and not options.insecure:
                raise ListenError(
                    f"{exposed[0]} can be reached from other machines, and whoever reaches it can overwrite the disk; "
                    "say --insecure if that network is trusted"
                )
            return _run(options, offer, listeners, controls, exposed, activated, stack)
        except (PreflightError, OfferError, ListenError, EngineError) as error:
            print(f"targetmode: {error}", file=sys.stderr)
            return 1


def _listen(options: Options, stack: contextlib.ExitStack) -> tuple[list[socket.socket], bool]:
    """The sockets for NBD, which `stack` closes, and whether they were handed over."""
    activated = activated_sockets()
    if activated:
        return [stack.enter_context(sock) for sock in activated], True
    sockets = []
    if options.socket is not None:
        sockets.append(stack.enter_context(listen_unix(options.socket)))
        stack.callback(Path(options.socket).unlink, missing_ok=True)
    addresses = options.listen or ([] if sockets else [("127.0.0.1", DEFAULT_PORT), ("::1", DEFAULT_PORT)])
    for host, port in addresses:
        try:
            sockets += [stack.enter_context(sock) for sock in listen_tcp(host, port)]
        except ListenError as error:
            if options.listen or host != "::1" or error.taken:
                raise  # a machine without IPv6 is no reason to fail by default; somebody else's server there is
    return sockets, False


def _listen_control(options: Options, listeners: Sequence[socket.socket]) -> list[socket.socket]:
    """The sockets for the control API; one port for all, since a client is told only the port."""
    if options.control is None:
        return []
    if isinstance(options.control, tuple):
        return listen_tcp(*options.control)
    hosts = [str(sock.getsockname()[0]) for sock in listeners if sock.family != socket.AF_UNIX] or ["127.0.0.1"]
    for first_port in (api.DEFAULT_PORT, 0):
        port, sockets = first_port, []
        try:
            for host in dict.fromkeys(hosts):
                sockets += listen_tcp(host, port)
                port = sockets[0].getsockname()[1]
            return sockets
        except ListenError:
            for sock in sockets:
                sock.close()
            if first_port == 0:
                raise
    return []


def _run(
    options: Options,
    offer: Offer,
    listeners: list[socket.socket],
    controls: list[socket.socket],
    exposed: list[str],
    activated: bool,
    stack: contextlib.ExitStack,
) -> int:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="targetmode-")))
    counters_fd = os.memfd_create("targetmode-counters")
    stack.callback(os.close, counters_fd)
    # Two for each slot, and room for as many connections that are over but still flush, which nbdkit does not count.
    os.ftruncate(counters_fd, 8 * 2 * 2 * options.max_connections)
    counters = mmap.mmap(counters_fd, 0)
    session = Session(offer, options.name, memoryview(counters).cast("Q"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stack.enter_context(ours)
    with theirs:
        port = controls[0].getsockname()[1] if controls else None
        contexts = () if port is None else api.ControlAddress(port, session.id).contexts()
        wiring = Wiring(
            offer,
            listeners,
            counters,
            counters_fd,
            theirs,
            directory,
            contexts,
            options.max_connections,
            [ours, *controls],
        )
        strangers = adopt_orphans()
        # From before the fork until a handler is there, a signal to stop has to wait.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        pid = start_nbdkit(wiring) if options.nbdkit else start_builtin(wiring)
        announcer = Announcer(as_json=options.json, stream=sys.stderr if activated else sys.stdout)
        stack.callback(announcer.close)
        session.subscribe(announcer.event)
        for host in exposed:
            print(
                f"targetmode: warning: {host} is not loopback and there is no encryption or password: "
                "anyone on that network can read and overwrite these disks",
                file=sys.stderr,
            )
        uris = reachable_uris(listeners)
        for listener in listeners:
            listener.close()  # the engine's copies alone are to count, so that nobody connects when it listens no more
        announcer.ready(offer, uris)
        facts = [export_facts(export, uris) for export in offer.exports()]
        session.publish("ready", session=session.id, name=session.name, control=port, exports=facts)
        return asyncio.run(_Supervisor(options, session, announcer, wiring, pid, strangers, ours).run(controls))


class _Supervisor:
    """The main process while the engine runs."""

    def __init__(
        self,
        options: Options,
        session: Session,
        announcer: Announcer,
        wiring: Wiring,
        pid: int,
        strangers: frozenset[int],
        events: socket.socket,
    ) -> None:
        self._options = options
        self._session = session
        self._announcer = announcer
        self._wiring = wiring
        self._pid = pid
        self._engine = os.pidfd_open(pid)
        self._strangers = strangers
        self._events = events
        self._asked = False

    async def run(self, controls: Sequence[socket.socket]) -> int:
        """Until the engine has ended; the exit status."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._engine, ended.set)
        self._session.subscribe(self._react)
        self._session.listen(self._events, loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        control = None
        if controls:
            from targetmode.control import ControlServer  # heavy, and only now there is time for it

            control = ControlServer(self._session)
            await control.start(controls)
        await ended.wait()
        asked = self._asked
        loop.remove_reader(self._engine)
        _, status = os.waitpid(self._pid, 0)
        await asyncio.to_thread(
            wait_for_orphans, self._strangers
        )  # of a listener that was killed; meanwhile their events are taken in
        self._session.drain(self._events)
        for client in list(self._session.connected.values()):
            self._session.lost(client, STOPPED)
        if control is not None:
            await control.stop()
        loop.remove_reader(self._events.fileno())
        return await asyncio.to_thread(self._finish, None if asked else os.waitstatus_to_exitcode(status))

    def stop(self) -> None:
        """Have the engine end; the rest follows from that."""
        first, self._asked = not self._asked, True
        self._kill_engine(signal.SIGTERM)
        if first and self._options.nbdkit:
            self._hurry(time.monotonic() + STOP_LIMIT, bytes(self._session.counters), time.monotonic())

    def _hurry(self, deadline: float, moved: bytes, since: float) -> None:
        """nbdkit waits until its clients have left by themselves: end it when nothing has moved for a while."""
        now, moving = time.monotonic(), bytes(self._session.counters)
        if moving != moved:
            since = now
        if now > deadline or now - since > STOP_QUIET:
            self._kill_engine(signal.SIGKILL)
        else:
            asyncio.get_running_loop().call_later(_PULSE, self._hurry, deadline, moving, since)

    def _kill_engine(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._engine, number)

    def _react(self, event: Event) -> None:
        if event["event"] != "disconnect":
            return
        if self._options.nbdkit:
            tell_nbdkit(self._wiring)  # what was written may have been a partition table
        if self._options.once and not self._session.connected:
            self.stop()

    def _finish(self, code: int | None) -> int:
        """Flush, and say of each disk whether it may be unplugged; `code` is the engine's status if nobody asked it."""
        status = 0
        if code is not None:
            status = 1
            log = log_file(self._wiring)
            said = log.read_text().strip().splitlines()[-1:] if log.exists() else []
            print(f"targetmode: the server ended by itself (status {code}) {' '.join(said)}".rstrip(), file=sys.stderr)
        for disk in self._wiring.offer.disks:
            try:
                disk.flush()
                _reread_partitions(disk.fd)
                self._announcer.line(f"{disk.name}: safe to disconnect")
                self._session.publish("stopped", export=disk.name, safe=True)
            except OSError as error:
                status = 1
                print(f"targetmode: {disk.name}: NOT safe, data are lost: {error.strerror}", file=sys.stderr)
                self._session.publish("stopped", export=disk.name, safe=False, message=error.strerror)
        return status


def _reread_partitions(fd: int) -> None:
    """Have this machine's kernel look at the partition table that is there now; files and busy disks do not mind."""
    try:
        fcntl.ioctl(fd, _BLKRRPART)
    except OSError as error:
        if error.errno == errno.EIO:
            raise
