"""What a caller that does not wait is told: when there may be room. The tests say what time it is."""

from __future__ import annotations

import math

import pytest

from solewriter.agents.pace import Pace
from solewriter.shared.config import IN_FLIGHT_LEAST, RETRY_LEAST_S, RETRY_MOST_S, STEADY_LOOKS


@pytest.fixture
def steady() -> Pace:
    """Ten replies, a tenth of a second apart."""
    pace = Pace()
    pace.begin(100.0)
    for number in range(1, 11):
        pace.note(1, 100.0 + number / 10)
    return pace


def test_it_is_the_time_that_as_many_replies_took_before(steady):
    assert steady.retry_after_s(1, 101.0) == pytest.approx(0.1)
    assert steady.retry_after_s(5, 101.0) == pytest.approx(0.5)


def test_what_was_just_now_counts_more_than_what_was_before(steady):
    for number in range(1, 31):
        steady.note(10, 101.0 + number / 10)
    assert steady.retry_after_s(10, 104.0) == pytest.approx(0.1, rel=0.05)


def test_time_in_which_nothing_was_in_flight_says_nothing(steady):
    steady.begin(500.0)
    steady.note(1, 500.1)
    assert steady.retry_after_s(1, 500.1) == pytest.approx(0.1)


def test_when_replies_stay_away_it_grows_with_the_silence_up_to_its_bound(steady):
    assert steady.retry_after_s(1, 101.4) == pytest.approx(0.4)
    assert steady.retry_after_s(1, 200.0) == RETRY_MOST_S


def test_before_anything_is_known_it_is_soon_and_never_less_than_waiting_is_worth():
    pace = Pace()
    pace.begin(7.0)
    assert pace.retry_after_s(100, 7.0) == RETRY_LEAST_S
    pace.note(1_000_000, 7.001)
    assert pace.retry_after_s(1, 7.001) == RETRY_LEAST_S


def test_what_will_not_be_answered_in_time_is_too_much_once_the_pace_is_steady():
    pace = Pace()
    pace.begin(0.0)
    for number in range(1, STEADY_LOOKS + 1):
        assert pace.too_many(10_000, 0.2) == 0
        pace.note(50, number / 10)  # 500 a second
    assert pace.too_many(90, 0.2) == 0
    assert pace.too_many(300, 0.2) == pytest.approx(200, abs=1)
    assert pace.too_many(101, 0.1) == 101 - IN_FLIGHT_LEAST
    assert pace.too_many(IN_FLIGHT_LEAST, 0.0) == 0


def test_one_call_at_a_time_says_nothing_of_how_many_could_be_answered():
    pace = Pace()
    for number in range(100):
        pace.begin(number)
        pace.note(1, number + 0.5)
    assert pace.too_many(10_000, 0.2) == 0


def test_no_bound_is_none():
    pace = Pace()
    pace.begin(0.0)
    for number in range(1, 2 * STEADY_LOOKS):
        pace.note(1, float(number))
    assert pace.too_many(10_000, math.inf) == 0
    assert pace.too_many(10_000, -1.0) == 10_000 - IN_FLIGHT_LEAST


def test_nothing_is_too_much_where_no_time_went_by():
    pace = Pace()
    pace.begin(5.0)
    for _ in range(STEADY_LOOKS):
        pace.note(50, 5.0)
    assert pace.too_many(10_000, 0.2) == 0
