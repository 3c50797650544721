"""A network that passes nothing on any more and does not say so: given up in time, or gone on with if it comes back."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nbd.peers import Proxy
from tests.restore.engine import GO_ON, MIB, failed, restoring, succeeded
from tests.serving import Serving, pattern, serving
from tests.support import assert_same_bytes

SIZE = 24 * MIB
IMAGE_SIZE = 20 * MIB + 777


@pytest.fixture
def server(disk: Path) -> Iterator[Serving]:
    options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
    with serving(disk, options=options, errors=disk.parent / "errors", clean=False) as server:
        yield server


@pytest.mark.parametrize(
    ("after", "options"),
    [
        (0, ()),  # in the middle of the handshake
        (8 * MIB, ()),
        (8 * MIB, ("--noverify", "--connections=3")),
        (IMAGE_SIZE - MIB // 2, ()),  # in the middle of what is written last
    ],
)
def test_for_good(after: int, options: tuple[str, ...], image: Path, disk: Path, server: Serving) -> None:
    with Proxy(("127.0.0.1", server.port), itertools.repeat(None), hold_after=after) as proxy:
        uri = f"nbd://127.0.0.1:{proxy.port}/disk.img"
        with restoring(image, uri, "--timeout=1.2", *options) as asr:
            assert proxy.holding.wait(10)
            began = time.monotonic()
            message = failed(asr.end(15))
            took = time.monotonic() - began
    assert 0.9 < took < (3 if after < IMAGE_SIZE - MIB else 5), message  # the last has to be emptied, and tries to be
    if after == 0:
        assert message == f"{uri}: no complete handshake within 1.2 seconds"
        return
    assert message.startswith(f"{uri}: nothing moved for 1.2 seconds; {uri} ")
    if after < IMAGE_SIZE - MIB:
        assert message.removesuffix(GO_ON).endswith(f"; {uri} is left empty")
        assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))
    else:
        assert f"{uri} could not be emptied (" in message
        assert message.endswith("): do not use what is on it")


@pytest.mark.parametrize("options", [(), ("--connections=3",)])
def test_for_a_while(options: tuple[str, ...], image: Path, disk: Path, server: Serving) -> None:
    with Proxy(("127.0.0.1", server.port), itertools.repeat(None), hold_after=8 * MIB) as proxy:
        uri = f"nbd://127.0.0.1:{proxy.port}/disk.img"
        with restoring(image, uri, "--timeout=4", *options) as asr:
            assert proxy.holding.wait(10)
            time.sleep(1.5)
            assert asr.process.poll() is None, asr.out
            proxy.resume()
            said = succeeded(asr.end())
    assert "connecting again" not in said
    assert ", verified" in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + pattern(SIZE, seed=2)[IMAGE_SIZE:])
