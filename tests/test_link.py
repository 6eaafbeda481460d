"""The estimate of what the link carries: windows and request sizes from times that are passed in."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bffs.link import (
    FIRST_WINDOW,
    MEMORY,
    MIN_PIECE,
    MIN_WINDOW,
    PARALLEL,
    QUICK,
    SHRINK,
    SLOT,
    Link,
)
from bffs.units import MIB

MOST = 256 * MIB
PIECE = 8 * MIB


def link_at(latency: float, rate: float, *, now: float = 1.0) -> Link:
    """A link on which requests took `latency` seconds to begin, then ran at `rate` bytes a second."""
    link = Link(MOST, PIECE)
    for n in range(20):
        link.answered(latency, now + n / 100, saturated=False)
        link.transferred(MIB, MIB / rate)
    return link


def carry(link: Link, rate: float, since: float, *, busy: bool = True) -> None:
    """Let it deliver `rate` bytes a second, from `since` on for a second."""
    for n in range(100):
        link.arrived(int(rate / 100), since + n / 100, busy=busy)


def test_before_anything_is_known() -> None:
    link = Link(MOST, PIECE)
    assert (link.window, link.piece, link.latency) == (FIRST_WINDOW, MIN_PIECE, 0.0)
    assert Link(2 * MIB, PIECE).window == 2 * MIB


@pytest.mark.parametrize("now", [0.0, 5.0, 1e6])
def test_the_latency_is_the_best_seen_whenever_the_machine_was_started(now: float) -> None:
    link = Link(MOST, PIECE)
    for n, seconds in enumerate((0.05, 0.03, 0.2)):
        link.answered(seconds, now + n / 10, saturated=False)
    assert link.latency == 0.03


def test_a_first_byte_says_more_of_the_latency_than_a_first_block() -> None:
    link = Link(MOST, PIECE)
    link.heard(0.1, 1.0)
    link.answered(0.3, 1.2, saturated=True)
    assert link.latency == 0.1


def test_a_best_latency_that_was_never_reached_again_is_forgotten() -> None:
    link = Link(MOST, PIECE)
    link.answered(0.001, 100.0, saturated=False)
    for n in range(5):
        link.answered(0.1, 101 + n * MEMORY, saturated=False)
    assert link.latency == 0.1


def test_the_window_grows_only_while_it_is_what_keeps_back_more() -> None:
    link = link_at(0.03, 50e6)
    before = link.window
    link.answered(0.03, 2.0, saturated=False)
    assert link.window == before
    for n in range(1000):
        link.answered(0.03, 2.0 + n / 100, saturated=True)
    assert link.window == MOST


def test_a_wide_link_is_full_after_a_few_answers_but_not_once_it_was_too_much() -> None:
    link = link_at(0.03, 50e6)
    grown = [link.window]
    for n in range(32):  # two round trips
        link.answered(0.03, 2.0 + n / 1000, saturated=True)
        grown.append(link.window)
    assert grown[-1] >= 3 * FIRST_WINDOW
    carry(link, 100e6, 2.0)
    for n in range(100):
        link.answered(0.5, 3.0 + n / 20, saturated=True)
    before = link.window
    for n in range(100):  # until what was slow is forgotten, then one more
        link.answered(0.03, 9.0 + n / 20, saturated=False)
    link.answered(0.03, 15.0, saturated=True)
    assert link.window == before + MIN_PIECE


def test_new_connections_do_not_shrink_the_window() -> None:
    link = Link(MOST, PIECE)
    for n in range(20):
        link.answered(0.03 * (1 + n % 5), 1.0 + n / 100, saturated=False)
    assert link.window == FIRST_WINDOW


def test_a_window_that_stood_in_the_way_begins_anew() -> None:
    link = link_at(0.1, 1e6)
    carry(link, 12e6, 2.0)
    assert link.window == FIRST_WINDOW
    link.overfilled()
    assert link.window == MIN_PIECE
    for n in range(10):
        link.answered(0.1, 4.0 + n / 10, saturated=True)
    assert link.window == 11 * MIN_PIECE


def test_slow_first_blocks_shrink_the_window_step_by_step() -> None:
    link = link_at(0.03, 50e6)
    carry(link, 1e6, 1.0)
    windows = [link.window]
    for n in range(400):
        link.answered(0.5, 2.0 + n / 20, saturated=True)
        windows.append(link.window)
    steps = [b / a for a, b in pairwise(windows) if b < a]
    assert len(steps) > 1 and min(steps) >= 0.99 * SHRINK
    assert windows[-1] == MIN_WINDOW


def test_the_window_keeps_what_the_link_holds() -> None:
    link = link_at(0.03, 50e6)
    carry(link, 1e9, 2.0)
    assert link.bandwidth == pytest.approx(1e9, rel=0.1)
    for n in range(400):
        link.answered(0.5, 3.0 + n / 40, saturated=False)
    assert link.window >= min(FIRST_WINDOW, int(link.bandwidth * link.latency))


def test_a_pause_is_not_taken_for_a_slow_link() -> None:
    link = Link(MOST, PIECE)
    carry(link, 100e6, 2.0)
    known = link.bandwidth
    link.arrived(1, 2.0 + 50 * SLOT, busy=True)
    assert link.bandwidth == known > 0


def test_what_the_link_can_carry_shows_only_while_something_is_prefetched() -> None:
    link = Link(MOST, PIECE)
    carry(link, 10e6, 2.0, busy=False)
    assert link.bandwidth > 0 and not link.capacity
    carry(link, 100e6, 4.0)
    assert link.capacity == pytest.approx(100e6, rel=0.1)
    carry(link, 200e6, 6.0, busy=False)
    assert link.capacity == pytest.approx(100e6, rel=0.1) and link.bandwidth > 1.5 * link.capacity


def test_requests_are_larger_where_connections_are_fast_and_the_store_is_far() -> None:
    assert link_at(0.001, 50e6).piece == MIN_PIECE
    assert MIN_PIECE < link_at(0.03, 50e6).piece < PIECE
    far = link_at(0.3, 100e6)
    assert far.piece == FIRST_WINDOW // PARALLEL  # so that a few requests aren't all of it
    for n in range(200):
        far.answered(0.3, 2.0 + n / 100, saturated=True)
    assert far.piece == PIECE


def test_a_hunch_is_risked_for_what_comes_soon() -> None:
    link = Link(MOST, PIECE)
    assert link.quickly == FIRST_WINDOW
    carry(link, 10e6, 2.0)
    assert link.quickly == pytest.approx(10e6 * QUICK, rel=0.1)


@given(
    st.lists(
        st.tuples(st.floats(1e-5, 30), st.floats(0, 5), st.booleans(), st.integers(0, PIECE)),
        max_size=200,
    ),
    st.integers(16 * MIB, MOST),
)
def test_window_and_requests_stay_within_their_bounds(
    answers: list[tuple[float, float, bool, int]], most: int
) -> None:
    link, now = Link(most, PIECE), 0.0
    for seconds, pause, saturated, size in answers:
        now += pause
        link.answered(seconds, now, saturated=saturated)
        link.arrived(size, now, busy=saturated)
        link.transferred(size, seconds)
        assert MIN_WINDOW <= link.window <= most
        assert MIN_PIECE <= link.piece <= PIECE


@pytest.mark.parametrize(("refused", "least"), [(0.05, 90 * MIB), (0.3, 10 * MIB), (0.6, 2 * MIB)])
def test_refusals_slow_everybody_down_by_how_many_they_are(refused: float, least: int) -> None:
    chance = random.Random(1)
    link = link_at(0.03, 50e6)
    windows = []
    for n in range(4000):
        if chance.random() < refused:
            link.refused()
        else:
            link.answered(0.03, 2 + n / 100, saturated=True)
        windows.append(link.window)
    settled = sum(windows[1000:]) / 3000
    assert least <= settled <= 4 * least or refused < 0.1
    assert min(windows) >= MIN_WINDOW
    for n in range(300):
        link.answered(0.03, 50 + n / 100, saturated=True)
    assert link.window >= 250 * MIB  # and it speeds up again
