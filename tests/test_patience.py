"""Pauses and what is usual: pure arithmetic, for made-up times."""

from __future__ import annotations

import random

import pytest

from bffs.patience import (
    CREDIT,
    LONGEST_ASKED,
    LONGEST_PAUSE,
    PATIENCE,
    SHARE,
    SHORTEST,
    UNKNOWN,
    History,
    Pauses,
    Stalls,
)

LONGEST = 20.0


def test_pauses_grow_up_to_the_longest_and_begin_anew() -> None:
    pauses = Pauses()
    grown = [pauses.after() for _ in range(12)]
    assert 0.05 <= grown[0] <= 0.1 and LONGEST_PAUSE / 2 <= grown[-1] <= LONGEST_PAUSE
    assert sum(grown[:4]) < 2
    pauses.progressed()
    assert pauses.after() <= 0.1


def test_pauses_fit_into_a_short_deadline() -> None:
    pauses = Pauses(deadline=2.0)
    assert max(pauses.after() for _ in range(20)) <= 0.4


def test_pauses_differ() -> None:
    assert len({Pauses().after() for _ in range(20)}) > 10


def test_what_the_store_asks_for_is_heeded_within_reason() -> None:
    assert Pauses().after(3.0) == 3.0
    assert Pauses().after(0.001) > 0.01
    assert Pauses().after(86400.0) == LONGEST_ASKED


def test_little_is_known_at_first() -> None:
    history = History()
    assert history.limit == UNKNOWN
    history.add(0.01)
    assert history.limit == UNKNOWN


@pytest.mark.parametrize("usual", [0.001, 0.2, 1.5])
def test_a_few_times_the_usual_is_too_long(usual: float) -> None:
    history = History()
    for n in range(100):
        history.add(usual if n % 30 else 100 * usual)  # some stalls are no habit
    assert history.limit == max(SHORTEST, PATIENCE * usual)


def test_a_link_that_has_become_slow_is_soon_believed() -> None:
    stalls = Stalls(LONGEST)
    for _ in range(256):
        stalls.went_well(0.01, 0.01)
    assert stalls.limit(stalls.step) == SHORTEST
    for _ in range(64):
        stalls.went_well(3.0, 3.0)
    assert stalls.limit(stalls.step) == stalls.limit(stalls.first_byte) == 4 * 3.0
    for _ in range(256):
        stalls.went_well(30.0, 30.0)
    assert stalls.limit(stalls.step) == LONGEST


@pytest.mark.parametrize("share", [0.005, 0.03, 0.3, 1.0])
def test_no_more_than_a_small_share_is_asked_for_again(share: float) -> None:
    chance = random.Random(0)
    stalls = Stalls(LONGEST)
    asked = requests = 0
    for _ in range(5000):
        requests += 1
        limit = stalls.limit(stalls.step)
        if chance.random() < share:
            stalls.stalled(stalls.step, limit)
            asked += limit < LONGEST
        else:
            stalls.went_well(0.01, 0.01)
    assert asked <= CREDIT + SHARE * requests
    if share < SHARE:
        assert asked >= 0.9 * share * requests
