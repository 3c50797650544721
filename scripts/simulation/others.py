"""What a room is compared with: a plain carousel, and unicast."""

from __future__ import annotations

from itertools import count

import numpy as np


def plain_carousel(clients: int, datagrams: int, loss: float, seed: int = 1) -> list[float]:
    """Stream lengths until each of so many clients is done that take a stream from its start.

    All of the image goes round and round, nobody reports and nothing repairs. A client keeps every segment that came,
    whatever memory or disk that takes, so that only those that it has lost have to come again. One that kept whole
    chunks only would hardly ever get one: at a loss of 1 %, one of 1,500.

    Args:
        clients: how many.
        datagrams: of the image.
        loss: which part of them gets lost on the way to each, 0 to 1.
        seed: of the chance.
    """
    chance = np.random.default_rng(seed)
    found = []
    for _ in range(clients):
        missing = datagrams
        for passes in count():
            lost = int(chance.binomial(missing, loss))
            if not lost:  # it ends with the last of those that it still missed, each of which is anywhere
                last = chance.random() ** (1 / missing)
                found.append(passes + (float(last) if passes else 1.0))
                break
            missing = lost
    return found


def unicast(clients: int) -> float:
    """Stream lengths until as many clients are done that share the sender's rate, each with a copy; nothing is lost."""
    return float(clients)
