"""The control API: its paths, its messages, and how a client finds it. The one description that both sides import.

All bodies are JSON. Digests are answered as JSON lines, one for each range, in the order of the request, each sent when
it is known:

    POST /v1/exports/sda/digests  {"algorithm": "blake3", "ranges": [[0, 1048576], [1048576, 1048576]]}
    {"offset": 0, "length": 1048576, "digest": "af13…"}
    {"offset": 1048576, "length": 1048576, "digest": "9c02…"}

A failure after the first line is a last line `{"error": "…"}`; one before it is a 4xx status with the same object.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Self
from urllib.parse import quote

DEFAULT_PORT: Final = 10810
EXPORTS: Final = "/v1/exports"
DIGESTS: Final = "/v1/exports/{name}/digests"
EVENTS: Final = "/v1/events"
METRICS: Final = "/metrics"

ALGORITHMS: Final = ("xxh3-128", "blake3", "sha256")
MAX_RANGES: Final = 4096  # of one digests request
MAX_RANGE: Final = 64 << 20  # bytes of one range
MAX_BODY: Final = 1 << 20

NAMESPACE: Final = "targetmode:"
SESSION_HEADER: Final = "Targetmode-Session"  # of every digests answer: the run of the server that it is from


class MessageError(ValueError):
    """A message of the control API that does not have its shape; `str()` says what is wrong."""


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Where an export's control API is, as its server says in-band among the metadata contexts.

    Attributes:
        port: TCP port, on the host that the export is on.
        session: names this run of the server, so that a forwarded port cannot be taken for another machine's.
    """

    port: int
    session: str

    def contexts(self) -> tuple[str, ...]:
        """The metadata contexts that say this."""
        return (f"{NAMESPACE}control={self.port}", f"{NAMESPACE}session={self.session}")

    @classmethod
    def from_contexts(cls, contexts: tuple[str, ...]) -> Self | None:
        """What the contexts of a handshake say; None where there is no control API."""
        values = dict(c.removeprefix(NAMESPACE).partition("=")[::2] for c in contexts if c.startswith(NAMESPACE))
        port = values.get("control", "")
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
            return None
        return cls(int(port), values.get("session", ""))


@dataclass(frozen=True, slots=True)
class ExportDescription:
    """One export in the answer to `GET /v1/exports`.

    Attributes:
        name: export name.
        size: bytes.
        read_only: whether it can be written.
        model: the disk's maker and model, or what the image file is; may be empty.
        contents: what is on it, in one line.
        connections: addresses of the clients that use it now.
    """

    name: str
    size: int
    read_only: bool
    model: str
    contents: str
    connections: list[str]

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read it back.

        Raises:
            TypeError: it has another shape.
        """
        export = cls(**value)
        texts = (export.name, export.model, export.contents)
        right = all(isinstance(text, str) for text in texts) and type(export.size) is int and export.size >= 0
        right = right and isinstance(export.read_only, bool) and isinstance(export.connections, list)
        if not (right and all(isinstance(peer, str) for peer in export.connections)):
            raise TypeError(f"no description of an export: {value!r:.80}")
        return export


@dataclass(frozen=True, slots=True)
class ExportsAnswer:
    """The answer to `GET /v1/exports`.

    Attributes:
        session: as in `ControlAddress`.
        name: what this machine calls itself.
        exports: whole disks and their partitions, as they are now.
    """

    session: str
    name: str
    exports: list[ExportDescription]

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
            exports = [ExportDescription.from_json(export) for export in value["exports"]]
            return cls(str(value["session"]), str(value["name"]), exports)
        except (TypeError, KeyError) as error:
            raise MessageError(f"not an answer of {EXPORTS}: {error!s:.80}") from None


@dataclass(frozen=True, slots=True)
class DigestRequest:
    """The body of a digests request.

    Attributes:
        algorithm: one of `ALGORITHMS`.
        ranges: (offset, length) in bytes, each within the export and not empty.
    """

    algorithm: str
    ranges: list[tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {"algorithm": self.algorithm, "ranges": self.ranges}

    @classmethod
    def from_json(cls, value: Any, size: int) -> Self:
        """Read and check it against an export of `size` bytes.

        Raises:
            MessageError: it has another shape, an unknown algorithm, too many or too long ranges, or some outside.
        """
        if not isinstance(value, dict) or not isinstance(value.get("ranges"), list):
            raise MessageError('the body has to be {"algorithm": "…", "ranges": [[offset, length], …]}')
        algorithm, ranges = value.get("algorithm"), value["ranges"]
        if algorithm not in ALGORITHMS:
            raise MessageError(f"unknown algorithm {algorithm!r:.80}; there are {', '.join(ALGORITHMS)}")
        if not 0 < len(ranges) <= MAX_RANGES:
            raise MessageError(f"{len(ranges)} ranges; 1 to {MAX_RANGES} may be asked for at once")
        checked = []
        for pair in ranges:
            if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
                raise MessageError(f"a range is [offset, length] in bytes, not {pair!r:.80}")
            offset, length = pair
            if offset < 0 or not 0 < length <= MAX_RANGE or offset + length > size:
                raise MessageError(
                    f"range [{offset}, {length}] is outside the export, or longer than {MAX_RANGE} bytes"
                )
            checked.append((offset, length))
        return cls(algorithm, checked)


@dataclass(frozen=True, slots=True)
class DigestLine:
    """One line of a digests answer.

    Attributes:
        offset, length: the range, in bytes.
        digest: lower-case hexadecimal.
    """

    offset: int
    length: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read it back.

        Raises:
            MessageError: it has another shape, or it is the error line that ends a failed answer.
        """
        if isinstance(value, dict) and "error" in value:
            raise MessageError(str(value["error"]))
        try:
            offset, length, digest = value["offset"], value["length"], value["digest"]
        except (TypeError, KeyError):
            offset = length = digest = None
        if not (type(offset) is int and type(length) is int and isinstance(digest, str) and offset >= 0 and length > 0):
            raise MessageError(f"not a line of a digests answer: {value!r:.80}")
        return cls(offset, length, digest)


def digests_path(name: str) -> str:
    """The path of an export's digests."""
    return DIGESTS.replace("{name}", quote(name, safe=""))
