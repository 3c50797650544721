from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.errors import Refused
from restore.source.storage.address import Address, Credentials, scheme_of
from tests.support import examples


@pytest.mark.parametrize(
    ("url", "shown", "target", "host", "port"),
    [
        ("http://h/a", "http://h/a", "/a", "h", 80),
        ("HTTP://H", "http://h/", "/", "h", 80),
        ("https://h:443/a?b=c#d", "https://h/a", "/a?b=c", "h", 443),
        ("https://u:p@h:8443/a%20b/%zz?b c", "https://h:8443/a%20b/%25zz", "/a%20b/%25zz?b%20c", "h", 8443),
        ("http://[2001:DB8::1]:81/ü", "http://[2001:db8::1]:81/%C3%BC", "/%C3%BC", "2001:db8::1", 81),
        ("http://[fe80::1%25eth0]/a", "http://[fe80::1]/a", "/a", "fe80::1%eth0", 80),
        ("http://bücher.example/", "http://xn--bcher-kva.example/", "/", "xn--bcher-kva.example", 80),
        ("sftp://me@h/a", "sftp://h/a", "/a", "h", 22),
        ("http://h/a\r\nX: y", "http://h/aX:%20y", "/aX:%20y", "h", 80),
        ("http://h/\x1b[31m", "http://h/%1B[31m", "/%1B[31m", "h", 80),
    ],
)
def test_taken_apart(url: str, shown: str, target: str, host: str, port: int) -> None:
    address = Address.parse(url)
    assert (str(address), repr(address), address.target, address.host, address.port) == (
        shown, shown, target, host, port,
    )  # fmt: skip


@given(st.text(max_size=40), st.sampled_from(["http://", "https://u:pw@h", "smb://", "http://[", "s3://b/", ""]))
@examples(100)
def test_anything(text: str, begin: str) -> None:
    """A URL is refused, or all of what goes to a server is one line without blanks."""
    try:
        address = Address.parse(begin + text)
    except Refused as error:
        assert "\n" not in str(error)
        return
    sent = address.target + address.authority + address.netloc
    assert sent.isascii()
    assert sent.isprintable()
    assert " " not in sent
    assert str(address).isprintable()


def test_where_a_redirect_leads() -> None:
    here = Address.parse("https://u:secret@h:8443/a/b?c=d")
    for location, there in [
        ("e", "https://h:8443/a/e"),
        ("/e?f", "https://h:8443/e?f"),
        ("//i/e", "https://i/e"),
        ("http://x:y@i:8/e f", "http://i:8/e%20f"),
    ]:
        found = here.joined(location)
        assert f"{found.origin}{found.target}" == there
        assert (found.user, found.password) == (None, None)


def test_beside() -> None:
    address = Address.parse("https://u:p@h/a.img?token=x").beside(".bmap.sshsig")
    assert (address.target, address.user, address.password) == ("/a.img.bmap.sshsig?token=x", "u", "p")


def test_who_logs_in(home: Path) -> None:
    def credentials(url: str) -> tuple[str, str] | None:
        found = Address.parse(url).credentials()
        return None if found is None else (found.user, found.password)

    assert credentials("http://h/") is None
    assert credentials("http://u:p%40@h/") == ("u", "p@")
    assert credentials("http://u@h/") == ("u", "")
    (home / ".netrc").write_text("machine h login a password b\ndefault login c password d\n")
    (home / ".netrc").chmod(0o600)
    assert credentials("http://h/") == ("a", "b")
    assert credentials("http://a@h/") == ("a", "b")
    assert credentials("http://u@h/") == ("u", "")
    assert credentials("http://i/") == ("c", "d")
    assert repr(Credentials("u", "secret")) == str(Credentials("u", "secret")) == "Credentials(…)"


def test_schemes() -> None:
    assert scheme_of("HTTP://h/") == "http"
    assert [scheme_of(place) for place in ("/a", "a:b", "C:\\x", "./http://h", "")] == [None] * 5
