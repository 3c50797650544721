"""A room: our multicast restore against udpcast and UFTP, and against itself when something goes wrong in the room.

Needs root, for network namespaces. All machines of a room share this one's processors.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from restore.multicast.packet import HEADER_SIZE, segment_size
from restore.multicast.server.sending import IP_UDP
from scripts.benchmarks import casting
from scripts.benchmarks.casting import Program, Stream, Times, cast, finish, seconds, streaming
from scripts.benchmarks.measuring import GIB, Bench, Failed

GIGABIT: Final = 125_000_000  # bytes per second
MTU: Final = 1500  # of the room's network
_LONGEST: Final = 5  # times as long as it should take, and some seconds to start, a stream may take


def rated(rate: int) -> tuple[str, str]:
    """The option for so many bytes per second."""
    return ("--data-rate", str(rate))


def patience(size: int, rate: float) -> float:
    """Seconds after which a stream of so many bytes at so many a second has failed."""
    return 20 + _LONGEST * size / rate


def against(bench: Bench, clients: int, name: str, peer: Callable[[Path, int, float], Times], goal: float) -> None:
    """As fast as it goes, against a peer: both by their own account, and whole processes."""
    what = f"{bench.size / GIB:g} GiB to {clients} client{'s' * (clients > 1)}, verified"
    limit = patience(bench.size, 50e6 / clients)
    with bench.attempt(what, name, f"≥ {goal} ×"):
        pairs = [(cast(bench.source, clients, limit), peer(bench.source, clients, limit)) for _ in range(bench.rounds)]
        bench.ratio(f"{what}, while copying", name, goal, [(ours.copying, theirs.copying) for ours, theirs in pairs])
        bench.ratio(f"{what}, whole process", name, goal, [(ours.whole, theirs.whole) for ours, theirs in pairs])


def one(bench: Bench) -> None:
    """One client, against the faster of two, which is to say both."""
    against(bench, 1, "udpcast", casting.udpcast, 5.0)
    against(bench, 1, "UFTP", casting.uftp, 5.0)


def four(bench: Bench) -> None:
    """Four of them."""
    against(bench, 4, "udpcast", casting.udpcast, 3.0)


def paced(bench: Bench) -> None:
    """What more clients cost at a rate that all can follow."""

    def run(clients: int) -> float:
        return cast(bench.source, clients, patience(bench.size, GIGABIT), *rated(GIGABIT)).copying

    name, peer = "4 clients at 1 Gbit/s", "1 client"
    with bench.attempt(name, peer, "≤ 1.05 × time"):
        bench.compare(name, peer, 1.05, lambda: run(4), lambda: run(1), at_least=False)


def loss(bench: Bench) -> None:
    """Single datagrams lost at random."""
    rate = 400_000_000 // 8  # what this can do without the kernel's batches
    image = part(bench, 8)

    def run(percent: int) -> float:
        with streaming(4, image, "--start-when", "4", *rated(rate)) as stream:
            stream.stage.room.server.single_datagrams()
            for machine in stream.stage.room.clients:
                machine.lose(percent)
            restores = [stream.restore(number) for number in range(4)]
            finish(restores, patience(bench.size // 8, rate))
            stream.check(*range(4))
            return max(map(seconds, restores))

    name, peer = "4 clients at 400 Mbit/s, each losing 5 % of single datagrams", "none lost"
    with bench.attempt(name, peer, "≤ 1.15 × time"):
        bench.compare(name, peer, 1.15, lambda: run(5), lambda: run(0), at_least=False)


def part(bench: Bench, of: int) -> Path:
    """An image that is the beginning of the other one, made once."""
    path = bench.directory / f"part{of}.img"
    if not path.exists():
        with bench.source.open("rb") as file:
            path.write_bytes(file.read(bench.size // of))
    return path


def halfway(bench: Bench, stream: Stream) -> None:
    """Until half of the stream has been sent."""
    stream.server.wait(lambda: stream.server.events("stream"), "the stream began")
    time.sleep(bench.size / GIGABIT / 2)


def late(bench: Bench) -> None:
    """A client that joins when half of the stream is over."""

    def run() -> float:
        with streaming(2, bench.source, *rated(GIGABIT)) as stream:
            first = stream.restore(0)
            halfway(bench, stream)
            second = stream.restore(1)
            finish([first, second], 2 * patience(bench.size, GIGABIT))
            stream.check(0, 1)
            return seconds(second)

    def alone() -> float:
        return cast(bench.source, 1, patience(bench.size, GIGABIT), *rated(GIGABIT)).copying

    name, peer = "a client that joins halfway, from then on", "one from the start"
    with bench.attempt(name, peer, "≤ 1.05 × time"):
        bench.compare(name, peer, 1.05, run, alone, at_least=False)


def others(bench: Bench, name: str, disturb: Callable[[Program], None], *options: str) -> None:
    """One of four clients has options of its own, and something happens to it halfway: what it costs the others."""

    def run(*options: str, happens: Callable[[Program], None] | None = None) -> float:
        with streaming(4, bench.source, "--start-when", "4", *rated(GIGABIT)) as stream:
            one = stream.restore(3, *options)
            restores = [stream.restore(number) for number in range(3)]
            if happens is not None:
                halfway(bench, stream)
                happens(one)
            finish(restores, patience(bench.size, GIGABIT))
            stream.check(*range(3))
            return max(map(seconds, restores))

    peer = "undisturbed"
    with bench.attempt(name, peer, "≤ 1.02 × time"):
        bench.compare(name, peer, 1.02, lambda: run(*options, happens=disturb), run, at_least=False)


def killed(bench: Bench) -> None:
    """A client dies."""
    others(bench, "one of four clients killed: the others", lambda client: client.end(signal.SIGKILL))


def slow(bench: Bench) -> None:
    """A client cannot follow."""
    rate = str(GIGABIT // 10)
    name = "one of four clients at a tenth of the speed: the others"
    others(bench, name, lambda client: None, "--max-rate", rate)


def cpu(bench: Bench) -> None:
    """What sender and receiver take of a core."""
    figures = []
    names = "sender at 1 Gbit/s, of one core", "receiver at 1 Gbit/s, verified, of one core"
    with bench.attempt(" and ".join(names), "–", "≤ 25 and 35 %"):
        for _ in range(bench.rounds):
            with streaming(1, bench.source, *rated(GIGABIT)) as stream:
                restore = stream.restore(0)
                finish([restore], patience(bench.size, GIGABIT))
                used = stream.server.used() - stream.before
                stream.check(0)
                took = restore.ended - restore.started
                figures.append((100 * used / took, 100 * restore.cpu / took))
        for name, goal, values in zip(names, (25, 35), zip(*figures, strict=True), strict=True):
            bench.bound(name, goal, "%", list(values))


def skewed(bench: Bench) -> None:
    """Eight clients that come one by one, the last of them before the first one is done."""
    rate = 200_000_000 // 8  # bytes per second, what eight verifying clients on these processors can do
    image = part(bench, 8)
    size = bench.size // 8
    payload = segment_size(MTU)
    streamed = size - (1 << 20)  # clients fetch the first MiB before
    wire = streamed * (payload + HEADER_SIZE + IP_UDP) / payload  # bytes that all of it takes

    def run() -> float:
        with streaming(8, image, *rated(rate)) as stream:
            restores: list[Program] = []
            done: dict[Program, float] = {}  # when
            moments: list[tuple[float, int]] = []  # and how much had been sent then
            began = time.monotonic()
            while len(done) < 8:
                now = time.monotonic()
                moments.append((now, stream.server.datagrams()))
                if now > began + 2 * patience(size, rate):
                    raise Failed(f"{len(done)} of 8 clients were done after {now - began:.0f} s")
                if len(restores) < 8 and now >= began + len(restores) * wire / rate / 10:
                    restores.append(stream.restore(len(restores)))
                done.update({each: now for each in restores if each not in done and each.events("done")})
                time.sleep(0.02)
            finish(restores, 20)
            stream.check(*range(8))
            last = max(done[each] - seconds(each) for each in restores)  # joined then
            before = max(sent for when, sent in moments if when <= last) / moments[-1][1]
            # What was sent until the last one came somebody needed, and after that the last one needs all of it.
            sent = stream.stop()["sent"]
            return float(100 * (sent - sent * before - wire) / wire)

    name = "8 clients at skewed starts: sent more than is inevitable, of the image (Frisbee: 37 to 59 %)"
    with bench.attempt(name, "–", "≤ 25 %"):
        bench.bound(name, 25, "%", [run() for _ in range(bench.rounds)])


ROWS: dict[str, Callable[[Bench], None]] = {
    "one": one,
    "four": four,
    "paced": paced,
    "loss": loss,
    "late": late,
    "killed": killed,
    "slow": slow,
    "cpu": cpu,
    "skewed": skewed,
}
