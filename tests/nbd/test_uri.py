"""NBD URIs: the specification's examples, what other programs trip over, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.errors import URIError
from nbd.uri import NBDURI
from tests.support import examples


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://example.com:10809/export", NBDURI("example.com", export="export")),
        ("nbd+unix:///export?socket=nbd.sock", NBDURI(export="export", socket="nbd.sock")),
        ("nbd://example.com/disk", NBDURI("example.com", export="disk")),
        ("nbd+unix:///disk?socket=sock", NBDURI(export="disk", socket="sock")),
        ("nbd://example.com/", NBDURI("example.com")),
        ("nbd://example.com", NBDURI("example.com")),
        ("nbd://example.com//disk", NBDURI("example.com", export="/disk")),
        ("nbd://example.com/hello%20world", NBDURI("example.com", export="hello world")),
        ("nbd+unix:///?socket=%00/abstract", NBDURI(socket="\0/abstract")),
        ("nbds://example.com/disk", NBDURI("example.com", export="disk", tls=True)),
        ("nbds+unix:///disk?socket=s", NBDURI(export="disk", socket="s", tls=True)),
    ],
)
def test_examples_of_the_specification(text: str, uri: NBDURI) -> None:
    assert NBDURI.parse(text) == uri
    assert NBDURI.parse(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://192.0.2.7:1/x", NBDURI("192.0.2.7", 1, "x")),
        ("nbd://[2001:db8::7]/x", NBDURI("2001:db8::7", export="x")),
        ("nbd://[::1]:65535/", NBDURI("::1", 65535)),
        ("nbd://[fe80::1%25eth0]/", NBDURI("fe80::1%eth0")),
        ("NBD://example.com:/", NBDURI("example.com")),
        ("nbd://user@example.com/", NBDURI("example.com")),
        ("nbd://h/a/b%2Fc", NBDURI("h", export="a/b/c")),
        ("nbd://h/%23%3F%25", NBDURI("h", export="#?%")),
        ("nbd://h/Gr%C3%BC%C3%9Fe", NBDURI("h", export="Grüße")),
        ("nbd://h/Grüße", NBDURI("h", export="Grüße")),
        ("nbd+unix:///?socket=/tmp/a%20b", NBDURI(socket="/tmp/a b")),
        ("nbd+unix:///?socket=/tmp/a+b", NBDURI(socket="/tmp/a+b")),
        ("nbd+unix:///?socket=/tmp/%FF", NBDURI(socket="/tmp/\udcff")),
        ("nbd+unix://ignored/x?socket=s", NBDURI(export="x", socket="s")),
        ("nbds://h/?tls-type=x509&tls-verify-peer=1", NBDURI("h", tls=True)),
    ],
)
def test_other_uris(text: str, uri: NBDURI) -> None:
    assert NBDURI.parse(text) == uri
    assert NBDURI.parse(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        "disk.img",
        "/dev/sda",
        "http://example.com/",
        "nbd",
        "nbd:example.com:10809",
        "nbd:unix:/tmp/sock",
        "nbd:///export",
        "nbd+ssh://example.com/",
        "nbd+unix:///export",
        "nbd+unix:///export?socket=",
        "nbd+unix:///?socket=a&socket=b",
        "nbd+unix:///?socket=a%00b",
        "nbd://-oProxyCommand=x/",
        "nbd://user@-oProxyCommand=x/",
        "nbd://h:port/",
        "nbd://h:65536/",
        "nbd://h:0/",
        "nbd://h:-1/",
        "nbd://[::1/",
        "nbd://::1]/",
        "nbd://h/a%00b",
        "nbd://h/" + "x" * 4097,
        "nbd://h/%FF",
        "nbd://h/a\nb",
        "nbd://h\t/a",
        " nbd://h/a",
        "nbd://h/a b",
        "nbd://h/\udcff",
        "nbd://h/disk#1",
        "nbd://h/disk?1",
        "nbd://h/?socket=s",
        "nbd+unix:///?socket=s&sokcet=t",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(URIError):
        NBDURI.parse(text)


def test_the_longest_name_is_accepted() -> None:
    assert NBDURI.parse("nbd://h/" + "x" * 4096).export == "x" * 4096


def test_with_export() -> None:
    assert NBDURI.parse("nbd://h:1/a").with_export("b c") == NBDURI("h", 1, "b c")


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@examples(200)
@given(
    st.one_of(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True), st.ip_addresses().map(str)),
    st.integers(1, 65535),
    NAMES,
    st.booleans(),
)
def test_tcp_round_trip(host: str, port: int, export: str, tls: bool) -> None:
    uri = NBDURI(host, port, export, tls=tls)
    assert NBDURI.parse(str(uri)) == uri


@examples(200)
@given(NAMES, NAMES.filter(bool), st.booleans(), st.booleans())
def test_unix_round_trip(export: str, path: str, abstract: bool, tls: bool) -> None:
    uri = NBDURI(export=export, socket="\0" + path if abstract else path, tls=tls)
    assert NBDURI.parse(str(uri)) == uri


@examples(200)
@given(st.sampled_from(["", "nbd://", "nbd://h/", "nbd+unix:///?socket="]), st.text(max_size=60))
def test_any_text_parses_or_is_refused(start: str, text: str) -> None:
    try:
        uri = NBDURI.parse(start + text)
    except URIError:
        return
    assert NBDURI.parse(str(uri)) == uri
    assert not uri.host.startswith("-")
