"""Real nginx, with what happens to connections in between; what its answers may be besides is in test_liars.py.

Debian packages: nginx-light openssl.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from restore.errors import Refused, RestoreError
from restore.source import SourceSettings
from restore.source.storage import Storage
from restore.source.storage.address import Address
from restore.source.storage.http import HTTPStorage
from restore.source.storage.url import fetch_beside, open_url
from tests.restore.source.storage.conftest import IMAGE
from tests.restore.source.storage.servers import Meddler, Nginx
from tests.support import assert_same_bytes, wait_until

MIB = 1 << 20


@contextmanager
def opened(url: str, *, timeout: float = 10, notes: list[str] | None = None) -> Iterator[HTTPStorage]:
    settings = SourceSettings(timeout=timeout, notify=([] if notes is None else notes).append)
    storage = HTTPStorage(Address.parse(url), settings)
    with closing(storage):
        yield storage
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


@contextmanager
def meddled(web: Nginx) -> Iterator[tuple[Meddler, str]]:
    with Meddler(web.port) as meddler:
        yield meddler, f"http://127.0.0.1:{meddler.port}"


def streamed(storage: Storage) -> bytes:
    pieces = [*storage.stream()]
    assert all(0 < len(piece) <= MIB for piece in pieces)
    return b"".join(pieces)


def leave(storage: Storage) -> None:
    """Begin to stream, and leave that."""
    stream = storage.stream()
    assert isinstance(stream, Generator)
    assert IMAGE.startswith(next(stream))
    stream.close()


def test_ranges(web: Nginx) -> None:
    with opened(web.url("image")) as storage:
        assert (storage.size, storage.seekable, storage.name) == (len(IMAGE), True, web.url("image"))
        assert storage.plain(0, 1) is None
        chance = random.Random(3)
        for _ in range(40):
            offset, length = chance.randrange(len(IMAGE) + 10), chance.choice([1, 512, 70_000, MIB, 5 * MIB])
            assert_same_bytes(storage.read(offset, length), IMAGE[offset : offset + length])
        assert storage.read(len(IMAGE), 10) == b""
        assert_same_bytes(streamed(storage), IMAGE)
        leave(storage)
        assert_same_bytes(streamed(storage), IMAGE)
        storage.check_unchanged()


def test_opening_and_looking_at_the_format_is_one_request(web: Nginx) -> None:
    before = len(web.requests())
    with opened(web.url("image")) as storage:
        assert storage.read(0, 64 << 10) == IMAGE[: 64 << 10]
    assert web.requests()[before:] == ["206 bytes=0-262143 GET /image HTTP/1.1"]
    with opened(web.url("whole/image")) as storage:
        leave(storage)
        assert_same_bytes(streamed(storage), IMAGE)
    wait_until(lambda: len(web.requests()) == before + 2, "the second request's end")


def test_small_reads_that_go_on_are_had_ahead(web: Nginx) -> None:
    before = len(web.requests())
    with opened(web.url("image")) as storage:
        for offset in range(0, len(IMAGE), 100_000):
            assert storage.read(offset, 100_000) == IMAGE[offset : offset + 100_000]
    assert len(web.requests()) - before < 10


def test_without_ranges(web: Nginx) -> None:
    with opened(web.url("whole/image")) as storage:
        assert (storage.size, storage.seekable) == (len(IMAGE), False)
        assert_same_bytes(streamed(storage), IMAGE)
        assert_same_bytes(streamed(storage), IMAGE)
        storage.check_unchanged()


def test_several_connections(web: Nginx) -> None:
    with meddled(web) as (meddler, url):
        meddler.rate = 16 * MIB
        with opened(f"{url}/image") as storage:
            assert_same_bytes(streamed(storage), IMAGE)
        assert meddler.most == meddler.connections == 4


@pytest.mark.parametrize("how", ["read", "stream"])
def test_cut_again_and_again(web: Nginx, how: str) -> None:
    notes: list[str] = []
    with meddled(web) as (meddler, url), opened(f"{url}/image", notes=notes) as storage:
        meddler.cut()
        meddler.cut_after = 700_001
        assert_same_bytes(storage.read(0, len(IMAGE)) if how == "read" else streamed(storage), IMAGE)
        assert meddler.connections > len(IMAGE) // 700_001
    (note,) = notes  # not one for each of them
    assert note.startswith(
        f"{url}/image: the connection was lost (the server closed the connection early), and is back"
    )


@pytest.mark.parametrize("where", ["whole", "blind"])
def test_cut_without_ranges(web: Nginx, where: str) -> None:
    """Also from a server that does not tell versions apart: what was had already is compared."""
    notes: list[str] = []
    with meddled(web) as (meddler, url):
        meddler.cut_after, meddler.cuts = 3_000_000, 1
        with opened(f"{url}/{where}/image", notes=notes) as storage:
            assert_same_bytes(streamed(storage), IMAGE)
            assert (len(notes), meddler.connections) == (1, 2)
            meddler.cut()
            meddler.cuts = 1 << 30
            with pytest.raises(RestoreError) as caught:
                streamed(storage)
    before, _, after = str(caught.value).partition("before byte ")
    assert before == f"{url}/{where}/image: the connection was lost 5 times "
    assert after.partition(" ")[2] == (
        "had come (the server closed the connection early), and the server does not send ranges; download it first"
    )


def test_changed_while_it_was_cut_without_ranges(web: Nginx) -> None:
    path = web.files / "changing"
    path.write_bytes(IMAGE)
    with meddled(web) as (meddler, url), opened(f"{url}/blind/changing") as storage:
        streamed(storage)
        meddler.cut()
        meddler.cut_after, meddler.cuts = 9_000_000, 1
        stream = storage.stream()
        assert_same_bytes(b"".join(next(stream) for _ in range(3)), IMAGE[: 2 * MIB + MIB // 4])
        keep = path.stat()
        (web.files / "new").write_bytes(IMAGE[:MIB] + bytes([IMAGE[MIB] ^ 1]) + IMAGE[MIB + 1 :])
        os.utime(web.files / "new", ns=(keep.st_atime_ns, keep.st_mtime_ns))
        (web.files / "new").rename(path)
        with pytest.raises(RestoreError) as caught:
            for _ in stream:
                pass
    assert str(caught.value) == f"{url}/blind/changing was changed on the server meanwhile; begin again"


def test_one_connection_that_stands_still_does_not_hold_up_the_rest(web: Nginx) -> None:
    with meddled(web) as (meddler, url), opened(f"{url}/image", timeout=60) as storage:
        assert_same_bytes(storage.read(0, 8 * MIB), IMAGE[: 8 * MIB])
        meddler.cut()
        meddler.stall_after, meddler.cuts = 1 * MIB, 1
        started = time.monotonic()
        assert_same_bytes(streamed(storage), IMAGE)
        assert time.monotonic() - started < 20


def test_nothing_comes_any_more(web: Nginx) -> None:
    with meddled(web) as (meddler, url), opened(f"{url}/image", timeout=1) as storage:
        meddler.cut()
        meddler.stall_after = 100_000
        with pytest.raises(RestoreError) as caught:
            storage.read(MIB, 8 * MIB)
        meddler.cut()
    assert str(caught.value).startswith(f"{url}/image: nothing has come for ")
    assert str(caught.value).endswith("(no movement for 1 seconds); see whether the server is there")


def test_the_server_goes_away(web: Nginx) -> None:
    with meddled(web) as (meddler, url), opened(f"{url}/image", timeout=1) as storage:
        meddler.refusing = True
        meddler.cut()
        with pytest.raises(RestoreError, match=r"nothing has come for 1 seconds .*; see whether the server is there"):
            storage.read(MIB, 8 * MIB)


def test_the_server_comes_back(web: Nginx) -> None:
    notes: list[str] = []
    with meddled(web) as (meddler, url), opened(f"{url}/image", notes=notes) as storage:
        meddler.refusing = True
        meddler.cut()
        back = threading.Timer(0.7, lambda: setattr(meddler, "refusing", False))
        back.start()
        assert_same_bytes(storage.read(MIB, 8 * MIB), IMAGE[MIB : 9 * MIB])
        back.join()
    assert len(notes) == 1


def test_interrupted_while_it_waits(web: Nginx) -> None:
    with meddled(web) as (meddler, url), opened(f"{url}/image", timeout=60) as storage:
        meddler.cut()
        meddler.stall_after = 100_000
        threading.Timer(0.3, storage.interrupt).start()
        started = time.monotonic()
        with pytest.raises(RestoreError, match="image was closed"):
            storage.read(MIB, 8 * MIB)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("where", ["", "whole/"])
@pytest.mark.parametrize("new", ["other bytes", "other size", "other time"])
def test_replaced_midway(web: Nginx, where: str, new: str) -> None:
    path = web.files / "changing"
    path.write_bytes(IMAGE)
    with opened(web.url(f"{where}changing")) as storage:
        stream = storage.stream()
        next(stream)
        other = web.files / "new"
        other.write_bytes(IMAGE[: -1 if new == "other size" else None] if new != "other bytes" else IMAGE[::-1])
        future = time.time() + 10
        os.utime(other, (future, future))
        other.rename(path)
        changed = f"{web.url(where + 'changing')} was changed on the server meanwhile; begin again"
        with pytest.raises(RestoreError) as caught:
            storage.check_unchanged()
        assert str(caught.value) == changed
        if where:  # nginx goes on with the old one where it has it open, which is right as well
            rest = IMAGE[: MIB // 4] + b"".join(stream)
            assert_same_bytes(rest, IMAGE)
        with pytest.raises(RestoreError) as caught:
            storage.read(9 * MIB, 4 * MIB) if storage.seekable else streamed(storage)
        assert str(caught.value) == changed


def test_removed_midway(web: Nginx) -> None:
    path = web.files / "vanishing"
    path.write_bytes(IMAGE)
    with opened(web.url("vanishing")) as storage:
        path.unlink()
        with pytest.raises(RestoreError, match=r"no such file; check the URL \(404 Not Found\)"):
            storage.read(9 * MIB, 4 * MIB)


def test_tls(web: Nginx, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://127.0.0.1:{web.tls}/image"
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(url), SourceSettings())
    assert str(caught.value) == (
        f"{url}: the server's certificate is not to be trusted (unable to get local issuer certificate); "
        "SSL_CERT_FILE may name the certificate of its authority"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(web.authority))
    before = len(web.requests())
    with opened(url) as storage:
        assert_same_bytes(streamed(storage), IMAGE)
        assert_same_bytes(storage.read(5 * MIB, 7 * MIB), IMAGE[5 * MIB : 12 * MIB])
    assert len(web.requests()) - before < 12
    with opened(web.url("upgrade/image")) as storage:
        assert_same_bytes(storage.read(5 * MIB, 4 * MIB), IMAGE[5 * MIB : 9 * MIB])
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(f"https://127.0.0.1:{web.tls}/downgrade/image"), SourceSettings())
    assert f"redirects to {web.url('image')}, which is not encrypted" in str(caught.value)


def test_not_tls(web: Nginx) -> None:
    with pytest.raises(Refused, match="TLS failed: "):
        HTTPStorage(Address.parse(f"https://127.0.0.1:{web.port}/image"), SourceSettings())


def test_redirects(web: Nginx) -> None:
    with opened(web.url("moved/image")) as storage:
        assert_same_bytes(storage.read(5 * MIB, 4 * MIB), IMAGE[5 * MIB : 9 * MIB])
        assert storage.name == web.url("moved/image")
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(web.url("loop")), SourceSettings())
    assert str(caught.value) == f"{web.url('loop')}: the server redirects more than 10 times"


SECRET = "secret word"


@pytest.mark.parametrize("how", ["url", "netrc", "NETRC", "netrc and user"])
def test_login(web: Nginx, how: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = home / ("logins" if how == "NETRC" else ".netrc")
    if how == "url":
        url = f"http://ann:{quote(SECRET)}@127.0.0.1:{web.port}/private/image"
    else:
        user = "ann@" if how == "netrc and user" else ""
        url = f"http://{user}127.0.0.1:{web.port}/private/image"
        netrc.write_text(f'machine 127.0.0.1 login ann password "{SECRET}"\n')
        netrc.chmod(0o600)
        if how == "NETRC":
            monkeypatch.setenv("NETRC", str(netrc))
    with opened(url) as storage:
        assert_same_bytes(storage.read(5 * MIB, 4 * MIB), IMAGE[5 * MIB : 9 * MIB])
        assert storage.name == web.url("private/image")


def test_login_fails(web: Nginx, home: Path) -> None:
    url = web.url("private/image")
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(url), SourceSettings())
    assert str(caught.value) == (
        f"{url}: the server wants a user name and password; put them into ~/.netrc (401 Unauthorized)"
    )
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(f"http://ann:hidden@127.0.0.1:{web.port}/private/image"), SourceSettings())
    assert str(caught.value) == (
        f"{url}: the server does not accept the user name and password; check the URL or ~/.netrc (401 Unauthorized)"
    )
    (home / ".netrc").write_text("passwords are none of your business\n")
    (home / ".netrc").chmod(0o600)
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(url), SourceSettings())
    assert str(caught.value).startswith(f"{home}/.netrc: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "the server has no such file; check the URL (404 Not Found)"),
        (
            "forbidden",
            "the server does not let it be read; check its permissions, and whether a signed URL is too old "
            "(403 Forbidden)",
        ),
        ("failing", "the server has failed; see its log, or try again later (503 Service Unavailable)"),
        (
            "encoded/image",
            "the server sends it encoded (gzip), though the plain bytes were asked for; switch that off there for this "
            "file",
        ),
    ],
)
def test_refused(web: Nginx, name: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(web.url(f"{name}?token=hidden")), SourceSettings())
    assert str(caught.value) == f"{web.url(name)}: {message}"


@pytest.mark.parametrize("name", ["empty", "whole/empty"])
def test_empty(web: Nginx, name: str) -> None:
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse(web.url(name)), SourceSettings())
    assert str(caught.value) == f"{web.url(name)} is empty"


def test_nobody_listens() -> None:
    with pytest.raises(Refused) as caught:
        HTTPStorage(Address.parse("http://127.0.0.1:1/image"), SourceSettings())
    assert str(caught.value) == "http://127.0.0.1:1/image: 127.0.0.1:1 cannot be reached: Connection refused"


@pytest.mark.parametrize("name", ["a name, 100% ü.img", "a%20name%2C%20100%25%20%C3%BC.img"])
def test_names_of_all_kinds(web: Nginx, name: str) -> None:
    for host in ("127.0.0.1", "[::1]", "localhost"):
        with opened(f"http://{host}:{web.port}/{name}") as storage:
            assert storage.read(0, 10_000) == IMAGE[:5000]
            assert storage.name == f"http://{host}:{web.port}/a%20name,%20100%25%20%C3%BC.img".replace(
                ",", "," if "," in name else "%2C"
            )


def test_beside(web: Nginx) -> None:
    (web.files / "image.bmap").write_bytes(IMAGE[: 3 * MIB])
    (web.files / "image.map").write_bytes(b"")
    settings = SourceSettings()
    assert fetch_beside(web.url("image?a=b"), ".bmap", 3 * MIB, settings) == IMAGE[: 3 * MIB]
    assert fetch_beside(web.url("whole/image"), ".bmap", 3 * MIB, settings) == IMAGE[: 3 * MIB]
    assert fetch_beside(web.url("image"), ".bmap.sshsig", 3 * MIB, settings) is None
    for where in ("image", "whole/image"):
        with pytest.raises(Refused) as caught:
            fetch_beside(web.url(where), ".bmap", 3 * MIB - 1, settings)
        assert str(caught.value) == (
            f"{web.url(where)}.bmap is larger than 3.0 MiB, which is too large for a file of its kind"
        )
    notes: list[str] = []
    assert fetch_beside(web.url("forbidden"), ".bmap", 10, SourceSettings(notify=notes.append)) is None
    assert notes == [
        f"{web.url('forbidden')}.bmap may not be read (403 Forbidden), which is taken as its not being there"
    ]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("asr://server", "asr://: a multicast stream can only be restored, onto a target by blocks"),
        ("ftp://a:secret@server/x", "ftp://: that is not spoken here; download it first, or have it served over http"),
        ("file:///etc", "file://: name the path itself"),
        ("nfs://server/x", "nfs://: mount that share, and name the path there"),
        (
            "gopher://server/x",
            "gopher://: there is no such kind of source; a source may be a path or one of http://, https://, s3://, "
            "sftp://, smb://",
        ),
        ("http://:80/x", "this http URL cannot be used: check its host and port"),
        ("http://a:secret@h:99999/x", "this http URL cannot be used: check its host and port"),
        ("http://[::1/x", "this http URL cannot be used: check its host and port"),
        ("http://a b/x", "this http URL cannot be used: check its host and port"),
    ],
)
def test_urls_that_cannot_be_used(url: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        open_url(url, SourceSettings())
    assert str(caught.value) == message
