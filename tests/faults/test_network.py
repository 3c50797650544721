"""A restore from one network namespace into another: over IPv4 and IPv6, across cuts, and to where nobody is.

Debian packages: iproute2.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.restore.engine import GO_ON, MIB, WRITING, failed, restoring, succeeded, wait_for
from tests.serving import Result, Serving, pattern, run, serving
from tests.support import assert_same_bytes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

SIZE = 24 * MIB
IMAGE_SIZE = 20 * MIB + 777
NEAR = {"IPv4": "10.77.0.1", "IPv6": "fd77::1"}
FAR = {"IPv4": "10.77.0.2", "IPv6": "[fd77::2]"}
BOTH = pytest.mark.parametrize("family", ["IPv4", "IPv6"])


@dataclass(frozen=True, slots=True)
class Network:
    """Two machines, as far as the network goes, and one cable.

    Attributes:
        near: the namespace that `asr` is in.
        far: the one that the server is in.
    """

    near: str
    far: str

    def ip(self, where: str, *words: str) -> None:
        """Run `ip` in one of them."""
        run("ip", "-n", where, *words)

    def cable(self, plugged: str) -> None:
        """`down` pulls it out, `up` plugs it in again."""
        self.ip(self.near, "link", "set", "cable", plugged)


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    unique = f"tm{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**6}"
    here = Network(f"{unique}-a", f"{unique}-b")
    try:
        for name in (here.near, here.far):
            run("ip", "netns", "add", name)
            # Addresses of the other family are to be there after the cable was out, as those of IPv4 are.
            run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.default.keep_addr_on_down=1")
        here.ip(here.near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", here.far)
        for name, end in ((here.near, 1), (here.far, 2)):
            here.ip(name, "address", "add", f"10.77.0.{end}/24", "dev", "cable")
            here.ip(name, "address", "add", f"fd77::{end}/64", "dev", "cable", "nodad")
            here.ip(name, "link", "set", "cable", "up")
        yield here
    finally:
        for name in (here.near, here.far):
            for pid in run("ip", "netns", "pids", name, check=False).out.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)  # it would keep the namespace
            run("ip", "netns", "delete", name, check=False)


@contextmanager
def served(disk: Path, network: Network) -> Iterator[Serving]:
    """The disk, on both addresses of the far side, at the usual ports."""
    addresses = [f"--listen={host}" for host in FAR.values()]
    there = ("ip", "netns", "exec", network.far)
    errors = disk.parent / "errors"
    with serving(disk, options=(*addresses, "--insecure"), prefix=there, errors=errors, clean=False) as server:
        yield server


def inside(network: Network) -> tuple[str, ...]:
    """What runs `asr` on the near side."""
    return ("ip", "netns", "exec", network.near)


def check_restored(result: Result, image: Path, disk: Path) -> str:
    said = succeeded(result)
    assert ", verified" in said
    assert "read back" not in said
    assert_same_bytes(disk.read_bytes(), image.read_bytes() + pattern(SIZE, seed=2)[IMAGE_SIZE:])
    return said


@BOTH
def test_over(family: str, network: Network, image: Path, disk: Path) -> None:
    with served(disk, network) as server:
        uri = server.uri(kind=FAR[family])
        assert uri == f"nbd://{FAR[family]}/disk.img"
        with restoring(image, uri, prefix=inside(network)) as asr:
            check_restored(asr.end(), image, disk)
        peer = server.next("connect")["peer"]
    assert peer.strip("[").startswith(NEAR[family])


@pytest.mark.parametrize(("family", "seconds"), [("IPv4", 3.0), ("IPv6", 1.2)])
def test_cable_out_for_a_while(family: str, seconds: float, network: Network, image: Path, disk: Path) -> None:
    """TCP lives through it; if it did not, the client would connect again."""
    with (
        served(disk, network) as server,
        restoring(image, server.uri(kind=FAR[family]), "--max-rate=20M", prefix=inside(network)) as asr,
    ):
        wait_for(asr, WRITING)
        network.cable("down")
        time.sleep(seconds)
        assert asr.process.poll() is None, asr.out
        before = disk.read_bytes()
        time.sleep(0.1)
        assert_same_bytes(disk.read_bytes(), before)  # it was out indeed
        network.cable("up")
        check_restored(asr.end(), image, disk)


def test_cable_out_for_good(network: Network, image: Path, disk: Path) -> None:
    with served(disk, network) as server:
        uri = server.uri(kind=FAR["IPv6"])
        with restoring(image, uri, "--max-rate=20M", "--timeout=4", prefix=inside(network)) as asr:
            wait_for(asr, WRITING)
            network.cable("down")
            began = time.monotonic()
            message = failed(asr.end(20))
            took = time.monotonic() - began
        for pid in (server.process.pid, *server.descendants()):
            os.kill(pid, signal.SIGKILL)  # it would wait for a client that it does not hear of
    assert 3 < took < 4 + 3, message
    assert message.startswith(f"{uri}: ")
    assert message.removesuffix(GO_ON).endswith(f"; {uri} is left empty")
    assert_same_bytes(disk.read_bytes()[:MIB], bytes(MIB))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("10.77.0.2", "Connection refused"),
        ("[fd77::2]", "Connection refused"),
        ("10.78.0.2", "Network is unreachable"),
        ("[fd78::2]", "Network is unreachable"),
        ("10.77.0.99", "No route to host"),
        ("10.77.0.66", "timed out"),  # what is sent there is never heard of again
        ("[fd77::66]", "timed out"),
    ],
)
def test_nobody_there(host: str, said: str, network: Network, image: Path) -> None:
    network.ip(network.near, "route", "add", "unreachable", "10.77.0.99")
    network.ip(network.near, "neighbour", "add", "10.77.0.66", "lladdr", "02:00:00:00:00:66", "dev", "cable")
    network.ip(network.near, "neighbour", "add", "fd77::66", "lladdr", "02:00:00:00:00:66", "dev", "cable")
    limit = "--timeout=1.5" if said == "timed out" else "--timeout=5"
    uri = f"nbd://{host}/disk.img"
    with restoring(image, uri, limit, prefix=inside(network)) as asr:
        began = time.monotonic()
        result = asr.end(10)
        took = time.monotonic() - began
    message = failed(result)
    assert message == f"{uri}: cannot connect: {said}"
    assert took < 5
