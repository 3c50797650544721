"""The figures of docs/multicast.svg: which rooms are simulated, and what is kept of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from scripts.simulation.others import plain_carousel
from scripts.simulation.running import RATE, SEGMENTS, Outcome, Scenario, run, stream_length, together

CLIENTS: Final = (1, 3, 10, 30, 100, 300, 1000)
LOSSES: Final = (0.0, 0.01, 0.05, 0.2)
STAGGERED: Final = 8
SLOW: Final = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5)  # disk speeds of one client, in stream rates
WITH_SLOW: Final = 20


@dataclass(slots=True)
class Figures:
    """What is plotted; times are in stream lengths.

    Attributes:
        chunks: of the image.
        ours: by loss, of each number of clients when the last one was done, and half of them were.
        plain: likewise, of a plain carousel.
        staggered: by loss, of each client when it came and how long it took.
        beyond: by loss, which part more was sent to those than was inevitable, whole chunks and all datagrams.
        slow: by the speed of one client's disk, when the last other one was done, and it itself.
    """

    chunks: int
    ours: dict[float, list[tuple[int, float, float]]] = field(default_factory=dict)
    plain: dict[float, list[tuple[int, float, float]]] = field(default_factory=dict)
    staggered: dict[float, list[tuple[float, float]]] = field(default_factory=dict)
    beyond: dict[float, tuple[float, float]] = field(default_factory=dict)
    slow: list[tuple[float, float, float]] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """All of it as text."""
        for loss in self.ours:
            for (clients, last, middle), (_, theirs, _) in zip(self.ours[loss], self.plain[loss], strict=True):
                yield (
                    f"{clients:5} clients, {loss:4.0%} loss: last {last:.3f}, median {middle:.3f}; "
                    f"plain carousel {theirs:.2f}; unicast {clients}"
                )
        for loss, times in self.staggered.items():
            chunks, datagrams = self.beyond[loss]
            each = " ".join(f"{took:.3f}" for _, took in times)
            yield f"staggered, {loss:4.0%} loss: {each}; sent beyond need: {chunks:.1%} chunks, {datagrams:.1%} in all"
        for speed, others, own in self.slow:
            yield f"one disk of {speed:.2f} stream rates: others {others:.3f}, it {own:.3f}"


def staggered(chunks: int, loss: float, clients: int = STAGGERED) -> tuple[Scenario, Outcome, tuple[float, float]]:
    """Clients that come evenly over one stream length; which part more was sent to them than was inevitable.

    The last one needs all of the image from its start on, and until then there was always somebody who lacked what was
    sent: no less is sent than both together. The parts are of whole chunks, and of all datagrams.
    """
    length = stream_length(chunks)
    scenario = Scenario([length * number / clients for number in range(clients)], [loss] * clients, chunks)
    outcome = run(scenario)
    inevitable = (clients - 1) / clients + 1
    return scenario, outcome, (outcome.again / chunks, outcome.sent / inevitable - 1)


def with_a_slow_disk(chunks: int, speed: float, clients: int = WITH_SLOW) -> tuple[float, float, Outcome]:
    """A room at a loss of 1 % with one disk of that speed, in stream rates; when the others are done, and it itself."""
    room = together(clients, 0.01, chunks=chunks)
    disks = [speed * RATE] + [3 * RATE] * (clients - 1)
    outcome = run(Scenario(room.starts, room.loss, chunks, disks))
    own, *others = outcome.lengths
    return max(others), own, outcome


def simulate(chunks: int, most: int, told: Callable[[str], None]) -> Figures:
    """All of it, for rooms of up to so many clients; each room is told of in a line."""
    figures = Figures(chunks)
    numbers = [clients for clients in CLIENTS if clients <= most]
    for loss in LOSSES:
        figures.ours[loss], figures.plain[loss] = [], []
        for clients in numbers:
            told(f"{clients} clients at a loss of {loss:.0%}")
            lengths = run(together(clients, loss, chunks=chunks)).lengths
            figures.ours[loss].append((clients, max(lengths), median(lengths)))
            plain = plain_carousel(clients, chunks * SEGMENTS, loss)
            figures.plain[loss].append((clients, max(plain), median(plain)))
        told(f"{STAGGERED} clients that come one by one, at a loss of {loss:.0%}")
        scenario, outcome, figures.beyond[loss] = staggered(chunks, loss)
        starts = (start / outcome.length for start in scenario.starts)
        figures.staggered[loss] = list(zip(starts, outcome.lengths, strict=True))
    for speed in SLOW:
        told(f"{WITH_SLOW} clients, one disk at {speed:.0%} of the stream's rate")
        others, own, _ = with_a_slow_disk(chunks, speed)
        figures.slow.append((speed, others, own))
    return figures
