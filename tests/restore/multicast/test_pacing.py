"""How fast: never above the limit, below it as most can follow."""

from __future__ import annotations

import random

import pytest

from restore.multicast.pacing import CATCH_UP, START, Pace, Regulator

MB = 1_000_000


@pytest.mark.parametrize("rate", [MB, 125 * MB])
def test_never_above_the_rate(rate: int) -> None:
    """Over any while, whatever the sleeps are, no more than the rate and what may be made up for."""
    chance = random.Random(1)
    pace, now, size = Pace(rate), 0.0, 60_000
    sent: list[float] = []
    for _ in range(2000):
        now += pace.wait(now, size)
        sent.append(now)
        now += chance.choice([0.0, 0.0001, 0.02])  # a slow sendmsg, or another process
    for first in range(0, 2000, 37):
        for last in range(first + 1, 2000, 101):
            seconds = sent[last] - sent[first]
            assert (last - first) * size <= rate * (seconds + CATCH_UP) + size


def test_as_fast_as_the_rate() -> None:
    pace, now = Pace(MB), 0.0
    for _ in range(100):
        now += pace.wait(now, MB // 100)
    assert now == pytest.approx(0.99)


def test_a_pause_is_no_credit() -> None:
    pace = Pace(MB)
    assert pace.wait(0, MB) == 0
    assert pace.wait(100, MB) == 0
    assert pace.wait(100, MB) == pytest.approx(1 - CATCH_UP)


def test_bursts_are_sized_by_the_rate() -> None:
    assert Pace(None).burst(1500, 44) == 44
    assert Pace(12_500_000).burst(1500, 44) == 8  # 100 Mbit/s
    assert Pace(125 * MB).burst(1500, 44) == 44
    assert Pace(1000).burst(1500, 44) == 1
    assert Pace(None).wait(0, 1 << 40) == 0


def test_the_median_decides() -> None:
    regulator = Regulator(100 * MB)
    assert regulator.regulate([], [], 0) == 100 * MB
    assert regulator.regulate([0.0, 0.0, 0.9], [0.0], 100 * MB) == 100 * MB  # one is slow, and that is its own affair
    assert regulator.regulate([0.5, 0.6, 0.0], [0.0], 100 * MB) == 47.5 * MB
    assert regulator.regulate([0.5, 0.6, 0.0], [0.0], 40 * MB) == 19 * MB  # of what was sent, where that was less
    assert regulator.regulate([0.0], [0.0], 19 * MB, may_rise=False) == 19 * MB
    assert regulator.regulate([0.0, 0.0, 0.0], [0.0], 19 * MB) == 23.75 * MB
    for _ in range(100):
        regulator.regulate([0.0], [0.0], regulator.rate)
    assert regulator.rate == 100 * MB


def test_slower_before_anything_is_lost() -> None:
    regulator = Regulator(100 * MB)
    assert regulator.regulate([0.0, 0.0], [0.9, 0.7], 80 * MB) == 76 * MB
    assert regulator.regulate([0.0, 0.0], [0.4, 0.3], 76 * MB) == int(76 * MB * 1.03)


def test_no_slower_than_the_slowest_that_is_waited_for() -> None:
    regulator = Regulator(100 * MB, 20 * MB)
    for _ in range(50):
        regulator.regulate([0.9], [0.0], 100 * MB)
    assert regulator.rate == 20 * MB
    assert Regulator(MB, 20 * MB).regulate([1.0], [0.0], MB) == MB


@pytest.mark.parametrize("limit", [None, 1000 * MB])
def test_it_feels_its_way_up(limit: int | None) -> None:
    """Fast at first, carefully near what was too much, and not while the stream is slow for reasons of its own."""
    regulator = Regulator(limit)
    assert regulator.rate == START
    assert regulator.regulate([0.0], [0.0], START) == START * 1.25
    assert regulator.regulate([0.0], [0.0], START / 2) == START * 1.25
    slowed = regulator.regulate([0.5], [0.0], START)
    assert slowed == int(START * 0.5 * 0.95)
    rates = [regulator.regulate([0.0], [0.0], regulator.rate) for _ in range(200)]
    assert rates[0] == int(slowed * 1.25)
    near = next(at for at, rate in enumerate(rates) if rate > 0.8 * START)
    assert rates[near + 1] == int(rates[near] * 1.03)
    assert rates[-1] == limit if limit else rates[-1] > 1000 * MB
