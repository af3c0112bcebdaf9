"""Deadlines of requests, and callers who do not wait for room: what they are told is definite, and nothing is sent."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from solewriter import (
    Busy,
    Create,
    Expired,
    InvalidMutation,
    InvalidQuery,
    Limits,
    OutcomeUnknown,
    RequestMismatch,
    Task,
    Update,
    aio,
    connect,
)
from solewriter.shared.config import RETRY_LEAST_S, RETRY_MOST_S
from solewriter.shared.mutations import Applied
from solewriter.shared.wire import Status

SOON_S = 0.05  # a deadline that passes while the engine is stopped
LATE_S = 60.0  # one that does not


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def now_us() -> int:
    return time.monotonic_ns() // 1000


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_request_past_its_deadline_changes_nothing_and_is_told_so_for_ever(state, start_engine, wait_until):
    engine = start_engine(state)
    late = Create(Task(title="x", id="late"))
    with connect(state) as client:
        reply = client.submit(late, deadline_s=-1, request_id="mine")
        assert isinstance(reply.error, Expired)
        with pytest.raises(Expired):
            client.create(Task(title="x", id="late"), deadline_s=0)
        for deadline_s in (None, LATE_S):
            told = client.submit(late, deadline_s=deadline_s, request_id="mine").error
            assert isinstance(told, Expired), "the first reply of a known request, whatever its deadline says now"
        assert isinstance(client.submit(Create(Task(title="y")), request_id="mine").error, RequestMismatch)
        before = engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")
        assert isinstance(client.outcome("mine"), Expired)
        assert isinstance(client.outcome(told.request_id), Expired)
        assert client.get(Task, "late") is None
        assert client.create(Task(title="x", id="late"), deadline_s=LATE_S).version == 1


def test_a_request_that_was_applied_in_time_is_told_so_when_it_comes_again_too_late(
    state, start_engine, client_of_a_raw_lane, wait_until
):
    start_engine(state)
    for deadline_s in (0.3, 3, 30):  # the first one that it was in time for
        agent = f"agent {deadline_s}"
        lane = client_of_a_raw_lane(state, client_id=agent)
        due_us = now_us() + int(deadline_s * 1e6)
        frame = lane.frame([Create(Task(title="x", id="once"))], deadline_us=due_us)
        lane.write(frame)
        first = lane.reply()
        if first.status == Status.APPLIED:
            break
    assert first.status == Status.APPLIED
    wait_until(lambda: now_us() > due_us, 60, "its deadline")
    again = client_of_a_raw_lane(state, client_id=agent, resends=True)
    again.write(frame + again.frame([Create(Task(title="x", id="never"))], deadline_us=due_us))
    assert tuple(again.reply()) == tuple(first)
    assert again.reply().detail[0] == "Expired"


@pytest.mark.usefixtures("shared_engine")
def test_a_request_that_waits_behind_its_deadline_is_never_decided(engine, client):
    client.create(Task(title="x", id="waiting"))
    with stopped(engine.pid), pytest.raises(OutcomeUnknown) as unknown:
        client.update(Task.ref("waiting"), title="late", deadline_s=SOON_S, timeout_s=4 * SOON_S)
    assert isinstance(client.outcome(unknown.value.request_id), Expired)
    with stopped(engine.pid), pytest.raises(OutcomeUnknown) as unknown:
        client.update(Task.ref("waiting"), title="in time", deadline_s=LATE_S, timeout_s=4 * SOON_S)
    assert isinstance(client.outcome(unknown.value.request_id), Applied)
    assert client.get(Task, "waiting").title == "in time"


@pytest.mark.usefixtures("shared_engine")
def test_every_verb_takes_a_deadline(client):
    task = client.create(Task(title="x"), deadline_s=LATE_S)
    for call in (
        lambda: client.create(Task(title="x"), deadline_s=0),
        lambda: client.put(task, deadline_s=0),
        lambda: client.update(task, title="y", deadline_s=0),
        lambda: client.transition(task, "assigned", assigned_to="me", deadline_s=0),
        lambda: client.cancel(task, deadline_s=0),
        lambda: client.delete(task, deadline_s=0),
    ):
        with pytest.raises(Expired):
            call()
    with pytest.raises(Expired), client.transaction(deadline_s=0) as tx:
        tx.update(task, title="y")
    with client.transaction(deadline_s=LATE_S) as tx:
        tx.update(task, title="y")
    assert client.get(Task, task.id).version == 2


@pytest.mark.usefixtures("shared_engine")
def test_every_verb_of_asyncio_takes_a_deadline(engine):
    async def main() -> None:
        async with aio.connect(engine.state) as client:
            task = await client.create(Task(title="x"), deadline_s=LATE_S)
            for call in (
                client.create(Task(title="x"), deadline_s=0),
                client.put(task, deadline_s=0),
                client.update(task, title="y", deadline_s=0),
                client.transition(task, "assigned", assigned_to="me", deadline_s=0),
                client.cancel(task, deadline_s=0),
                client.delete(task, deadline_s=0),
            ):
                with pytest.raises(Expired):
                    await call
            with pytest.raises(Expired):
                async with client.transaction(deadline_s=0) as tx:
                    tx.update(task, title="y")
            mutations = [Create(Task(title=str(number))) for number in range(3)]
            late = [reply.error async for reply in client.submit_many(mutations, deadline_s=0)]
            assert [type(error) for error in late] == [Expired] * 3
            assert [reply.applied async for reply in client.submit_many(mutations, deadline_s=LATE_S)] == [True] * 3

    asyncio.run(main())


@pytest.mark.usefixtures("shared_engine")
def test_each_request_of_a_pipeline_has_a_deadline_of_its_own(client, wait_until):
    """It begins when the request is taken from its source, however long that took."""

    def slow(deadline_s):
        begun = time.monotonic()
        for number in range(3):
            wait_until(lambda number=number: time.monotonic() > begun + number * deadline_s, 60, "the next mutation")
            yield Create(Task(title=str(number)))

    for deadline_s in (0.3, 3, 15):  # the first one in which a machine decides a request
        told = [reply.error for reply in client.submit_many(slow(deadline_s), window=1, deadline_s=deadline_s)]
        if told == [None] * 3:
            break
    assert told == [None] * 3
    before = client.reader.snapshot().counts["Task"]
    late = [reply.error for reply in client.submit_many([Create(Task(title="x"))] * 8, deadline_s=-1)]
    assert [type(error) for error in late] == [Expired] * 8
    assert client.reader.snapshot().counts["Task"] == before


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("of", ["threads", "asyncio"])
def test_a_deadline_does_not_wait_for_what_goes_in_one_frame_with_it(engine, client, wait_until, of):
    """A source that is slow holds its requests back together; what came too late by that is never decided."""
    deadline_s = 1.0

    def slow():
        yield Create(Task(title="early"))
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + deadline_s, 20, "the next mutation")
        for number in range(7):
            yield Create(Task(title=str(number)))

    async def slowly():
        for mutation in slow():
            yield mutation

    async def story() -> list[Any]:
        async with aio.connect(engine.state) as agent:
            return [reply.error async for reply in agent.submit_many(slowly(), window=32, deadline_s=deadline_s)]

    if of == "asyncio":
        errors = asyncio.run(story())
    else:
        errors = [reply.error for reply in client.submit_many(slow(), window=32, deadline_s=deadline_s)]
    assert [type(error) for error in errors] == [Expired] + [type(None)] * 7


NO_PATIENCE = [math.nan, "5", timedelta(seconds=5), Decimal(5), 10**400]


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("patience", NO_PATIENCE, ids=lambda patience: type(patience).__name__)
def test_a_patience_that_is_no_number_is_refused_before_anything_is_sent(engine, client, patience):
    """No clock can be set by it: that of an event loop loses the order of all that others wait for."""
    told = re.escape(f"timeout_s is seconds from now, not {patience!r:.90}")

    async def story() -> None:
        async with aio.connect(engine.state) as agent:
            for call in (
                agent.create(Task(title="never"), timeout_s=patience),
                agent.claim(Task, timeout_s=patience),
                agent.outcome("a" * 16 + "-1", timeout_s=patience),
                anext(agent.submit_many([Create(Task(title="never"))], timeout_s=patience)),
            ):
                with pytest.raises(InvalidMutation, match=told):
                    await call
            assert agent._session.next_frame == 0

    for call in (
        lambda: client.create(Task(title="never"), timeout_s=patience),
        lambda: client.claim(Task, timeout_s=patience),
        lambda: client.outcome("a" * 16 + "-1", timeout_s=patience),
        lambda: next(client.submit_many([Create(Task(title="never"))], timeout_s=patience)),
    ):
        with pytest.raises(InvalidMutation, match=told):
            call()
    assert client._session.next_frame == 0
    asyncio.run(story())


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("name", ["timeout_s", "deadline_s"])
def test_a_transaction_without_a_time_that_is_one_does_not_begin(engine, client, name):
    """What is done in it would be done in vain."""

    async def story() -> None:
        async with aio.connect(engine.state) as agent:
            with pytest.raises(InvalidMutation, match=f"{name} is seconds from now, not '5'"):
                agent.transaction(**{name: "5"})

    with pytest.raises(InvalidMutation, match=f"{name} is seconds from now, not '5'"):
        client.transaction(**{name: "5"})
    asyncio.run(story())


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("window", ["8", 0, -8, math.nan], ids=str)
def test_a_window_that_is_no_number_is_refused_before_anything_is_sent(engine, client, window):
    told = f"window is a number of requests in flight, not {window!r}"

    async def story() -> None:
        async with aio.connect(engine.state) as agent:
            with pytest.raises(InvalidMutation, match=told):
                await anext(agent.submit_many([Create(Task(title="never"))], window=window))

    asyncio.run(story())
    with pytest.raises(InvalidMutation, match=told):
        next(client.submit_many([Create(Task(title="never"))], window=window))
    assert client._session.next_frame == 0


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("window", [1, 8.0, math.inf])
def test_a_window_may_be_any_number_from_one_on(engine, client, window):
    assert [reply.applied for reply in client.submit_many([Create(Task(title="x"))], window=window)] == [True]


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("patience", NO_PATIENCE, ids=lambda patience: type(patience).__name__)
def test_no_reader_waits_for_what_is_no_number(engine, reader, patience):
    told = re.escape(f"timeout_s is seconds from now, not {patience!r:.90}")

    async def story() -> None:
        async with aio.open_reader(engine.state) as of_asyncio:
            for call in (
                of_asyncio.wait_for(0, timeout_s=patience),
                of_asyncio.wait_until(Task, "none", lambda _: True, timeout_s=patience),
            ):
                with pytest.raises(InvalidQuery, match=told):
                    await call
            with pytest.raises(InvalidQuery, match=told):
                of_asyncio.watch(Task, timeout_s=patience)

    for call in (
        lambda: reader.wait_for(0, timeout_s=patience),
        lambda: reader.wait_until(Task, "none", lambda _: True, timeout_s=patience),
        lambda: reader.watch(Task, timeout_s=patience),
    ):
        with pytest.raises(InvalidQuery, match=told):
            call()
    asyncio.run(story())


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("deadline_s", [math.nan, "soon", object()])
def test_what_is_no_number_of_seconds_is_refused_at_the_call(client, deadline_s):
    with pytest.raises(InvalidMutation, match="deadline_s") as refused:
        client.create(Task(title="x"), deadline_s=deadline_s)
    assert set(refused.value.fields) == {"deadline_s"}


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("deadline_s", [math.inf, 1e300])
def test_a_deadline_may_be_as_far_away_as_anybody_likes(client, deadline_s):
    assert client.create(Task(title="x"), deadline_s=deadline_s).version == 1


# --- waiting for room -------------------------------------------------------------------------------------------------


@pytest.fixture
def full_window(engine, wait_until):
    """`with full_window(client, id)`: the engine stands still, and as many updates of this new task are in flight as
    may be; they are applied in the end.
    """

    @contextlib.contextmanager
    def full(client, id) -> Iterator[None]:
        client.create(Task(title="x", id=id))
        with ThreadPoolExecutor(client._session.window) as beside:
            with stopped(engine.pid):
                calls = [
                    beside.submit(client.update, Task.ref(id), title=str(number))
                    for number in range(client._session.window)
                ]
                wait_until(lambda: client._session.in_flight == client._session.window, 20, "a full window")
                yield
            assert sorted(call.result(60).version for call in calls) == [2, 3]

    return full


@pytest.mark.usefixtures("shared_engine")
def test_a_deadline_that_passes_while_there_is_no_room_is_told_at_once_and_nothing_is_sent(engine, full_window):
    with connect(engine.state, limits=Limits(window_max=2)) as client:
        with full_window(client, "no room"):
            reply = client.submit(Update(Task.ref("no room"), {"title": "late"}), deadline_s=SOON_S)
            assert isinstance(reply.error, Expired)
            many = client.submit_many([Update(Task.ref("no room"), {"title": "late"})] * 2, window=2, deadline_s=SOON_S)
            assert [type(reply.error) for reply in many] == [Expired] * 2
            assert client._session.in_flight == 2
        assert client.get(Task, "no room").version == 3


@pytest.mark.usefixtures("shared_engine")
def test_who_does_not_wait_for_room_is_told_busy_and_when_to_come_again(engine, full_window):
    with connect(engine.state, limits=Limits(window_max=2)) as client:
        with full_window(client, "busy"):
            with pytest.raises(Busy, match="nothing was sent") as busy:
                client.submit(Update(Task.ref("busy"), {"title": "never"}), wait_for_room=False)
            assert RETRY_LEAST_S <= busy.value.retry_after_s <= RETRY_MOST_S
            assert client._session.in_flight == 2
        assert client.submit(Update(Task.ref("busy"), {"title": "now"}), wait_for_room=False).applied
        assert client.get(Task, "busy").version == 4


@pytest.mark.usefixtures("shared_engine")
def test_replies_that_are_there_make_room_before_anybody_is_told_busy(engine, wait_until):
    """Nobody read them, for who waited for them has given up."""
    with connect(engine.state, limits=Limits(window_max=2)) as client:
        client.create(Task(title="x", id="replies"))
        begun = client.reader.revision
        with stopped(engine.pid):
            for number in range(2):
                with pytest.raises(OutcomeUnknown):
                    client.update(Task.ref("replies"), title=str(number), timeout_s=0.02)
        wait_until(lambda: client.reader.revision == begun + 2, 20, "both are applied")
        assert client._session.in_flight == 2
        assert wait_until(lambda: sent_without_waiting(client, "replies"), 20, "their replies")


def sent_without_waiting(client, id) -> bool:
    try:
        return client.submit(Update(Task.ref(id), {"title": "now"}), wait_for_room=False).applied
    except Busy:
        return False  # the replies are on their way


def test_who_finds_the_lane_broken_makes_it_anew_before_being_told_busy(engine, wait_until):
    """Otherwise nobody would, where all that is in flight was given up."""
    with connect(engine.state, limits=Limits(window_max=2)) as client:
        client.create(Task(title="x", id="t"))
        with stopped(engine.pid):
            for number in range(2):
                with pytest.raises(OutcomeUnknown):
                    client.update(Task.ref("t"), title=str(number), timeout_s=0.02)
            before = engine.restarts
            os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts > before, 20, "a restart")
        wait_until(lambda: sent_without_waiting(client, "t"), 20, "room on a new lane")
        assert client.get(Task, "t").version == 4


@pytest.mark.usefixtures("shared_engine")
def test_a_full_pipe_is_busy_too(engine):
    with connect(engine.state) as client:
        client.create(Task(title="x", id="full"))
        with stopped(engine.pid):
            for number in range(2):  # of 200 kB, into a pipe of 256 KiB
                with pytest.raises(OutcomeUnknown):
                    client.update(Task.ref("full"), metadata={"x": str(number) * 200_000}, timeout_s=0.02)
            assert client._session.unsent is not None
            with pytest.raises(Busy):
                client.submit(Update(Task.ref("full"), {"title": "never"}), wait_for_room=False)
        assert client.update(Task.ref("full"), title="now").version == 4


@pytest.mark.usefixtures("shared_engine")
def test_in_asyncio_who_does_not_wait_never_overtakes_those_who_do(engine):
    async def main() -> None:
        async with aio.connect(engine.state, limits=Limits(window_max=2)) as client:
            await client.create(Task(title="x", id="asyncio"))
            update = Update(Task.ref("asyncio"), {"title": "never"})
            with stopped(engine.pid):
                calls = [
                    asyncio.create_task(client.update(Task.ref("asyncio"), title=str(number))) for number in range(3)
                ]
                await asyncio.sleep(0)
                with pytest.raises(Busy) as busy:
                    await client.submit(update, wait_for_room=False)
                assert RETRY_LEAST_S <= busy.value.retry_after_s <= RETRY_MOST_S
                assert isinstance((await client.submit(update, deadline_s=SOON_S)).error, Expired)
                assert client._session.in_flight == 2
            assert [(await call).version for call in calls] == [2, 3, 4]
            assert (await client.submit(Update(Task.ref("asyncio"), {"title": "now"}), wait_for_room=False)).applied
            assert (await client.get(Task, "asyncio")).version == 5

    asyncio.run(main())


@pytest.mark.usefixtures("shared_engine")
def test_requests_wait_for_bytes_as_for_their_number(engine):
    """The bytes of a window, and the last frame beyond them, are all that a client holds and an engine is sent."""
    few = Limits(window_bytes_max=100_000)
    with connect(engine.state, limits=few) as client:
        client.create(Task(title="x", id="bytes"))
        most = 0
        updates = (Update(Task.ref("bytes"), {"metadata": {"x": f"{number:02}" * 10_000}}) for number in range(50))
        for reply in client.submit_many(updates, window=50):
            most = max(most, client._session.bytes_in_flight)
            reply.check()
        assert 100_000 < most < 100_000 + 12 * 21_000, "twelve requests were in a frame"
        assert client.get(Task, "bytes").version == 51
