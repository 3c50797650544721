"""NBD URIs (`doc/uri.md` of NetworkBlockDevice/nbd): where a server is, and which of its exports is meant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote, unquote, urlsplit

from nbd.errors import URIError
from nbd.wire import DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class NBDURI:
    """An NBD URI, taken apart.

    Attributes:
        host: name or address; empty where `socket` is set.
        port: TCP port.
        export: export name, `""` for the default one.
        socket: path of a Unix socket, None for TCP; a leading NUL means the abstract namespace.
        tls: whether TLS is demanded (`nbds`).
    """

    host: str = ""
    port: int = DEFAULT_PORT
    export: str = ""
    socket: str | None = None
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> NBDURI:
        """Take apart `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`.

        Raises:
            URIError: it is no such URI; the message says what is wrong with it.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise URIError(f"{text}: {error}") from None
        scheme, _, transport = parts.scheme.partition("+")
        if scheme not in ("nbd", "nbds") or transport not in ("", "unix"):
            raise URIError(f"{text}: an NBD URI begins with nbd:// or nbd+unix://")
        export = unquote(parts.path.removeprefix("/"))
        if "\0" in export or len(export.encode()) > 4096:
            raise URIError(f"{text}: an export name has at most 4096 bytes and no NUL")
        if transport == "unix":
            paths = parse_qs(parts.query).get("socket", [])
            if len(paths) != 1 or not paths[0]:
                raise URIError(f"{text}: a Unix socket is named by ?socket=PATH")
            return cls(export=export, socket=paths[0], tls=scheme == "nbds")
        host = parts.hostname or ""
        if not host:
            raise URIError(f"{text}: there is no host in it")
        if host.startswith("-"):
            raise URIError(f"{text}: a host name cannot begin with '-'")
        return cls(host=host, port=port or DEFAULT_PORT, export=export, tls=scheme == "nbds")

    def with_export(self, export: str) -> NBDURI:
        """The same server, another export."""
        return replace(self, export=export)

    def __str__(self) -> str:
        """The URI in its normal form."""
        scheme = "nbds" if self.tls else "nbd"
        export = quote(self.export, safe="")
        if self.socket is not None:
            return f"{scheme}+unix:///{export}?socket={quote(self.socket, safe='/')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{scheme}://{host}{port}/{export}"
