"""Calm when overloaded: one that floods, many that are greedy, one that keeps no bounds, two hundred that come at once.

The engine's models are slow on purpose (`bench/flood/throttle.py`), so that it is overloaded by a test. What is
asserted are promises: nobody quiet is refused, order is kept, memory is bounded, all make progress, and shares by
counts. Nothing here is a matter of speed, but for the places in the queue that a slow test process may lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from statistics import median
from typing import Self

import pytest
from pydantic import model_validator

from solewriter import Busy, Create, Entity, Limits, Update, aio, concerns, connect, status_of
from solewriter.bench.flood.throttle import Job, Probe
from solewriter.engine_proc.fairness import FairQueueing
from solewriter.shared import wire, wireform
from solewriter.shared.config import DEFAULT_LIMITS, IN_FLIGHT_LEAST, MIB, PIPE_BYTES
from solewriter.shared.registry import Registry
from solewriter.shared.wire import Status

REGISTRY = Registry([Job])


def in_order_of_arrival() -> None:
    """A seeded bug: all sessions stand in one queue."""
    from solewriter.engine_proc import intake
    from solewriter.engine_proc.fairness import FairQueueing, SessionQueue

    class OneQueue(FairQueueing):
        def __init__(self):
            super().__init__()
            self._all = SessionQueue(0)

        def add(self, queue, items):
            super().add(self._all, items)

    intake.FairQueueing = OneQueue


BUGS = pytest.mark.parametrize(
    "bug",
    [
        pytest.param(None, id="fair"),
        pytest.param(in_order_of_arrival, id="in order of arrival", marks=pytest.mark.heavy),
    ],
)


@pytest.fixture
def slow(state, start_engine, seeded, interpreted) -> Callable[..., Callable[[], object]]:
    """`slow(work_us, names, bug)`: an engine with a job of each name, each change of which costs so much."""

    def start(work_us: int, names: list[str], bug: Callable[[], None] | None = None, **limits) -> object:
        if bug is not None:
            interpreted(FairQueueing)
        models = [Job, *([seeded(bug)] if bug else [])]
        engine = start_engine(state, models=models, **({"limits": Limits(**limits)} if limits else {}))
        with connect(state) as client:
            for name in names:
                client.submit(Create(Job(id=name, work_us=work_us))).check()
        return engine

    return start


def updates(name: str, until: Callable[[int], bool] = lambda number: False) -> Iterator[Update]:
    """Changes of one job, until it is enough."""
    number = 1
    while not until(number):
        yield Update(Job.ref(name), {"number": number})
        number += 1


class Floods:
    """Pipelines in threads beside the test, each over a job of its own, until they are told to end."""

    def __init__(self, state) -> None:
        self.acked: Counter[str] = Counter()
        self.enough = threading.Event()
        self._state = state
        self._wrong: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def begin(self, name: str, window: int) -> None:
        thread = threading.Thread(target=self._flood, args=(name, window), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _flood(self, name: str, window: int) -> None:
        try:
            with connect(self._state, name=name) as client:
                sent = updates(name, lambda _: self.enough.is_set())
                for version, reply in enumerate(client.submit_many(sent, window=window), 2):
                    assert reply.check().results[0].version == version, "in the order in which they were sent"
                    self.acked[name] += 1
        except BaseException as error:
            self._wrong.append(error)

    def end(self) -> None:
        self.enough.set()
        for thread in self._threads:
            thread.join(30)
        assert self._wrong == []


@pytest.fixture
def floods(state) -> Iterator[Floods]:
    found = Floods(state)
    yield found
    found.end()


# --- one that floods, others that do not (fault 21) -------------------------------------------------------------------

QUIET = [f"quiet {number}" for number in range(7)]
FLOOD_US = 200  # for each change of the flood: 256 of them are 50 ms


def places_lost(state, rounds: int) -> list[int]:
    """How many requests of others were decided between the call of each quiet one and itself."""
    with contextlib.ExitStack() as ending:
        clients = [ending.enter_context(connect(state, name=name)) for name in QUIET]
        lost = []
        for number in range(1, rounds + 1):
            for name, client in zip(QUIET, clients, strict=True):
                before = client.reader.revision
                reply = client.submit(Update(Job.ref(name), {"number": number}))
                assert reply.check().results[0].version == number + 1, "nothing of a quiet agent is refused or lost"
                lost.append(reply.revision - before - 1)
        return lost


@BUGS
def test_a_quiet_agents_request_does_not_wait_for_the_queue_of_a_flood(state, slow, floods, wait_until, bug):
    """It waits for a slice, and finds a turn of 10 ms, which are 50 changes, on its way; the queue is five times as
    long, and in order of arrival all of it is before.
    """
    slow(FLOOD_US, ["flood", *QUIET], bug)
    floods.begin("flood", 256)
    wait_until(lambda: floods.acked["flood"] > 256, 30, "a flood")
    before = floods.acked["flood"]
    lost = places_lost(state, 4 if bug else 10)
    assert floods.acked["flood"] > before, "the flood goes on meanwhile"
    assert (median(lost) > 150) is (bug is not None), sorted(lost)


# --- many that are greedy ---------------------------------------------------------------------------------------------


def jain(counts: list[int]) -> float:
    """1.0 where all are equal, 1 / n where one has everything."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


@pytest.mark.heavy
@BUGS
def test_greedy_agents_get_equal_shares_however_much_each_of_them_sends(state, slow, floods, wait_until, bug):
    windows = [32, 256] * 4
    names = [f"greedy {number}" for number in range(8)]
    slow(500, names, bug)
    for name, window in zip(names, windows, strict=True):
        floods.begin(name, window)
    wait_until(lambda: all(floods.acked[name] for name in names), 30, "all of them")
    begun = Counter(floods.acked)
    wait_until(lambda: (floods.acked - begun).total() >= 1_600, 60, "enough to compare")
    shares = [(floods.acked - begun)[name] for name in names]
    assert min(shares) > 0, "everybody makes progress"
    assert (jain(shares) > 0.9) is (bug is None), shares


@pytest.mark.heavy
def test_agents_whose_requests_cost_more_get_fewer_of_them(state, slow, floods, wait_until):
    """Time is shared, not turns."""
    slow(200, ["cheap"])
    with connect(state) as client:
        client.submit(Create(Job(id="dear", work_us=2_000))).check()
    for name in ("cheap", "dear"):
        floods.begin(name, 256)
    wait_until(lambda: all(floods.acked[name] for name in ("cheap", "dear")), 30, "both of them")
    begun = Counter(floods.acked)
    wait_until(lambda: (floods.acked - begun)["dear"] >= 150, 60, "enough to compare")
    shares = floods.acked - begun
    assert 4 < shares["cheap"] / shares["dear"] < 16, shares


# --- much more than can be done ---------------------------------------------------------------------------------------


OFFERED = 400  # at once by each of eight clients: what the engine does in a second


class Counted(Entity):
    """Each look at its rules leaves a byte in a file of the process that looks, and takes 300 us."""

    path: str
    number: int = 0

    @model_validator(mode="after")
    @concerns("number")
    def _count(self) -> Self:
        with open(f"{self.path}.{os.getpid()}", "ab") as looks:
            looks.write(b".")
        ends_ns = time.thread_time_ns() + 300_000
        while time.thread_time_ns() < ends_ns:
            pass
        return self


def test_much_too_much_with_deadlines_costs_no_decision_that_nobody_waits_for(state, start_engine, tmp_path):
    """So what an overloaded engine gets done is what it can do: whatever is turned away or too late was not begun."""
    engine, told, numbers = start_engine(state, models=[Counted]), Counter[str](), count(1)
    with connect(state) as client:
        client.create(Counted(id="counted", path=str(tmp_path / "looks")))

    async def offer(client: aio.Client, number: int) -> None:
        try:
            change = Update(Counted.ref("counted"), {"number": number})
            reply = await client.submit(change, deadline_s=0.05, wait_for_room=False)
        except Busy:
            told["busy"] += 1
        else:
            told["applied" if reply.error is None else type(reply.error).__name__] += 1

    async def main() -> None:
        async with contextlib.AsyncExitStack() as ending, asyncio.timeout(60):
            clients = [await ending.enter_async_context(aio.connect(state)) for _ in range(8)]
            for _ in range(4):
                await asyncio.gather(*[offer(client, next(numbers)) for _ in range(OFFERED) for client in clients])

    asyncio.run(main())
    assert told.total() == told["applied"] + told["busy"] + told["Expired"], told
    assert told["applied"] > 0
    assert told["Expired"] > 0, "more than it can do in time"
    assert (tmp_path / f"looks.{engine.pid}").stat().st_size == 1 + told["applied"]


# --- one that keeps no bounds -----------------------------------------------------------------------------------------


def frame_of(name: str, numbers: range) -> bytes:
    """One frame of these changes, of a kilobyte each."""
    changes = [Update(Job.ref(name), {"number": number}, reason="r" * 1_000) for number in numbers]
    plain = [wireform.plain_mutation(change, REGISTRY) for change in changes]
    return wire.pack_frame([([one], [], None, None) for one in plain], DEFAULT_LIMITS)


def rss_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.heavy
def test_a_lane_without_credits_is_not_read_any_further_and_nothing_of_it_is_refused(state, slow, client_of_a_raw_lane):
    """It writes and writes until its pipe is full: the engine holds what a lane may have waiting, and no more."""
    engine = slow(FLOOD_US, ["reckless", "quiet"])
    before = rss_bytes(engine.pid)
    raw = client_of_a_raw_lane(state)
    os.set_blocking(raw.lane.requests, False)
    sent, frame, written = 0, b"", 0
    with contextlib.suppress(BlockingIOError):
        while written == len(frame):
            frame, sent, written = frame_of("reckless", range(sent + 1, sent + 33)), sent + 32, 0
            written = os.write(raw.lane.requests, frame)
    held = DEFAULT_LIMITS.lane_bytes_max + DEFAULT_LIMITS.lane_read_bytes + PIPE_BYTES
    assert sent < 2 * 32 * held / len(frame), "the pipe stopped it"
    with connect(state) as client:
        for number in range(1, 21):
            client.submit(Update(Job.ref("quiet"), {"number": number})).check()
    assert rss_bytes(engine.pid) - before < 16 * MIB
    os.set_blocking(raw.lane.requests, True)
    raw.write(frame[written:])
    replies = [raw.reply(30) for _ in range(sent)]
    assert {reply.status for reply in replies} == {Status.APPLIED}
    assert [reply.detail[0][0] for reply in replies] == list(range(2, sent + 2)), "in order, none twice, none left out"


# --- who comes to an engine that is flooded (fault 22) ----------------------------------------------------------------


@pytest.mark.parametrize("agents", [32, pytest.param(256, marks=pytest.mark.heavy)])
def test_agents_that_come_during_a_flood_are_all_let_in_and_served(state, slow, floods, wait_until, agents):
    names = [f"agent {number}" for number in range(agents)]
    engine = slow(FLOOD_US, ["flood", *names])
    floods.begin("flood", 256)
    wait_until(lambda: floods.acked["flood"] > 256, 30, "a flood")
    before = floods.acked["flood"]

    def come(name: str) -> int:
        with connect(state, name=name) as client:
            return client.submit(Update(Job.ref(name), {"number": 1})).check().results[0].version

    with ThreadPoolExecutor(16) as beside:
        assert [*beside.map(come, names)] == [2] * agents
    engine.register(Probe)  # what is done between two turns does not wait for the queue either
    assert floods.acked["flood"] > before, "who came first goes on"


def test_a_flooded_engine_beats_and_tells_how_it_is_without_a_lane(state, slow, floods, wait_until):
    """Heartbeat and status are in shared memory: nobody who asks stands in the queue."""
    engine = slow(FLOOD_US, ["flood"], heartbeat_s=0.2)
    floods.begin("flood", 256)
    wait_until(lambda: floods.acked["flood"] > 256, 30, "a flood")
    wait_until(lambda: status_of(state).sessions_connected == 1, 30, "a heartbeat that knows of it")
    ages, revisions, beats = [], [], 0
    while beats < 5:
        status = status_of(state)
        assert (status.engine, status.sessions_connected) == ("alive", 1)  # or it missed some beats
        beats += bool(ages) and status.heartbeat_age_s < ages[-1]
        ages.append(status.heartbeat_age_s)
        revisions.append(status.revision)
    assert revisions == sorted(revisions)
    assert revisions[-1] > revisions[0], "the flood goes on meanwhile"
    assert not engine.hung


def test_who_does_not_wait_is_busy_long_before_the_window_is_full_once_replies_take_too_long(state, slow):
    """So that behind a surge nobody stands in line. The first windows are full: nobody knows the pace yet."""
    slow(1_000, ["j"])
    limits, turned_away_at = Limits(busy_above_s=0.01), set[int]()

    async def main() -> None:
        async with aio.connect(state, limits=limits) as client, asyncio.TaskGroup() as calls, asyncio.timeout(60):
            number = 0

            async def offer() -> None:
                try:
                    (await client.submit(Update(Job.ref("j"), {"number": number}), wait_for_room=False)).check()
                except Busy:
                    turned_away_at.add(client._session.in_flight)

            while IN_FLIGHT_LEAST not in turned_away_at:
                number += 1
                calls.create_task(offer())
                if number % 512 == 0:
                    await asyncio.sleep(0.005)

    asyncio.run(main())
    assert limits.window_max in turned_away_at
    assert min(turned_away_at) == IN_FLIGHT_LEAST
