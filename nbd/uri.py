"""NBD URIs (`doc/uri.md` of NetworkBlockDevice/nbd): where a server is, and which of its exports is meant."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from nbd.errors import URIError
from nbd.wire import DEFAULT_PORT, MAX_STRING


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
        if " " in text or not text.isprintable():
            raise URIError(f"{text!r}: spaces and control characters have to be percent-encoded")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise URIError(f"{text}: {error}") from None
        scheme, _, transport = parts.scheme.partition("+")
        if scheme not in ("nbd", "nbds") or transport not in ("", "unix"):
            raise URIError(f"{text}: an NBD URI begins with nbd:// or nbd+unix://")
        if "#" in text:
            raise URIError(f"{text}: a '#' has to be written as %23")
        try:
            export = unquote(parts.path.removeprefix("/"), errors="strict")
        except UnicodeDecodeError:
            raise URIError(f"{text}: an export name is UTF-8") from None
        if "\0" in export or len(export.encode()) > MAX_STRING:
            raise URIError(f"{text}: an export name has at most {MAX_STRING} bytes and no NUL")
        parameters = _parameters(text, parts.query)
        if transport == "unix":
            path = parameters.get("socket", "")
            if not path or "\0" in path[1:]:
                raise URIError(f"{text}: a Unix socket is named by ?socket=PATH")
            return cls(export=export, socket=path, tls=scheme == "nbds")
        if "socket" in parameters:
            raise URIError(f"{text}: a Unix socket needs nbd+unix://")
        host = host.replace("%25", "%")  # before an IPv6 address's zone
        if not host:
            raise URIError(f"{text}: there is no host in it")
        if host.startswith("-"):
            raise URIError(f"{text}: a host name cannot begin with '-'")
        if port == 0:
            raise URIError(f"{text}: there is no port 0")
        return cls(host=host, port=port or DEFAULT_PORT, export=export, tls=scheme == "nbds")

    def with_export(self, export: str) -> NBDURI:
        """The same server, another export."""
        return replace(self, export=export)

    def __str__(self) -> str:
        """The URI in its normal form."""
        scheme = "nbds" if self.tls else "nbd"
        export = quote(self.export, safe="")
        if self.socket is not None:
            return f"{scheme}+unix:///{export}?socket={quote(os.fsencode(self.socket), safe='/')}"
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{scheme}://{host}{port}/{export}"


def _parameters(text: str, query: str) -> dict[str, str]:
    """The query's parameters; those on TLS are let through, others that nobody knows are refused.

    A `+` is a plus here: that it means a space is a rule of HTML forms, not of URIs.
    """
    parameters: dict[str, str] = {}
    for parameter in filter(None, query.split("&")):
        name, _, value = parameter.partition("=")
        if name != "socket" and not name.startswith("tls-"):
            raise URIError(f"{text}: unknown parameter {name}")
        if name in parameters:
            raise URIError(f"{text}: the parameter {name} stands twice")
        parameters[name] = os.fsdecode(unquote_to_bytes(value))
    return parameters
