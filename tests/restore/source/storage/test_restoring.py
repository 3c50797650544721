"""Restores from web servers, as their user sees them.

Debian packages: nginx-light openssl.
"""

from __future__ import annotations

import gzip
import signal
import time
from pathlib import Path

import pytest

from tests.restore.engine import failed, restore, started, succeeded, verify, wait_for
from tests.restore.source.storage.conftest import IMAGE
from tests.restore.source.storage.servers import Meddler, Nginx
from tests.support import assert_same_bytes

MIB = 1 << 20


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target.img"
    path.write_bytes(bytes(20 * MIB))
    return path


def check(target: Path) -> None:
    assert_same_bytes(target.read_bytes(), IMAGE + bytes(20 * MIB - len(IMAGE)))


def test_restore_and_verify(web: Nginx, target: Path) -> None:
    url = web.url("image")
    assert ", verified" in succeeded(restore(url, target))
    check(target)
    with target.open("r+b") as file:
        file.seek(9 * MIB)
        file.write(bytes([IMAGE[9 * MIB] ^ 1]))
    assert verify(url, target).status == 3


def test_restore_over_tls(web: Nginx, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(web.authority))
    succeeded(restore(f"https://127.0.0.1:{web.tls}/image", target))
    check(target)


@pytest.mark.parametrize("where", ["", "whole/"])
def test_restore_with_cuts(web: Nginx, target: Path, where: str) -> None:
    with Meddler(web.port) as meddler:
        meddler.cut_after = 5_000_000
        meddler.cuts = 2
        url = f"http://127.0.0.1:{meddler.port}/{where}image"
        said = succeeded(restore(url, target))
    check(target)
    assert said.count(f"{url}: the connection was lost") == 1
    assert ", verified" in said


def test_restore_of_a_compressed_image(web: Nginx, target: Path) -> None:
    (web.files / "image.gz").write_bytes(gzip.compress(IMAGE, 1))
    succeeded(restore(web.url("image.gz"), target))
    check(target)


def test_requests_of_a_restore(web: Nginx, target: Path) -> None:
    """The first piece, the last one to tell the format, what may lie beside; then pieces of 4 MiB, and what is new."""
    before = len(web.requests())
    succeeded(restore(web.url("image"), target))
    ranges = [line.split(" ")[1] for line in web.requests()[before:] if " /image " in line]
    assert ranges[0] == "bytes=0-262143"
    assert set(ranges[1:4]) <= {
        f"bytes={len(IMAGE) - 65536}-{len(IMAGE) - 1}",
        *(f"bytes={start}-{min(start + 4 * MIB, len(IMAGE)) - 1}" for start in range(0, len(IMAGE), 4 * MIB)),
    }
    assert len(ranges) <= 12


def test_replaced_midway(web: Nginx, target: Path) -> None:
    path = web.files / "changing"
    path.write_bytes(IMAGE)
    with started(
        "restore", "--source", web.url("changing"), "--target", target, "--erase", "--noprompt", "--max-rate=8M",
        directory=target.parent,
    ) as running:  # fmt: skip
        wait_for(running, "Restoring")
        (web.files / "new").write_bytes(IMAGE[::-1] + b"x")
        (web.files / "new").rename(path)
        result = running.end()
    assert failed(result).startswith(f"{web.url('changing')} was changed on the server meanwhile; begin again; ")
    assert target.read_bytes()[:MIB] == bytes(MIB)


def test_the_server_stands_still(web: Nginx, target: Path) -> None:
    """Who loses patience is not held up by it."""
    with Meddler(web.port) as meddler:
        meddler.rate = 3 * MIB
        url = f"http://127.0.0.1:{meddler.port}/image"
        words = ("restore", "--source", url, "--target", target, "--erase", "--noprompt")
        with started(*words, directory=target.parent) as running:
            wait_for(running, "Restoring")
            meddler.stall_after = 0
            time.sleep(0.5)
            begun = time.monotonic()
            running.process.send_signal(signal.SIGINT)
            result = running.end()
        assert time.monotonic() - begun < 12
        meddler.cut()
    assert "interrupted" in failed(result)


def test_refused(web: Nginx, target: Path) -> None:
    url = f"http://ann:hidden@127.0.0.1:{web.port}/private/image?signature=hidden"
    result = restore(url, target)
    assert failed(result).startswith(f"{web.url('private/image')}: the server does not accept the user name and")
    assert "hidden" not in result.out + result.err
    assert target.read_bytes() == bytes(20 * MIB)
