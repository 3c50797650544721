"""docs/multicast.svg: the same bytes whenever the same figures are plotted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter

from scripts.simulation.figures import LOSSES, STAGGERED, WITH_SLOW, Figures
from scripts.simulation.others import unicast

_COLOURS: Final = dict(zip(LOSSES, ("#1b6ca8", "#3a7d44", "#c98a1b", "#b3541e"), strict=True))
_PLAIN: Final = FuncFormatter(lambda value, position: f"{value:g}")
_NOTHING: Final = FuncFormatter(lambda value, position: "")


def plot(figures: Figures, file: Path) -> None:
    """Four panels into an SVG."""
    with pyplot.rc_context({"svg.hashsalt": "multicast", "svg.fonttype": "none", "font.size": 9}):
        figure, ((first, second), (third, fourth)) = pyplot.subplots(2, 2, figsize=(10, 7.5))
        _ours(first, figures)
        _compared(second, figures)
        _staggered(third, figures)
        _slow(fourth, figures)
        for axes in (first, second, third, fourth):
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        gib = figures.chunks / 1024
        figure.suptitle(f"An image of {gib:g} GiB to a room; times in stream lengths (the image once at the full rate)")
        figure.tight_layout()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
        pyplot.close(figure)


def _ours(axes: Any, figures: Figures) -> None:
    for loss, points in figures.ours.items():
        clients = [point[0] for point in points]
        axes.plot(clients, [point[1] for point in points], "o-", ms=3, color=_COLOURS[loss], label=f"{loss:.0%} loss")
        axes.plot(clients, [point[2] for point in points], ":", color=_COLOURS[loss])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_PLAIN)
    axes.set_ylim(0.95)
    axes.set(title="All start together", xlabel="clients", ylabel="until the last is done (dotted: half of them)")
    axes.legend(loc="upper left", ncols=2)
    axes.set_ylim(top=axes.get_ylim()[1] + 0.1)


def _compared(axes: Any, figures: Figures) -> None:
    for loss, points in figures.ours.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], "o-", ms=3, color=_COLOURS[loss])
    for loss, points in figures.plain.items():
        axes.plot([point[0] for point in points], [point[1] for point in points], "s--", ms=3, color=_COLOURS[loss])
    clients = [point[0] for point in next(iter(figures.ours.values()))]
    axes.plot(clients, [unicast(number) for number in clients], "-.", color="black")
    axes.plot([], [], "o-", ms=3, color="grey", label="ours")
    axes.plot([], [], "s--", ms=3, color="grey", label="plain carousel, every segment kept")
    axes.plot([], [], "-.", color="black", label="unicast, nothing lost")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.9, 110)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
    axes.set(title="Compared; colours as on the left", xlabel="clients", ylabel="until the last is done")
    axes.legend(loc="upper left")


def _staggered(axes: Any, figures: Figures) -> None:
    for loss, points in figures.staggered.items():
        label = f"{loss:.0%} loss: {figures.beyond[loss][1]:.1%}"
        axes.plot(*zip(*points, strict=True), "o-", ms=4, color=_COLOURS[loss], label=label)
    axes.set_ylim(0.9, 1.9)
    axes.set(
        title=f"{STAGGERED} clients come one by one",
        xlabel="when each comes, in stream lengths",
        ylabel="until it is done, from then on",
    )
    axes.legend(loc="upper left", title="sent beyond the least possible", ncols=2)


def _slow(axes: Any, figures: Figures) -> None:
    speeds = [point[0] for point in figures.slow]
    axes.plot(speeds, [point[1] for point in figures.slow], "o-", ms=4, color=_COLOURS[0.0], label="the others")
    axes.plot(speeds, [point[2] for point in figures.slow], "s-", ms=4, color=_COLOURS[0.2], label="the slow one")
    axes.plot(speeds, [max(1 / speed, 1) for speed in speeds], ":", color="black", label="if all waited for its disk")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_PLAIN)
        axis.set_minor_formatter(_NOTHING)
    axes.set_xticks(speeds)
    axes.set_yticks([1, 2, 5, 10, 20])
    axes.set(
        title=f"{WITH_SLOW} clients at 1% loss, one with a slow disk",
        xlabel="speed of that disk, in rates of the stream",
        ylabel="until done",
    )
    axes.legend(loc="upper right")
