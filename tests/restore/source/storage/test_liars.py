"""Web servers whose answers are wrong, hostile or slow: an error, soon, and never wrong bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from http import HTTPStatus

import pytest

from restore.errors import Refused, RestoreError
from restore.source import SourceSettings
from restore.source.storage.address import Address
from restore.source.storage.http import HTTPStorage
from restore.source.storage.web import Lost
from tests.restore.source.storage.servers import Liar, asked, partial
from tests.serving import pattern

DATA = pattern(600_000, seed=8)
ETAG = 'ETag: "1"'
Answers = Callable[[str, int], Iterable[bytes]]


def honest(head: str, number: int) -> Iterator[bytes]:
    start, end = asked(head)
    end = min(end, len(DATA))
    yield partial(DATA, start, end, ETAG) + DATA[start:end]


def then(later: Answers, first: Answers = honest) -> Answers:
    """The first answer is one thing, the others are another."""
    return lambda head, number: later(head, number) if number else first(head, number)


def fixed(*pieces: bytes) -> Answers:
    return lambda head, number: pieces


def with_fields(*fields: str, body: bytes = b"", status: str = "206 Partial Content") -> Answers:
    lines = (f"HTTP/1.1 {status}", *fields, "")
    return fixed("".join(f"{line}\r\n" for line in lines).encode() + body)


def attempt(answers: Answers, *, timeout: float = 0.6) -> bytes:
    """What is read behind the first piece."""
    with Liar(answers).started() as liar:
        try:
            storage = HTTPStorage(Address.parse(liar.url()), SourceSettings(timeout=timeout))
            with closing(storage):
                return storage.read(300_000, 200_000) if storage.seekable else b"".join(storage.stream())
        except RestoreError as error:
            begin = f"{liar.url()}"
            assert str(error).startswith(begin), error
            raise type(error)(str(error).removeprefix(begin)) from None


def test_honest() -> None:
    assert attempt(honest) == DATA[300_000:500_000]


NONSENSE = ": the server's answer makes no sense: "
CHANGED = " was changed on the server meanwhile; begin again"
ALL = f"Content-Length: {len(DATA)}"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (then(lambda h, n: [partial(DATA, 300_001, 500_001, ETAG) + DATA[300_001:500_001]]),
         NONSENSE + "it sends bytes 300001 to 500000, and was asked for 300000 to 499999"),
        (then(lambda h, n: [partial(DATA, 300_000, 400_000, ETAG) + DATA[300_000:400_000]]),
         NONSENSE + "it sends bytes 300000 to 399999, and was asked for 300000 to 499999"),
        (then(lambda h, n: [partial(DATA, 300_000, 500_000, ETAG, total=700_000) + DATA[300_000:500_000]]), CHANGED),
        (then(lambda h, n: [partial(DATA, 300_000, 500_000, 'ETag: "2"') + DATA[300_000:500_000]]), CHANGED),
        (then(with_fields(ALL, 'ETag: "2"', status="200 OK")), CHANGED),
        (then(with_fields(ALL, ETAG, status="200 OK")), CHANGED),
        (then(with_fields(ETAG, "Content-Range: bytes */600000", "Content-Length: 0",
                          status="416 Range Not Satisfiable")), CHANGED),
        (then(with_fields(ETAG, "Content-Length: 200000")),
         NONSENSE + "it does not say which bytes it sends (no Content-Range)"),
        (then(with_fields(ETAG, "Content-Range: bytes 300000-\x1b[31m/1", "Content-Length: 200000")),
         NONSENSE + "it does not say which bytes it sends (bytes 300000-\N{REPLACEMENT CHARACTER}[31m/1)"),
        (then(with_fields(ETAG, "Content-Range: bytes 300000-499999/600000", "Content-Length: 199999")),
         NONSENSE + "it sends 199999 bytes as bytes 300000 to 499999"),
        (then(with_fields(ETAG, "Content-Range: bytes 300000-499999/400000")),
         NONSENSE + "it sends bytes 300000 to 499999 of 400000"),
        (then(with_fields(ETAG, "Content-Range: bytes 499999-300000/600000")),
         NONSENSE + "it sends bytes 499999 to 300000 of 600000"),
        (then(with_fields("Content-Length: 5", "Content-Length: 6")),
         NONSENSE + "its length is told in a way that makes no sense"),
        (then(with_fields("Content-Length: -5")), NONSENSE + "its length is told in a way that makes no sense"),
        (then(with_fields("Transfer-Encoding: gzip, chunked")),
         NONSENSE + "it is transferred as gzip, chunked, which was not asked for"),
        (then(with_fields(ETAG, "Content-Encoding: br", "Content-Range: bytes 300000-499999/600000")),
         ": the server sends it encoded (br), though the plain bytes were asked for; switch that off there for this "
         "file"),
        (then(with_fields(ETAG, "Transfer-Encoding: chunked", "Content-Range: bytes 300000-499999/600000",
                          body=b"30d41\r\n" + DATA[300_000:500_001] + b"\r\n0\r\n\r\n")),
         NONSENSE + "it is longer than it says"),
        (then(with_fields(ETAG, "Connection: close", "Content-Range: bytes 300000-499999/600000",
                          body=DATA[300_000:500_001])), NONSENSE + "it is longer than it says"),
        (then(with_fields("Location: http://[", status="302 Found")), None),
        (then(with_fields(status="302 Found")), NONSENSE + "it redirects to nowhere"),
        (then(with_fields("Location: ftp://elsewhere/", status="302 Found")),
         ": the server redirects to ftp://elsewhere/, which is no web server"),
        (then(with_fields("Content-Length: 0", status="404 Not Found")),
         ": the server has no such file; check the URL (404 Not Found)"),
        (then(with_fields("Content-Length: 0", status="418 Short And Stout")),
         ": the server does not send it (418 I'm a Teapot)"),
    ],
)  # fmt: skip
def test_later_answers(answers: Answers, message: str | None) -> None:
    if message is None:
        with Liar(answers).started() as liar, pytest.raises(Refused, match="this source URL cannot be used"):
            storage = HTTPStorage(Address.parse(liar.url()), SourceSettings(timeout=0.6))
            with closing(storage):
                storage.read(300_000, 200_000)
        return
    with pytest.raises(RestoreError) as caught:
        attempt(answers)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (with_fields("Content-Range: bytes 0-9/*", body=b"0123456789"),
         ": the server does not say how large it is"),
        (with_fields("Content-Range: bytes 0-9/600000", body=b"0123456789"),
         NONSENSE + "it sends bytes 0 to 9, and was asked for 0 to 262143"),
        (with_fields("Content-Range: bytes */0", status="416 Range Not Satisfiable"), " is empty"),
        (with_fields(status="416 Range Not Satisfiable"),
         f": the server has no such range of it (416 {HTTPStatus(416).phrase})"),
        (with_fields(status="200 OK", body=DATA),
         ": the server tells neither how large it is nor where it ends, so that a cut could not be noticed; download "
         "it first"),
        (with_fields("WWW-Authenticate: Digest realm=x", status="401 Unauthorized"),
         ": the server wants another kind of login than by name and password (401 Unauthorized)"),
        (with_fields(status="429 Too Many Requests"),
         ": the server is asked too often; wait, or say fewer connections (429 Too Many Requests)"),
        (fixed(b"SSH-2.0-OpenSSH_9.2\r\n"), ": what the server answers is not HTTP"),
        (fixed(), ": the server closed the connection"),
        (fixed(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"), ": what the server answers is not HTTP"),
        (fixed(b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000), ": what the server answers is not HTTP"),
    ],
)  # fmt: skip
def test_first_answers(answers: Answers, message: str) -> None:
    with pytest.raises(RestoreError) as caught:
        attempt(answers)
    assert str(caught.value) == message


def drip(data: bytes, forever: bytes = b"") -> Answers:
    def slowly(head: str, number: int) -> Iterator[bytes]:
        for at in range(len(data)):
            yield data[at : at + 1]
            time.sleep(0.02)
        while forever:
            yield forever
            time.sleep(0.02)

    return slowly


@pytest.mark.parametrize(
    "answers",
    [
        drip(b"HTTP/1.1 206 Partial Content\r\n" * 20),
        drip(b"HTTP/1.1 200 OK\r\n", forever=b"a"),
        drip(b"", forever=b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["status", "field", "interim answers"],
)
def test_slow_heads(answers: Answers) -> None:
    started = time.monotonic()
    with pytest.raises(Refused) as caught:
        attempt(answers)
    assert str(caught.value) == ": no answer within 0.6 seconds"
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("chunked", [False, True])
def test_slow_bodies(chunked: bool) -> None:
    def slowly(head: str, number: int) -> Iterator[bytes]:
        start, end = asked(head)
        if chunked:
            yield b"HTTP/1.1 206 .\r\nTransfer-Encoding: chunked\r\n"
            yield f"Content-Range: bytes {start}-{end - 1}/600000\r\n\r\n".encode()
        else:
            yield partial(DATA, start, end)
        for at in range(start, end):
            yield b"1\r\n" + DATA[at : at + 1] + b"\r\n" if chunked else DATA[at : at + 1]
            time.sleep(0.01)

    started = time.monotonic()
    with pytest.raises(RestoreError, match="see whether the server is there"):
        attempt(then(slowly))
    assert time.monotonic() - started < 5


def test_failing_for_a_while() -> None:
    notes: list[str] = []

    def answer(head: str, number: int) -> Iterable[bytes]:
        if 0 < number < 4:
            return [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"]
        return honest(head, number)

    with Liar(answer).started() as liar:
        storage = HTTPStorage(Address.parse(liar.url()), SourceSettings(notify=notes.append))
        with closing(storage):
            assert storage.read(300_000, 200_000) == DATA[300_000:500_000]
    (note,) = notes
    assert note.startswith(
        f"{liar.url()}: the connection was lost (the server answers 503 Service Unavailable), and is"
    )


@pytest.mark.parametrize("ending", ["chunked", "close"])
def test_ranges_in_other_shapes(ending: str) -> None:
    """RFC 9112 section 6.3: a range may come in chunks, or up to the end of the connection."""

    def answer(head: str, number: int) -> Iterator[bytes]:
        start, end = asked(head)
        end = min(end, len(DATA))
        yield f"HTTP/1.1 206 .\r\nContent-Range: bytes {start}-{end - 1}/{len(DATA)}\r\n".encode()
        if ending == "close":
            yield b"Connection: close\r\n\r\n" + DATA[start:end]
            return
        yield b"Transfer-Encoding: chunked\r\n\r\n"
        for at in range(start, end, 30_000):
            piece = DATA[at : min(at + 30_000, end)]
            yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        yield b"0\r\n\r\n"

    assert attempt(answer) == DATA[300_000:500_000]


@pytest.mark.parametrize("cut", [False, True])
def test_without_ranges_in_chunks(cut: bool) -> None:
    """Its size is not known; that it is whole shows in the last chunk."""

    def answer(head: str, number: int) -> Iterator[bytes]:
        yield b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "1"\r\n\r\n'
        for at in range(0, len(DATA), 7000):
            if cut and number == 0 and at > 400_000:
                return
            piece = DATA[at : at + 7000]
            yield f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
        yield b"0\r\n\r\n"

    with Liar(answer).started() as liar:
        storage = HTTPStorage(Address.parse(liar.url()), SourceSettings())
        with closing(storage):
            assert storage.size is None
            assert b"".join(storage.stream()) == DATA
    assert len(liar.heads) == (2 if cut else 1)


def test_what_is_sent() -> None:
    with Liar(honest).started() as liar:
        url = f"http://ann:secret@127.0.0.1:{liar.port}/a b?x=y#part"
        with closing(HTTPStorage(Address.parse(url), SourceSettings())) as storage:
            storage.read(300_000, 200_000)
    first, second = (head.splitlines() for head in liar.heads)
    assert first == [
        "GET /a%20b?x=y HTTP/1.1",
        f"Host: 127.0.0.1:{liar.port}",
        "User-Agent: asr (targetmode)",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Range: bytes=0-262143",
        "Authorization: Basic YW5uOnNlY3JldA==",
    ]
    assert second[5:7] == ["Range: bytes=300000-499999", 'If-Range: "1"']
    assert storage.name == f"http://127.0.0.1:{liar.port}/a%20b"


@pytest.mark.parametrize(
    ("fields", "condition"),
    [
        ((ETAG, "Last-Modified: Fri, 27 Nov 2026 06:36:09 GMT"), '"1"'),
        (('ETag: W/"1"', "Last-Modified: Fri, 27 Nov 2026 06:36:09 GMT"), "Fri, 27 Nov 2026 06:36:09 GMT"),
        (('ETag: W/"1"',), None),
        (("ETag: 1\r\n x: y",), None),
    ],
)
def test_conditions(fields: tuple[str, ...], condition: str | None) -> None:
    def answer(head: str, number: int) -> Iterator[bytes]:
        start, end = asked(head)
        end = min(end, len(DATA))
        yield partial(DATA, start, end, *fields) + DATA[start:end]

    with Liar(answer).started() as liar, closing(HTTPStorage(Address.parse(liar.url()), SourceSettings())) as storage:
        storage.read(300_000, 200_000)
    found = [line.partition(": ")[2] for line in liar.heads[1].splitlines() if line.startswith("If-Range")]
    assert found == ([] if condition is None else [condition])


def test_credentials_stay_with_their_host() -> None:
    with Liar(honest).started() as other, Liar(honest).started() as liar:
        liar.answer = with_fields(f"Location: http://bob:x@127.0.0.1:{other.port}/y", status="307 .")
        url = f"http://ann:secret@127.0.0.1:{liar.port}/x"
        with closing(HTTPStorage(Address.parse(url), SourceSettings())) as storage:
            storage.read(300_000, 200_000)
    assert "Authorization: Basic" in liar.heads[0]
    assert len(other.heads) == 2
    assert not any("Authorization" in head for head in other.heads)


def test_a_redirect_that_was_good_for_a_while_is_followed_anew() -> None:
    def storing(head: str, number: int) -> Iterable[bytes]:
        good = "/1" if number < 2 else "/2"
        if good not in head.split(" ")[1]:
            return with_fields("Content-Length: 0", status="403 Expired")(head, number)
        return honest(head, number)

    with Liar(storing).started() as store:

        def redirecting(head: str, number: int) -> Iterable[bytes]:
            location = f"http://127.0.0.1:{store.port}/{number + 1}?signature=hidden"
            return with_fields(f"Location: {location}", "Content-Length: 0", status="302 .")(head, number)

        with Liar(redirecting).started() as liar:
            with closing(HTTPStorage(Address.parse(liar.url()), SourceSettings())) as storage:
                assert storage.read(300_000, 50_000) == DATA[300_000:350_000]
                assert storage.read(400_000, 200_000) == DATA[400_000:600_000]
            assert len(liar.heads) == 2


def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Liar(honest).started() as proxy:
        monkeypatch.setenv("http_proxy", f"http://eve:hidden@127.0.0.1:{proxy.port}")
        url = "http://images.example/a"
        with closing(HTTPStorage(Address.parse(url), SourceSettings())) as storage:
            assert storage.read(300_000, 200_000) == DATA[300_000:500_000]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with closing(HTTPStorage(Address.parse(f"http://127.0.0.1:{proxy.port}/b"), SourceSettings())):
            pass
    first, _, third = (head.splitlines() for head in proxy.heads)
    assert first[:2] == ["GET http://images.example/a HTTP/1.1", "Host: images.example"]
    assert "Proxy-Authorization: Basic ZXZlOmhpZGRlbg==" in first
    assert third[0] == "GET /b HTTP/1.1"
    assert not any(line.startswith("Proxy") for line in third)


def test_proxy_refuses_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    with Liar(with_fields("Content-Length: 0", status="403 No")).started() as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        with pytest.raises(Refused) as caught:
            HTTPStorage(Address.parse("https://images.example/a"), SourceSettings())
    assert str(caught.value) == (
        "https://images.example/a: the proxy answers 403 Forbidden; see https_proxy and no_proxy"
    )
    assert proxy.heads[0].splitlines()[0] == "CONNECT images.example:443 HTTP/1.1"
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    with pytest.raises(Refused, match=r"^https_proxy names a socks5:// proxy; only http:// is spoken to one$"):
        HTTPStorage(Address.parse("https://images.example/a"), SourceSettings())


def test_lost_is_an_exception_of_its_own() -> None:
    assert not issubclass(Lost, RestoreError)
