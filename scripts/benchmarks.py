"""The measurements of `scripts/bench`.

Every comparison runs the two sides in turn, ours and the peer's, and takes the ratio of each pair: machines drift. The
median of the ratios is what the table shows. Servers are started before the clock is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
RESULTS = Path("bench-results")
GIB = 1 << 30


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        peer: against what.
        goal: for people, such as `≥ 2.0 ×`.
        met: whether the median meets it.
        ours, theirs: every figure, in `unit`; `theirs` is empty where there is no peer.
        value: what the goal is about: a median of ratios, or of figures.
    """

    name: str
    peer: str
    unit: str
    goal: str
    met: bool
    value: float
    ours: list[float]
    theirs: list[float] = field(default_factory=list)


class Bench:
    """The files and settings that the measurements share."""

    def __init__(self, directory: Path, size: int, rounds: int, seconds: int) -> None:
        """Make a random source and a target of `size` bytes each, both with all their memory in place."""
        self.rounds = rounds
        self.seconds = seconds
        self.size = size
        self.directory = directory
        self.rows: list[Row] = []
        self.source = directory / "source.img"
        self.target = directory / "target.img"
        with self.source.open("wb") as source, self.target.open("wb") as target:
            for _ in range(size >> 20):
                source.write(os.urandom(1 << 20))
                target.write(b"\x55" * (1 << 20))

    def compare(
        self,
        name: str,
        peer: str,
        goal: float,
        ours: Callable[[], float],
        theirs: Callable[[], float],
        *,
        unit: str = "s",
        at_least: bool = True,
        rounds: int | None = None,
    ) -> None:
        """Run both sides in turn.

        Args:
            name, peer: for the table.
            goal: what the ratio has to reach (`at_least`, a speed) or may reach (a time).
            ours, theirs: measure once; seconds, or for fio operations per second.
            unit: of the figures.
            at_least: whether the ratio is one of speeds.
            rounds: how often, None for the usual number.
        """
        ours(), theirs()  # once for nothing: caches, page tables
        pairs = [(ours(), theirs()) for _ in range(rounds or self.rounds)]
        speed = unit != "s"
        ratios = [(a / b if speed == at_least else b / a) for a, b in pairs]
        value = statistics.median(ratios)
        met = value >= goal if at_least else value <= goal
        sign = "≥" if at_least else "≤"
        kind = "" if at_least else " time"
        row = Row(name, peer, unit, f"{sign} {goal} ×{kind}", met, value, [a for a, _ in pairs], [b for _, b in pairs])
        self._add(row)

    def bound(self, name: str, goal: float, unit: str, figures: list[float]) -> None:
        """A row without a peer: the median has to stay below `goal`."""
        value = statistics.median(figures)
        self._add(Row(name, "–", unit, f"≤ {goal:g} {unit}", value <= goal, value, figures))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(table_line(row), flush=True)


# --- Running things -------------------------------------------------------------------------------------------------


@contextmanager
def our_server(image: Path, *arguments: str) -> Iterator[str]:
    """`targetmode serve`; the URI of its one export."""
    port, control = free_port(), free_port()
    command: list[Any] = [BIN / "targetmode", "serve", image, "--listen", f"127.0.0.1:{port}"]
    command += ["--control", f"127.0.0.1:{control}", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            wait_for(control)
            yield ready["exports"][0]["uris"][0]
        finally:
            server.terminate()


@contextmanager
def nbdkit(image: Path) -> Iterator[str]:
    """Debian's nbdkit with its file plugin; its URI."""
    port = free_port()
    program = shutil.which("nbdkit") or "/usr/sbin/nbdkit"
    command = [program, "--foreground", "--ipaddr", "127.0.0.1", "--port", str(port), "file", str(image)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            yield f"nbd://127.0.0.1:{port}/"
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Until somebody listens."""
    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise TimeoutError(f"nothing listens on port {port}")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def timed(command: list[Any]) -> float:
    """Seconds that a whole process takes."""
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def asr(source: Path, target: str, *arguments: str) -> list[Any]:
    """The command line of a restore."""
    return [BIN / "asr", "restore", "--source", source, "--target", target, "--erase", "--noprompt", *arguments]


def copying(command: list[Any]) -> float:
    """Seconds that a restore itself takes, by its own account: from the first erased byte to the last flush."""
    output = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])["seconds"])


def fio(uri: str, mode: str, depth: int, seconds: int) -> float:
    """Operations of 4 KiB per second."""
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={mode}", "--bs=4k"]
    command += [f"--iodepth={depth}", "--time_based", f"--runtime={seconds}", "--size=1G", "--output-format=json"]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tempfile.gettempdir())
    job = json.loads(run.stdout[run.stdout.index("{") :])["jobs"][0]
    return float(job["read"]["iops"] + job["write"]["iops"])


# --- The rows -------------------------------------------------------------------------------------------------------


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


# --- The results ----------------------------------------------------------------------------------------------------

HEADER = "| what | peer | ours | peer's | ratio | to reach | reached |\n|---|---|---|---|---|---|---|"


def table_line(row: Row) -> str:
    """One line of the Markdown table."""

    def figure(values: list[float]) -> str:
        if not values:
            return "–"
        value = statistics.median(values)
        return f"{value / 1000:.1f} k{row.unit}" if row.unit == "IOPS" else f"{value:.3g} {row.unit}"

    ratio = f"{row.value:.2f}" if row.theirs else "–"
    reached = "yes" if row.met else "**no**"
    return f"| {row.name} | {row.peer} | {figure(row.ours)} | {figure(row.theirs)} | {ratio} | {row.goal} | {reached} |"


def plot(rows: list[Row], file: Path) -> None:
    """The ratios as bars, faster to the right, with what is to be reached as a mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row.theirs][::-1]
    if not shown:
        return
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.4 * len(shown)))
    # A ratio of times is turned over, so that longer bars are better throughout.
    values = [1 / row.value if "time" in row.goal else row.value for row in shown]
    goals = [float(row.goal.split()[1]) for row in shown]
    goals = [1 / goal if "time" in row.goal else goal for goal, row in zip(goals, shown, strict=True)]
    axes.barh(range(len(shown)), values, color=["#3a7d44" if row.met else "#b3541e" for row in shown])
    axes.plot(goals, range(len(shown)), "k|", markersize=16, label="to reach")
    axes.set_yticks(range(len(shown)), [f"{row.name}\nvs {row.peer}" for row in shown], fontsize=7)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times as fast as the peer (median of pairs)")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def machine() -> dict[str, Any]:
    """Where this was measured."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":")
    return {
        "date": date.today().isoformat(),
        "processor": model.partition(":")[2].strip(),
        "processors": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def parse_size(text: str) -> int:
    """`4G`, `512M`."""
    return int(text[:-1]) << {"M": 20, "G": 30}[text[-1]]


def main() -> int:
    """Run the measurements; 0 when every goal was met, 1 when not."""
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--size", type=parse_size, default=4 * GIB, metavar="4G", help="of the image")
    parser.add_argument("--rounds", type=int, default=5, help="pairs for each row")
    parser.add_argument("--seconds", type=int, default=3, help="for each run of fio")
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas between")
    parser.add_argument("--list", action="store_true", help="name the rows")
    options = parser.parse_args()
    if options.list:
        print("\n".join(ROWS))
        return 0
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free
    if free < 2 * options.size + (1 << 30):
        parser.error(f"/dev/shm has {free >> 20} MiB free, {(2 * options.size >> 20) + 1024} are needed; see --size")
    with tempfile.TemporaryDirectory(dir=shm, prefix="targetmode-bench-") as directory:
        bench = Bench(Path(directory), options.size, options.rounds, options.seconds)
        print(HEADER, flush=True)
        for name in options.only.split(","):
            ROWS[name](bench)
    RESULTS.mkdir(exist_ok=True)
    facts = {"machine": machine(), "size": options.size, "rounds": options.rounds}
    (RESULTS / "bench.json").write_text(json.dumps({**facts, "rows": [asdict(r) for r in bench.rows]}, indent=2))
    plot(bench.rows, RESULTS / "bench.png")
    print(f"\n{machine()}\nwritten to {RESULTS}/bench.json and {RESULTS}/bench.png")
    return 0 if all(row.met for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
