"""When an engine that died is started again."""

from solewriter.engine_proc.owner.backoff import Backoff
from solewriter.shared.config import Limits

LIMITS = Limits(restart_backoff_s=0.5, restart_backoff_max_s=3.0, restart_window_s=100.0, restarts_max=6)


def test_each_start_of_late_waits_longer_up_to_a_bound():
    backoff = Backoff(LIMITS)
    assert [backoff.next_s(now) for now in range(6)] == [0.5, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_too_many_starts_of_late_are_the_end():
    backoff = Backoff(LIMITS)
    assert None not in [backoff.next_s(float(now)) for now in range(6)]
    assert (backoff.next_s(6.0), backoff.starts) == (None, 6)
    assert backoff.next_s(100.0) is None, "a start as old as the window counts"


def test_what_is_long_ago_counts_no_more():
    backoff = Backoff(LIMITS)
    for now in range(6):
        backoff.next_s(float(now))
    assert (backoff.next_s(102.5), backoff.starts) == (2.0, 4)
    assert (backoff.next_s(1000.0), backoff.starts) == (0.5, 1)


def test_any_number_of_starts_has_a_wait():
    backoff = Backoff(Limits(restart_backoff_s=0.001, restart_backoff_max_s=5.0, restarts_max=5000))
    assert [backoff.next_s(0.0) for _ in range(5000)][-1] == 5.0
