"""The loop of an agent, and one attempt in it: how they end when somebody asks for that, and when the work fails."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Literal

import msgspec
import pytest
from pydantic import model_validator

from solewriter import Client, Engine, Fenced, InvalidMutation, Limits, Task, TaskStatus, aio, connect, dead_letters


@pytest.fixture
def other(engine: Engine, limits: Limits) -> Iterator[Client]:
    with connect(engine.state, name="other", limits=limits) as other:
        yield other


def task(id: str, **fields: object) -> Task:
    return Task(**{"id": id, "title": id, **fields})


def untouched(client: Client, id: str) -> bool:
    found = client.get(Task, id)
    return found is not None and (found.attempts, found.assigned_to) == (0, None)


# --- until ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [threading.Event, multiprocessing.Event])
def test_work_ends_behind_the_task_in_which_it_is_told_to(client, event):
    for id in "abc":
        client.create(task(id))
    told, done = event(), []
    for one in client.work(Task, until=told):
        if one.id == "b":
            told.set()
        done.append(client.complete(one).id)
    assert done == ["a", "b"]
    assert untouched(client, "c")
    assert list(client.work(Task, until=told)) == [], "told before it began"
    assert untouched(client, "c")


def test_work_that_waits_for_others_ends_when_it_is_told_to(client, other, wait_until):
    client.create(task("a"))
    assert other.claim(Task).id == "a"
    told, brought = threading.Event(), []
    working = threading.Thread(target=lambda: brought.extend(client.work(Task, until=told.is_set)))
    working.start()
    wait_until(lambda: client._session.waiting, 20, "a claim that waits")
    told.set()
    working.join(20)
    assert not working.is_alive()
    assert brought == []
    assert other.complete(task("a")).status is TaskStatus.COMPLETED


def test_what_is_granted_while_work_is_told_to_end_is_given_back_untried(client):
    client.create(task("a"))
    said = iter([False, True])
    assert list(client.work(Task, until=lambda: next(said))) == []
    assert untouched(client, "a")
    assert client.holds(Task, "a") is None
    (newest, *_) = client.reader.history(Task, "a")
    assert (newest.mutation, newest.reason) == ("release", "its agent ends")


def test_what_is_granted_is_given_back_where_the_condition_fails(client):
    client.create(task("a"))
    said = iter([False])
    with pytest.raises(RuntimeError, match="StopIteration"):  # as in any generator
        next(client.work(Task, until=lambda: next(said)))
    assert untouched(client, "a")


def test_work_that_nobody_ends_goes_on_until_nothing_is_left(client):
    for id in "ab":
        client.create(task(id))
    assert [client.complete(one).id for one in client.work(Task, until=threading.Event())] == ["a", "b"]


def test_what_cannot_say_whether_work_is_over_is_refused(client):
    async def over() -> bool:
        return True

    client.create(task("a"))
    with pytest.raises(TypeError, match="until is an event, or a function without parameters, not 3"):
        next(client.work(Task, until=3))
    with contextlib.closing(over()) as answer, pytest.raises(TypeError, match="nothing to await"):
        next(client.work(Task, until=lambda: answer))
    assert untouched(client, "a")


def test_work_of_coroutines_ends_when_it_is_told_to(engine, client, other, limits):
    for id in "abcd":
        client.create(task(id))

    async def story() -> list[str]:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            told, done = asyncio.Event(), []
            async for one in agent.work(Task, until=told):
                told.set()
                done.append((await agent.complete(one)).id)
            said = iter([False, True])

            async def over() -> bool:
                await asyncio.sleep(0)
                return next(said)

            done += [one.id async for one in agent.work(Task, until=over)]
            assert untouched(client, "b")
            held = other.claim_many(Task, 3)
            told.clear()
            waiting = asyncio.ensure_future(anext(agent.work(Task, until=told), None))
            while not agent._session.waiting:
                await asyncio.sleep(0)
            told.set()
            assert await waiting is None
            other.release(held[0])
            return done

    assert asyncio.run(story()) == ["a"]
    assert client.claim(Task).id == "b"


def test_a_coroutine_that_is_cancelled_while_it_asks_whether_work_is_over_holds_nothing(engine, client, limits):
    client.create(task("a"))

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            asked = asyncio.Event()

            async def over() -> bool:
                if asked.is_set() or agent.holds(Task, "a") is None:
                    return False
                asked.set()
                await asyncio.Event().wait()
                return False

            working = asyncio.ensure_future(anext(agent.work(Task, until=over)))
            await asked.wait()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working

    asyncio.run(story())
    assert untouched(client, "a")


@pytest.mark.parametrize("error", [ValueError("why"), KeyboardInterrupt("why")])
def test_why_asking_failed_is_told_also_where_the_engine_does_not_answer(engine, client, limits, error):
    client.create(task("a"))
    impatient = msgspec.structs.replace(limits, request_timeout_s=0.3)

    def over() -> bool:
        if me.holds(Task, "a") is None:
            return False
        os.kill(engine.pid, signal.SIGSTOP)
        raise error

    with connect(engine.state, name="me", limits=impatient) as me:
        try:
            with pytest.raises(type(error), match="why") as seen:
                next(me.work(Task, until=over))
        finally:
            os.kill(engine.pid, signal.SIGCONT)
    (note,) = seen.value.__notes__
    assert note.startswith("the engine did not confirm that this ended the attempt at Task 'a': OutcomeUnknown: ")


def test_a_coroutine_is_cancelled_while_it_asks_also_where_the_engine_does_not_answer(engine, client, limits):
    client.create(task("a"))

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            asked = asyncio.Event()

            async def over() -> bool:
                if agent.holds(Task, "a") is not None:
                    os.kill(engine.pid, signal.SIGSTOP)
                    asked.set()
                    await asyncio.Event().wait()
                return False

            working = asyncio.ensure_future(anext(agent.work(Task, until=over)))
            await asked.wait()
            working.cancel()
            try:
                with pytest.raises(asyncio.CancelledError):
                    await working
            finally:
                os.kill(engine.pid, signal.SIGCONT)

    asyncio.run(story())


# --- an attempt -------------------------------------------------------------------------------------------------------


class Unspeakable(Exception):
    __module__ = "tests_of_attempts"

    def __str__(self) -> str:
        raise ValueError("of no use to anybody")


def newest(client: Client, id: str) -> tuple[str, str]:
    change = next(iter(client.reader.history(Task, id)))
    return change.mutation, change.reason


def test_what_fails_ends_its_attempt_and_is_tried_again_as_often_as_declared(client):
    client.create(task("a", max_retries=1, retry_delay_s=0))
    for attempts in (1, 2):
        mine = client.claim(Task, timeout_s=20)
        with pytest.raises(ZeroDivisionError), client.attempt(mine) as same:
            assert same is mine
            assert client.update(mine, {"cost": 1 / 0})
        found = client.get(Task, "a")
        assert (found.status, found.attempts, found.assigned_to) == (TaskStatus.FAILED, attempts, None)
        assert newest(client, "a") == ("fail", "ZeroDivisionError: division by zero")
    with client.reader.snapshot() as snap:
        assert [letter.id for letter in dead_letters(snap)] == ["a"]


def test_who_is_interrupted_gives_back_what_was_not_tried(client, other):
    client.create(task("a"))
    for interrupt in (KeyboardInterrupt, SystemExit):
        with pytest.raises(interrupt), client.attempt(client.claim(Task)):
            raise interrupt("stopped")
        assert untouched(client, "a")
        assert newest(client, "a") == ("release", f"{interrupt.__name__}: stopped")
    assert other.claim(Task).attempts == 1


@pytest.mark.parametrize("end", ["complete", "fail", "release", "delete"])
def test_an_attempt_that_its_agent_ended_stays_as_it_is(client, end):
    client.create(task("a"))
    with pytest.raises(ValueError, match="late"), client.attempt(client.claim(Task)) as mine:
        getattr(client, end)(mine)
        raise ValueError("late")
    assert newest(client, "a") == (end, "")


def test_an_attempt_that_was_lost_or_begun_anew_is_left_alone(client, other):
    client.create(task("a"))
    with pytest.raises(Fenced), client.attempt(client.claim(Task)) as mine:
        other.cancel(mine, reason="not needed")
        client.complete(mine)
    assert newest(client, "a") == ("cancel", "not needed")
    client.create(task("b"))
    with pytest.raises(ValueError, match="late"), client.attempt(client.claim(Task)) as mine:
        client.release(mine)
        again = client.claim(Task)
        raise ValueError("late")
    assert client.holds(Task, "b") == again.claim
    with client.attempt(again):
        pass
    assert client.holds(Task, "b") == again.claim, "what ends without an exception is its agent's to hand in"


def test_whoever_failed_sees_why_and_that_the_engine_did_not_confirm_it(client, other):
    client.create(task("a"))
    with pytest.raises(ValueError, match="why") as seen, client.attempt(client.claim(Task)) as mine:
        other.cancel(mine)
        raise ValueError("why")
    (note,) = seen.value.__notes__
    assert note.startswith("the engine did not confirm that this ended the attempt at Task 'a': Fenced: ")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("ä" * 5_000), "ValueError: " + "ä" * 1_988),
        (ValueError("\ud800"), "ValueError: \\ud800"),
        (Unspeakable(), "tests_of_attempts.Unspeakable: <exception str() failed>"),
    ],
)
def test_whatever_an_exception_says_is_a_reason(client, error, told):
    client.create(task("a"))
    with pytest.raises(type(error)), client.attempt(client.claim(Task)):
        raise error
    assert newest(client, "a") == ("fail", told)


def test_a_reason_is_as_long_as_reasons_may_be(state, start_engine, limits):
    short = msgspec.structs.replace(limits, text_bytes_max=16)
    with connect(start_engine(state, limits=short).state, limits=short) as client:
        client.create(task("a"))
        with pytest.raises(ValueError, match="ää"), client.attempt(client.claim(Task)):
            raise ValueError("äää")
        assert newest(client, "a") == ("fail", "ValueError: ää")


class Visit(Task):
    shop: Literal["old"] = "old"


class VisitTo(Task, kind="Visit"):
    """Of a later version of the program: what it writes, the one before cannot read."""

    shop: Literal["old", "new"] = "old"

    @model_validator(mode="before")
    @classmethod
    def moved(cls, values: dict[str, object]) -> dict[str, object]:
        return {**values, "shop": "new"}


def newest_visit(client: Client) -> tuple[str, str]:
    change = next(iter(client.reader.history("Visit", "a")))
    return change.mutation, change.new["shop"]


def test_an_attempt_that_ended_is_told_so_though_its_agent_cannot_read_what_that_left(start_engine, state):
    engine = start_engine(state, models=[Visit])
    with connect(engine.state) as client:
        client.create(Visit(id="a", title="a", max_retries=1))
        with pytest.raises(ValueError, match="why") as seen, client.attempt(client.claim(Visit)):
            engine.register(VisitTo)
            raise ValueError("why")
        assert newest_visit(client) == ("fail", "new")
        assert getattr(seen.value, "__notes__", []) == []


def test_work_ends_in_order_though_it_cannot_read_what_it_gave_back(start_engine, state):
    engine = start_engine(state, models=[Visit])
    asked = []

    def until() -> bool:
        asked.append(None)
        if len(asked) == 2:  # behind the claim
            engine.register(VisitTo)
        return len(asked) == 2

    async def story() -> None:
        async with aio.connect(engine.state) as agent:
            assert [one async for one in agent.work(Visit, until=until)] == []

    with connect(engine.state) as client:
        for work in (lambda: list(client.work(Visit, until=until)), lambda: asyncio.run(story())):
            asked.clear()
            engine.register(Visit)
            client.put(Visit(id="a", title="a"), expect=None)
            work()
            assert newest_visit(client) == ("release", "new")
            client.delete(Visit.ref("a"))


def test_what_was_not_claimed_here_is_no_attempt_of_this_client(client, other):
    with pytest.raises(TypeError, match="attempt takes a task, not None"), client.attempt(client.claim(Task)):
        pytest.fail("there was nothing to claim")
    client.create(task("a"))
    theirs = other.claim(Task)
    with pytest.raises(InvalidMutation, match="Task 'a' was not claimed here"), client.attempt(theirs):
        pytest.fail("it is another's")
    client.hold(theirs)  # handed over
    with pytest.raises(ValueError, match="why"), client.attempt(theirs):
        raise ValueError("why")
    assert newest(client, "a") == ("fail", "ValueError: why")


def test_a_timeout_within_an_attempt_counts_and_one_around_it_does_not(engine, client, limits):
    client.create(task("a", max_retries=1, retry_delay_s=0))

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            for within, around in ((None, 0.01), (0.01, None)):
                with pytest.raises(TimeoutError):
                    mine = await agent.claim(Task)
                    async with asyncio.timeout(around), agent.attempt(mine), asyncio.timeout(within):
                        await asyncio.Event().wait()
                assert client.get(Task, "a").attempts == (1 if within else 0)

    asyncio.run(story())
    assert newest(client, "a") == ("fail", "TimeoutError")


def test_attempts_of_coroutines_end_the_same(engine, client, limits):
    for id in "ab":
        client.create(task(id, max_retries=1))

    async def at_work(agent: aio.AioClient, begun: asyncio.Event) -> None:
        async with agent.attempt(await agent.claim(Task)):
            begun.set()
            await asyncio.Event().wait()

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            with pytest.raises(ValueError, match="why"):
                async with agent.attempt(await agent.claim(Task)) as mine:
                    assert mine.id == "a"
                    raise ValueError("why")
            begun = asyncio.Event()
            working = asyncio.create_task(at_work(agent, begun))
            await begun.wait()
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            with pytest.raises(InvalidMutation, match="was not claimed here"):
                async with agent.attempt(mine):
                    pass

    asyncio.run(story())
    assert newest(client, "a") == ("fail", "ValueError: why")
    assert newest(client, "b") == ("release", "asyncio.exceptions.CancelledError")
    assert untouched(client, "b")


@pytest.mark.parametrize(("most", "own"), [(9, None), (0, None), (0, 0)])
def test_a_reason_that_nobody_wrote_is_as_long_as_the_engine_takes(start_engine, state, limits, most, own):
    """What it is of is done, whatever bound reasons have: the engine's may be lower than those of its agents."""
    engine = start_engine(state, limits=msgspec.structs.replace(limits, text_bytes_max=most))
    mine = limits if own is None else msgspec.structs.replace(limits, text_bytes_max=own)

    async def story(client: Client) -> None:
        async with aio.connect(engine.state, name="other", limits=mine) as agent:
            with pytest.raises(ValueError, match="for some reason"):
                async with agent.attempt(await agent.claim(Task, where={"priority": "high"})):
                    raise ValueError("for some reason")
            hasty = asyncio.create_task(agent.claim(Task, where={"priority": "low"}))
            while not agent._session.in_flight:
                await asyncio.sleep(0)
            client.reader.wait_until(Task, "d", lambda one: one.status is TaskStatus.IN_PROGRESS, 60)
            hasty.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hasty

    with connect(engine.state, name="me", limits=mine) as client:
        client.create(task("a"))
        with pytest.raises(ZeroDivisionError), client.attempt(client.claim(Task)):
            assert 1 / 0
        assert newest(client, "a") == ("fail", "ZeroDivisionError: division by zero"[:most])
        client.create(task("b"))
        said = iter([False, True])
        assert list(client.work(Task, until=lambda: next(said))) == []
        assert newest(client, "b") == ("release", "its agent ends"[:most])
        client.create(task("c", priority="high"))
        client.create(task("d", priority="low"))
        asyncio.run(story(client))
        assert newest(client, "c") == ("fail", "ValueError: for some reason"[:most])
        assert newest(client, "d") == ("release", "its claim was cancelled"[:most])
