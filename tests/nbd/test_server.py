"""A server's processes with real sockets: limits, deadlines, and the end of it all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from nbd import wire
from nbd.wire import Command, CommandFlag, Error, Option, Rep, TransmissionFlag
from tests.nbd.peers import Exporting, RawClient, exporting, info_request, random_bytes, request
from tests.support import assert_same_bytes, small_filesystem, wait_until

MIB = 1 << 20
KIB = 1 << 10
SMALL = 64 * KIB


# --- Handshake over real sockets ---


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_tcp(tmp_path: Path, disk: Path, host: str) -> None:
    with exporting(tmp_path, {"": {"path": str(disk)}}, host=host) as server, server.client() as client:
        client.go(structured=True)
        assert client.ask(Command.READ, 5, 10).data == random_bytes(2 * MIB)[5:15]
        assert_same_bytes(client.ask(Command.READ, 5, MIB).data, random_bytes(2 * MIB)[5 : MIB + 5])
        peer = server.events("connected")[0]["peer"]
        assert peer.startswith("[::1]:" if ":" in host else "127.0.0.1:")


def test_export_name_over_a_socket(server: Exporting) -> None:
    for flags, length in ((0, 134), (3, 10)):
        with server.client(flags=flags) as client:
            client.send_option(Option.EXPORT_NAME, b"disk")
            assert wire.ExportNameReply.parse(client.take(length)).size == 2 * MIB
            client.size = 2 * MIB
            assert client.ask(Command.READ, 0, 100).data == random_bytes(2 * MIB)[:100]


def test_unknown_flags_drop_the_client(server: Exporting) -> None:
    with server.client(flags=7) as client:
        assert client.at_end()
    assert "flags" in server.wait_for("closed")[0]["reason"]


def test_abort(server: Exporting) -> None:
    with server.client() as client:
        assert client.option(Option.ABORT)[-1].type == Rep.ACK
        assert client.at_end()
    assert server.events("open") == []


def test_requests_may_follow_go_at_once(server: Exporting) -> None:
    """Nothing of the transmission phase is swallowed by the handshake."""
    with server.client() as client:
        data = info_request("disk")
        go = wire.OptionHeader.build({"option": Option.GO, "length": len(data)}) + data
        client.sock.sendall(go + request(Command.READ, 0, 100))
        assert client.option_replies(Option.GO)[-1].type == Rep.ACK
        assert client.answer({1: (Command.READ, 0, 100)})[1].data == random_bytes(2 * MIB)[:100]


@pytest.mark.parametrize("drip", [False, True])
def test_a_handshake_without_end_is_dropped_at_its_deadline(tmp_path: Path, disk: Path, drip: bool) -> None:
    with exporting(tmp_path, {"": {"path": str(disk)}}, handshake_timeout=0.4) as server, server.client() as client:
        started = time.monotonic()
        with suppress(OSError):
            for _ in range(200 if drip else 0):  # one option after the other, a byte at a time
                client.sock.sendall(b"I")
                time.sleep(0.02)
                client.sock.setblocking(False)
                with suppress(BlockingIOError):
                    if client.sock.recv(1) == b"":
                        break
                client.sock.settimeout(20)
        assert drip or client.at_end()
        assert 0.3 < time.monotonic() - started < 3
        assert "handshake" in server.wait_for("closed")[0]["reason"] or drip
        with server.client() as other:
            other.go()


# --- Errors over real sockets ---


def test_a_read_only_export(server: Exporting, disk: Path) -> None:
    with server.client() as client:
        client.go("frozen", structured=True)
        assert client.flags & TransmissionFlag.READ_ONLY
        for length in (512, SMALL + 1, MIB):
            assert client.ask(Command.WRITE, 0, data=bytes(length)).error == Error.EPERM
            assert client.ask(Command.WRITE_ZEROES, 0, length).error == Error.EPERM
            assert client.ask(Command.TRIM, 0, length).error == Error.EPERM
        assert client.ask(Command.FLUSH).error == 0
        assert client.ask(Command.READ, 0, 512).data == random_bytes(2 * MIB)[:512]
    assert_same_bytes(disk.read_bytes(), random_bytes(2 * MIB))
    assert server.events("begin_writing") == []


@pytest.mark.parametrize("length", [1, 512, SMALL, SMALL + 1, MIB, 32 * MIB, 33 * MIB])
def test_the_payload_of_a_write_past_the_end_is_drained(server: Exporting, length: int) -> None:
    with server.client() as client:
        client.go(structured=True)
        assert client.ask(Command.WRITE, 2 * MIB - length + 1 if length <= MIB else 0, data=bytes(length)).error == (
            Error.ENOSPC
        )
        assert client.ask(Command.READ, 2 * MIB - 1, 2).error == Error.EINVAL
        assert client.ask(Command.READ, 0, 512).data == random_bytes(2 * MIB)[:512]


def test_requests_longer_than_the_maximum(tmp_path: Path, disk: Path) -> None:
    os.truncate(disk, 80 * MIB)
    with exporting(tmp_path, {"": {"path": str(disk)}}) as server, server.client() as client:
        client.go(structured=True)
        assert client.ask(Command.READ, 0, 32 * MIB + 1).error == Error.EOVERFLOW
        assert client.ask(Command.WRITE, 0, data=bytes(32 * MIB + 1)).error == Error.EOVERFLOW
        assert client.ask(Command.WRITE_ZEROES, 0, 80 * MIB).error == 0
        assert_same_bytes(client.ask(Command.READ, 0, 32 * MIB).data, bytes(32 * MIB))


@pytest.mark.parametrize("length", [4096, SMALL, 4 * SMALL])
def test_a_full_file_system(tmp_path: Path, length: int, requires_root: None) -> None:
    with small_filesystem(tmp_path / "small", 256 * KIB) as directory:
        path = directory / "disk.img"
        path.touch()
        os.truncate(path, 2 * MIB)
        with exporting(tmp_path, {"": {"path": str(path)}}) as server, server.client() as client:
            client.go(structured=True)
            errors = [
                client.ask(Command.WRITE, offset, data=b"x" * length).error for offset in range(0, 2 * MIB, length)
            ]
            assert set(errors) == {0, Error.ENOSPC}
            assert client.ask(Command.WRITE_ZEROES, 0, 2 * MIB, flags=CommandFlag.NO_HOLE).error == Error.ENOSPC
            assert client.ask(Command.READ, 0, 4096).error == 0
            assert client.ask(Command.TRIM, 0, 2 * MIB).error == 0
            assert client.ask(Command.WRITE, MIB, data=b"y" * length).error == 0
            assert_same_bytes(client.ask(Command.READ, MIB, length).data, b"y" * length)
        failed = server.events("failed")
        assert {event["command"] for event in failed} == {"WRITE", "WRITE_ZEROES"}


def test_what_was_not_flushed_is_flushed_when_the_client_is_gone(tmp_path: Path, disk: Path) -> None:
    with exporting(tmp_path, {"": {"path": str(disk), "flush_fails": True}}) as server:
        for write, flush_at_end in ((False, False), (True, True)):
            with server.client() as client:
                client.go()
                if write:
                    assert client.ask(Command.WRITE, 0, data=b"x").error == 0
                client.send(Command.DISC)
                assert client.at_end()
            server.wait_for("closed", 1 + write)
            assert bool([e for e in server.events("failed") if e["command"] == "FLUSH"]) == flush_at_end


# --- Connections and processes ---


def test_each_connection_is_a_process(server: Exporting) -> None:
    with server.client() as one, server.client() as two:
        one.go()
        two.go()
        pids = {event["pid"] for event in server.wait_for("opened", 2)}
        assert len(pids) == 2
        assert server.pid not in pids


def test_connections_are_limited(tmp_path: Path, disk: Path) -> None:
    with exporting(tmp_path, {"": {"path": str(disk)}}, max_connections=3) as server, ExitStack() as cleanup:
        clients = [cleanup.enter_context(server.client()) for _ in range(3)]
        for client in clients:
            client.go()
        assert sorted(event["slot"] for event in server.wait_for("connected", 3)) == [0, 1, 2]
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                assert isinstance(server.address, str)
                sock.connect(server.address)
                assert sock.recv(1) == b""
        clients[1].sock.close()
        server.wait_for("closed")
        wait_until(lambda: try_to_connect(server), "a place that is free again")
        assert [event["slot"] for event in server.events("connected")][3:] == [1]
        assert clients[0].ask(Command.READ, 0, 10).error == 0


def try_to_connect(server: Exporting) -> bool:
    try:
        with server.client() as client:
            client.go()
    except (EOFError, ConnectionError):
        return False
    return True


def test_a_killed_connection_does_not_touch_the_others(server: Exporting) -> None:
    with ExitStack() as cleanup:
        one = cleanup.enter_context(server.client())
        one.go()
        victim = server.wait_for("opened")[0]["pid"]
        two = cleanup.enter_context(server.client()).go()
        one.send(Command.READ, 0, MIB)
        os.kill(victim, signal.SIGKILL)
        with suppress(EOFError, ConnectionError):
            one.take(2 * MIB)
        assert two.ask(Command.WRITE, 0, data=b"x" * MIB).error == 0
        with server.client() as three:
            three.go()
            assert_same_bytes(three.ask(Command.READ, 0, MIB).data, b"x" * MIB)


def test_clients_that_crash_leave_nothing_behind(server: Exporting) -> None:
    starts: list[Callable[[RawClient], Any]] = [
        lambda client: None,
        lambda client: client.sock.sendall(b"IHAVE"),
        lambda client: client.send_option(Option.LIST),
        lambda client: client.go().send(Command.WRITE, 0, MIB),
        lambda client: client.go().sock.sendall(request(Command.WRITE, 0, MIB) + bytes(500_000)),
        lambda client: client.go().sock.sendall(request(Command.READ, 0, MIB) * 8),
        lambda client: client.go().sock.sendall(b"x" * 100_000),
    ]
    for reset in (False, True):
        for start in starts:
            with server.client() as client:
                start(client)
                if reset:
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
    server.wait_for("closed", 2 * len(starts))
    assert "crashed" not in {event["reason"] for event in server.events("closed")}
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    wait_until(lambda: not children.read_text().split(), "no child left")
    with server.client() as client:
        assert client.go().ask(Command.READ, 0, 10).error == 0


def test_descriptors_do_not_leak(server: Exporting) -> None:
    with server.client() as client:
        client.go()
    server.wait_for("closed")

    def descriptors() -> int:
        return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))

    before = descriptors()
    for _ in range(10):
        with server.client() as client:
            client.go()
    server.wait_for("closed", 11)
    wait_until(lambda: descriptors() <= before, "as many files open as before")


# --- The end ---


def test_sigterm_with_an_idle_client(server: Exporting) -> None:
    with server.client() as client:
        client.go()
        server.wait_for("opened")
        started = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert client.at_end()
        server.wait_for("stopped")
        assert time.monotonic() - started < 1
        assert server.events("closed")[0]["reason"] == "the server stopped"


@pytest.mark.parametrize("length", [512, SMALL, MIB])
def test_sigterm_with_requests_in_flight(tmp_path: Path, disk: Path, length: int) -> None:
    """What was sent before is carried out, also when the first of it takes a while."""
    exports = {"": {"path": str(disk), "slow": 0.3}}
    with exporting(tmp_path, exports) as server, server.client() as client:
        client.go(structured=True)
        count = 2 * MIB // length if length == MIB else 100
        # A WRITE's payload counts as sent when it is in the socket's buffer; 2 MiB are not, but are on their way.
        stream = b"".join(
            request(Command.WRITE, number * length % (2 * MIB), length, cookie=number) + bytes([number % 251]) * length
            for number in range(count if length < SMALL else 2)
        )
        sender = threading.Thread(target=client.sock.sendall, args=(stream,))
        sender.start()
        server.wait_for("begin_writing")
        time.sleep(0.05)
        os.kill(server.pid, signal.SIGTERM)
        asked = dict.fromkeys(range(count), (Command.WRITE, 0, length))
        answers = [client.answer(asked) for _ in range(count if length < SMALL else 2)]
        sender.join()
        done = [cookie for cookie, answer in answers if not answer.error]
        if length <= SMALL:
            assert done == [cookie for cookie, _ in answers]
        assert {answer.error for _, answer in answers} <= {0, Error.ESHUTDOWN}
        assert client.at_end()
        for number in done[-4096:]:
            position = number * length % (2 * MIB)
            assert_same_bytes(disk.read_bytes()[position : position + length], bytes([number % 251]) * length)
        server.wait_for("stopped")


def test_sigterm_refuses_what_comes_later(tmp_path: Path, disk: Path) -> None:
    with exporting(tmp_path, {"": {"path": str(disk), "slow": 0.5}}) as server, server.client() as client:
        client.go(structured=True)
        client.send(Command.WRITE, 0, 512, cookie=1, data=b"x" * 512)
        client.send(Command.READ, 0, 512, cookie=2)
        server.wait_for("begin_writing")
        os.kill(server.pid, signal.SIGTERM)
        asked = dict.fromkeys(range(3, 100), (Command.READ, 0, 512)) | {
            1: (Command.WRITE, 0, 512),
            2: (Command.READ, 0, 512),
        }
        assert [client.answer(asked)[1].error for _ in range(2)] == [0, 0]
        errors = []
        with suppress(EOFError, ConnectionError):
            for cookie in range(3, 100):
                client.send(Command.READ, 0, 512, cookie=cookie)
                errors.append(client.answer(asked)[1].error)
                time.sleep(0.001)
        assert set(errors) <= {Error.ESHUTDOWN}
        server.wait_for("stopped")


def test_a_request_sent_before_sigterm_is_never_lost(server: Exporting) -> None:
    """The signal may arrive while the request is being received."""
    lost = 0
    for number in range(80):
        with server.client() as client:
            client.go()
            pid = server.wait_for("opened", number + 1)[number]["pid"]
            for _ in range(number % 3):
                client.ask(Command.READ, 0, 512)
            client.send(Command.READ, 512, 512, cookie=number)
            os.kill(pid, signal.SIGTERM)
            try:
                cookie, answer = client.answer({number: (Command.READ, 512, 512)})
            except (EOFError, ConnectionError):
                lost += 1
                continue
            assert (cookie, answer.error) == (number, 0)
    assert lost == 0


def test_sigterm_while_a_payload_is_on_its_way(server: Exporting) -> None:
    """A client that has begun to send a request may finish it."""
    with server.client() as client:
        client.go()
        pid = server.wait_for("opened")[0]["pid"]
        client.sock.sendall(request(Command.WRITE, 0, 1000))
        server.wait_for("begin_writing")
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
        client.sock.sendall(b"z" * 1000)
        assert client.answer({1: (Command.WRITE, 0, 1000)})[1].error == 0
        assert client.at_end()


def test_sigterm_with_stuck_clients(server: Exporting) -> None:
    """Clients that neither go on nor go away are left after a while, and what they wrote is flushed."""
    starts = [
        request(Command.READ, 0, 512)[:10],
        request(Command.WRITE, 0, 512 * KIB) + bytes(1000),
        request(Command.WRITE, 0, 1000) + bytes(999),
        b"".join(request(Command.READ, 0, MIB, cookie=number) for number in range(10)),
    ]
    with ExitStack() as cleanup:
        for start in starts:
            client = cleanup.enter_context(server.client()).go()
            assert client.ask(Command.WRITE, 0, data=b"x").error == 0
            client.sock.sendall(start)
        time.sleep(0.1)
        started = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("stopped")
        assert time.monotonic() - started < 6.5
    assert [event["reason"] for event in server.events("closed")] == ["the server stopped"] * len(starts)


def test_a_server_killed_takes_its_connections_along(server: Exporting) -> None:
    with server.client() as client:
        client.go()
        server.wait_for("opened")
        os.kill(server.pid, signal.SIGKILL)
        assert client.at_end()


def test_a_process_that_is_an_orphan_already_ends(tmp_path: Path) -> None:
    """Its parent was killed between the fork and the request to die with it."""
    said = tmp_path / "said"
    script = f"""
import os, time
from nbd.server import die_with_parent
parent = os.getpid()
if not os.fork():
    while os.getppid() == parent:
        time.sleep(0.01)
    open({str(said)!r}, "x").close()
    die_with_parent(parent)
    open({str(said)!r}, "a").write("lives on")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    wait_until(said.exists, "the orphan")
    time.sleep(0.3)
    assert said.read_text() == ""


def test_a_listener_stops_while_clients_shake_hands(server: Exporting) -> None:
    with ExitStack() as cleanup:
        clients = [cleanup.enter_context(server.client()) for _ in range(5)]
        server.wait_for("connected", 5)
        started = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for("stopped")
        assert time.monotonic() - started < 3
        assert all(client.at_end() for client in clients)
