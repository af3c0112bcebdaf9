"""Deciding is interrupted when it takes too long, and nothing else ever is."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from solewriter.engine_proc.overtime import SIGHTINGS, Overtime, TimeBudget
from solewriter.shared.config import HURRY


def watched(deed, *args) -> object:
    return deed(*args)


def another(deed, *args) -> object:
    return deed(*args)


@pytest.fixture
def budget() -> TimeBudget:
    """Not installed: the tests tick by hand."""
    return TimeBudget(2.0, watched.__code__)


def tick(budget: TimeBudget, times: int = 1) -> None:
    for _ in range(times):
        budget._tick(14, sys._getframe())


def test_the_same_call_is_interrupted_when_it_is_seen_too_often(budget):
    watched(tick, budget, SIGHTINGS - 1)
    with pytest.raises(Overtime):
        watched(tick, budget, SIGHTINGS)


def test_however_deep_its_work_is(budget):
    with pytest.raises(Overtime):
        watched(another, another, tick, budget, SIGHTINGS)


def test_what_swallows_it_meets_it_again_at_every_tick(budget):
    def stubborn() -> int:
        caught = 0
        for _ in range(10):
            try:
                tick(budget)
            except Overtime:
                caught += 1
        return caught

    assert watched(stubborn) == 10 - (SIGHTINGS - 1)


def test_many_calls_one_after_the_other_are_not_one_long_call(budget):
    for _ in range(100):
        watched(tick, budget, SIGHTINGS - 1)


def test_parts_of_a_call_that_are_watched_by_themselves_take_of_its_time(budget):
    def parts() -> None:
        for _ in range(SIGHTINGS):
            watched(tick, budget)

    with pytest.raises(Overtime):
        watched(parts)


def test_it_says_whether_a_part_of_the_call_is_to_blame_alone(budget):
    def parts(*ticks: int) -> None:
        for times in ticks:
            watched(tick, budget, times)

    for ticks, alone in ((1, 1, 1), False), ((SIGHTINGS,), True), ((1, SIGHTINGS - 1), True):
        with pytest.raises(Overtime) as caught:
            watched(parts, *ticks)
        assert caught.value.alone is alone, ticks


def test_who_hurries_has_a_part_of_the_time_for_each_part_and_as_much_as_ever_for_all(budget):
    def parts(number: int, times: int) -> None:
        for _ in range(number):
            watched(tick, budget, times)

    budget.hurry(True)
    with pytest.raises(Overtime) as caught:
        watched(parts, 1, SIGHTINGS)
    assert caught.value.alone
    watched(parts, HURRY, SIGHTINGS - 1)
    with pytest.raises(Overtime):
        watched(parts, HURRY + 1, SIGHTINGS - 1)
    watched(tick, budget, HURRY)
    budget.begin_turn()
    watched(parts, 1, SIGHTINGS - 1)
    with pytest.raises(Overtime):
        watched(parts, 1, SIGHTINGS)


def test_nothing_else_is_interrupted_neither_before_such_a_call_nor_behind_it(budget):
    another(tick, budget, 100)
    with pytest.raises(Overtime):
        watched(tick, budget, SIGHTINGS)
    another(tick, budget, 100)
    tick(budget, 100)


STRESS = textwrap.dedent(
    """
    import signal, sys, time
    from solewriter.engine_proc.overtime import Overtime, TimeBudget

    def watched(steps):
        for step in range(steps):
            pass
        return steps

    budget = TimeBudget(0.0004, watched.__code__)
    budget.install()
    ended = interrupted = 0
    until = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < until or not interrupted:
        budget.use()
        for steps in (1, 10, 100, 5_000, 20_000, 50_000, 1, 1):
            try:
                value = watched(steps)
            except Overtime:
                interrupted += 1
            else:
                assert value == steps
                ended += 1
    assert ended and interrupted, (ended, interrupted)
    while signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):
        pass  # nothing was watched for a tick
    print("ended", ended, "interrupted", interrupted)
    """
)


@pytest.mark.parametrize("seconds", [0.5, pytest.param(20, marks=pytest.mark.long)])
def test_it_is_raised_in_such_calls_only_whatever_runs_when_the_signal_comes(seconds):
    """An exception anywhere else would end this process; and when nothing is watched any more, the timer stops."""
    done = subprocess.run(
        [sys.executable, "-c", STRESS, str(seconds)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ended")


def test_a_timer_that_stopped_starts_again_with_the_next_use():
    program = textwrap.dedent(
        """
        import signal
        from solewriter.engine_proc.overtime import TimeBudget
        budget = TimeBudget(0.01, (lambda: None).__code__)
        budget.use()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0), "before it was installed"
        budget.install()
        for _ in range(3):
            budget.use()
            assert signal.getitimer(signal.ITIMER_REAL)[1] > 0
            while signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0):
                pass
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_timer_does_not_stop_between_two_calls_of_a_turn_however_long_that_takes(budget):
    budget.begin_turn()
    for _ in range(10):
        another(tick, budget)  # exactly between two of them, each time
        assert not budget._stopped, "a call that follows in this turn would go unwatched"
    with pytest.raises(Overtime):
        watched(tick, budget, SIGHTINGS)
    budget.end_turn()
    assert not budget._stopped
    another(tick, budget, 2)
    assert budget._stopped, "an idle engine sleeps"


def test_an_interpreter_that_ends_is_not_killed_by_the_alarm():
    """It lets go of its handlers first, and of its modules after that."""
    program = textwrap.dedent(
        """
        import time
        from solewriter.engine_proc.overtime import TimeBudget

        class Lingering:
            def __del__(self, now=time.monotonic):
                until = now() + 0.3
                while now() < until:
                    pass

        lingering = Lingering()
        budget = TimeBudget(0.1)
        budget.install()
        budget.use()
        budget.end()
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0


PACES = textwrap.dedent(
    """
    import signal, sys
    from solewriter.engine_proc.overtime import TimeBudget

    def look(frame, event, argument):
        if event == "line" and frame.f_code is TimeBudget.hurry.__code__:
            counted, ticks = budget._tick_s, signal.getitimer(signal.ITIMER_REAL)[1]
            assert counted <= ticks + 1e-6, (counted, ticks, frame.f_lineno)
            looks.append(ticks)
        return look

    looks, budget = [], TimeBudget(2.0)
    budget.install()
    budget.begin_turn()
    sys.settrace(look)
    for hurries in (True, True, False, False, True):
        budget.hurry(hurries)
    sys.settrace(None)
    budget.end()
    print(len(set(looks)), "paces")
    """
)


def test_a_tick_never_counts_for_more_than_it_took_at_whatever_moment_the_pace_changes():
    """Else who is interrupted then leaves everybody a part of the time that is theirs."""
    done = subprocess.run([sys.executable, "-c", PACES], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 paces\n", "")
