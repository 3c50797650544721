"""The other side of a connection, by hand: clients and servers that say what a test wants, and a bad network."""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nbd import wire
from nbd.client import Client, Operation
from nbd.uri import NBDURI
from nbd.wire import Command, Info, Option, Rep, ReplyType
from tests.support import running, wait_until

Address: TypeAlias = str | tuple[str, int]

GREETING = bytes(wire.Greeting.build({"flags": 3}))


@dataclass
class Answer:
    """All that a server said to one request."""

    error: int = 0
    message: str = ""
    data: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)


@dataclass
class OptionReply:
    type: int
    data: bytes


class RawClient:
    """A client that obeys the test and not the specification; built on `wire` alone."""

    def __init__(self, address: Address | socket.socket, *, flags: int = 3, timeout: float = 20) -> None:
        if isinstance(address, socket.socket):
            self.sock = address
            self.sock.settimeout(timeout)
        else:
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            if not isinstance(address, str) and ":" in address[0]:
                family = socket.AF_INET6
            self.sock = socket.socket(family)
            self.sock.settimeout(timeout)
            try:
                self.sock.connect(address)
                self.greeting = wire.Greeting.parse(self.take(18))
                self.sock.sendall(wire.ClientFlags.build({"flags": flags}))
            except BaseException:
                self.sock.close()
                raise
        self.structured = False
        self.context = False
        self.size = 0
        self.flags = 0

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def take(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise EOFError(f"the server hung up {length - len(data)} bytes early")
            data += piece
        return bytes(data)

    def at_end(self) -> bool:
        """Whether the server has hung up, without another byte."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    # --- Handshake ---

    def send_option(self, option: int, data: bytes = b"", *, length: int | None = None) -> None:
        header = {"option": option, "length": len(data) if length is None else length}
        self.sock.sendall(wire.OptionHeader.build(header) + data)

    def option(self, option: int, data: bytes = b"") -> list[OptionReply]:
        self.send_option(option, data)
        return self.option_replies(option)

    def option_replies(self, option: int) -> list[OptionReply]:
        replies = []
        while True:
            header = wire.OptionReplyHeader.parse(self.take(20))
            assert header.option == option
            replies.append(OptionReply(header.reply, self.take(header.length)))
            if header.reply == Rep.ACK or header.reply & wire.REP_ERROR_BIT:
                return replies

    def set_contexts(self, name: str, *queries: str) -> list[OptionReply]:
        return self.option(Option.SET_META_CONTEXT, meta_request(name, *queries))

    def go(self, name: str = "", *, structured: bool = False, context: bool = False) -> RawClient:
        """The whole handshake from structured replies on."""
        if structured or context:
            assert self.option(Option.STRUCTURED_REPLY)[-1].type == Rep.ACK
            self.structured = True
        if context:
            assert len(self.set_contexts(name, wire.BASE_ALLOCATION)) == 2
            self.context = True
        replies = self.option(Option.GO, info_request(name))
        assert replies[-1].type == Rep.ACK, replies
        for reply in replies[:-1]:
            info = wire.InfoReply.parse(reply.data)
            if info.type == Info.EXPORT:
                self.size, self.flags = info.data.size, info.data.flags
        return self

    # --- Transmission ---

    def send(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1, data: bytes = b""
    ) -> None:
        self.sock.sendall(request(command, offset, length, flags=flags, cookie=cookie) + data)

    def ask(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> Answer:
        """One request and its answer."""
        self.send(command, offset, length or len(data), flags=flags, cookie=0x1234, data=data)
        cookie, answer = self.answer({0x1234: (command, offset, length or len(data))})
        assert cookie == 0x1234
        return answer

    def answer(self, asked: Mapping[int, tuple[int, int, int]]) -> tuple[int, Answer]:
        """The next answer, to any of the requests asked (cookie to command, offset and length)."""
        answer = Answer()
        magic = self.take(4)
        if magic == wire.SIMPLE_REPLY_MAGIC.to_bytes(4, "big"):
            reply = wire.SimpleReply.parse(magic + self.take(12))
            command, _, length = asked[reply.cookie]
            assert not (self.structured and command == Command.READ), "a simple reply to a READ"
            answer.error = reply.error
            if not reply.error and command == Command.READ:
                answer.data = self.take(length)
            return int(reply.cookie), answer
        assert self.structured, "a structured reply without being asked for"
        command, offset, length = 0, 0, 0
        data = bytearray()
        covered = 0
        while True:
            head = magic + self.take(16)
            header = wire.StructuredReplyHeader.parse(head)
            command, offset, length = asked[header.cookie]
            chunk = wire.StructuredReply.parse(head + self.take(header.length)).payload
            answer.kinds.append(header.type)
            match header.type:
                case ReplyType.OFFSET_DATA:
                    assert offset <= chunk.offset
                    assert chunk.offset + len(chunk.data) <= offset + length
                    data = data or bytearray(length)
                    data[chunk.offset - offset : chunk.offset - offset + len(chunk.data)] = chunk.data
                    covered += len(chunk.data)
                case ReplyType.OFFSET_HOLE:
                    assert offset <= chunk.offset
                    assert chunk.offset + chunk.length <= offset + length
                    covered += chunk.length
                case ReplyType.BLOCK_STATUS:
                    answer.extents = [(extent.length, extent.flags) for extent in chunk.extents]
                case ReplyType.ERROR | ReplyType.ERROR_OFFSET:
                    answer.error, answer.message = chunk.error, chunk.message.decode()
                    assert chunk.error
            if header.flags & 1:
                break
            magic = self.take(4)
        if command == Command.READ and not answer.error:
            assert covered == length
            answer.data = bytes(data or length)
        return int(header.cookie), answer


def request(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 1) -> bytes:
    values = {"flags": flags, "type": command, "cookie": cookie, "offset": offset, "length": length}
    return bytes(wire.Request.build(values))


def info_request(name: str, *infos: int) -> bytes:
    return bytes(wire.InfoRequest.build({"name": name.encode(), "infos": infos}))


def meta_request(name: str, *queries: str) -> bytes:
    return bytes(wire.MetaContextRequest.build({"name": name.encode(), "queries": [q.encode() for q in queries]}))


# --- Servers ---


@dataclass
class Exporting:
    """A running `tests.nbd.exporter`."""

    address: Address
    log: Path
    pid: int

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind is None or event["event"] == kind]

    def wait_for(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.events(kind)) >= count, f"{count} of {kind}")
        return self.events(kind)

    def client(self, **options: Any) -> RawClient:
        return RawClient(self.address, **options)

    @property
    def uri(self) -> str:
        if isinstance(self.address, str):
            return f"nbd+unix:///?socket={self.address}"
        host, port = self.address
        return f"nbd://[{host}]:{port}/" if ":" in host else f"nbd://{host}:{port}/"


@contextmanager
def exporting(directory: Path, exports: dict[str, dict[str, Any]], **options: Any) -> Iterator[Exporting]:
    """A server process for these exports; on a Unix socket in `directory` where `host` is not given."""
    log = directory / "events"
    log.unlink(missing_ok=True)
    path = directory / "sock"
    path.unlink(missing_ok=True)
    if "host" not in options:
        options["socket"] = str(path)
    options = {"exports": exports, "log": str(log), **options}
    command = [sys.executable, "-m", "tests.nbd.exporter", json.dumps(options)]
    server = Exporting(options.get("socket", ""), log, 0)
    with running(command, ready=lambda: server.events("ready")) as process:
        server.pid = process.pid
        if "host" in options:
            server.address = (options["host"], server.events("ready")[0]["port"])
        yield server


@contextmanager
def scripted(*scripts: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server on the loopback that plays one script for each connection, the last one again and again; its URI."""
    errors: list[BaseException] = []
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    open_now: list[socket.socket] = []

    def serve(sock: socket.socket, script: Callable[[socket.socket], None]) -> None:
        with sock, suppress(ConnectionError, TimeoutError, EOFError):
            sock.settimeout(20)
            try:
                script(sock)
            except (ConnectionError, TimeoutError, EOFError):
                raise
            except BaseException as error:
                if not ended.is_set():
                    errors.append(error)

    def accept() -> None:
        number = 0
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            open_now.append(sock)
            thread = threading.Thread(target=serve, args=(sock, scripts[min(number, len(scripts) - 1)]), daemon=True)
            threads.append(thread)
            thread.start()
            number += 1

    threads = [threading.Thread(target=accept, daemon=True)]
    threads[0].start()
    try:
        yield f"nbd://127.0.0.1:{listener.getsockname()[1]}/disk"
    finally:
        ended.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in open_now:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(20)
    assert not errors, errors


def take(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def greet(sock: socket.socket, flags: int = 3) -> None:
    """A server's part of the handshake up to the first option."""
    sock.sendall(wire.Greeting.build({"flags": flags}))
    take(sock, 4)


def next_option(sock: socket.socket) -> tuple[int, bytes]:
    header = wire.OptionHeader.parse(take(sock, 16))
    return header.option, take(sock, header.length)


def option_reply(option: int, reply: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    values = {"option": option, "reply": reply, "length": len(data) if length is None else length}
    return bytes(wire.OptionReplyHeader.build(values)) + data


def block_size(*sizes: int) -> bytes:
    data = dict(zip(("minimum", "preferred", "maximum"), sizes, strict=True))
    return bytes(wire.InfoReply.build({"type": Info.BLOCK_SIZE, "data": data}))


def info_export(size: int, flags: int = 0x1ED) -> bytes:
    return bytes(wire.InfoReply.build({"type": Info.EXPORT, "data": {"size": size, "flags": flags}}))


def admit(
    sock: socket.socket, size: int = 1 << 20, *, flags: int = 0x1ED, structured: bool = True, context: bool = True
) -> None:
    """A server's whole handshake with our own client."""
    greet(sock)
    while True:
        option, _ = next_option(sock)
        if option == Option.STRUCTURED_REPLY and structured:
            sock.sendall(option_reply(option, Rep.ACK))
        elif option == Option.SET_META_CONTEXT and context:
            reply = wire.MetaContextReply.build({"id": 7, "name": wire.BASE_ALLOCATION.encode()})
            sock.sendall(option_reply(option, Rep.META_CONTEXT, reply) + option_reply(option, Rep.ACK))
        elif option == Option.GO:
            sock.sendall(option_reply(option, Rep.INFO, info_export(size, flags)) + option_reply(option, Rep.ACK))
            return
        else:
            sock.sendall(option_reply(option, Rep.ERR_UNSUP))


def next_request(sock: socket.socket) -> Any:
    """The next request, with `data` where it is a WRITE."""
    parsed = wire.Request.parse(take(sock, 28))
    parsed["data"] = take(sock, parsed.length) if parsed.type == Command.WRITE else b""
    return parsed


class MemoryDisk:
    """A scripted server's disk that tells writes from flushed writes: a cut loses what was not flushed."""

    def __init__(self, size: int) -> None:
        self.stable = bytearray(size)
        self.cache = bytearray(size)
        self.lock = threading.Lock()

    def lose_power(self) -> None:
        self.cache[:] = self.stable

    def serve(self, sock: socket.socket, requests: int | None = None) -> None:
        """Carry out so many requests, or all; then hang up and lose what was not flushed."""
        with self.lock:
            try:
                admit(sock, len(self.cache))
                while requests is None or requests > 0:
                    asked = next_request(sock)
                    end = asked.offset + asked.length
                    reply = wire.SimpleReply.build({"error": 0, "cookie": asked.cookie})
                    match asked.type:
                        case Command.DISC:
                            return
                        case Command.WRITE:
                            self.cache[asked.offset : end] = asked.data
                        case Command.WRITE_ZEROES:
                            self.cache[asked.offset : end] = bytes(asked.length)
                        case Command.FLUSH:
                            self.stable[:] = self.cache
                        case Command.READ:
                            payload = struct.pack(">Q", asked.offset) + self.cache[asked.offset : end]
                            header = {"flags": 1, "type": 1, "cookie": asked.cookie, "length": len(payload)}
                            reply = wire.StructuredReplyHeader.build(header) + payload
                    sock.sendall(reply)
                    requests = None if requests is None else requests - 1
            finally:
                self.lose_power()


# --- A bad network ---


class Proxy:
    """A TCP proxy that cuts its connections after so many bytes in either direction, and goes on accepting.

    Attributes:
        holding: bytes that it has taken in are waiting for `resume`.
    """

    def __init__(self, upstream: Address, budgets: Iterator[int | None], *, hold_after: int | None = None) -> None:
        """Pass bytes on to `upstream`.

        Args:
            upstream: the server.
            budgets: for each connection the bytes after which it is cut, None for never.
            hold_after: bytes of all connections after which it passes nothing on until `resume`, and cuts nothing.
        """
        self._upstream = upstream
        self._budgets = budgets
        self._hold_after = hold_after
        self._passed = 0
        self._resumed = threading.Event()
        self.holding = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.resume()
        for thread in self._threads:
            thread.join(20)
        for sock in self._sockets:
            sock.close()

    def cut(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """From now on nobody listens."""
        self._listener.close()
        self.cut()

    def resume(self) -> None:
        """Hold nothing up any more."""
        self._resumed.set()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX if isinstance(self._upstream, str) else socket.AF_INET)
            self._sockets += [near, far]
            try:
                far.connect(self._upstream)
            except OSError:
                near.shutdown(socket.SHUT_RDWR)
                continue
            self.connections += 1
            budget = [next(self._budgets)]
            self._start(self._pump, near, far, budget)
            self._start(self._pump, far, near, budget)

    def _pump(self, source: socket.socket, sink: socket.socket, budget: list[int | None]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                left = budget[0]
                if left is not None:
                    data = data[:left]
                    budget[0] = left - len(data)
                self._passed += len(data)
                if self._hold_after is not None and self._passed > self._hold_after:
                    self.holding.set()
                    self._resumed.wait()
                sink.sendall(data)
                if budget[0] == 0:
                    break
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# --- Clients ---


def connect(uri: str, **options: Any) -> Client:
    return Client(NBDURI.parse(uri), **{"timeout": 10, **options})


def simple(cookie: int, error: int = 0) -> bytes:
    return bytes(wire.SimpleReply.build({"cookie": cookie, "error": error}))


def writes(data: bytes, size: int = 64 << 10) -> Iterator[Operation]:
    for offset in range(0, len(data), size):
        piece = memoryview(data)[offset : offset + size]
        yield Operation(Command.WRITE, offset, len(piece), data=piece)
