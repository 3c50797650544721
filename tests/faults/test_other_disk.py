"""A server started again with another disk of the same name and size: what was found on the first one is worth nothing.

The image has a hole where one disk is empty and the other is not, so nothing would be written there.
Debian packages: nbdkit.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.restore.engine import GO_ON, MIB, failed, restore, restoring, succeeded, verify, wait_for
from tests.serving import pattern, serving
from tests.support import assert_same_bytes, free_port, listens, running, wait_until

HOLE = 8 * MIB
SIZE = 24 * MIB
AGAIN = "so all that was compared is compared once more\n"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A hole, then data."""
    path = tmp_path / "source.img"
    with path.open("wb") as file:
        file.seek(HOLE)
        file.write(pattern(SIZE - HOLE))
    return path


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    """An empty one and a full one, called the same."""
    paths = [tmp_path / name / "disk.img" for name in ("empty", "full")]
    for path in paths:
        path.parent.mkdir()
    with paths[0].open("wb") as file:
        file.truncate(SIZE)
    paths[1].write_bytes(pattern(SIZE, seed=2))
    return paths


@pytest.mark.parametrize("options", [(), ("--connections=3",)])
def test_ours(options: tuple[str, ...], image: Path, disks: list[Path]) -> None:
    ports = f"--listen=127.0.0.1:{free_port()}", f"--control=127.0.0.1:{free_port()}"

    def served(path: Path) -> AbstractContextManager[object]:
        return serving(path, options=ports, errors=path.with_name("errors"), clean=False)

    uri = f"nbd://127.0.0.1:{ports[0].rpartition(':')[2]}/disk.img"
    check(uri, served(disks[0]), served(disks[1]), options, image, disks[1])


def test_others(image: Path, disks: list[Path], tmp_path: Path) -> None:
    """One that does not say which run of it this is."""
    path = tmp_path / "s"

    @contextmanager
    def served(disk: Path) -> Iterator[None]:
        path.unlink(missing_ok=True)
        command = ["nbdkit", "--foreground", "--exit-with-parent", f"--unix={path}", "file", str(disk)]
        with running(command, ready=lambda: listens(str(path))) as process:
            yield
            process.kill()  # told to end, it would refuse what comes in meanwhile

    check(f"nbd+unix:///?socket={path}", served(disks[0]), served(disks[1]), (), image, disks[1])


def check(
    uri: str,
    first: AbstractContextManager[object],
    second: AbstractContextManager[object],
    options: tuple[str, ...],
    image: Path,
    disk: Path,
) -> None:
    """Restore, changing servers in the middle; the second one's disk has to be right in the end."""
    with ExitStack() as stack:
        with first:
            asr = stack.enter_context(restoring(image, uri, "--max-rate=10M", *options))
            wait_for(asr, "....50")
        with second:
            said = succeeded(asr.end())
    assert said.count(AGAIN) >= 1
    assert ", verified" in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes())


@contextmanager
def cutting(upstream: str, path: Path, most: int) -> Iterator[None]:
    """A relay that hangs up on a client which has been sent so many bytes."""
    sockets: list[socket.socket] = []

    def relay(source: socket.socket, sink: socket.socket, most: int | None) -> None:
        moved = 0
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and (most is None or moved <= most):
                moved += len(data)
                sink.sendall(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, server = listener.accept()[0], socket.socket(socket.AF_UNIX)
                sockets.extend((client, server))
                server.connect(upstream)
                threading.Thread(target=relay, args=(client, server, None), daemon=True).start()
                threading.Thread(target=relay, args=(server, client, most), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
        for sock in sockets:
            sock.close()


def test_connections_that_never_last_long_enough(image: Path, disks: list[Path], tmp_path: Path) -> None:
    """A comparison that is begun again and again comes to an end all the same."""
    path, relayed = tmp_path / "s", tmp_path / "r"
    options = f"--socket={path}", "--control=off"
    with serving(disks[0], options=options, errors=tmp_path / "errors", clean=False), ExitStack() as stack:
        wait_until(lambda: listens(str(path)), "the server")
        stack.enter_context(cutting(str(path), relayed, 10 * MIB))
        uri = f"nbd+unix:///disk.img?socket={relayed}"
        result = restore(image, uri)
        assert (
            failed(result).removesuffix(GO_ON)
            == f"the connection was lost during each of 5 more comparisons; {uri} is left empty"
        )
        assert result.out.count(AGAIN) == 5
        assert "the connection was lost during each of 5 more comparisons" in failed(verify(image, uri))
    assert_same_bytes(disks[0].read_bytes()[:MIB], bytes(MIB))
