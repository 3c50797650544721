"""The messages between a multicast server and its clients: HTTP with JSON bodies on the control port.

    GET    /v1/session            what is streamed, where and how
    GET    /v1/manifest           the image's block map; /v1/manifest.sig its signature, if it has one
    POST   /v1/clients            a client begins: who it is, and what it lacks
    POST   /v1/clients/{id}       how far it is, every now and then
    DELETE /v1/clients/{id}       it leaves
    GET    /v1/chunks/{number}    the bytes of one chunk
    GET    /v1/status             every client and how far it is, as `restore.multicast.server.view.View` has it
    GET    /                      the same as a page for people, which asks for it once a second
    GET    /metrics               the same for Prometheus

There are `MOST_CLIENTS` clients at most; one more is answered with 503 until another one has ended.
A refusal is a 4xx or 5xx status with `{"error": "…"}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from restore.multicast.chunkset import ChunkSet
from restore.multicast.config import check_group
from restore.multicast.layout import CHUNK
from restore.multicast.packet import LEAST_SEGMENT, MOST_SEGMENT

SESSION: Final = "/v1/session"
MANIFEST: Final = "/v1/manifest"
SIGNATURE: Final = "/v1/manifest.sig"
CLIENTS: Final = "/v1/clients"
CHUNKS: Final = "/v1/chunks"
STATUS: Final = "/v1/status"
PAGE: Final = "/"
METRICS: Final = "/metrics"
MOST_CLIENTS: Final = 4096  # at a time
MAX_BODY: Final = 16 << 20  # what a client sends; the chunks that it lacks of 8 TiB take 1 MiB at most
REPORT_EVERY: Final = 0.2  # seconds between two reports of a client, where there are few
MOST_REPORTS: Final = 500  # a second, of all clients together
_SELDOM: Final = 5.0  # seconds between two reports of a client at most
MOST_MISSING: Final = 1024  # chunks begun that a report has, at most
_MOST_CHUNKS: Final = 1 << 27
_MOST_NAME: Final = 255
_MOST_TARGETS: Final = 64
_ID: Final = re.compile(r"[0-9a-f]{16}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class MessageError(ValueError):
    """A message that does not have its shape; `str()` says what is wrong."""


@dataclass(frozen=True, slots=True)
class Session:
    """What is streamed.

    Attributes:
        id: names this run of the server; every datagram has it.
        image: name of the image.
        size: its bytes.
        chunks: how many are streamed.
        manifest: BLAKE3 of the manifest, lower-case hexadecimal.
        group: multicast address.
        port: UDP port.
        segment_size: bytes of an image in a datagram.
    """

    id: int
    image: str
    size: int
    chunks: int
    manifest: str
    group: str
    port: int
    segment_size: int

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return asdict(self) | {"id": f"{self.id:016x}"}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read it back.

        Raises:
            MessageError: it has another shape.
        """
        try:
            name = _text(value["id"])
            if not _ID.fullmatch(name):
                raise MessageError(f"{name!r:.80} is no session")
            manifest = _text(value["manifest"])
            if not _DIGEST.fullmatch(manifest):
                raise MessageError(f"{manifest!r:.80} is no digest")
            return cls(
                int(name, 16),
                _text(value["image"]),
                _number(value["size"], 1, (1 << 63) - 1),
                _number(value["chunks"], 0, _MOST_CHUNKS),
                manifest,
                check_group(value["group"]),
                _number(value["port"], 1, 65535),
                _number(value["segment_size"], LEAST_SEGMENT, MOST_SEGMENT),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise MessageError(f"not what a multicast server says of its session: {error!s:.120}") from None


@dataclass(frozen=True, slots=True)
class Join:
    """A client begins.

    Attributes:
        name: what its machine is called.
        targets: what it restores onto, for people.
        lacking: the chunks that it needs.
    """

    name: str
    targets: list[str]
    lacking: ChunkSet

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {"name": self.name, "targets": self.targets, "lacking": self.lacking.to_text()}

    @classmethod
    def from_json(cls, value: Any, chunks: int) -> Self:
        """Read it back, of an image of so many chunks.

        Raises:
            MessageError: it has another shape.
        """
        try:
            targets = value["targets"]
            if not isinstance(targets, list) or not 0 < len(targets) <= _MOST_TARGETS:
                raise MessageError(f"1 to {_MOST_TARGETS} targets, in a list")
            lacking = ChunkSet.from_text(_text(value["lacking"], MAX_BODY), chunks)
            return cls(_text(value["name"]), [_text(target) for target in targets], lacking)
        except (TypeError, KeyError, ValueError) as error:
            raise MessageError(f"not how a client begins: {error!s:.120}") from None


@dataclass(frozen=True, slots=True)
class Counts:
    """What a client has done so far.

    Attributes:
        received: bytes of chunks that came whole and right.
        written: bytes on its target, or on that of its targets which is behind the others.
        verified: likewise, of those that were compared.
        segments: datagrams that came.
        lost: datagrams that did not, as far as it can tell.
        duplicates: datagrams that were of no use.
        damaged: chunks that were whole and wrong.
        passed_over: datagrams of chunks that it lacked and had no room for.
        overflowed: datagrams that arrived, and were dropped because it did not come to take them; `lost` has them too.
        repaired: chunks that repair segments made whole.
    """

    received: int = 0
    written: int = 0
    verified: int = 0
    segments: int = 0
    lost: int = 0
    duplicates: int = 0
    damaged: int = 0
    passed_over: int = 0
    overflowed: int = 0
    repaired: int = 0

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read it back.

        Raises:
            TypeError, KeyError, MessageError: it has another shape.
        """
        return cls(**{name: _number(value[name], 0, (1 << 63) - 1) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Status:
    """How far a client is.

    Attributes:
        lacking: the chunks that it still needs.
        as_of: it has seen all that was sent before this number.
        counts: what it has done.
        missing: of those of them that it has begun, how many segments it needs still, of whichever kind.
        filled: which part of its memory for chunks that wait for its target is taken, 0 to 1.
    """

    lacking: ChunkSet
    as_of: int
    counts: Counts
    missing: Mapping[int, int] = field(default_factory=dict)
    filled: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {
            "lacking": self.lacking.to_text(),
            "missing": [list(pair) for pair in self.missing.items()],
            "as_of": self.as_of,
            "filled": self.filled,
            "counts": asdict(self.counts),
        }

    @classmethod
    def from_json(cls, value: Any, chunks: int) -> Self:
        """Read it back, of an image of so many chunks.

        Raises:
            MessageError: it has another shape.
        """
        try:
            lacking = ChunkSet.from_text(_text(value["lacking"], MAX_BODY), chunks)
            missing = value["missing"]
            if not isinstance(missing, list) or len(missing) > MOST_MISSING:
                raise MessageError(f"at most {MOST_MISSING} chunks that are begun, in a list")
            return cls(
                lacking,
                _number(value["as_of"], 0, (1 << 63) - 1),
                Counts.from_json(value["counts"]),
                {_number(chunk, 0, chunks - 1): _number(count, 1, CHUNK // LEAST_SEGMENT) for chunk, count in missing},
                _fraction(value["filled"], 1.0),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise MessageError(f"not how far a client is: {error!s:.120}") from None


@dataclass(frozen=True, slots=True)
class Directions:
    """What the server says to a report, and to a client that begins.

    Attributes:
        client: what the client is called from now on.
        alone: it is to fetch what it lacks by itself.
        streaming: the stream has begun.
        report_every: seconds from this report to the next one; with cause, a client may report twice as often.
    """

    client: str
    alone: bool
    streaming: bool
    report_every: float = REPORT_EVERY

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read it back.

        Raises:
            MessageError: it has another shape.
        """
        try:
            client = _text(value["client"])
            if not _ID.fullmatch(client):
                raise MessageError(f"{client!r:.80} is no client")
            every = _fraction(value["report_every"], _SELDOM)
            return cls(client, _truth(value["alone"]), _truth(value["streaming"]), every)
        except (TypeError, KeyError, ValueError) as error:
            raise MessageError(f"not what a multicast server answers to a client: {error!s:.120}") from None


def report_every(clients: int) -> float:
    """Seconds between two reports of each of so many clients."""
    return min(max(REPORT_EVERY, clients / MOST_REPORTS), _SELDOM)


def _text(value: Any, most: int = _MOST_NAME) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise MessageError(f"{value!r:.40} is no text of up to {most} characters")
    return value


def _number(value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise MessageError(f"{value!r:.40} is no number from {least} to {most}")
    return value


def _fraction(value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise MessageError(f"{value!r:.40} is no number from 0 to {most:g}")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise MessageError(f"{value!r:.40} is neither true nor false")
    return value
