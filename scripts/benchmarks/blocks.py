"""The block path: a raw image, our engine and our server, against nbdcopy and nbdkit."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.benchmarks.measuring import GIB, Bench
from scripts.benchmarks.running import BIN, asr, copying, fio, nbdkit, our_server, timed


def restore(bench: Bench) -> None:
    """Unverified restore against nbdcopy to nbdkit."""

    def ours(measure: Callable[[list[Any]], float]) -> float:
        with our_server(bench.target) as uri:
            return measure(asr(bench.source, uri, "--noverify"))

    def theirs() -> float:
        with nbdkit(bench.target) as uri:
            return timed(["nbdcopy", bench.source, uri])

    what = f"restore of {bench.size / GIB:g} GiB, unverified"
    bench.compare(f"{what}, while copying", "nbdcopy → nbdkit file", 2.0, lambda: ours(copying), theirs)
    bench.compare(f"{what}, whole process", "nbdcopy → nbdkit file", 1.6, lambda: ours(timed), theirs)


def verified(bench: Bench) -> None:
    """What verification costs."""

    def run(*arguments: str) -> float:
        with our_server(bench.target) as uri:
            return timed(asr(bench.source, uri, *arguments))

    def both(name: str, goal: float, *arguments: str) -> None:
        peer = "our own without"
        bench.compare(name, peer, goal, lambda: run(*arguments), lambda: run("--noverify", *arguments), at_least=False)

    both("the same, verified", 1.75)
    both("the same, verified, --max-rate 1G", 1.05, "--max-rate", "1G")


def small(bench: Bench) -> None:
    """Start-up."""
    source, target = bench.directory / "small.img", bench.directory / "small-target.img"
    source.write_bytes(os.urandom(1 << 20))
    target.write_bytes(bytes(1 << 20))
    with our_server(target) as uri:
        bench.bound("1 MiB image, verified, whole process", 0.5, "s", [timed(asr(source, uri)) for _ in range(5)])
    bench.bound("targetmode --help", 0.2, "s", [timed([BIN / "targetmode", "--help"]) for _ in range(5)])


def server(bench: Bench) -> None:
    """Our server under somebody else's client."""

    def run(make: Callable[[Path], Any], reading: bool) -> float:
        with make(bench.target) as uri:
            # Reading goes to nowhere, so that only the server and the wire are measured.
            return timed(["nbdcopy", uri, "null:"] if reading else ["nbdcopy", bench.source, uri])

    for reading, word in ((False, "written"), (True, "read")):
        bench.compare(
            f"our server under nbdcopy, {word}",
            "nbdkit file under nbdcopy",
            1.0,
            lambda reading=reading: run(our_server, reading),  # type: ignore[misc]
            lambda reading=reading: run(nbdkit, reading),  # type: ignore[misc]
        )


def engine(bench: Bench) -> None:
    """Our engine on somebody else's server."""

    def ours() -> float:
        with nbdkit(bench.target) as uri:
            return timed(asr(bench.source, uri, "--noverify"))

    def theirs() -> float:
        with nbdkit(bench.target) as uri:
            return timed(["nbdcopy", bench.source, uri])

    bench.compare("our engine → nbdkit file", "nbdcopy → nbdkit file", 1.1, ours, theirs)


def random_io(bench: Bench) -> None:
    """Small random requests."""

    def run(make: Callable[[Path], Any], mode: str, depth: int) -> float:
        with make(bench.target) as uri:
            return fio(uri, mode, depth, bench.seconds)

    for depth, goal in ((16, 1.3), (64, 1.3), (1, 0.95)):
        for mode in ("randread", "randwrite"):
            bench.compare(
                f"fio 4 KiB {mode}, queue depth {depth}",
                "nbdkit file",
                goal,
                lambda mode=mode, depth=depth: run(our_server, mode, depth),  # type: ignore[misc]
                lambda mode=mode, depth=depth: run(nbdkit, mode, depth),  # type: ignore[misc]
                unit="IOPS",
            )


def sparse(bench: Bench) -> None:
    """An image with nothing in it."""
    source, target = bench.directory / "sparse.img", bench.directory / "sparse-target.img"
    for image in (source, target):
        with image.open("wb") as file:
            file.truncate(100 * GIB)

    def ours() -> float:
        with our_server(target) as uri:
            return timed(asr(source, uri, "--noverify"))

    def theirs() -> float:
        with nbdkit(target) as uri:
            return timed(["nbdcopy", source, uri])

    bench.compare("empty sparse image of 100 GiB", "nbdcopy → nbdkit file", 1.0, ours, theirs, at_least=False)


def memory(bench: Bench) -> None:
    """Peaks of resident memory during a verified restore."""
    engine_peak = connection_peak = 0
    with our_server(bench.target) as uri, subprocess.Popen(asr(bench.source, uri), stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            engine_peak = max(engine_peak, peak(run.pid))
            connection_peak = max(connection_peak, *(peak(pid) for pid in connections_of(bench.target)), 0)
            time.sleep(0.05)
    bench.bound("resident memory, restore engine", 200, "MiB", [engine_peak / 1024])
    bench.bound("resident memory, one server connection", 40, "MiB", [connection_peak / 1024])


def connections_of(image: Path) -> list[int]:
    """The processes of our server's connections: grandchildren of the one that serves the image."""
    parents: dict[int, int] = {}
    mains = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"serve" in words and str(image).encode() in words:
                mains.add(int(entry.name))
    return [pid for pid in mains if parents.get(parents.get(pid, 0), 0) in mains]


def peak(pid: int) -> int:
    """A process's highest resident memory in KiB, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


ROWS: dict[str, Callable[[Bench], None]] = {
    "restore": restore,
    "verified": verified,
    "small": small,
    "server": server,
    "engine": engine,
    "fio": random_io,
    "sparse": sparse,
    "memory": memory,
}
