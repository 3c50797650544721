"""The handshake's two machines, against each other, against every rule, and against any bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbd import wire
from nbd.errors import NBDError, OptionRefused, ProtocolError
from nbd.negotiation import (
    Aborted,
    BlockSizes,
    ClientNegotiation,
    ExportInfo,
    Negotiation,
    Ready,
    ServerNegotiation,
)
from nbd.wire import ClientFlag, HandshakeFlag, Info, Option, Rep, TransmissionFlag
from tests.nbd.peers import GREETING, block_size, info_export, info_request, meta_request, option_reply
from tests.support import examples

FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
SIZES = BlockSizes(512, 4096, 1 << 20)
CONTROL = "targetmode:control=10810"


class Shelf:
    """A catalog of three exports, one of which may not be opened; notes what is opened."""

    def __init__(self) -> None:
        self.exports = {
            "": ExportInfo("disk", 1 << 30, FLAGS, SIZES, "the first one", (CONTROL,)),
            "disk": ExportInfo("disk", 1 << 30, FLAGS, SIZES, "the first one", (CONTROL,)),
            "Grüße": ExportInfo("Grüße", 512, FLAGS | TransmissionFlag.READ_ONLY, BlockSizes()),
        }
        self.opened: list[str] = []

    def list(self) -> Sequence[ExportInfo]:
        return list(self.exports.values())

    def find(self, name: str, *, opening: bool) -> ExportInfo:
        if name == "busy":
            raise OptionRefused(Rep.ERR_POLICY, "somebody else writes to it")
        if name not in self.exports:
            raise OptionRefused(Rep.ERR_UNKNOWN, f"there is no export {name}")
        if opening:
            self.opened.append(name)
        return self.exports[name]


def client_flags(flags: int = 3) -> bytes:
    return bytes(wire.ClientFlags.build({"flags": flags}))


def option(number: int, data: bytes = b"", *, length: int | None = None) -> bytes:
    return bytes(wire.OptionHeader.build({"option": number, "length": len(data) if length is None else length})) + data


@dataclass
class Replies:
    """What the server said after its greeting."""

    machine: ServerNegotiation
    replies: list[tuple[int, int, bytes]]

    @property
    def types(self) -> list[tuple[int, int]]:
        return [(number, reply) for number, reply, _ in self.replies]


def talk(*options: bytes, flags: int = 3, catalog: Shelf | None = None) -> Replies:
    """Send options to a server; its replies, taken apart."""
    machine = ServerNegotiation(catalog or Shelf())
    assert len(machine.bytes_to_send()) == 18
    machine.receive(client_flags(flags) + b"".join(options))
    sent = machine.bytes_to_send()
    replies = []
    while sent.startswith((0x3E889045565A9).to_bytes(8, "big")):
        header = wire.OptionReplyHeader.parse(sent)
        replies.append((header.option, header.reply, sent[20 : 20 + header.length]))
        sent = sent[20 + header.length :]
    return Replies(machine, replies)


STRUCTURED = option(Option.STRUCTURED_REPLY)
ABORT = option(Option.ABORT)


# --- The server's rules ---


def test_greeting() -> None:
    machine = ServerNegotiation(Shelf())
    assert machine.bytes_to_send() == b"NBDMAGICIHAVEOPT\0\3"
    assert machine.bytes_to_send() == b""
    assert machine.missing() == 4


@pytest.mark.parametrize("flags", [4, 7, 1 << 31, 0xFFFFFFFF])
def test_unknown_client_flags_drop_the_client(flags: int) -> None:
    machine = ServerNegotiation(Shelf())
    with pytest.raises(ProtocolError, match="flags"):
        machine.receive(client_flags(flags))


def test_nothing_happens_after_a_failure() -> None:
    machine = ServerNegotiation(Shelf())
    for _ in range(3):
        with pytest.raises(ProtocolError):
            machine.receive(bytes(100))


def test_no_option_but_export_name_without_fixed_newstyle() -> None:
    with pytest.raises(ProtocolError):
        talk(option(Option.LIST), flags=0)


@pytest.mark.parametrize(("flags", "length"), [(0, 134), (1, 134), (2, 10), (3, 10)])
def test_export_name_and_its_zeroes(flags: int, length: int) -> None:
    machine = ServerNegotiation(Shelf())
    machine.bytes_to_send()
    machine.receive(client_flags(flags) + option(Option.EXPORT_NAME, b"disk"))
    sent = machine.bytes_to_send()
    assert sent == wire.ExportNameReply.build({"size": 1 << 30, "flags": FLAGS}) + bytes(length - 10)
    assert machine.outcome == Ready(Shelf().exports["disk"], structured=False, contexts={})


@pytest.mark.parametrize("name", [b"nowhere", b"busy", b"\xff\xfe", b"x" * 4097])
def test_export_name_refused_ends_the_session_without_a_byte(name: bytes) -> None:
    replies = talk(option(Option.EXPORT_NAME, name))
    assert isinstance(replies.machine.outcome, Aborted)
    assert replies.replies == []


def test_unknown_options_are_unsupported_and_leave_the_stream_in_step() -> None:
    unknown = [4, 11, 12, 0, 4711, 0xFFFFFFFF]
    replies = talk(*(option(number, b"some data" * number_of) for number_of, number in enumerate(unknown)), ABORT)
    assert replies.types == [(number, Rep.ERR_UNSUP) for number in unknown] + [(Option.ABORT, Rep.ACK)]
    assert isinstance(replies.machine.outcome, Aborted)


@pytest.mark.parametrize("number", [Option.LIST, Option.GO, Option.SET_META_CONTEXT, 4711])
@pytest.mark.parametrize("length", [wire.MAX_OPTION + 1, 100_001, wire.MAX_OPTION_DISCARD])
def test_long_options_are_discarded_and_leave_the_stream_in_step(number: int, length: int) -> None:
    replies = talk(option(number, bytes(length)), ABORT)
    assert replies.types == [(number, Rep.ERR_TOO_BIG), (Option.ABORT, Rep.ACK)]


def test_starttls_is_answered() -> None:
    replies = talk(option(Option.STARTTLS), option(Option.STARTTLS, b"x"), ABORT)
    assert [kind for _, kind in replies.types] == [Rep.ERR_UNSUP, Rep.ERR_INVALID, Rep.ACK]


@pytest.mark.parametrize("number", [Option.LIST, Option.STRUCTURED_REPLY])
def test_options_without_data_refuse_data(number: int) -> None:
    assert talk(option(number, b"x"), ABORT).types == [(number, Rep.ERR_INVALID), (Option.ABORT, Rep.ACK)]


def test_list() -> None:
    replies = talk(option(Option.LIST)).replies
    assert [(kind, wire.ServerReply.parse(data).name.decode()) for _, kind, data in replies[:-1]] == [
        (Rep.SERVER, "disk"),
        (Rep.SERVER, "disk"),
        (Rep.SERVER, "Grüße"),
    ]
    assert replies[-1] == (Option.LIST, Rep.ACK, b"")


def test_a_description_is_cut_between_characters() -> None:
    shelf = Shelf()
    shelf.exports["disk"] = ExportInfo("disk", 512, FLAGS, SIZES, "x" + "ü" * 4000)
    listed = talk(option(Option.LIST), catalog=shelf).replies[1][2]
    assert len(wire.ServerReply.parse(listed).description) == 4095
    replies = talk(option(Option.INFO, info_request("disk", Info.DESCRIPTION)), catalog=shelf).replies
    assert len(wire.InfoReply.parse(replies[2][2]).data.decode()) == 2048


@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_info_and_go(number: Option) -> None:
    shelf = Shelf()
    asked = info_request("", Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE, 77)
    replies = talk(STRUCTURED, option(number, asked), catalog=shelf)
    infos = {}
    for _, kind, data in replies.replies[1:-1]:
        assert kind == Rep.INFO
        info = wire.InfoReply.parse(data)
        assert info.type not in infos
        infos[info.type] = info.data
    export, sizes = infos.pop(Info.EXPORT), infos.pop(Info.BLOCK_SIZE)
    assert (export.size, export.flags) == (1 << 30, FLAGS | TransmissionFlag.SEND_DF)
    assert (sizes.minimum, sizes.preferred, sizes.maximum) == (512, 4096, 1 << 20)
    assert infos == {Info.NAME: b"disk", Info.DESCRIPTION: b"the first one"}
    assert shelf.opened == ([""] if number == Option.GO else [])
    assert (replies.machine.outcome is not None) == (number == Option.GO)


def test_df_is_offered_with_structured_replies_only() -> None:
    _, _, data = talk(option(Option.GO, info_request("disk"))).replies[0]
    assert wire.InfoReply.parse(data).data.flags == FLAGS


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (info_request("nowhere"), Rep.ERR_UNKNOWN),
        (info_request("busy"), Rep.ERR_POLICY),
        (info_request("disk", Info.NAME, Info.NAME), Rep.ERR_INVALID),
        (info_request("x" * 4097), Rep.ERR_TOO_BIG),
        (info_request("disk") + b"x", Rep.ERR_INVALID),
        (info_request("disk", 1)[:-1], Rep.ERR_INVALID),
        (b"\xff\xff\xff\xff" + b"disk" + b"\0\0", Rep.ERR_INVALID),
        (b"\0\0\0\2\xff\xfe\0\0", Rep.ERR_INVALID),
        (b"", Rep.ERR_INVALID),
    ],
)
@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_a_wrong_info_or_go_is_refused_and_the_next_is_answered(number: Option, data: bytes, reply: Rep) -> None:
    shelf = Shelf()
    replies = talk(option(number, data), ABORT, catalog=shelf)
    assert replies.types == [(number, reply), (Option.ABORT, Rep.ACK)]
    assert shelf.opened == []


# --- Metadata contexts ---


def ready(*options: bytes) -> Ready:
    outcome = talk(*options, option(Option.GO, info_request("disk"))).machine.outcome
    assert isinstance(outcome, Ready)
    return outcome


def set_context(name: str = "disk", *queries: str) -> bytes:
    return option(Option.SET_META_CONTEXT, meta_request(name, *(queries or (wire.BASE_ALLOCATION,))))


def test_a_context_is_set() -> None:
    replies = talk(STRUCTURED, set_context()).replies[1:]
    assert [kind for _, kind, _ in replies] == [Rep.META_CONTEXT, Rep.ACK]
    assert ready(STRUCTURED, set_context()).contexts == {wire.BASE_ALLOCATION: 0}


def test_contexts_need_structured_replies() -> None:
    for number in (Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT):
        replies = talk(option(number, meta_request("disk", wire.BASE_ALLOCATION)), ABORT)
        assert replies.types == [(number, Rep.ERR_INVALID), (Option.ABORT, Rep.ACK)]


@pytest.mark.parametrize(
    "failing",
    [
        option(Option.SET_META_CONTEXT, meta_request("nowhere", wire.BASE_ALLOCATION)),
        option(Option.SET_META_CONTEXT, meta_request("disk", "no namespace")),
        option(Option.SET_META_CONTEXT, meta_request("disk", "base:" + "x" * 4096)),
        option(Option.SET_META_CONTEXT, meta_request("disk", "base:allocation")[:-1]),
        option(Option.SET_META_CONTEXT, meta_request("disk") + b"x"),
        option(Option.SET_META_CONTEXT, b""),
        option(Option.SET_META_CONTEXT, bytes(wire.MAX_OPTION + 1)),
        option(Option.SET_META_CONTEXT, meta_request("disk")),
        option(Option.SET_META_CONTEXT, meta_request("disk", "qemu:dirty-bitmap:x", "base:")),
    ],
)
def test_a_later_set_replaces_the_earlier_even_when_it_fails(failing: bytes) -> None:
    assert ready(STRUCTURED, set_context(), failing).contexts == {}


def test_contexts_of_another_name_do_not_count() -> None:
    assert ready(STRUCTURED, set_context("")).contexts == {}
    assert ready(STRUCTURED, set_context("Grüße")).contexts == {}


def test_listing_contexts_changes_nothing() -> None:
    listing = option(Option.LIST_META_CONTEXT, meta_request("Grüße", "base:"))
    assert ready(STRUCTURED, set_context(), listing).contexts == {wire.BASE_ALLOCATION: 0}


@pytest.mark.parametrize(
    ("queries", "names"),
    [
        ((), ["base:allocation", CONTROL]),
        (("base:",), ["base:allocation"]),
        (("base:allocation",), ["base:allocation"]),
        (("targetmode:",), [CONTROL]),
        (("targetmode:", "base:allocation"), ["base:allocation", CONTROL]),
        (("qemu:", "x-foo:bar"), []),
        (("base:alloc",), []),
    ],
)
def test_list_meta_context(queries: tuple[str, ...], names: list[str]) -> None:
    replies = talk(STRUCTURED, option(Option.LIST_META_CONTEXT, meta_request("disk", *queries))).replies[1:]
    assert [wire.MetaContextReply.parse(data).name.decode() for _, _, data in replies[:-1]] == names
    assert replies[-1][1] == Rep.ACK


def test_the_number_of_options_is_limited() -> None:
    assert len(talk(*[option(Option.LIST)] * (wire.MAX_OPTIONS - 1)).replies) == 4 * (wire.MAX_OPTIONS - 1)
    with pytest.raises(ProtocolError, match="options"):
        talk(*[option(Option.LIST)] * wire.MAX_OPTIONS)


def test_what_follows_go_belongs_to_the_transmission_phase() -> None:
    machine = ServerNegotiation(Shelf())
    asked = client_flags() + option(Option.GO, info_request("disk"))
    for byte in asked:
        assert machine.outcome is None
        assert 0 < machine.missing() <= len(asked)
        machine.receive(bytes([byte]))
    assert machine.outcome is not None
    assert machine.missing() == 0


# --- The two machines against each other ---


def converse(client: ClientNegotiation, server: Negotiation, *, spoil: Callable[[bytes], bytes] | None = None) -> None:
    """Carry bytes to and fro until neither has more to say; `spoil` sees every message of the client's."""
    while True:
        from_server, from_client = server.bytes_to_send(), client.bytes_to_send()
        if spoil is not None:
            from_client = spoil(from_client)
        if not from_server and not from_client:
            return
        client.receive(from_server)
        server.receive(from_client)


class WithoutOptions(ServerNegotiation):
    """A server that does not know some options."""

    def __init__(self, catalog: Shelf, unknown: Sequence[int]) -> None:
        self._unknown = unknown
        super().__init__(catalog)

    def _answer(self, option: int, data: bytes) -> None:
        super()._answer(4711 if False else option, data) if option not in self._unknown else self._refuse(
            option, Rep.ERR_UNSUP, "never heard of it"
        )


@pytest.mark.parametrize("export", ["disk", "", "Grüße"])
@pytest.mark.parametrize(
    "unknown",
    [
        options
        for number in range(4)
        for options in itertools.combinations(
            (Option.STRUCTURED_REPLY, Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT, Option.GO), number
        )
    ],
)
@pytest.mark.parametrize("queries", [(), ("targetmode:",)])
def test_client_and_server_agree(export: str, unknown: tuple[Option, ...], queries: tuple[str, ...]) -> None:
    server = WithoutOptions(Shelf(), unknown)
    client = ClientNegotiation(export, queries=queries)
    converse(client, server)
    structured = Option.STRUCTURED_REPLY not in unknown
    assert isinstance(server.outcome, Ready)
    assert isinstance(client.outcome, Ready)
    for outcome in (server.outcome, client.outcome):
        assert outcome.structured == structured
        has_context = structured and Option.SET_META_CONTEXT not in unknown
        assert set(outcome.contexts) == ({wire.BASE_ALLOCATION} if has_context else set())
        assert outcome.export.size == Shelf().exports[export].size
    assert client.outcome.contexts == server.outcome.contexts
    assert bool(client.outcome.export.flags & TransmissionFlag.SEND_DF) == structured
    if Option.GO not in unknown:
        assert client.outcome.export.sizes == Shelf().exports[export].sizes
        assert client.outcome.export.name == Shelf().exports[export].name
        assert client.outcome.export.description == Shelf().exports[export].description
    listed = structured and queries and Option.LIST_META_CONTEXT not in unknown and export != "Grüße"
    assert client.outcome.export.contexts == ((CONTROL,) if listed else ())


@pytest.mark.parametrize("no_zeroes", [True, False])
@pytest.mark.parametrize("fixed", [True, False])
def test_client_against_servers_with_fewer_flags(no_zeroes: bool, fixed: bool) -> None:
    flags = (HandshakeFlag.NO_ZEROES if no_zeroes else 0) | (HandshakeFlag.FIXED_NEWSTYLE if fixed else 0)
    client = ClientNegotiation("disk")
    client.receive(wire.Greeting.build({"flags": flags}))
    server = ServerNegotiation(Shelf())
    server.bytes_to_send()
    sent = client.bytes_to_send()
    assert sent[:4] == client_flags(flags)
    server.receive(sent)
    converse(client, server)
    assert isinstance(client.outcome, Ready)
    assert client.outcome.structured == fixed
    assert client.outcome.export.size == 1 << 30


def test_flags_that_a_client_does_not_know_are_not_sent_back() -> None:
    client = ClientNegotiation("disk")
    client.receive(wire.Greeting.build({"flags": 0xFFFF}))
    assert client.bytes_to_send()[:4] == client_flags(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)


@pytest.mark.parametrize(("name", "reply"), [("nowhere", Rep.ERR_UNKNOWN), ("busy", Rep.ERR_POLICY)])
def test_a_refused_export_is_told_with_the_servers_words(name: str, reply: Rep) -> None:
    with pytest.raises(OptionRefused) as caught:
        converse(ClientNegotiation(name), ServerNegotiation(Shelf()))
    assert caught.value.reply == reply
    assert caught.value.message


def test_client_lists_exports() -> None:
    client, server = ClientNegotiation("", listing=True), ServerNegotiation(Shelf())
    converse(client, server)
    assert client.names == {"disk": "the first one", "Grüße": ""}
    assert isinstance(client.outcome, Aborted)
    assert isinstance(server.outcome, Aborted)


def test_a_list_may_be_refused() -> None:
    with pytest.raises(OptionRefused):
        converse(ClientNegotiation("", listing=True), WithoutOptions(Shelf(), [Option.LIST]))


# --- Any bytes ---

GARBAGE = st.binary(max_size=200)
STRINGS = st.sampled_from(["", "disk", "Grüße", "busy", "nowhere", "base:allocation", "base:", "x:y", "x" * 4096])
NUMBERS = st.one_of(st.sampled_from([*Option, 0, 4, 12]), st.integers(0, 0xFFFFFFFF))


def damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Leave a message as it is, mostly, or change a byte, or a length, or cut it."""
    kind = draw(st.integers(0, 9))
    if kind == 0 and data:
        position = draw(st.integers(0, len(data) - 1))
        return data[:position] + bytes([draw(st.integers(0, 255))]) + data[position + 1 :]
    if kind == 1:
        return data[: draw(st.integers(0, len(data)))]
    if kind == 2:
        return data + draw(GARBAGE)
    if kind == 3 and len(data) >= 4:
        return draw(st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x80\0\0\0"])) + data[4:]
    return data


@st.composite
def client_streams(draw: st.DrawFn) -> bytes:
    """What a client might say, more or less damaged."""
    stream = client_flags(draw(st.sampled_from([3, 3, 3, 1, 2, 0, 4])))
    for _ in range(draw(st.integers(0, 8))):
        number = draw(NUMBERS)
        match number:
            case Option.EXPORT_NAME:
                data = draw(STRINGS).encode()
            case Option.INFO | Option.GO:
                data = info_request(draw(STRINGS), *draw(st.lists(st.integers(0, 5), max_size=4)))
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                data = meta_request(draw(STRINGS), *draw(st.lists(STRINGS, max_size=4)))
            case _:
                data = draw(st.sampled_from([b"", b"", b"data", bytes(wire.MAX_OPTION + 5)]))
        stream += damage(draw, option(number, damage(draw, data)))
    return stream + draw(st.sampled_from([b"", b"", b"\0", b"x" * 40]))


@st.composite
def server_streams(draw: st.DrawFn) -> bytes:
    """What a server might say to our client, which asks for structured replies, contexts, and GO, in this order."""
    flags = draw(st.sampled_from([3, 3, 3, 3, 1, 2, 0, 0xFFFF]))
    stream = damage(draw, bytes(wire.Greeting.build({"flags": flags})))
    kinds = st.one_of(st.sampled_from([*Rep, Rep.ACK, Rep.ACK, Rep.INFO]), st.integers(0, 0xFFFFFFFF))
    for number in (Option.STRUCTURED_REPLY, Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT, Option.GO):
        for _ in range(draw(st.integers(0, 3))):
            data = draw(
                st.one_of(
                    GARBAGE,
                    STRINGS.map(lambda name: bytes(wire.MetaContextReply.build({"id": 1, "name": name.encode()}))),
                    st.integers(0, 1 << 64).map(lambda size: info_export(min(size, (1 << 64) - 1))),
                    STRINGS.map(lambda text: b"\0\1" + text.encode()),
                    st.lists(st.sampled_from([0, 1, 512, 4096, 1 << 25, 3]), min_size=3, max_size=3).map(
                        lambda sizes: block_size(*sizes)
                    ),
                )
            )
            stream += damage(draw, option_reply(number, draw(kinds), damage(draw, data)))
        if draw(st.booleans()):
            stream += option_reply(number, Rep.INFO, info_export(1 << 20)) if number == Option.GO else b""
        stream += option_reply(number, draw(st.sampled_from([Rep.ACK, Rep.ACK, Rep.ERR_UNSUP])))
    return stream + draw(GARBAGE)


def feed(machine: Negotiation, pieces: Sequence[bytes]) -> tuple[str, bytes]:
    """How the machine ends after these pieces, and all it wants to send; only the allowed errors may come."""
    sent = b""
    try:
        for piece in pieces:
            machine.receive(piece)
            sent += machine.bytes_to_send()
            assert (machine.missing() > 0) == (machine.outcome is None)
            assert machine.missing() <= wire.MAX_OPTION
            if machine.outcome is not None:
                break
    except ProtocolError as error:
        return repr(error), sent
    except OptionRefused as error:
        assert isinstance(machine, ClientNegotiation)
        return repr(error), sent
    return repr(machine.outcome), sent + machine.bytes_to_send()


def check_splits(make: Callable[[], Negotiation], stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut, it comes to the same end and asks for the same bytes to be sent."""
    positions = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    whole, sent = feed(make(), [stream])
    pieces = [stream[start:end] for start, end in itertools.pairwise(positions)]
    assert feed(make(), pieces)[0] == whole
    bytewise, sent_bytewise = feed(make(), [stream[i : i + 1] for i in range(len(stream))])
    assert bytewise == whole
    assert sent_bytewise.startswith(sent)  # after an error nothing more is fetched, whole or not
    if "Error" not in whole and "Refused" not in whole:
        assert sent_bytewise == sent
    assert len(sent_bytewise) <= 1 << 20


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@examples(400)
@given(st.one_of(GARBAGE, GARBAGE.map(lambda data: client_flags() + data), client_streams()), CUTS)
@example(client_flags() + option(Option.GO, info_request("disk")), [5])
def test_any_bytes_to_the_server(stream: bytes, cuts: list[int]) -> None:
    check_splits(lambda: ServerNegotiation(Shelf()), stream, cuts)


@examples(400)
@given(
    st.one_of(GARBAGE, GARBAGE.map(lambda data: GREETING + data), server_streams()),
    CUTS,
    st.sampled_from([(), ("targetmode:",)]),
    st.booleans(),
)
def test_any_bytes_to_the_client(stream: bytes, cuts: list[int], queries: tuple[str, ...], listing: bool) -> None:
    check_splits(lambda: ClientNegotiation("disk", queries=queries, listing=listing), stream, cuts)


@examples(400)
@given(st.data())
def test_a_damaged_conversation_ends_or_raises(data: st.DataObject) -> None:
    """Both machines talk, and every now and then a byte of the client's is changed."""

    def spoil(message: bytes) -> bytes:
        if not message or data.draw(st.integers(0, 3)):
            return message
        position = data.draw(st.integers(0, len(message) - 1))
        return message[:position] + bytes([data.draw(st.integers(0, 255))]) + message[position + 1 :]

    client, server = ClientNegotiation("disk", queries=("targetmode:",)), ServerNegotiation(Shelf())
    try:
        converse(client, server, spoil=spoil)
    except NBDError as error:
        assert isinstance(error, ProtocolError | OptionRefused)
