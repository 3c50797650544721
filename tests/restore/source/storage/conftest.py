"""One nginx for all tests of web servers of a module, and an environment without proxies and credentials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.restore.source.storage.servers import Nginx, nginx
from tests.serving import pattern

IMAGE = pattern((18 << 20) + 12345, seed=5)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with nginx(tmp_path_factory.mktemp("web")) as server:
        (server.files / "image").write_bytes(IMAGE)
        (server.files / "empty").write_bytes(b"")
        (server.files / "a name, 100% ü.img").write_bytes(IMAGE[:5000])
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without anything in it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NETRC", "SMB_CREDENTIALS", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    return path
