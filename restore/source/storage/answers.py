"""What a web server's answer says of what it sends: which version, which bytes; or why it does not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from restore.source.storage.web import Answer, Lie
from targetmode.disks.text import printable

_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_ETAG = re.compile(r'(W/)?"[!\x23-\x7e\x80-\xff]{0,1000}"')
_DATE = re.compile(r"[ -~]{1,60}")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one content of a URL from another, as far as the server says."""

    etag: str | None
    modified: str | None

    @classmethod
    def of(cls, answer: Answer) -> Version:
        """What an answer says; what is not as the standard has it counts for nothing."""
        etag, modified = answer.field("etag") or "", answer.field("last-modified") or ""
        return cls(
            etag if _ETAG.fullmatch(etag) else None,
            modified if _DATE.fullmatch(modified) else None,
        )

    def contradicts(self, other: Version) -> bool:
        """Whether they are not of the same content; an answer to If-Range need not repeat what was in there."""
        pairs = ((self.etag, other.etag), (self.modified, other.modified))
        return any(mine is not None and its is not None and mine != its for mine, its in pairs)

    @property
    def strong(self) -> bool:
        """Whether an equal one means equal bytes."""
        return self.etag is not None and not self.etag.startswith("W/")

    @property
    def condition(self) -> dict[str, str]:
        """The field that has the server send a range of this version only."""
        value = self.etag if self.strong else self.modified
        return {"If-Range": value} if value else {}


def content_range(answer: Answer) -> tuple[int, int, int | None]:
    """Start and end of what is sent, and the size of all, in bytes; None where the server does not know that.

    RFC 9110 section 14.4.

    Raises:
        Lie: it makes no sense.
    """
    told = answer.all("content-range")
    found = _RANGE.fullmatch(told[0]) if len(told) == 1 else None
    if found is None:
        raise Lie(f"it does not say which bytes it sends ({printable(told[0]) if told else 'no Content-Range'})")
    start, end = int(found[1]), int(found[2]) + 1
    total = None if found[3] == "*" else int(found[3])
    if start >= end or (total is not None and end > total):
        raise Lie(f"it sends bytes {start} to {end - 1} of {total}")
    if answer.length not in (None, end - start):
        raise Lie(f"it sends {answer.length} bytes as bytes {start} to {end - 1}")
    return start, end, total


def advice(status: int, answer: Answer, logged_in: bool) -> str:
    """What a status means here, and what to do."""
    match status:
        case 401 if not any(text.lower().startswith("basic") for text in answer.all("www-authenticate")):
            return "the server wants another kind of login than by name and password"
        case 401 if logged_in:
            return "the server does not accept the user name and password; check the URL or ~/.netrc"
        case 401:
            return "the server wants a user name and password; put them into ~/.netrc"
        case 403:
            return "the server does not let it be read; check its permissions, and whether a signed URL is too old"
        case 404 | 410:
            return "the server has no such file; check the URL"
        case 407:
            return "the proxy wants a user name and password; put them into http_proxy"
        case 416:
            return "the server has no such range of it"
        case 429:
            return "the server is asked too often; wait, or say fewer connections"
        case _ if status >= 500:
            return "the server has failed; see its log, or try again later"
    return "the server does not send it"
