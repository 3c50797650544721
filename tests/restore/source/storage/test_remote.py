"""Object store and file servers: moto's, sshd, smbd.

Debian packages: openssh-client openssh-server samba.
"""

from __future__ import annotations

import getpass
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from restore.errors import Refused, RestoreError
from restore.source import SourceSettings
from restore.source.storage import Storage
from restore.source.storage.url import fetch_beside, open_url
from tests.restore.engine import restore, succeeded
from tests.restore.source.storage.servers import Meddler, Share, moto, smbd, sshd
from tests.serving import pattern
from tests.support import assert_same_bytes

MIB = 1 << 20
IMAGE = pattern((9 << 20) + 321, seed=6)
NAME = "an image, 100%.img"
KINDS = ("s3", "sftp", "smb")


@dataclass(frozen=True, slots=True)
class Server:
    """A server, with a meddler before it.

    Attributes:
        kind: the scheme.
        url: of a directory or bucket on it, with the slash.
        put: puts a file there.
        meddler: that.
        environment: what has to be set for who reads.
    """

    kind: str
    url: str
    put: Callable[[str, bytes], None]
    meddler: Meddler
    environment: dict[str, str]


def put_into(share: Share) -> Callable[[str, bytes], None]:
    def put(name: str, data: bytes) -> None:
        (share.files / "new").write_bytes(data)
        (share.files / "new").chmod(0o644)
        (share.files / "new").rename(share.files / name)

    return put


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Each server, started when it is first asked for."""
    started: dict[str, Server] = {}
    with ExitStack() as stack:

        def start(kind: str) -> Server:
            directory = tmp_path_factory.mktemp(kind)
            if kind == "s3":
                port, put = stack.enter_context(moto(directory))
                meddler = stack.enter_context(Meddler(port))
                environment = {
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{meddler.port}",
                    "AWS_ACCESS_KEY_ID": "testing",
                    "AWS_SECRET_ACCESS_KEY": "hidden",
                    "AWS_DEFAULT_REGION": "us-east-1",
                }
                return Server(kind, "s3://bucket/", put, meddler, environment)
            if kind == "sftp":
                share = stack.enter_context(sshd(directory))
                meddler = stack.enter_context(Meddler(share.port))
                known = directory / "home" / ".ssh" / "known_hosts"
                known.write_text(known.read_text().replace(f":{share.port} ", f":{meddler.port} "))
                url = f"sftp://127.0.0.1:{meddler.port}{share.files}/"
                return Server(kind, url, put_into(share), meddler, {"HOME": str(directory / "home")})
            if os.geteuid() != 0:
                pytest.skip("needs root for smbd, which changes users")
            user = getpass.getuser()
            share = stack.enter_context(smbd(directory, user, "secret word"))
            meddler = stack.enter_context(Meddler(share.port))
            login = directory / "login"
            login.write_text(f"# as mount.cifs has it\nusername={user}\npassword=secret word\n")
            url = f"smb://127.0.0.1:{meddler.port}/images/"
            return Server(kind, url, put_into(share), meddler, {"SMB_CREDENTIALS": str(login)})

        def get(kind: str) -> Server:
            if kind not in started:
                started[kind] = start(kind)
                started[kind].put(NAME, IMAGE)
            return started[kind]

        yield get


@pytest.fixture
def server(
    request: pytest.FixtureRequest, servers: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    found = servers(request.param)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    yield found
    meddler = found.meddler
    meddler.cut_after = meddler.stall_after = meddler.rate = None
    meddler.cuts = 1 << 30
    meddler.refusing = False


each = pytest.mark.parametrize("server", KINDS, indirect=True)


@contextmanager
def opened(
    server: Server, name: str = NAME, *, timeout: float = 10, notes: list[str] | None = None
) -> Iterator[Storage]:
    settings = SourceSettings(timeout=timeout, notify=([] if notes is None else notes).append)
    with closing(open_url(f"{server.url}{name}", settings)) as storage:
        yield storage
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


@each
def test_read(server: Server) -> None:
    with opened(server) as storage:
        assert (storage.size, storage.seekable, storage.plain(0, 1)) == (len(IMAGE), True, None)
        assert storage.name == f"{server.url}{NAME}".replace(" ", "%20").replace("100%.", "100%25.")
        chance = random.Random(4)
        for _ in range(12):
            offset, length = chance.randrange(len(IMAGE) + 10), chance.choice([1, 512, 70_000, MIB, 5 * MIB])
            assert_same_bytes(storage.read(offset, length), IMAGE[offset : offset + length])
        assert_same_bytes(b"".join(storage.stream()), IMAGE)
        storage.check_unchanged()


@each
def test_cut(server: Server) -> None:
    notes: list[str] = []
    with opened(server, notes=notes) as storage:
        assert_same_bytes(storage.read(0, MIB), IMAGE[:MIB])
        server.meddler.cut()
        server.meddler.cut_after, server.meddler.cuts = 2_000_000, 2
        assert_same_bytes(b"".join(storage.stream()), IMAGE)
    (note,) = notes
    assert note.startswith(f"{storage.name}: the connection was lost (")
    assert ", and is back after " in note


@each
def test_gone(server: Server) -> None:
    with opened(server, timeout=1) as storage:
        server.meddler.refusing = True
        server.meddler.cut()
        with pytest.raises(RestoreError, match=r"nothing has come for [12] seconds \(.*\); see whether the server is"):
            storage.read(MIB, MIB)


@each
def test_stalled(server: Server) -> None:
    with opened(server, timeout=1) as storage:
        server.meddler.cut()
        server.meddler.stall_after = 100_000
        with pytest.raises(RestoreError, match=r"nothing has come for [1-9] seconds \(.*\); see whether the server is"):
            storage.read(MIB, 4 * MIB)
        server.meddler.cut()


@each
def test_interrupted(server: Server) -> None:
    with opened(server, timeout=60) as storage:
        server.meddler.cut()
        server.meddler.stall_after = 100_000
        timer = threading.Timer(1.0, storage.interrupt)  # type: ignore[attr-defined]
        timer.start()
        with pytest.raises(RestoreError, match="was closed"):
            storage.read(MIB, 4 * MIB)
        timer.join()
        server.meddler.cut()


@each
def test_replaced(server: Server) -> None:
    server.put("changing", IMAGE)
    with opened(server, "changing") as storage:
        assert_same_bytes(storage.read(0, MIB), IMAGE[:MIB])
        server.put("changing", IMAGE[:-1])
        with pytest.raises(RestoreError) as caught:
            storage.check_unchanged()
        assert str(caught.value) == f"{server.url}changing was changed on the server meanwhile; begin again"
        server.meddler.cut()
        with pytest.raises(RestoreError) as caught:
            storage.read(MIB, MIB)
        assert str(caught.value) == f"{server.url}changing was changed on the server meanwhile; begin again"


@each
def test_nothing_there(server: Server) -> None:
    with pytest.raises(Refused) as caught, opened(server, "nothing"):
        pass
    assert str(caught.value) == f"{server.url}nothing: the server has no such file; check the URL"
    server.put("empty", b"")
    with pytest.raises(Refused) as caught, opened(server, "empty"):
        pass
    assert str(caught.value) == f"{server.url}empty is empty"


@each
def test_beside(server: Server) -> None:
    server.put("image.bmap", b"<bmap/>")
    settings = SourceSettings()
    assert fetch_beside(f"{server.url}image", ".bmap", 10, settings) == b"<bmap/>"
    assert fetch_beside(f"{server.url}image", ".map", 10, settings) is None
    with pytest.raises(Refused, match=r"image\.bmap is larger than 6 bytes"):
        fetch_beside(f"{server.url}image", ".bmap", 6, settings)


@each
def test_restore(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    target.write_bytes(bytes(10 * MIB))
    said = succeeded(restore(f"{server.url}{NAME}", target))
    assert_same_bytes(target.read_bytes()[: len(IMAGE)], IMAGE)
    assert ", verified" in said
    assert "hidden" not in said


@each
def test_library_missing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"s3": "s3fs", "sftp": "paramiko", "smb": "smbclient"}[server.kind]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"restore.source.storage.{server.kind}", raising=False)
    with pytest.raises(Refused) as caught, opened(server):
        pass
    assert str(caught.value).endswith(f"is needed and not installed; pip install 'targetmode[{server.kind}]'")


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_s3_credentials(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    login = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    with pytest.raises(Refused) as caught, opened(server, "x"):
        pass
    assert str(caught.value) == f"s3://bucket/x: there are no credentials; {login}"
    with pytest.raises(Refused) as caught:
        open_url("s3://key:hidden@bucket/x", SourceSettings())
    assert str(caught.value) == f"s3://bucket/x: no credentials in an s3:// URL; {login}"
    with pytest.raises(Refused, match="names a bucket and no object in it"):
        open_url("s3://bucket/", SourceSettings())


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
def test_host_keys(server: Server, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.meddler.port
    monkeypatch.setenv("HOME", str(home))
    url = f"{server.url}image"
    with pytest.raises(Refused) as caught, opened(server, "image"):
        pass
    before, _, after = str(caught.value).partition("SHA256:")
    assert before == f"{url}: the host key of [127.0.0.1]:{port} is not known (ssh-ed25519 "
    assert after.partition(")")[2] == (
        f"; compare it, and put it into ~/.ssh/known_hosts: ssh-keyscan -p {port} 127.0.0.1"
    )
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    (home / ".ssh").mkdir()
    kind, key, *_ = (tmp_path / "other.pub").read_text().split()
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    with pytest.raises(Refused) as caught, opened(server, "image"):
        pass
    assert str(caught.value) == (
        f"{url}: the host key of [127.0.0.1]:{port} is not the one in known_hosts; if it was replaced: "
        f"ssh-keygen -R '[127.0.0.1]:{port}'"
    )


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
def test_ssh_config(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's alias, its key and its known hosts in ~/.ssh/config; without the key nobody gets in."""
    from_there = Path(server.environment["HOME"]) / ".ssh"
    monkeypatch.setenv("HOME", str(home))
    (home / ".ssh").mkdir()
    config = (
        f"Host depot\n HostName 127.0.0.1\n Port {server.meddler.port}\n UserKnownHostsFile {from_there}/known_hosts\n"
    )
    (home / ".ssh" / "config").write_text(config)
    path = server.url.partition("127.0.0.1")[2].partition("/")[2]
    url = f"sftp://depot/{path}{NAME}"
    with pytest.raises(Refused) as caught:
        open_url(url, SourceSettings())
    assert f"the server does not let {getpass.getuser()!r} in; put a key into ssh-agent or ~/.ssh" in str(caught.value)
    (home / ".ssh" / "config").write_text(f"{config} IdentityFile {from_there}/id_ed25519\n")
    with closing(open_url(url, SourceSettings())) as storage:
        assert_same_bytes(storage.read(0, MIB), IMAGE[:MIB])
    (home / ".ssh" / "config").write_text(f"{config} ProxyJump elsewhere\n")
    with pytest.raises(Refused, match="wants a jump host, which is not done here"):
        open_url(url, SourceSettings())


@pytest.mark.parametrize("server", ["smb"], indirect=True)
def test_smb_logins(server: Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMB_CREDENTIALS")
    user, port = getpass.getuser(), server.meddler.port
    url = f"smb://127.0.0.1:{port}/images/x"

    def refused(place: str) -> str:
        with pytest.raises(Refused) as caught:
            open_url(place, SourceSettings())
        return str(caught.value)

    server.put("x", b"some bytes")
    login = "put user name and password into ~/.netrc, or into a file that SMB_CREDENTIALS names"
    assert refused(url) == f"{url}: the server wants a user name and password; {login}"
    for who in (f"{user}:hidden", "nobodyofthatname:hidden"):
        assert refused(f"smb://{who}@127.0.0.1:{port}/images/x") == (
            f"{url}: the server does not accept the user name and password"
        )
    for who in (f"{user}:secret%20word", f"TESTS;{user}:secret%20word"):
        with closing(open_url(f"smb://{who}@127.0.0.1:{port}/images/x", SourceSettings())) as storage:
            assert storage.read(0, 99) == b"some bytes"
            assert storage.name == url
    (home / ".netrc").write_text(f'machine 127.0.0.1 login {user} password "secret word"\n')
    (home / ".netrc").chmod(0o600)
    with closing(open_url(url, SourceSettings())) as storage:
        assert storage.read(0, 99) == b"some bytes"
    assert refused(f"smb://127.0.0.1:{port}/other/x") == (
        f"smb://127.0.0.1:{port}/other/x: the server has no such file; check the URL"
    )
    assert refused(f"smb://127.0.0.1:{port}/images").endswith("it has to be smb://HOST/SHARE/PATH")
