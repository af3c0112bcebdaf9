"""The loop of an agent, and one attempt in it: how they end when somebody asks for that, and when the work fails."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Iterator

import pytest

from solewriter import Client, Engine, Limits, Task, TaskStatus, aio, connect


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
