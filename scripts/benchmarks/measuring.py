"""Pairs of figures, ours and a peer's, and what is made of them: a table, a file of every figure, a plot.

Every comparison runs the two sides in turn and takes the ratio of each pair: machines drift. The median of the ratios
is what the table shows.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

GIB = 1 << 30


class Failed(Exception):
    """What was to be measured did not come to its end; the message says why."""


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
        failure: why there are no figures.
    """

    name: str
    peer: str
    unit: str
    goal: str
    met: bool
    value: float
    ours: list[float]
    theirs: list[float] = field(default_factory=list)
    failure: str | None = None


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
        self.ratio(name, peer, goal, pairs, unit=unit, at_least=at_least)

    def ratio(
        self,
        name: str,
        peer: str,
        goal: float,
        pairs: Sequence[tuple[float, float]],
        *,
        unit: str = "s",
        at_least: bool = True,
    ) -> None:
        """Both sides were run in turn: figures of ours and theirs, the rest as in `compare`."""
        speed = unit != "s"
        ratios = [(a / b if speed == at_least else b / a) for a, b in pairs]
        value = statistics.median(ratios)
        met = value >= goal if at_least else value <= goal
        sign = "≥" if at_least else "≤"
        kind = "" if at_least else " time"
        row = Row(name, peer, unit, f"{sign} {goal} ×{kind}", met, value, [a for a, _ in pairs], [b for _, b in pairs])
        self._add(row)

    @contextmanager
    def attempt(self, name: str, peer: str, goal: str) -> Iterator[None]:
        """A row that may fail; that it did, and why, is what the table shows then."""
        try:
            yield
        except Failed as failure:
            self._add(Row(name, peer, "", goal, met=False, value=0.0, ours=[], failure=str(failure)))

    def bound(self, name: str, goal: float, unit: str, figures: list[float]) -> None:
        """A row without a peer: the median has to stay below `goal`."""
        value = statistics.median(figures)
        self._add(Row(name, "–", unit, f"≤ {goal:g} {unit}", value <= goal, value, figures))

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(table_line(row), flush=True)


HEADER = "| what | peer | ours | peer's | ratio | to reach | reached |\n|---|---|---|---|---|---|---|"


def table_line(row: Row) -> str:
    """One line of the Markdown table."""

    def figure(values: list[float]) -> str:
        if not values:
            return "–"
        value = statistics.median(values)
        return f"{value / 1000:.1f} k{row.unit}" if row.unit == "IOPS" else f"{value:.3g} {row.unit}"

    ratio = f"{row.value:.2f}" if row.theirs else row.failure or "–"
    reached = "yes" if row.met else "**no**"
    peer, ratio = (text.replace("|", r"\|") for text in (row.peer, ratio))
    return f"| {row.name} | {peer} | {figure(row.ours)} | {figure(row.theirs)} | {ratio} | {row.goal} | {reached} |"


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
