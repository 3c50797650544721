"""A URL taken apart: what goes to the server, what people may see of it, and who is to log in.

RFC 3986 has the syntax. User name, password and query are never shown: a query may hold a signature.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from restore.errors import Refused
from targetmode.disks.text import printable

PORTS: Final = {"http": 80, "https": 443, "s3": 443, "sftp": 22, "smb": 445}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"[A-Za-z0-9._~-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._~-]+)?")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PATH_SAFE: Final = "%/:=&~+!$,;'@()*[]|"  # besides letters and digits; what is encoded already stays
_QUERY_SAFE: Final = _PATH_SAFE + "?"
_LONGEST: Final = 32 << 10  # characters of a URL


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who logs in; neither `repr` nor `str` shows the password."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Only that there are some."""
        return "Credentials(…)"


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where something lies.

    Attributes:
        scheme: lower case.
        host: lower case ASCII, without the brackets of IPv6, with its zone.
        port: as given, or the scheme's own; 0 where it has none.
        path: percent-encoded, with the leading slash.
        query: percent-encoded, without the question mark.
        user: as given, decoded; None without one.
        password: the same.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""
    user: str | None = None
    password: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a URL apart.

        Raises:
            Refused: it is none, or has no host.
        """
        try:
            parts = urlsplit(url) if len(url) <= _LONGEST else SplitResult("", "", "", "", "")
            scheme, port = parts.scheme.lower(), parts.port
            host = unquote(parts.hostname or "")
            if not host.isascii():
                host = host.encode("idna").decode()
        except ValueError:  # its message may hold a password
            host, scheme, port = "", "", None
        if not _HOST.fullmatch(host):
            raise Refused(f"this {scheme_of(url) or 'source'} URL cannot be used: check its host and port")
        return cls(
            scheme,
            host,
            PORTS.get(scheme, 0) if port is None else port,
            _encoded(parts.path, _PATH_SAFE) or "/",
            _encoded(parts.query, _QUERY_SAFE),
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
        )

    def __str__(self) -> str:
        """What people may see."""
        return printable(f"{self.origin}{self.path}")

    __repr__ = __str__

    @property
    def origin(self) -> str:
        """Scheme, host and port, the port only where it is not the scheme's own."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as the Host field has them."""
        return self.netloc if self.port not in (0, PORTS.get(self.scheme)) else self.bracketed

    @property
    def netloc(self) -> str:
        """Host and port, always with the port."""
        return f"{self.bracketed}:{self.port}"

    @property
    def bracketed(self) -> str:
        """The host as a URL has it."""
        return f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host

    @property
    def target(self) -> str:
        """Path and query, as a request has them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def joined(self, location: str) -> Address:
        """Where a `Location` field leads to from here; without credentials. Raises `Refused`."""
        try:
            joined = urljoin(f"{self.origin}{self.target}", location)
        except ValueError:
            joined = ""
        found = Address.parse(joined)
        return replace(found, user=None, password=None)

    def beside(self, suffix: str) -> Address:
        """What has the same name with something behind it."""
        return replace(self, path=self.path + suffix)

    def credentials(self) -> Credentials | None:
        """From the URL, else from `~/.netrc` or the file that NETRC names.

        Raises:
            Refused: that file cannot be used.
        """
        if self.user is not None and self.password is not None:
            return Credentials(self.user, self.password)
        named = os.environ.get("NETRC")
        path = Path(named) if named else Path.home() / ".netrc"
        try:
            found = netrc(named).authenticators(self.host)
        except FileNotFoundError:
            found = None
        except NetrcParseError as error:
            raise Refused(f"{path}: {printable(error.msg)}") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise Refused(f"{path}: {reason}") from None
        if found is not None and self.user in (None, found[0]):
            return Credentials(found[0] or "", found[2] or "")
        return None if self.user is None else Credentials(self.user, "")


def scheme_of(place: str) -> str | None:
    """The scheme of what looks like a URL, lower case; None for a path."""
    found = _URL.match(place)
    return found[1].lower() if found else None


def _encoded(text: str, safe: str) -> str:
    """What is not allowed in a URL percent-encoded, spaces and UTF-8 included."""
    return quote(_LONE_PERCENT.sub("%25", text), safe=safe, errors="surrogateescape")
