"""`scripts/bench`: which measurements, how large, how often."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from scripts.benchmarks import blocks, multicast, restore
from scripts.benchmarks.measuring import GIB, HEADER, Bench, Row, machine, plot

RESULTS = Path("bench-results")
SUITES: dict[str, tuple[int, dict[str, Callable[[Bench], None]]]] = {
    "blocks": (4 * GIB, blocks.ROWS),
    "restore": (1 * GIB, restore.ROWS),
    "multicast": (1 * GIB, multicast.ROWS),
}
"""Of each suite the size of its image, and its rows."""
MEMORY = {"blocks": 2, "restore": 5, "multicast": 7}
"""How many times that size it takes, at its highest."""


def parse_size(text: str) -> int:
    """`4G`, `512M`."""
    return int(text[:-1]) << {"M": 20, "G": 30}[text[-1]]


def main() -> int:
    """Run the measurements; 0 when every goal was met, 1 when not."""
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("suite", nargs="*", default=list(SUITES), help=f"of {', '.join(SUITES)}; all of them")
    parser.add_argument("--size", type=parse_size, metavar="4G", help="of the image, where not what suits the suite")
    parser.add_argument("--rounds", type=int, default=5, help="pairs for each row")
    parser.add_argument("--seconds", type=int, default=3, help="for each run of fio")
    parser.add_argument("--only", metavar="ROWS", help="some rows of these suites, with commas between")
    parser.add_argument("--list", action="store_true", help="name the rows")
    options = parser.parse_args()
    unknown = set(options.suite) - set(SUITES)
    if unknown:
        parser.error(f"there is no suite {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    if options.list:
        print("\n".join(f"{suite}: {', '.join(SUITES[suite][1])}" for suite in options.suite))
        return 0
    if "multicast" in options.suite and os.geteuid():
        parser.error("multicast makes network namespaces, which takes root; anyone may say blocks or restore")
    # Processes in namespaces end with this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    results = []
    print(HEADER, flush=True)
    for suite in options.suite:
        usual, rows = SUITES[suite]
        size = options.size or usual
        wanted = options.only.split(",") if options.only else list(rows)
        results += run(suite, size, [rows[name] for name in wanted if name in rows], options, parser)
    print(f"\n{machine()}\nwritten to {RESULTS}/")
    return 0 if results and all(row.met for row in results) else 1


def run(
    suite: str,
    size: int,
    rows: list[Callable[[Bench], None]],
    options: argparse.Namespace,
    parser: argparse.ArgumentParser,
) -> list[Row]:
    """Measure one suite, on tmpfs, and write its results."""
    if not rows:
        return []
    shm = Path("/dev/shm")
    free, needed = shutil.disk_usage(shm).free, MEMORY[suite] * size + GIB
    if free < needed:
        parser.error(f"/dev/shm has {free >> 20} MiB free, {needed >> 20} are needed; see --size")
    with tempfile.TemporaryDirectory(dir=shm, prefix="targetmode-bench-") as directory:
        bench = Bench(Path(directory), size, options.rounds, options.seconds)
        for row in rows:
            row(bench)
    RESULTS.mkdir(exist_ok=True)
    facts = {"machine": machine(), "suite": suite, "size": size, "rounds": options.rounds}
    path = RESULTS / f"{suite}.json"
    path.write_text(json.dumps({**facts, "rows": [asdict(row) for row in bench.rows]}, indent=2))
    plot(bench.rows, path.with_suffix(".png"))
    return bench.rows


if __name__ == "__main__":
    sys.exit(main())
