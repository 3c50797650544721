"""`scripts/simulate`: which rooms, how large, and where the plot goes."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from scripts.simulation.figures import CLIENTS, simulate

PLOT = Path("docs/multicast.svg")
CHUNKS = 2048


def main() -> int:
    """Simulate, plot, and print the figures."""
    parser = argparse.ArgumentParser(prog="scripts/simulate")
    parser.add_argument(
        "--chunks", type=int, default=CHUNKS, metavar="N", help="of 1 MiB that the image has; %(default)s"
    )
    parser.add_argument("--most", type=int, default=CLIENTS[-1], metavar="N", help="clients in a room; %(default)s")
    parser.add_argument("--plot", type=Path, default=PLOT, metavar="FILE", help="where it goes; %(default)s")
    options = parser.parse_args()
    if options.chunks < 1 or options.most < 1:
        parser.error("at least one chunk, and one client")
    begun = time.monotonic()
    figures = simulate(options.chunks, options.most, lambda line: print(f"    {line}", file=sys.stderr, flush=True))
    from scripts.simulation.plot import plot

    options.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(figures, options.plot)
    print("\n".join(figures.lines()))
    print(f"written to {options.plot}", file=sys.stderr)
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
