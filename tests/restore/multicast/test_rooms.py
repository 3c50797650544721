"""One stream and many machines: real sockets, in network namespaces on one bridge.

Debian packages: iproute2 nftables ethtool.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest

from tests.restore.multicast.rooms import ASR, SERVER, Machine, Room, room
from tests.serving import run, serving
from tests.support import assert_same_bytes, running, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces")

MIB = 1 << 20
SIZE = 16 * MIB
URL = f"asr://{SERVER}"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with noise, and a hole in it."""
    path = tmp_path_factory.mktemp("image") / "lab.img"
    data = bytearray(random.Random(1).randbytes(SIZE))
    data[5 * MIB : 7 * MIB] = bytes(2 * MIB)
    path.write_bytes(data)
    return path


@pytest.fixture
def alone() -> Iterator[Room]:
    with room(1) as here:
        yield here


@pytest.fixture
def four() -> Iterator[Room]:
    with room(4) as here:
        yield here


class Stream:
    """A server that runs, and what it has said."""

    def __init__(self, here: Room, image: Path, *options: str | Path, machine: Machine | None = None) -> None:
        self.said = image.parent / f"server-{time.monotonic_ns()}.txt"
        with self.said.open("w") as file:
            self.process = here.start(
                machine or here.server, "server", "--source", image, *options, output=file.fileno()
            )
        wait_until(lambda: self.is_ready or self.process.poll() is not None, "ready", 20)
        assert self.process.poll() is None, self.text

    @property
    def is_ready(self) -> bool:
        return "Ready to start accepting clients" in self.text or '"event": "ready"' in self.text

    @property
    def text(self) -> str:
        return self.said.read_text()

    def end(self) -> str:
        """It ends by itself, well; what it said."""
        assert self.process.wait(20) == 0, self.text
        return self.text

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def restoring(here: Room, machine: Machine, target: Path | str, *options: str, url: str = URL) -> Popen[str]:
    if isinstance(target, Path) and not target.exists():
        target.write_bytes(bytes(SIZE))
    words = ("restore", "--source", url, "--target", target, "--erase", "--noprompt", *options)
    return here.start(machine, *words)


def ended(process: Popen[str], status: int = 0, seconds: float = 40) -> str:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == status, out + err
    return out + err


def check(image: Path, *targets: Path) -> None:
    for target in targets:
        assert_same_bytes(target.read_bytes(), image.read_bytes())


def test_a_room_that_comes_one_by_one(four: Room, image: Path, tmp_path: Path) -> None:
    """Everyone hooks in at another place of one stream, which goes round once more for those who came late."""
    stream = Stream(four, image, "--once", "--data-rate", "10M", "--start-wait", "60")
    processes, targets = [], [tmp_path / f"{number}.img" for number in range(4)]
    for machine, target in zip(four.clients, targets, strict=True):
        processes.append(restoring(four, machine, target))
        time.sleep(0.3)
    for process in processes:
        assert ", verified" in ended(process)
    check(image, *targets)
    said = stream.end()
    assert 1 <= said.count("Starting stream") <= 4, said
    assert said.count(": done after") == 4


def test_they_start_together(four: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(four, image, "--once", "--data-rate", "10M", "--start-when", "2")
    first = restoring(four, four.clients[0], tmp_path / "0.img")
    time.sleep(1.5)
    assert "Starting stream" not in stream.text
    second = restoring(four, four.clients[1], tmp_path / "1.img")
    assert ended(first)
    assert ended(second)
    check(image, tmp_path / "0.img", tmp_path / "1.img")
    assert stream.end().count("Starting stream") == 1


def test_it_tells_how_much_was_sent(alone: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(alone, image, "--json", "--data-rate", "20M")
    ended(restoring(alone, alone.clients[0], tmp_path / "0.img"))
    stream.process.send_signal(signal.SIGTERM)
    stopped = json.loads(stream.end().splitlines()[-1])
    streamed = SIZE - 3 * MIB  # it has a hole, and its first MiB is fetched before
    assert (stopped["event"], stopped["clients"]) == ("stopped", 0)
    assert streamed * 1.01 < stopped["sent"] < streamed * 3, "all of it, with headers, and lost packets again"


def test_lost_packets_cost_a_pass(four: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(four, image, "--once", "--data-rate", "20M", "--start-when", "4", "--start-wait", "10")
    processes, targets = [], [tmp_path / f"{number}.img" for number in range(4)]
    for machine, target in zip(four.clients, targets, strict=True):
        machine.lose(5)
        processes.append(restoring(four, machine, target))
    lines = [line for process in processes for line in ended(process).splitlines() if "Restoring" in line]
    assert len(lines) == 4
    assert "x" in "".join(lines)
    check(image, *targets)
    assert "0.0% lost" not in stream.end()


def test_a_client_that_is_killed_costs_nobody_anything(four: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(four, image, "--data-rate", "8M", "--start-when", "2")
    killed = restoring(four, four.clients[0], tmp_path / "0.img")
    process = restoring(four, four.clients[1], tmp_path / "1.img")
    wait_until(lambda: "Starting stream" in stream.text, "the stream", 20)
    time.sleep(0.5)
    killed.kill()
    ended(process)
    check(image, tmp_path / "1.img")
    assert_same_bytes((tmp_path / "0.img").read_bytes()[:MIB], bytes(MIB))  # it never looked like a disk
    wait_until(lambda: "says nothing any more, and counts as gone" in stream.text, "it was missed", 20)
    stream.process.send_signal(signal.SIGTERM)
    assert stream.process.wait(10) == 0
    assert stream.text.endswith("The stream has ended; at that moment nobody took part\n")


@pytest.mark.parametrize("said", [True, False])
def test_where_the_stream_does_not_arrive(alone: Room, image: Path, tmp_path: Path, said: bool) -> None:
    """It says what to look at, and goes on by unicast; or gives up where it may not, or not for long."""
    stream = Stream(alone, image)
    (machine,) = alone.clients
    machine.lose(100)
    target = tmp_path / "0.img"
    if said:
        out = ended(restoring(alone, machine, target))
        assert "has arrived by eth0 for 5 seconds, so the image is fetched by unicast: look at the interface" in out
        check(image, target)
        wait_until(lambda: ": done after" in stream.text, "it said so", 10)
        return
    out = ended(restoring(alone, machine, target, "--multicast-only", "--timeout", "3"), status=1)
    assert f"http://{SERVER}:7800: no data have come for 3 seconds; {target} is left empty" in out
    assert_same_bytes(target.read_bytes()[:MIB], bytes(MIB))


def test_a_server_that_is_started_again(alone: Room, image: Path, tmp_path: Path) -> None:
    first = Stream(alone, image, "--data-rate", "8M")
    process = restoring(alone, alone.clients[0], tmp_path / "0.img")
    wait_until(lambda: "Starting stream" in first.text, "the stream", 20)
    time.sleep(0.5)
    first.kill()
    time.sleep(1)
    assert process.poll() is None
    again = Stream(alone, image, "--once")
    out = ended(process)
    assert "does not answer" in out
    check(image, tmp_path / "0.img")
    again.end()


def test_a_server_that_serves_another_image_now(alone: Room, image: Path, tmp_path: Path) -> None:
    first = Stream(alone, image, "--data-rate", "8M")
    process = restoring(alone, alone.clients[0], tmp_path / "0.img")
    wait_until(lambda: "Starting stream" in first.text, "the stream", 20)
    time.sleep(0.5)
    first.kill()
    other = tmp_path / "other.img"
    other.write_bytes(random.Random(2).randbytes(SIZE))
    Stream(alone, other)
    out = ended(process, status=1)
    assert "serves another image now: other.img" in out
    assert_same_bytes((tmp_path / "0.img").read_bytes()[:MIB], bytes(MIB))


def test_a_server_that_is_gone_for_good(alone: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(alone, image, "--data-rate", "8M")
    process = restoring(alone, alone.clients[0], tmp_path / "0.img", "--timeout", "3")
    wait_until(lambda: "Starting stream" in stream.text, "the stream", 20)
    time.sleep(0.5)
    stream.kill()
    out = ended(process, status=1)
    assert "no data have come for 3 seconds" in out
    assert "is left empty (the same command with --delta goes on from here)" in out
    assert_same_bytes((tmp_path / "0.img").read_bytes()[:MIB], bytes(MIB))


def test_what_is_there_already_is_not_waited_for(alone: Room, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "0.img"
    data = bytearray(image.read_bytes())
    data[9 * MIB + 5] ^= 1
    target.write_bytes(data)
    stream = Stream(alone, image, "--once")
    out = ended(restoring(alone, alone.clients[0], target, "--delta"))
    assert "the rest was there already" in out
    check(image, target)
    assert "done after" in (said := stream.end())
    assert "1.0 MiB received" in said


def test_what_is_cut_goes_on(alone: Room, image: Path, tmp_path: Path) -> None:
    """A client that crashed has on its target what it had, and lacks only the rest."""
    stream = Stream(alone, image, "--once", "--data-rate", "8M")
    target = tmp_path / "0.img"
    process = restoring(alone, alone.clients[0], target)
    wait_until(lambda: target.exists() and any(target.read_bytes()[8 * MIB : 9 * MIB]), "half of it", 20)
    process.kill()
    process.wait()
    out = ended(restoring(alone, alone.clients[0], target, "--delta"))
    assert "the rest was there already" in out
    check(image, target)
    stream.process.kill()


def test_it_is_found(alone: Room, image: Path, tmp_path: Path) -> None:
    (machine,) = alone.clients
    out = ended(alone.start(machine, "discover", "--seconds", "0.5"), status=1)
    assert out == (
        "asr: no multicast server has answered within 0.5 seconds; where DNS-SD does not reach, name it: "
        "--source asr://HOST\n"
    )
    stream = Stream(alone, image, "--once", "--port", "7803")
    out = ended(alone.start(machine, "discover"))
    assert out == f"asr://{SERVER}:7803  lab.img, 16.0 MiB, on {socket.gethostname()}\n"
    (line,) = ended(alone.start(machine, "discover", "--json", "--interface", "eth0")).splitlines()
    found = json.loads(line)
    assert (found["source"], found["image"], found["size"]) == (f"asr://{SERVER}:7803", "lab.img", SIZE)
    out = ended(restoring(alone, machine, tmp_path / "0.img", url="asr:"))
    assert f"asr://{SERVER}:7803  lab.img" in out
    check(image, tmp_path / "0.img")
    stream.end()


def test_of_several_one_has_to_be_named(four: Room, image: Path, tmp_path: Path) -> None:
    Stream(four, image)
    Stream(four, image, machine=four.clients[3])
    Stream(four, image, "--no-discovery", "--port", "7804", machine=four.clients[2])
    out = ended(restoring(four, four.clients[0], tmp_path / "0.img", url="asr:"), status=1)
    assert out.startswith(
        f"asr: there are 2 multicast servers, so name one: asr://{SERVER}:7800  lab.img, 16.0 MiB, on "
    )
    assert_same_bytes((tmp_path / "0.img").read_bytes(), bytes(SIZE))


FORGER = """
import json, socket, sys, time, urllib.request
from restore.multicast.packet import Header
said = json.load(urllib.request.urlopen(sys.argv[1]))
session, size = int(said["id"], 16), said["segment_size"]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[2]))
end = time.monotonic() + 1.5
number = 0
while time.monotonic() < end:
    number += 1
    chunk = number % said["chunks"]
    for of, data in ((session, bytes(size)), (session ^ 1, bytes(size)), (session, b"short")):
        sock.sendto(Header(of, number, chunk, number % 7).pack() + data, (said["group"], said["port"]))
    sock.sendto(bytes(5), (said["group"], said["port"]))
    time.sleep(0.002)
"""


def test_forged_datagrams_are_never_written(four: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(four, image, "--once", "--data-rate", "8M")
    process = restoring(four, four.clients[0], tmp_path / "0.img")
    forger = four.clients[1]
    words = (sys.executable, "-c", FORGER, f"http://{SERVER}:7800/v1/session", forger.address)
    run(*forger.inside, *words, cwd=Path(__file__).parents[3])
    assert ", verified" in ended(process)
    check(image, tmp_path / "0.img")
    stream.end()


def test_two_streams_in_one_group(four: Room, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(random.Random(2).randbytes(SIZE))
    options = ("--once", "--data-rate", "10M", "--address", "239.192.7.7")
    streams = [Stream(four, image, *options), Stream(four, other, *options, machine=four.clients[3])]
    first = restoring(four, four.clients[0], tmp_path / "0.img")
    second = restoring(four, four.clients[1], tmp_path / "1.img", url=f"asr://{four.clients[3].address}/other.img")
    ended(first)
    ended(second)
    check(image, tmp_path / "0.img")
    check(other, tmp_path / "1.img")
    for stream in streams:
        stream.end()


def test_several_targets_of_one_receiver(alone: Room, image: Path, tmp_path: Path) -> None:
    stream = Stream(alone, image, "--once")
    targets = [tmp_path / f"{number}.img" for number in range(3)]
    for target in targets:
        target.write_bytes(bytes(SIZE))
    more = [word for target in targets[1:] for word in ("--target", str(target))]
    ended(restoring(alone, alone.clients[0], targets[0], *more))
    check(image, *targets)
    assert stream.end().count("done after") == 1


def test_one_receiver_for_exported_disks(four: Room, image: Path, tmp_path: Path) -> None:
    """One machine takes the stream for the disks that two others offer, which verify them on their own side."""
    stream = Stream(four, image, "--once")
    receiver, *others = four.clients
    with ExitStack() as stack:
        uris, disks = [], [tmp_path / f"{number}.img" for number in range(2)]
        for machine, disk in zip(others, disks, strict=False):
            disk.write_bytes(bytes(SIZE))
            options = (f"--listen={machine.address}:10809", f"--control={machine.address}:10810", "--insecure")
            errors = tmp_path / f"{disk.name}.errors"
            served = stack.enter_context(
                serving(disk, options=options, prefix=machine.inside, errors=errors, clean=False)
            )
            uris.append(served.uri(kind=machine.address))
        assert ", verified" in ended(restoring(four, receiver, uris[0], f"--target={uris[1]}"))
        check(image, *disks)
    assert stream.end().count("done after") == 1


def test_a_stream_is_saved(alone: Room, image: Path, tmp_path: Path) -> None:
    """As sparse as the image is, whole or not at all, and with a scan by which it is served and restored on."""
    Stream(alone, image, "--data-rate", "20M")
    (machine,) = alone.clients
    saved = tmp_path / "saved.img"
    words = ("restore", "--source", URL, "--file", saved)
    cut = alone.start(machine, *words)
    wait_until(lambda: list(tmp_path.glob(".asr.*.part")), "a beginning", 20)
    time.sleep(0.4)
    cut.send_signal(signal.SIGINT)
    out = ended(cut, 1)
    assert out.endswith(f"; nothing is left of {saved}\n"), out
    assert list(tmp_path.iterdir()) == []
    out = ended(alone.start(machine, *words))
    assert f"Its scan is {saved}.bmap" in out
    assert ", verified" in out
    check(image, saved)
    assert saved.stat().st_blocks * 512 < SIZE - MIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved.img", "saved.img.bmap"]
    assert f"asr: {saved} exists; with --erase it is replaced\n" in ended(alone.start(machine, *words), 1)
    target = tmp_path / "target.img"
    target.write_bytes(bytes(SIZE))
    ended(alone.start(machine, "restore", "--source", saved, "--target", target, "--erase", "--noprompt"))
    check(image, target)


def test_wrong_places(alone: Room, image: Path, tmp_path: Path) -> None:
    Stream(alone, image)
    (machine,) = alone.clients
    target = tmp_path / "0.img"
    out = ended(restoring(alone, machine, target, url=f"{URL}/other.img"), status=1)
    assert out.endswith(f"the server streams lab.img, not other.img: say asr://{SERVER}/lab.img\n")
    out = ended(restoring(alone, machine, target, url=f"{URL}:7801"), status=1)
    assert f"http://{SERVER}:7801 does not answer: Connection refused" in out
    words = (*alone.server.inside, sys.executable, "-m", "http.server", "--bind", SERVER, "7802")
    with running(words, stderr=DEVNULL):
        wait_until(lambda: alone.server.run("ss", "-ltn").count(":7802"), "a web server")
        out = ended(restoring(alone, machine, target, url=f"{URL}:7802"), status=1)
    assert f"http://{SERVER}:7802: HTTP status 404" in out
    out = ended(restoring(alone, machine, target, "--interface", "eth7"), status=1)
    assert "there is no interface eth7 with an IPv4 address that is up; there are: lo (127.0.0.1), eth0" in out
    assert_same_bytes(target.read_bytes(), bytes(SIZE))


def test_a_port_that_is_taken(alone: Room, image: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        words = ("server", "--source", image, "--interface", "lo", "--port", port)
        done = run(*ASR, *words, check=False, cwd=Path(__file__).parents[3])
    assert done.status == 1
    assert "cannot listen on" in done.err
