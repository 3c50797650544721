"""The main process's view of a run, made of the events that connections send."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from targetmode.offer import Offer
from targetmode.session import Event, Session
from tests.support import wait_until

SLOTS = 4


@pytest.fixture
def events() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def session() -> Session:
    return Session(Offer([]), "bench", memoryview(bytearray(16 * SLOTS)).cast("Q"))


@pytest.fixture
def told(session: Session) -> list[Event]:
    found: list[Event] = []
    session.subscribe(found.append)
    return found


def tell(sock: socket.socket, event: str, slot: int = 0, export: str = "sda", **values: Any) -> None:
    sock.send(json.dumps({"event": event, "slot": slot, "export": export, **values}).encode())


def test_a_client_from_beginning_to_end(
    session: Session, told: list[Event], events: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = events
    tell(theirs, "connect", peer="192.0.2.1:5")
    session.drain(ours)
    (client,) = session.connected.values()
    assert (client.peer, client.export, client.slot) == ("192.0.2.1:5", "sda", 0)
    session.counters[0], session.counters[1] = 10, 20
    assert session.moved(client) == (10, 20)
    tell(theirs, "flush")
    tell(theirs, "error", command="READ", offset=0, length=512, message="no luck")
    tell(theirs, "disconnect", reason="disconnected", read=10, written=20)
    session.drain(ours)
    assert session.connected == {}
    totals = session.totals["sda"]
    assert (totals.connections, totals.read, totals.written, totals.flushes, totals.errors) == (1, 10, 20, 1, 1)
    assert [event["event"] for event in told] == ["connect", "flush", "error", "disconnect"]
    assert {event["peer"] for event in told} == {"192.0.2.1:5"}
    assert all("slot" not in event and "pid" not in event for event in told)


def test_two_clients_of_one_export_are_told_apart(
    session: Session, told: list[Event], events: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = events
    tell(theirs, "connect", 0, peer="a")
    tell(theirs, "connect", 3, peer="b")
    tell(theirs, "flush", 3)
    tell(theirs, "disconnect", 0, reason="disconnected", read=1, written=2)
    session.drain(ours)
    assert [client.peer for client in session.connected.values()] == ["b"]
    assert [event["peer"] for event in told] == ["a", "b", "b", "a"]
    assert session.totals["sda"].connections == 2


def test_one_who_is_turned_away_counts_nowhere(
    session: Session, told: list[Event], events: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = events
    tell(theirs, "rejected", export="", peer="a", reason="protocol error")
    session.drain(ours)
    assert session.totals == {}
    assert told[0]["reason"] == "protocol error"


def test_one_who_unsubscribes_is_told_no_more(session: Session) -> None:
    found: list[Event] = []
    leave = session.subscribe(found.append)
    session.publish("first")
    leave()
    session.publish("second")
    assert [event["event"] for event in found] == ["first"]


def test_unsubscribing_while_being_told_does_no_harm(session: Session, told: list[Event]) -> None:
    leave = session.subscribe(lambda event: leave())
    late: list[Event] = []
    session.subscribe(late.append)
    session.publish("first")
    assert [len(told), len(late)] == [1, 1]


@pytest.mark.parametrize("last_words", [True, False])
@pytest.mark.parametrize("gone_already", [True, False])
def test_a_process_that_is_killed_is_missed(
    session: Session,
    told: list[Event],
    events: tuple[socket.socket, socket.socket],
    last_words: bool,
    gone_already: bool,
    tmp_path: Path,
) -> None:
    """Once, and with what it said last, if it did."""
    ours, theirs = events

    async def run() -> None:
        session.listen(ours, asyncio.get_running_loop())
        with subprocess.Popen(["sleep", "60"]) as process:
            if gone_already:
                process.kill()
                process.wait()
            tell(theirs, "connect", peer="a", pid=process.pid)
            session.counters[0], session.counters[1] = 7, 9
            if not gone_already:
                while not session.connected:
                    await asyncio.sleep(0.01)
            if last_words:
                tell(theirs, "disconnect", reason="disconnected", read=7, written=9)
            process.kill()
        for _ in range(500):
            if told and told[-1]["event"] == "disconnect":
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().remove_reader(ours.fileno())

    asyncio.run(run())
    assert [event["event"] for event in told] == ["connect", "disconnect"]
    assert told[-1]["reason"] == ("disconnected" if last_words else "its process was killed")
    assert (told[-1]["read"], told[-1]["written"], told[-1]["peer"]) == (7, 9, "a")
    assert session.connected == {}
    wait_until(lambda: session.totals["sda"].written == 9, "the bytes")
