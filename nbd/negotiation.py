"""The handshake phase as a state machine without input or output: bytes in, bytes and one outcome out.

Each side is a generator that asks for an exact number of bytes and appends what it wants to send; `Negotiation` feeds
it. The same code serves the socket loops, the tests and the fuzzers. A caller reads no more than `missing()` bytes at a
time, so that nothing of the transmission phase, and nothing sent in the clear before TLS, is ever buffered here.

Specification: sections "Handshake", "Option types", "Option reply types", "Metadata querying".
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from construct import ConstructError

from nbd import wire
from nbd.errors import OptionRefused, ProtocolError
from nbd.wire import ClientFlag, HandshakeFlag, Info, Option, Rep, TransmissionFlag

Steps: TypeAlias = Generator[int, bytes, None]

# A plain integer: `~` of an IntFlag knows nothing of the bits that have no name.
_CLIENT_FLAGS: Final = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """The size constraints of an export, in bytes (section "Size constraints")."""

    minimum: int = 1
    preferred: int = 4096
    maximum: int = wire.MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What the handshake says of one export.

    Attributes:
        name: the export's own name; differs from the name asked for when that was the default, `""`.
        size: bytes.
        flags: transmission flags; `SEND_DF` is added where structured replies were negotiated.
        sizes: block sizes.
        description: a text for people, possibly empty.
        contexts: contexts that a LIST_META_CONTEXT shows besides `base:allocation`, for information only.
    """

    name: str
    size: int
    flags: TransmissionFlag
    sizes: BlockSizes = field(default_factory=BlockSizes)
    description: str = ""
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The handshake is over and the transmission phase begins.

    Attributes:
        export: the export chosen.
        structured: whether structured replies were negotiated.
        contexts: the metadata contexts in force, by name, with their ids.
    """

    export: ExportInfo
    structured: bool
    contexts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Aborted:
    """The peer left during the handshake as the protocol allows: nothing more is to be sent or read.

    Attributes:
        reason: one clause for the log.
    """

    reason: str


Outcome: TypeAlias = Ready | Aborted


class Catalog(Protocol):
    """What a server offers, asked during a handshake."""

    def list(self) -> Sequence[ExportInfo]:
        """Every export that a client may be told of."""
        ...

    def find(self, name: str, *, opening: bool) -> ExportInfo:
        """The export of that name; `opening` when the client goes on to use it.

        Raises:
            OptionRefused: there is none (`ERR_UNKNOWN`), or it may not be used now (`ERR_POLICY`).
        """
        ...


class Negotiation:
    """One side of a handshake in progress.

    Attributes:
        outcome: how it ended, None while it goes on.
        wanted: how many bytes the next step needs; 0 once it has ended.
    """

    def __init__(self) -> None:
        self.outcome: Outcome | None = None
        self.wanted = 0
        self._received = bytearray()
        self._outgoing = bytearray()
        self._steps = self._run()
        self._advance(None)

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer, in pieces of any size.

        Raises:
            ProtocolError: they are not what the specification allows; the connection must be closed.
        """
        self._received += data
        while self.outcome is None and len(self._received) >= self.wanted:
            piece = bytes(self._received[: self.wanted])
            del self._received[: self.wanted]
            self._advance(piece)

    def missing(self) -> int:
        """How many bytes to read from the peer before anything more can happen."""
        return 0 if self.outcome is not None else self.wanted - len(self._received)

    def bytes_to_send(self) -> bytes:
        """What has to be sent to the peer; empty when there is nothing."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def _advance(self, piece: bytes | None) -> None:
        try:
            self.wanted = next(self._steps) if piece is None else self._steps.send(piece)
        except StopIteration:
            if self.outcome is None:
                raise ProtocolError("the handshake has failed already") from None
            self.wanted = 0
        except ConstructError as error:
            raise ProtocolError(f"malformed message: {str(error).splitlines()[0]}") from None

    def _run(self) -> Steps:
        raise NotImplementedError  # pragma: no cover

    def _build(self, message: Any, **values: Any) -> None:
        self._outgoing += message.build(values)


class ServerNegotiation(Negotiation):
    """The server's side of a fixed newstyle handshake."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._structured = False
        self._contexts: dict[str, int] = {}
        self._contexts_for: str | None = None
        self._no_zeroes = False
        super().__init__()

    def _run(self) -> Steps:
        self._build(wire.Greeting, flags=HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        flags = wire.ClientFlags.parse((yield 4)).flags
        if flags & ~_CLIENT_FLAGS:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & ClientFlag.NO_ZEROES)
        fixed = bool(flags & ClientFlag.FIXED_NEWSTYLE)
        for _ in range(wire.MAX_OPTIONS):
            header = wire.OptionHeader.parse((yield wire.OptionHeader.sizeof()))
            if header.length > wire.MAX_OPTION_DISCARD:
                raise ProtocolError(f"option {header.option} announces {header.length} bytes of data")
            if header.length > wire.MAX_OPTION:
                if header.option == Option.EXPORT_NAME:
                    raise ProtocolError(f"export name of {header.length} bytes")
                yield from self._discard(header.length)
                if header.option == Option.SET_META_CONTEXT:
                    self._clear_contexts()
                self._refuse(header.option, Rep.ERR_TOO_BIG, "option data too long")
                continue
            data = (yield header.length) if header.length else b""
            if not fixed and header.option != Option.EXPORT_NAME:
                raise ProtocolError("an option other than EXPORT_NAME without fixed newstyle")
            self._answer(header.option, data)
            if self.outcome is not None:
                return
        raise ProtocolError(f"more than {wire.MAX_OPTIONS} options")

    @staticmethod
    def _discard(length: int) -> Steps:
        while length:
            length -= len((yield min(length, wire.MAX_OPTION)))

    def _answer(self, option: int, data: bytes) -> None:
        try:
            match option:
                case Option.EXPORT_NAME:
                    self._export_name(data)
                case Option.ABORT:
                    self._reply(option, Rep.ACK)
                    self.outcome = Aborted("client aborted the handshake")
                case Option.LIST:
                    self._need_empty(data)
                    self._list()
                case Option.STRUCTURED_REPLY:
                    self._need_empty(data)
                    self._structured = True
                    self._reply(option, Rep.ACK)
                case Option.INFO | Option.GO:
                    self._info(option, data)
                case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                    self._meta_context(option, data)
                case Option.STARTTLS:
                    self._need_empty(data)
                    raise OptionRefused(Rep.ERR_UNSUP, "this server has no TLS")
                case _:
                    raise OptionRefused(Rep.ERR_UNSUP, "unknown option")
        except OptionRefused as refusal:
            self._refuse(option, refusal.reply, refusal.message)

    def _export_name(self, data: bytes) -> None:
        try:
            name = _text(data)
            export = self._catalog.find(name, opening=True)
        except OptionRefused as refusal:
            # EXPORT_NAME has no error reply: "the server MUST terminate the session".
            self.outcome = Aborted(f"export refused: {refusal}")
            return
        message = wire.ExportNameReply if self._no_zeroes else wire.ExportNameReplyPadded
        self._build(message, size=export.size, flags=self._flags(export))
        self._finish(export, name)

    def _list(self) -> None:
        for export in self._catalog.list():
            name, description = export.name.encode(), _cut(export.description)
            self._reply(Option.LIST, Rep.SERVER, wire.ServerReply.build({"name": name, "description": description}))
        self._reply(Option.LIST, Rep.ACK)

    def _info(self, option: int, data: bytes) -> None:
        request = _parse(wire.InfoRequest, data)
        if len(set(request.infos)) != len(request.infos):
            raise OptionRefused(Rep.ERR_INVALID, "an information request stands twice")
        name = _text(request.name)
        export = self._catalog.find(name, opening=option == Option.GO)
        self._reply_info(option, Info.EXPORT, {"size": export.size, "flags": self._flags(export)})
        sizes = export.sizes
        self._reply_info(
            option,
            Info.BLOCK_SIZE,
            {"minimum": sizes.minimum, "preferred": sizes.preferred, "maximum": sizes.maximum},
        )
        if Info.NAME in request.infos:
            self._reply_info(option, Info.NAME, export.name.encode())
        if Info.DESCRIPTION in request.infos and export.description:
            self._reply_info(option, Info.DESCRIPTION, _cut(export.description))
        self._reply(option, Rep.ACK)
        if option == Option.GO:
            self._finish(export, name)

    def _meta_context(self, option: int, data: bytes) -> None:
        setting = option == Option.SET_META_CONTEXT
        if setting:
            self._clear_contexts()
        if not self._structured:
            raise OptionRefused(Rep.ERR_INVALID, "structured replies have to be negotiated first")
        request = _parse(wire.MetaContextRequest, data)
        name = _text(request.name)
        export = self._catalog.find(name, opening=False)
        queries = [_text(query) for query in request.queries]
        if any(":" not in query for query in queries):
            raise OptionRefused(Rep.ERR_INVALID, "a metadata context query has no namespace")
        if setting:
            # Only one context can be set, so its id is always 0; the informational ones can be listed alone.
            chosen = [wire.BASE_ALLOCATION] if wire.BASE_ALLOCATION in queries else []
            self._contexts, self._contexts_for = dict.fromkeys(chosen, 0), name
        else:
            chosen = [c for c in (wire.BASE_ALLOCATION, *export.contexts) if _matches(c, queries)]
        for context in chosen:
            self._reply(option, Rep.META_CONTEXT, wire.MetaContextReply.build({"id": 0, "name": context.encode()}))
        self._reply(option, Rep.ACK)

    def _clear_contexts(self) -> None:
        """SET_META_CONTEXT replaces what was set before, "including when this command fails"."""
        self._contexts, self._contexts_for = {}, None

    def _finish(self, export: ExportInfo, name: str) -> None:
        contexts = self._contexts if self._contexts_for == name else {}
        self.outcome = Ready(export, self._structured, contexts)

    def _flags(self, export: ExportInfo) -> TransmissionFlag:
        return export.flags | (TransmissionFlag.SEND_DF if self._structured else TransmissionFlag(0))

    def _reply_info(self, option: int, info: Info, data: Any) -> None:
        self._reply(option, Rep.INFO, wire.InfoReply.build({"type": info, "data": data}))

    def _refuse(self, option: int, reply: int, message: str) -> None:
        self._reply(option, reply, _cut(message))

    def _reply(self, option: int, reply: int, data: bytes = b"") -> None:
        self._build(wire.OptionReplyHeader, option=option, reply=reply, length=len(data))
        self._outgoing += data

    @staticmethod
    def _need_empty(data: bytes) -> None:
        if data:
            raise OptionRefused(Rep.ERR_INVALID, "this option carries no data")


@dataclass(frozen=True, slots=True)
class _Reply:
    reply: int
    data: bytes


class ClientNegotiation(Negotiation):
    """The client's side: structured replies, `base:allocation`, then the export, as much of each as the server has.

    Attributes:
        context_names: what the server listed for `queries`, in its order.
        names: the server's exports with their descriptions, when `listing` was asked for, which ends in `Aborted`.
    """

    def __init__(self, export: str, *, queries: Sequence[str] = (), listing: bool = False) -> None:
        self._export = export
        self._queries = queries
        self._listing = listing
        self._structured = False
        self._contexts: dict[str, int] = {}
        self._no_zeroes = False
        self.context_names: list[str] = []
        self.names: dict[str, str] = {}
        super().__init__()

    def _run(self) -> Steps:
        fixed = yield from self._greet()
        if self._listing:
            if fixed:
                yield from self._ask_list()
            self.outcome = Aborted("only the list was asked for")
            return
        if fixed:
            self._structured = (yield from self._ask(Option.STRUCTURED_REPLY))[-1].reply == Rep.ACK
            if self._structured:
                yield from self._ask_contexts()
            if (yield from self._go()):
                return
        yield from self._export_name()

    def _greet(self) -> Generator[int, bytes, bool]:
        start = yield 16
        if not start.startswith(wire.INIT_MAGIC.to_bytes(8, "big")):
            raise ProtocolError("this is not an NBD server")
        if start[8:] == wire.OLDSTYLE_MAGIC.to_bytes(8, "big"):
            raise ProtocolError("the server speaks only the oldstyle handshake")
        flags = wire.Greeting.parse(start + (yield 2)).flags
        fixed = bool(flags & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self._build(wire.ClientFlags, flags=flags & (ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES))
        return fixed

    def _ask_list(self) -> Steps:
        replies = yield from self._ask(Option.LIST)
        _raise_refusal(replies[-1])
        for reply in _only(Rep.SERVER, replies[:-1]):
            server = wire.ServerReply.parse(reply.data)
            self.names[_peer_text(server.name)] = _peer_text(server.description)
        self._send_option(Option.ABORT)

    def _ask_contexts(self) -> Steps:
        export = self._export.encode()
        if self._queries:
            data = wire.MetaContextRequest.build({"name": export, "queries": [q.encode() for q in self._queries]})
            for reply in (yield from self._ask(Option.LIST_META_CONTEXT, data)):
                if reply.reply == Rep.META_CONTEXT:
                    self.context_names.append(_peer_text(wire.MetaContextReply.parse(reply.data).name))
        data = wire.MetaContextRequest.build({"name": export, "queries": [wire.BASE_ALLOCATION.encode()]})
        replies = yield from self._ask(Option.SET_META_CONTEXT, data)
        if replies[-1].reply == Rep.ACK:
            found = [wire.MetaContextReply.parse(r.data) for r in _only(Rep.META_CONTEXT, replies[:-1])]
            self._contexts = {_peer_text(context.name): context.id for context in found}
            if len(found) > 1 or self._contexts.keys() - {wire.BASE_ALLOCATION}:
                raise ProtocolError("the server set metadata contexts that were not asked for")

    def _go(self) -> Generator[int, bytes, bool]:
        """Choose the export with GO; False where the server does not know that option."""
        infos = [Info.BLOCK_SIZE, Info.DESCRIPTION, Info.NAME]
        data = wire.InfoRequest.build({"name": self._export.encode(), "infos": infos})
        replies = yield from self._ask(Option.GO, data)
        if replies[-1].reply == Rep.ERR_UNSUP:
            return False
        _raise_refusal(replies[-1])
        size = flags = None
        sizes, name, description = BlockSizes(), self._export, ""
        for reply in _only(Rep.INFO, replies[:-1]):
            info = wire.InfoReply.parse(reply.data)
            match info.type:
                case Info.EXPORT:
                    size, flags = info.data.size, info.data.flags
                case Info.BLOCK_SIZE:
                    sizes = BlockSizes(info.data.minimum, info.data.preferred, info.data.maximum)
                case Info.NAME:
                    name = _peer_text(info.data)
                case Info.DESCRIPTION:
                    description = _peer_text(info.data)
        if size is None or flags is None:
            raise ProtocolError("the server accepted GO without telling the export's size")
        self._enter(name, size, flags, sizes, description)
        return True

    def _export_name(self) -> Steps:
        self._send_option(Option.EXPORT_NAME, self._export.encode())
        message = wire.ExportNameReply if self._no_zeroes else wire.ExportNameReplyPadded
        reply = message.parse((yield message.sizeof()))
        self._enter(self._export, reply.size, reply.flags, BlockSizes(), "")

    def _enter(self, name: str, size: int, flags: int, sizes: BlockSizes, description: str) -> None:
        if size > wire.MAX_SIZE:
            raise ProtocolError(f"export of {size} bytes")
        if not flags & TransmissionFlag.HAS_FLAGS:
            raise ProtocolError("transmission flags without HAS_FLAGS")
        power = sizes.minimum & (sizes.minimum - 1) == 0 and sizes.preferred & (sizes.preferred - 1) == 0
        if not (power and 0 < sizes.minimum <= 1 << 16 and sizes.minimum <= sizes.preferred <= sizes.maximum):
            raise ProtocolError(f"impossible block sizes {sizes.minimum}, {sizes.preferred}, {sizes.maximum}")
        export = ExportInfo(name, size, TransmissionFlag(flags), sizes, description, tuple(self.context_names))
        self.outcome = Ready(export, self._structured, self._contexts)

    def _ask(self, option: Option, data: bytes = b"") -> Generator[int, bytes, list[_Reply]]:
        """Send one option; its replies up to and including the last, which is an ACK or an error."""
        self._send_option(option, data)
        replies: list[_Reply] = []
        total = 0
        while True:
            header = wire.OptionReplyHeader.parse((yield wire.OptionReplyHeader.sizeof()))
            if header.option != option:
                raise ProtocolError(f"a reply to option {header.option} where {int(option)} was asked")
            total += wire.OptionReplyHeader.sizeof() + header.length
            if header.length > wire.MAX_OPTION or total > wire.MAX_OPTION_DISCARD:
                raise ProtocolError(f"the replies to option {int(option)} are too long")
            body = (yield header.length) if header.length else b""
            replies.append(_Reply(header.reply, body))
            if header.reply == Rep.ACK or header.reply & wire.REP_ERROR_BIT:
                return replies

    def _send_option(self, option: Option, data: bytes = b"") -> None:
        self._build(wire.OptionHeader, option=option, length=len(data))
        self._outgoing += data


def _only(kind: Rep, replies: Sequence[_Reply]) -> Sequence[_Reply]:
    """The replies before the last one, all of which have to be of this type.

    Raises:
        ProtocolError: one is not.
    """
    for reply in replies:
        if reply.reply != kind:
            raise ProtocolError(f"a reply of type {reply.reply} where {int(kind)} was due")
    return replies


def _raise_refusal(reply: _Reply) -> None:
    if reply.reply & wire.REP_ERROR_BIT:
        raise OptionRefused(reply.reply, reply.data.decode(errors="replace"))


def _parse(message: Any, data: bytes) -> Any:
    """An option's data; the server answers what does not parse, or leaves bytes over, with `ERR_INVALID`."""
    try:
        parsed = message.parse(data)
    except ConstructError:
        raise OptionRefused(Rep.ERR_INVALID, "the option's data do not parse") from None
    if parsed.end != len(data):
        raise OptionRefused(Rep.ERR_INVALID, "the option's data are longer than their contents")
    return parsed


def _text(data: bytes) -> str:
    """A string of the wire.

    Raises:
        OptionRefused: it is too long or not UTF-8 (section "Conventions").
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise OptionRefused(Rep.ERR_INVALID, "a string is not UTF-8") from None
    if len(data) > wire.MAX_STRING:
        raise OptionRefused(Rep.ERR_TOO_BIG, f"a string is longer than {wire.MAX_STRING} bytes")
    return text


def _cut(text: str) -> bytes:
    """A string for the wire, cut between two characters where it is too long (section "Conventions")."""
    return text.encode()[: wire.MAX_STRING].decode(errors="ignore").encode()


def _peer_text(data: bytes) -> str:
    """A string from a server, which gets no reply when it is wrong.

    Raises:
        ProtocolError: it is too long or not UTF-8.
    """
    try:
        return _text(data)
    except OptionRefused as refusal:
        raise ProtocolError(f"in a reply, {refusal}") from None


def _matches(context: str, queries: Sequence[str]) -> bool:
    """Whether a listed context answers one of the queries: none asks for all, `namespace:` for all of its own."""
    return not queries or context in queries or any(q.endswith(":") and context.startswith(q) for q in queries)
