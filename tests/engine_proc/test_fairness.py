"""Sessions share the writer's time. No clock runs here: the tests say what each request costs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solewriter.engine_proc.fairness import FairQueueing, SessionQueue
from solewriter.shared.config import CROWD_SESSIONS, CROWD_SLICES

SLICE_S = 1.0
Costs = dict[int, float]  # of one request of each session


class Served:
    """What a writer does with a queueing: slices of `SLICE_S`, each ended by the request that is over it."""

    def __init__(self, queueing: Any) -> None:
        self.queueing = queueing
        self.queues: dict[int, SessionQueue] = {}
        self.order: list[Any] = []
        self.took_s: Counter[int] = Counter()
        self.quiet: list[int] = []

    def add(self, session: int, *items: Any) -> None:
        self.queueing.add(self.queues.setdefault(session, SessionQueue(session)), items)

    def slice(self, cost_s: Callable[[Any], float]) -> None:
        queue, took_s = self.queueing.next, 0.0
        while queue.items and took_s < SLICE_S:
            item = queue.items.popleft()
            self.order.append(item)
            took_s += cost_s(item)
        self.took_s[queue.session] += took_s
        if self.queueing.served(took_s):
            self.quiet.append(queue.session)

    def all(self, cost_s: Callable[[Any], float] = lambda item: 0.01) -> list[Any]:
        while self.queueing:
            self.slice(cost_s)
        return self.order


@pytest.fixture
def served() -> Served:
    return Served(FairQueueing())


def test_while_a_slice_is_enough_for_everybody_they_come_in_the_order_of_arrival(served):
    served.add(3, "a", "b")
    served.add(1, "c")
    served.add(2, "d")
    served.add(3, "e")
    assert served.all() == ["a", "b", "e", "c", "d"]
    assert served.quiet == [3, 1, 2]
    served.queueing.rest()
    served.add(3, "f")  # served for longer than the others: that is over and forgotten
    served.add(1, "g")
    assert served.all()[5:] == ["f", "g"]


def test_whoever_took_the_writers_time_alone_owes_nothing_for_it(served):
    served.add(1, *[1] * 100)
    for _ in range(50):
        served.slice(lambda _: 1.0)
    served.add(2, *[2] * 100)
    for _ in range(20):
        served.slice(lambda _: 1.0)
    assert served.took_s == {1: 60.0, 2: 10.0}


def test_whoever_was_silent_has_saved_nothing(served):
    for session in (1, 2):
        served.add(session, *[session] * 100)
    for _ in range(100):
        served.slice(lambda _: 1.0)
    served.add(3, *[3] * 100)
    before = Counter(served.took_s)
    for _ in range(60):
        served.slice(lambda _: 1.0)
    assert served.took_s - before == {1: 20.0, 2: 20.0, 3: 20.0}


def test_a_quiet_session_waits_for_one_slice_however_long_the_queue_of_a_flood(served):
    served.add(1, *[1] * 10_000)
    for round_ in range(50):
        served.slice(lambda _: 0.3)
        served.add(2, f"quiet {round_}")
        served.slice(lambda _: 0.3)
        assert served.order[-1] == f"quiet {round_}", "served next"
    assert set(served.quiet) == {2}, "the flood is never taken for somebody who asks for little"


def test_many_quiet_sessions_do_not_starve_a_flood(served):
    """Each comes back as soon as it was served, so that somebody quiet is always there."""
    served.add(0, *[0] * 10_000)
    for session in range(1, 50):
        served.add(session, session)
    for _ in range(5_000):
        served.slice(lambda _: 1.0)
        session = served.order[-1]
        if session:
            served.add(session, session)
    assert served.took_s[0] == pytest.approx(5_000 / 50, rel=0.05)


def test_reading_frames_is_paid_for_as_deciding_is(served):
    for session in (1, 2):
        served.add(session, *[session] * 1_000)
    for _ in range(300):
        if served.queueing.next.session == 1:
            served.queues[1].owed_s += 2.0  # its frames are hard to read
        served.slice(lambda _: 1.0)
    assert served.took_s[2] == pytest.approx(3 * served.took_s[1], rel=0.05)


def test_a_request_that_takes_very_long_is_paid_off_before_the_next_one(served):
    served.add(1, "long")
    served.add(2, *["short"] * 1_000)
    served.slice(lambda _: 100.0)
    served.add(1, "next")
    served.all(lambda _: 1.0)
    assert served.order.index("next") == 1 + 100


def test_hellos_and_older_lanes_of_a_session_stand_in_one_queue(served):
    older, newer = SessionQueue(7), SessionQueue(7)
    served.queueing.add(older, ["request"])
    served.queueing.add(SessionQueue(7), ["hello"])
    served.add(1, "other")
    served.queueing.add(newer, ["after"])
    assert served.all() == ["request", "hello", "after", "other"]
    served.queueing.add(newer, ["again"])
    assert served.queueing.next is newer


def test_what_is_cleared_is_handed_over_in_order_and_nothing_stays(served):
    served.add(1, "a", "b")
    served.add(2, "c")
    served.add(1, "d")
    assert served.queueing.clear() == ["a", "b", "d", "c"]
    assert not served.queueing
    served.add(2, "e")
    served.add(1, "f")
    assert served.all() == ["e", "f"]


# --- for any load -----------------------------------------------------------------------------------------------------


class InOrderOfArrival:
    """No scheduler at all, for comparison."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[SessionQueue, Any]] = deque()

    def __bool__(self) -> bool:
        return bool(self._arrived)

    def add(self, queue: SessionQueue, items: Any) -> None:
        self._arrived.extend((queue, item) for item in items)

    @property
    def next(self) -> SessionQueue:
        queue, item = self._arrived.popleft()
        queue.items.append(item)
        return queue

    def served(self, took_s: float) -> bool:
        return False


def unfairness_s(queueing: Any, costs: Costs, windows: dict[int, int], slices: int) -> float:
    """The most by which two sessions' times differ while both always have something waiting; each keeps its window
    full.
    """
    served, worst = Served(queueing), 0.0
    for session in costs:
        served.add(session, *[session] * windows[session])
    for _ in range(slices):
        before = len(served.order)
        served.slice(lambda session: costs[session])
        for session in served.order[before:]:
            served.add(session, session)
        worst = max(worst, max(served.took_s[one] for one in costs) - min(served.took_s[one] for one in costs))
    return worst


def test_a_queue_that_is_held_is_passed_over_and_keeps_its_order(served):
    served.add(1, "a", "b")
    served.add(2, "c")
    served.queueing.next.held = True
    served.queueing.served(0.0)
    assert served.queueing.holding
    served.add(1, "d")
    assert served.all() == ["c"]
    assert not served.queueing, "nothing that is waiting can be served"
    served.queueing.let_go()
    assert not served.queueing.holding
    assert served.all() == ["c", "a", "b", "d"]
    served.add(1, "e")
    served.queueing.next.held = True
    served.queueing.served(0.0)
    assert served.queueing.clear() == ["e"]
    served.add(1, "f")
    assert served.all()[-1] == "f"


def test_who_is_not_held_has_its_turn_when_others_are_let_go(served):
    served.add(1, "a")
    served.queueing.next.held = True
    served.queueing.served(0.0)
    served.add(2, "b")
    served.queueing.let_go()
    assert sorted(served.all()) == ["a", "b"]


def test_who_was_held_has_saved_nothing_meanwhile(served):
    """Those who were served while it was held have their share as before."""
    served.add(1, *[1] * 100)
    served.queueing.next.held = True
    served.queueing.served(0.0)
    served.add(2, *[2] * 100)
    for _ in range(50):
        served.slice(lambda _: 1.0)
    served.queueing.let_go()
    for _ in range(20):
        served.slice(lambda _: 1.0)
    assert served.took_s == {1: 10.0, 2: 60.0}


loads = st.dictionaries(
    st.integers(0, 20), st.tuples(st.floats(0.001, 5.0), st.integers(1, 300)), min_size=2, max_size=8
)


@given(loads)
def test_two_sessions_times_differ_by_a_slice_and_a_request_of_each_at_most(load):
    """A queue that was served is behind all that were not, so the bound holds whatever is asked for."""
    costs = {session: cost_s for session, (cost_s, _) in load.items()}
    windows = {session: max(window, round(3 * SLICE_S / costs[session])) for session, (_, window) in load.items()}
    bound_s = 2 * (SLICE_S + max(costs.values()))
    assert unfairness_s(FairQueueing(), costs, windows, 200) <= bound_s * (1 + 1e-9)


def test_that_bound_tells_fair_from_unfair():
    assert unfairness_s(InOrderOfArrival(), {1: 0.1, 2: 0.1}, {1: 300, 2: 30}, 2_000) > 2 * (SLICE_S + 0.1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.floats(0, 3.0)), max_size=80))
def test_order_within_a_session_is_kept_and_nothing_is_lost_or_served_twice(steps):
    """Arrivals, slices of any length and rests, in any order."""
    served, sent = Served(FairQueueing()), Counter[int]()
    for session, count, cost_s in steps:
        served.add(session, *[(session, sent[session] + place) for place in range(count)]) if count else None
        sent[session] += count
        if served.queueing and cost_s > 1:
            served.slice(lambda _, cost_s=cost_s: cost_s)
        elif not served.queueing:
            served.queueing.rest()
    served.all()
    for session, count in sent.items():
        assert [number for one, number in served.order if one == session] == list(range(count))
    assert len(served.order) == sent.total()


def test_in_a_crowd_each_is_served_for_longer_at_once():
    queueing = FairQueueing()
    for session in range(CROWD_SESSIONS):
        assert queueing.slices == 1
        queueing.add(SessionQueue(session), "a")
    assert queueing.slices == CROWD_SLICES
    queueing.next.items.clear()
    queueing.served(1.0)
    assert queueing.slices == 1
