"""What other NBD servers and clients fell for: one test for each, named after its CVE.

Those that need TLS (CVE-2024-7383, and the other half of CVE-2019-14842 and CVE-2021-3716) wait for it. CVE-2013-6410
is about lists of addresses, of which this package has none.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nbd import wire
from nbd.client import Client, Operation
from nbd.connection import Connection
from nbd.errors import ConnectionLost, ProtocolError, RequestFailed, URIError
from nbd.negotiation import ServerNegotiation
from nbd.transmission import chunk, data_chunk, error_chunk, hole_chunk, status_chunk
from nbd.uri import NBDURI
from nbd.wire import Command, CommandFlag, Error, Option, Rep, ReplyType
from tests.nbd.peers import (
    Exporting,
    RawClient,
    admit,
    exporting,
    greet,
    info_export,
    info_request,
    meta_request,
    next_option,
    next_request,
    option_reply,
    random_bytes,
    request,
    scripted,
)
from tests.nbd.test_negotiation import Shelf, client_flags, option
from tests.support import wait_until

MIB = 1 << 20
GIB = 1 << 30


def resident(pid: int) -> int:
    """Bytes of memory that a process has, at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def still_serves(server: Exporting) -> None:
    with server.client() as client:
        client.go("disk")
        assert client.ask(Command.READ, 0, 512).data == random_bytes(2 * MIB)[:512]


# --- Servers ---


@pytest.mark.parametrize("length", [64 * 1024 + 1, 256 * 1024 + 1, 32 * MIB, 32 * MIB + 1, 64 * MIB])
def test_cve_2005_3534_request_length_against_the_buffer(server: Exporting, length: int) -> None:
    """Also CVE-2011-0530, the same again."""
    with server.client() as client:
        client.go("disk", structured=True)
        assert client.ask(Command.READ, 0, length).error == (0 if length <= 2 * MIB else Error.EINVAL)
        expected = 0 if length <= 2 * MIB else Error.ENOSPC
        assert client.ask(Command.WRITE, 0, data=b"x" * length).error == expected
        assert client.ask(Command.READ, 2 * MIB - 512, 512).data == random_bytes(2 * MIB)[-512:]
        assert resident(server.wait_for("opened")[0]["pid"]) < 64 * MIB


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_cve_2005_3534_lengths_of_32_bits(server: Exporting, length: int) -> None:
    with server.client() as client:
        client.go("disk", structured=True)
        for command in (Command.READ, Command.TRIM, Command.CACHE, Command.WRITE_ZEROES, Command.BLOCK_STATUS):
            assert client.ask(command, 0, length).error in (Error.EINVAL, Error.ENOSPC)
            assert client.ask(command, (1 << 64) - length, length).error in (Error.EINVAL, Error.ENOSPC)
        client.send(Command.WRITE, 0, length)
        assert client.at_end()
    still_serves(server)


def test_cve_2013_7441_a_drop_in_the_handshake_leaves_the_listener(server: Exporting) -> None:
    for drop in (
        lambda client: None,
        lambda client: client.send_option(Option.EXPORT_NAME, b"nowhere"),
        lambda client: client.send_option(Option.GO, info_request("nowhere")),
        lambda client: client.send_option(Option.GO, b"", length=100),
    ):
        for _ in range(3):
            with server.client() as client:
                drop(client)
    server.wait_for("closed", 12)
    still_serves(server)


def test_cve_2015_0847_signals_do_not_deadlock(server: Exporting) -> None:
    with ExitStack() as cleanup:
        for number in range(15):
            client = cleanup.enter_context(server.client())
            for _ in range(50):
                os.kill(server.pid, signal.SIGCHLD)
            client.go("disk")
            if number % 2:
                client.sock.close()
        still_serves(server)
    for _ in range(50):
        os.kill(server.pid, random.choice([signal.SIGCHLD, signal.SIGTERM, signal.SIGINT]))
    server.wait_for("stopped")


@pytest.mark.parametrize("number", [Option.INFO, Option.GO, Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_cve_2022_26495_name_length(server: Exporting, number: Option) -> None:
    with server.client() as client:
        assert client.option(Option.STRUCTURED_REPLY)[-1].type == Rep.ACK
        for length in (0xFFFFFFFF, 0x80000000, 5, MIB):
            assert client.option(number, length.to_bytes(4, "big") + b"disk")[-1].type == Rep.ERR_INVALID
        assert client.option(Option.ABORT)[-1].type == Rep.ACK


def test_cve_2022_26496_inner_lengths_larger_than_the_option(server: Exporting) -> None:
    with server.client() as client:
        assert client.option(Option.STRUCTURED_REPLY)[-1].type == Rep.ACK
        for number, data in (
            (Option.GO, info_request("disk")[:-2] + b"\xff\xff"),
            (Option.INFO, info_request("disk", 1, 2)[:-2]),
            (Option.GO, info_request("disk")[:-1]),
            (Option.SET_META_CONTEXT, meta_request("disk")[:-4] + b"\xff\xff\xff\xff"),
            (Option.SET_META_CONTEXT, meta_request("disk", "base:allocation")[:-1]),
            (Option.LIST_META_CONTEXT, meta_request("disk")[:-4] + b"\0\0\0\1\xff\xff\xff\xffbase:"),
        ):
            assert client.option(number, data)[-1].type == Rep.ERR_INVALID
        assert client.option(Option.ABORT)[-1].type == Rep.ACK


def test_cve_2017_9524_a_client_that_never_negotiates(tmp_path: Path, disk: Path) -> None:
    """Others are served meanwhile, and its place is free again after the deadline."""
    with exporting(tmp_path, {"disk": {"path": str(disk)}}, handshake_timeout=0.5, max_connections=3) as server:
        with server.client(), server.client():
            still_serves(server)
            server.wait_for("closed", 3)
        with server.client().go("disk"), server.client().go("disk"):
            still_serves(server)


def test_cve_2024_7409_sockets_held_at_shutdown(server: Exporting) -> None:
    with server.client(), server.client() as client, server.client().go("disk"):
        client.send_option(Option.LIST)
        server.wait_for("connected", 3)
        started = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("stopped")
        assert time.monotonic() - started < 3


def test_cve_2017_7539_unexpected_input_is_no_assertion(server: Exporting) -> None:
    chance = random.Random(1)
    stages: list[Callable[[RawClient], object]] = [
        lambda client: None,
        lambda client: client.option(Option.STRUCTURED_REPLY),
        lambda client: client.set_contexts("disk"),
        lambda client: client.go("disk"),
        lambda client: client.go("disk", context=True),
    ]
    count = 0
    for stage in stages:
        for _ in range(5):
            with server.client() as client:
                stage(client)
                with suppress(ConnectionError):
                    client.sock.sendall(chance.choice([b"IHAVEOPT", b"", b"\x25\x60\x95\x13"]) + chance.randbytes(300))
            count += 1
    reasons = {event["reason"] for event in server.wait_for("closed", count)}
    assert "crashed" not in reasons
    still_serves(server)


@pytest.mark.parametrize("length", [4097, 16 * 1024, 16 * 1024 + 1])
def test_cve_2017_15118_long_export_names(server: Exporting, length: int) -> None:
    with server.client() as client:
        for number in (Option.INFO, Option.GO):
            assert client.option(number, info_request("x" * length))[-1].type == Rep.ERR_TOO_BIG
        client.send_option(Option.EXPORT_NAME, b"x" * length)
        assert client.at_end()
    still_serves(server)


def test_cve_2017_15119_option_lengths_burn_no_time(server: Exporting) -> None:
    with server.client() as client:
        started = time.monotonic()
        client.send_option(Option.LIST, length=0xFFFFFFFF)
        assert client.at_end()
        assert time.monotonic() - started < 1
    with server.client() as client:
        for _ in range(wire.MAX_OPTIONS - 1):
            client.send_option(4711, bytes(MIB))
            assert client.option_replies(4711)[-1].type == Rep.ERR_TOO_BIG
        client.send_option(4711)
        assert client.at_end()
    still_serves(server)


def test_cve_2020_10761_error_messages_keep_to_the_limit(server: Exporting) -> None:
    class Talkative(Shelf):
        def find(self, name: str, *, opening: bool) -> Any:
            return super().find(name * 3, opening=opening)

    machine = ServerNegotiation(Talkative())
    machine.bytes_to_send()
    machine.receive(client_flags() + option(Option.GO, info_request("ü" * 2048)))
    reply = wire.OptionReplyHeader.parse(machine.bytes_to_send())
    assert reply.reply == Rep.ERR_UNKNOWN
    assert reply.length <= wire.MAX_STRING
    with server.client() as client:
        assert client.option(Option.GO, info_request("ü" * 2048))[-1].type == Rep.ERR_UNKNOWN
        client.go("disk", structured=True)
        assert client.ask(Command.READ, 2 * MIB, 1).error == Error.EINVAL
    assert len(error_chunk(1, 5, "ü" * 9000)) == 20 + 6 + wire.MAX_STRING


def test_cve_2019_14850_nothing_is_opened_before_the_client_has_chosen(server: Exporting) -> None:
    with server.client() as client:
        client.option(Option.LIST)
        client.option(Option.STRUCTURED_REPLY)
        client.option(Option.INFO, info_request("disk"))
        client.option(Option.LIST_META_CONTEXT, meta_request("disk"))
        client.set_contexts("disk", "base:allocation")
        client.option(Option.GO, info_request("nowhere"))
        assert server.events("open") == []
        client.go("disk")
        assert len(server.wait_for("open")) == 1


@pytest.mark.parametrize(
    "stream",
    [
        request(Command.READ, 0, 512),
        option(Option.EXPORT_NAME, b"disk") + option(Option.LIST),
        option(Option.GO, info_request("disk")) + option(Option.GO, info_request("disk")),
        option(Option.ABORT) + option(Option.GO, info_request("disk")),
    ],
    ids=["request", "after EXPORT_NAME", "after GO", "after ABORT"],
)
def test_cve_2019_14851_commands_in_the_wrong_order(server: Exporting, stream: bytes) -> None:
    with server.client() as client:
        client.sock.sendall(stream + bytes(28))
        with suppress(EOFError, ConnectionError):
            client.take(10_000)
    assert len(server.wait_for("closed")) == 1
    assert len(server.events("open")) <= 1
    still_serves(server)


def test_cve_2021_3716_nothing_is_received_before_its_time() -> None:
    """What an attacker sends behind STARTTLS must still be in the socket when TLS begins, where TLS will refuse it."""
    machine = ServerNegotiation(Shelf())
    stream = client_flags() + option(Option.STARTTLS) + option(Option.GO, info_request("disk"))
    position = 0
    ends = {4, 20}
    while position < 20:
        piece = stream[position : position + machine.missing()]
        position += len(piece)
        machine.receive(piece)
        if position in ends:
            ends.remove(position)
            assert not machine._received
    assert not ends


@pytest.fixture
def vast(tmp_path: Path) -> Path:
    """A file of 5 GiB, nearly all of it a hole."""
    path = tmp_path / "vast"
    with path.open("wb") as file:
        file.truncate(5 * GIB)
        for offset in (0, 4 * GIB - 4096, 4 * GIB):
            file.seek(offset)
            file.write(b"x" * 4096)
    return path


def test_cve_2025_47711_block_status_of_32_bits(tmp_path: Path, vast: Path) -> None:
    """Also CVE-2025-47712: extents that overflow 32 bits."""
    offsets = [0, 1, 4096, GIB, 4 * GIB - 1, 5 * GIB - 0xFFFFFFFF]
    lengths = [0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFF000, 0x80000000, 0x7FFFFFFF, 4097, 1]
    with exporting(tmp_path, {"": {"path": str(vast)}}) as server, server.client() as client:
        client.go(context=True)
        for offset, length in itertools.product(offsets, lengths):
            answer = client.ask(Command.BLOCK_STATUS, offset, length)
            if offset + length > 5 * GIB:
                assert answer.error == Error.EINVAL
                continue
            assert sum(size for size, _ in answer.extents) == length
            assert all(0 < size <= length for size, _ in answer.extents)
            [(size, _)] = client.ask(Command.BLOCK_STATUS, offset, length, flags=CommandFlag.REQ_ONE).extents
            assert 0 < size <= length


@pytest.mark.parametrize("reset", [False, True])
def test_nbdkit_9d82aa4f_a_client_hangs_up_with_replies_queued(server: Exporting, reset: bool) -> None:
    for _ in range(5):
        with server.client() as client:
            client.go("disk", structured=True)
            client.sock.sendall(
                b"".join(request(Command.READ, 0, size, cookie=size) for size in (512, MIB, 65536, MIB, 512))
            )
            client.take(100)
            if reset:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    reasons = {event["reason"] for event in server.wait_for("closed", 5)}
    assert all(reason.startswith(("connection lost", "client closed")) for reason in reasons)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    wait_until(lambda: not children.read_text().split(), "no child left")
    still_serves(server)


# --- Clients ---


def test_cve_2019_14842_tls_is_never_done_without() -> None:
    spoken: list[bytes] = []

    def listen(sock: socket.socket) -> None:
        greet(sock)
        spoken.append(sock.recv(100))

    with scripted(listen) as uri, pytest.raises(ConnectionLost):
        Connection(NBDURI.parse(uri.replace("nbd://", "nbds://")), timeout=1)
    assert spoken == []


MALICIOUS: dict[str, bytes] = {
    "unknown cookie": chunk(99, ReplyType.NONE, 0, done=True),
    "data past the end": data_chunk(1, 4000, 1000, done=True) + bytes(1000),
    "data before the start": data_chunk(1, 0, 512, done=True) + bytes(512),
    "data of 4 GiB": data_chunk(1, 512, 0xFFFFFFF7, done=True),
    "hole of 4 GiB": hole_chunk(1, 512, 0xFFFFFFFF, done=True),
    "hole at 2^64": hole_chunk(1, (1 << 64) - 1, 512, done=True),
    "no data": chunk(1, ReplyType.NONE, 0, done=True),
    "extents for a READ": status_chunk(1, 7, [(512, 0)]),
    "unknown chunk": chunk(1, 4711, 4, done=True) + bytes(4),
    "a long error": chunk(1, ReplyType.ERROR, 70_000, done=True) + b"\0\0\0\5" + b"\xff\xff" + bytes(69_994),
    "an error message past its chunk": chunk(1, ReplyType.ERROR, 6, done=True) + b"\0\0\0\5" + b"\0\1",
    "an error that is none": error_chunk(1, 0, "it went well"),
    "a simple reply": bytes(wire.SimpleReply.build({"error": 0, "cookie": 1})) + bytes(512),
    "a request": request(Command.READ, 0, 512),
    "zeroes": bytes(100),
}


@pytest.mark.parametrize("reply", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_cve_2021_20286_a_malicious_server_gets_a_protocol_error(reply: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        next_request(sock)
        sock.sendall(reply)
        sock.recv(1)

    with scripted(serve) as uri:
        client = Client(NBDURI.parse(uri), timeout=5)
        with pytest.raises(ProtocolError):
            client.read(512, 512)


@pytest.mark.parametrize(
    "reply",
    [
        status_chunk(1, 7, []),
        status_chunk(1, 7, [(0, 0)]),
        status_chunk(1, 7, [(0xFFFFFFFF, 0)] * 3),
        chunk(1, ReplyType.BLOCK_STATUS, 0xFFFFFFFC, done=True),
        chunk(1, ReplyType.BLOCK_STATUS, 4, done=True) + bytes(4),
        data_chunk(1, 0, 4096, done=True) + bytes(4096),
        hole_chunk(1, 0, 4096, done=True),
        chunk(1, ReplyType.NONE, 0, done=True),
    ],
)
def test_cve_2023_5871_malicious_extents(reply: bytes) -> None:
    def serve(sock: socket.socket) -> None:
        admit(sock)
        next_request(sock)
        sock.sendall(reply)
        sock.recv(1)

    with scripted(serve) as uri:
        client = Client(NBDURI.parse(uri), timeout=5)
        with pytest.raises(ProtocolError):
            list(client.extents(0, MIB))


@pytest.mark.parametrize("wrong", range(0, 12, 2))
@pytest.mark.parametrize("backwards", [False, True])
def test_cve_2022_0485_the_error_of_any_write_is_told(wrong: int, backwards: bool) -> None:
    """The worst of them all: nbdcopy ignored errors of asynchronous writes, and the copy was silently wrong."""

    def serve(sock: socket.socket) -> None:
        admit(sock)
        number = 0
        while True:
            batch = [next_request(sock) for _ in range(4)]
            for one in reversed(batch) if backwards else batch:
                error = 5 if one.offset == wrong * 512 else 0
                sock.sendall(wire.SimpleReply.build({"error": error, "cookie": one.cookie}))
                number += 1

    done: list[int] = []
    with scripted(serve) as uri:
        client = Client(NBDURI.parse(uri), timeout=5)
        data = memoryview(bytes(512))
        operations = (Operation(Command.WRITE, number * 512, 512, data=data) for number in range(12))
        with pytest.raises(RequestFailed) as caught:
            run_in_fours(client, operations, done)
        client.close()
    assert (caught.value.errno, caught.value.offset, caught.value.length) == (errno.EIO, wrong * 512, 512)
    assert wrong * 512 not in done


def run_in_fours(client: Client, operations: Any, done: list[int]) -> None:
    """As many as the scripted server waits for, at a time."""
    batch = [operation for _, operation in zip(range(4), operations, strict=False)]
    while batch:
        client.run(batch, depth=4, done=lambda operation: done.append(operation.offset))
        batch = [operation for _, operation in zip(range(4), operations, strict=False)]


@pytest.mark.parametrize("size", [1 << 63, (1 << 63) + 1, (1 << 64) - 1])
@pytest.mark.parametrize("with_go", [True, False])
def test_cve_2023_5215_sizes_of_2_to_the_63_and_more(size: int, with_go: bool) -> None:
    def serve(sock: socket.socket) -> None:
        greet(sock)
        while True:
            number, _ = next_option(sock)
            if number == Option.GO and with_go:
                sock.sendall(option_reply(number, Rep.INFO, info_export(size)) + option_reply(number, Rep.ACK))
            elif number == Option.EXPORT_NAME:
                sock.sendall(wire.ExportNameReply.build({"size": size, "flags": 1}))
            else:
                sock.sendall(option_reply(number, Rep.ERR_UNSUP))

    with scripted(serve) as uri, pytest.raises(ProtocolError):
        Connection(NBDURI.parse(uri), timeout=5)


@pytest.mark.parametrize("uri", ["nbd://-oProxyCommand=x/", "nbd://user@-o/", "nbds://-oProxyCommand=x:22/a"])
def test_cve_2025_14946_a_host_is_no_option(uri: str) -> None:
    with pytest.raises(URIError, match="cannot begin with '-'"):
        NBDURI.parse(uri)
