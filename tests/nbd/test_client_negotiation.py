"""The rules that the client's machine holds a server to."""

from __future__ import annotations

import pytest

from nbd import wire
from nbd.errors import ProtocolError
from nbd.negotiation import (
    ClientNegotiation,
    ExportInfo,
    Ready,
)
from nbd.wire import Option, Rep, TransmissionFlag
from tests.nbd.peers import GREETING, block_size, info_export, option_reply

NO_STRUCTURED = option_reply(Option.STRUCTURED_REPLY, Rep.ERR_UNSUP)


def go_replies(*replies: tuple[int, bytes]) -> bytes:
    return b"".join(option_reply(Option.GO, kind, data) for kind, data in replies)


def client_after(*received: bytes) -> ClientNegotiation:
    client = ClientNegotiation("disk")
    client.receive(GREETING)
    for data in received:
        client.receive(data)
    return client


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param([(Rep.ACK, b"")], id="no size"),
        pytest.param([(Rep.INFO, info_export(512, 0)), (Rep.ACK, b"")], id="no HAS_FLAGS"),
        pytest.param([(Rep.INFO, info_export(1 << 63)), (Rep.ACK, b"")], id="size of 2^63"),
        pytest.param([(Rep.INFO, info_export(512)[:-1]), (Rep.ACK, b"")], id="cut short"),
        pytest.param([(Rep.INFO, b""), (Rep.ACK, b"")], id="no type"),
        pytest.param([(Rep.SERVER, info_export(512)), (Rep.ACK, b"")], id="reply of another type"),
        pytest.param([(77, b""), (Rep.INFO, info_export(512)), (Rep.ACK, b"")], id="reply of unknown type"),
        pytest.param([(Rep.INFO, b"\0\1\xff\xfe"), (Rep.INFO, info_export(512)), (Rep.ACK, b"")], id="not UTF-8"),
        pytest.param([(Rep.INFO, b"\0\1" + b"x" * 4097), (Rep.INFO, info_export(512)), (Rep.ACK, b"")], id="long name"),
        *(
            pytest.param([(Rep.INFO, info_export(512)), (Rep.INFO, block_size(*sizes)), (Rep.ACK, b"")], id=str(sizes))
            for sizes in [(0, 4096, 65536), (3, 4096, 65536), (512, 4095, 65536), (8192, 4096, 65536), (1, 4096, 512)]
        ),
        pytest.param(
            [(Rep.INFO, info_export(512)), (Rep.INFO, block_size(1 << 17, 1 << 17, 1 << 25)), (Rep.ACK, b"")],
            id="minimum above 64 KiB",
        ),
    ],
)
def test_an_impossible_export_is_a_protocol_error(replies: list[tuple[int, bytes]]) -> None:
    client = client_after(NO_STRUCTURED)
    with pytest.raises(ProtocolError):
        client.receive(go_replies(*replies))


def test_a_client_is_content_with_the_least() -> None:
    client = client_after(NO_STRUCTURED, go_replies((Rep.INFO, info_export((1 << 63) - 1, 1)), (Rep.ACK, b"")))
    assert client.outcome == Ready(ExportInfo("disk", (1 << 63) - 1, TransmissionFlag(1)), False, {})


@pytest.mark.parametrize(
    "names", [["other:context"], ["base:allocation", "base:allocation"], ["base:allocation", "a:b"], ["\xff" * 4097]]
)
def test_contexts_that_nobody_asked_for_are_a_protocol_error(names: list[str]) -> None:
    client = client_after(option_reply(Option.STRUCTURED_REPLY, Rep.ACK))
    replies = [wire.MetaContextReply.build({"id": n, "name": name.encode()}) for n, name in enumerate(names)]
    with pytest.raises(ProtocolError):
        for data in (*(option_reply(Option.SET_META_CONTEXT, Rep.META_CONTEXT, reply) for reply in replies),):
            client.receive(data)
        client.receive(option_reply(Option.SET_META_CONTEXT, Rep.ACK))


def test_contexts_of_a_failed_option_do_not_count() -> None:
    client = client_after(option_reply(Option.STRUCTURED_REPLY, Rep.ACK))
    reply = wire.MetaContextReply.build({"id": 1, "name": wire.BASE_ALLOCATION.encode()})
    client.receive(option_reply(Option.SET_META_CONTEXT, Rep.META_CONTEXT, reply))
    client.receive(option_reply(Option.SET_META_CONTEXT, Rep.ERR_TOO_BIG))
    client.receive(go_replies((Rep.INFO, info_export(512)), (Rep.ACK, b"")))
    assert isinstance(client.outcome, Ready)
    assert client.outcome.contexts == {}


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2p1",
        b"NBDMAGIC" + wire.OLDSTYLE_MAGIC.to_bytes(8, "big"),
        b"NBDMAGICIHAVEOPX\0\3",
    ],
)
def test_another_protocol_is_told_apart(start: bytes) -> None:
    with pytest.raises(ProtocolError):
        ClientNegotiation("").receive(start)


def test_a_reply_to_another_option_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        client_after(option_reply(Option.GO, Rep.ACK))


def test_replies_without_end_are_a_protocol_error() -> None:
    client = client_after(NO_STRUCTURED)
    with pytest.raises(ProtocolError, match="too long"):
        for _ in range(1 << 20):
            client.receive(option_reply(Option.GO, Rep.INFO, b"\0\x63" + bytes(1000)))


def test_a_reply_announced_too_long_is_refused_before_it_comes() -> None:
    client = client_after(NO_STRUCTURED)
    with pytest.raises(ProtocolError, match="too long"):
        client.receive(option_reply(Option.GO, Rep.INFO, length=0xFFFFFFFF))
