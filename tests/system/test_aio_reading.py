"""Watching, waiting and looking back beside an event loop: the same answers, and nothing blocks it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvloop

from solewriter import (
    Compacted,
    Create,
    InvalidQuery,
    Limits,
    Project,
    Resync,
    Task,
    TaskStatus,
    Update,
    aio,
    open_reader,
)
from solewriter.agents.aio.sleeper import Sleeper
from solewriter.agents.watch import Watch
from solewriter.shared.config import KIB, LOOKING_THREADS
from solewriter.shared.memory.root import RootReader

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.05)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request):
    def run(main):
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(main, 60))

    return run


def test_a_watch_brings_every_change_in_order_across_deaths_of_the_engine(engine, run, wait_until):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            seen = []

            async def follow():
                async for change in reader.watch(Task, since=0):
                    seen.append((change.revision, change.version, change.new.max_retries))
                    if change.new.max_retries == 99:
                        return

            following = asyncio.create_task(follow())
            task = await client.create(Task(title="x", id="t", max_retries=0))
            for number in range(1, 100):
                task = await client.update(task, max_retries=number)
                if number % 33 == 0 and number < 99:
                    before = engine.restarts
                    os.kill(engine.pid, signal.SIGKILL)
                    await asyncio.to_thread(wait_until, lambda before=before: engine.restarts > before, 20, "a restart")
            await following
            assert seen == [(number + 1, number + 1, number) for number in range(100)]

    run(main())


def test_a_watch_ends_when_nothing_comes_and_goes_on_when_it_is_asked_again(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            await client.create(Task(title="before", id="b"))
            watch = reader.watch(timeout_s=0.05)
            assert [change async for change in watch] == []
            await client.create(Task(title="x", id="t"))
            assert [change.id async for change in watch] == ["t"]
            assert [change.id async for change in reader.watch(since=0, timeout_s=0)] == ["b", "t"]
            assert watch.revision == 2
            where = {"project": ""}
            asked = reader.watch(Task, since=0, where=where, timeout_s=0)
            where["project"] = "another"
            assert [change.id async for change in asked] == ["b", "t"]

    run(main())


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_a_watch_for_what_does_not_come_ends_in_time_while_others_write_without_a_pause(
    engine, client, run, plant, timeout_s
):
    looks = 0

    def written_meanwhile(true, watch):
        nonlocal looks
        looks += 1
        if looks > 10_000:
            pytest.fail("it goes on and on")
        client.put(Project(id="p", name=str(looks)))
        return true(watch)

    plant(Watch, "take", written_meanwhile)

    async def main():
        async with aio.open_reader(engine.state) as reader:
            client.create(Task(title="a", id="a"))
            watch = reader.watch(Task, since=0, timeout_s=timeout_s)
            assert [change.id async for change in watch] == ["a"]
            client.create(Task(title="b", id="b"))
            assert [change.id async for change in watch] == ["b"]

    run(main())


def test_many_watches_wait_in_one_thread_and_a_cancelled_one_misses_nothing(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            watches = [reader.watch() for _ in range(20)]
            nexts = [asyncio.create_task(anext(watch)) for watch in watches]
            while not any(thread.name == "solewriter-waiter" for thread in threading.enumerate()):
                await asyncio.sleep(0)
            nexts[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await nexts[0]
            await client.create(Task(title="x", id="t"))
            assert {change.id for change in await asyncio.gather(*nexts[1:])} == {"t"}
            assert (await anext(watches[0])).id == "t"
            assert sum(thread.name == "solewriter-waiter" for thread in threading.enumerate()) <= 1

    run(main())


def test_a_watch_needs_no_thread_of_the_loops_which_may_wait_for_what_it_brings(engine, run):
    async def main():
        loop, told = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(2))
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            waiting = [asyncio.create_task(asyncio.to_thread(told.wait, 30)) for _ in range(4)]
            watch = reader.watch(since=0)
            await client.create(Task(title="x", id="t"))
            try:
                async with asyncio.timeout(20):
                    assert (await anext(watch)).id == "t"
                    assert [change.id async for change in reader.history(Task, "t")] == ["t"]
                    assert [one.id for one in await reader.diff(0, 1)] == ["t"]
            finally:
                told.set()
            assert await asyncio.gather(*waiting) == [True] * 4

    run(main())


def test_a_look_that_was_given_up_and_fails_later_leaves_nothing_to_complain_about(engine, run):
    async def main():
        unhandled = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with aio.open_reader(engine.state) as reader:
            watch, go_on = reader.watch(), threading.Event()
            busy = [reader.beside(go_on.wait) for _ in range(LOOKING_THREADS)]
            coming = asyncio.create_task(anext(watch))
            while watch._looking is None:
                await asyncio.sleep(0)
            coming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await coming
        go_on.set()  # the look begins when its reader is closed
        await asyncio.gather(*busy)
        while not watch._looking.done():
            await asyncio.sleep(0)
        del watch, coming
        gc.collect()
        assert unhandled == []

    run(main())


def test_a_watch_of_several_kinds_or_of_one_entity(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            kinds = [Task, Project]
            several, one = reader.watch(kinds, since=0, timeout_s=0), reader.watch(Task, id="t", timeout_s=0)
            kinds.clear()
            await client.create(Project(name="p", id="t"))
            await client.create(Task(title="a", id="t"))
            await client.create(Task(title="b", id="u"))
            assert [(change.kind, change.id) async for change in several] == [
                ("Project", "t"),
                ("Task", "t"),
                ("Task", "u"),
            ]
            assert [change.new.title async for change in one] == ["a"]
            with pytest.raises(InvalidQuery, match="an id is that of one kind"):
                await anext(reader.watch(id="t"))

    run(main())


def test_a_filter_and_what_cannot_be_asked(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            await client.create(Task(title="x", id="t", project="p"))
            await client.create(Task(title="x", id="u", project="q"))
            await client.transition(Task.ref("t"), TaskStatus.ASSIGNED, assigned_to="me")
            watch = reader.watch(Task, since=0, where={"project": "p", "status": "created"}, timeout_s=0)
            assert [(change.id, change.new.status) async for change in watch] == [("t", "created"), ("t", "assigned")]
            with pytest.raises(InvalidQuery, match="no declared column"):
                await anext(reader.watch(Task, where={"title": "x"}))

    run(main())


def test_another_history_is_told_or_resynced(state, start_engine, run, wait_until):
    engine = start_engine(state, durability="memory")

    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            strict, patient = reader.watch(timeout_s=0), reader.watch(timeout_s=0, resync=True)
            await client.create(Task(title="x", id="lost"))
            os.kill(engine.pid, signal.SIGKILL)
            await asyncio.to_thread(wait_until, lambda: engine.restarts == 1, 20, "a restart")
            await client.create(Task(title="x", id="new"))
            with pytest.raises(Compacted, match="another history"):
                await anext(strict)
            (resync,) = [one async for one in patient]
            assert isinstance(resync, Resync)
            assert [task.id for task in resync.snapshot.entities(Task)] == ["new"]

    run(main())


def test_waiting_for_one_entity(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            late = asyncio.create_task(reader.wait_until(Task, "late", lambda task: task is not None))
            await client.create(Task(title="x", id="t", max_retries=0))
            waits = [
                asyncio.create_task(
                    reader.wait_until(Task, "t", lambda task, least=least: task.max_retries >= least, timeout_s=30)
                )
                for least in range(0, 50, 10)
            ]
            for number in range(1, 50):
                await client.update(Task.ref("t"), max_retries=number)
            assert [task.max_retries >= 10 * n for n, task in enumerate(await asyncio.gather(*waits))] == [True] * 5
            await client.create(Task(title="x", id="late"))
            assert (await late).id == "late"
            with pytest.raises(TimeoutError, match="did not become so"):
                await reader.wait_until(Task, "t", lambda task: task.title == "y", timeout_s=0.05)

    run(main())


def test_a_predicate_may_be_async_and_is_waited_for(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:

            async def is_done(task):
                await asyncio.sleep(0)
                return task is not None and task.title == "done"

            async def never(_):
                await asyncio.Event().wait()

            async def has_no_time(_):
                raise TimeoutError("of its own")

            waiting = asyncio.create_task(client.reader.wait_until(Task, "t", is_done))
            task = await client.create(Task(title="begun", id="t"))
            done = await client.update(task, title="done")
            assert await waiting == done
            with pytest.raises(TimeoutError, match="did not become so"):
                await client.reader.wait_until(Task, "t", never, timeout_s=0.01)
            with pytest.raises(TimeoutError, match=r"^of its own$"):
                await client.reader.wait_until(Task, "t", has_no_time, timeout_s=60)

    run(main())


def test_waiting_for_how_many(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:

            async def two(count):
                await asyncio.sleep(0)
                return count == 2

            async def never(_):
                await asyncio.Event().wait()

            async def has_no_time(_):
                raise TimeoutError("of its own")

            asked = {"project": "p"}
            waiting = asyncio.create_task(reader.wait_until_count(Task, asked, two, timeout_s=60))
            for id in "abc":
                await client.create(Task(title="x", id=id, project="q" if id == "b" else "p"))
            with await waiting as snap:
                assert snap.ids(Task, asked) == ["a", "c"]
            with await reader.wait_until_count("Task", asked, lambda count: count == 2, 0):
                pass
            with pytest.raises(TimeoutError, match=r"number of Task that are {'project': 'p'} did not become so"):
                await reader.wait_until_count(Task, asked, lambda count: count > 2, 0.01)
            with pytest.raises(TimeoutError, match="did not become so"):
                await reader.wait_until_count(Task, None, never, timeout_s=0.01)
            with pytest.raises(TimeoutError, match=r"^of its own$"):
                await reader.wait_until_count(Task, None, has_no_time, timeout_s=60)
            with pytest.raises(InvalidQuery, match="no declared column"):
                await reader.wait_until_count(Task, {"title": "x"}, bool)

    run(main())


def test_who_waits_where_others_removed_the_memory_goes_on_with_the_engine_that_follows(state, start_engine, run):
    """The next one finds no root any more in which it could say that it is there."""
    engine = start_engine(state, limits=Limits(heartbeat_s=60.0, restart_backoff_s=0.005))

    async def main():
        async with aio.connect(state) as client, aio.open_reader(state) as reader, aio.open_reader(state) as other:
            await client.create(Task(title="x", id="t"))
            watch = reader.watch(Task, since=1)
            waits = [asyncio.create_task(reader.wait_for(2)), asyncio.create_task(anext(watch))]
            waits.append(asyncio.create_task(other.wait_until(Task, "t", lambda task: task.version == 2)))
            while len(reader._sleeper._wanted) < 2 or not other._sleeper._wanted:
                await asyncio.sleep(0)
            where = engine.folder.whereabouts()
            for path in Path(where.memory_dir).glob(f"{where.prefix}-*"):
                path.unlink()
            os.kill(engine.pid, signal.SIGKILL)
            newest = await client.update(Task.ref("t"), title="y")
            revision, change, task = await asyncio.wait_for(asyncio.gather(*waits), 10)
            assert (revision, change.new, task) == (2, newest, newest)

    run(main())


class Looks:
    count = 0

    def is_left(self, _: RootReader) -> bool:
        self.count += 1
        return False


def test_a_loop_that_does_not_run_just_now_collects_no_looks(engine):
    looks, loop = Looks(), asyncio.new_event_loop()
    sleeper = Sleeper(loop, 0.25, looks.is_left)
    with open_reader(engine.state) as reader:
        root = reader.view().root
        for count in 1, 2:
            assert all(sleeper._ask(root) for _ in range(10))
            loop.run_until_complete(asyncio.sleep(0))
            assert looks.count == count
        assert sleeper._ask(root)
        loop.close()
        assert not sleeper._ask(root), "nobody waits there any more"


def test_waiting_goes_on_when_a_thread_can_be_had_again(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            usual = threading.stack_size(1 << 48)  # nothing has so much room
            try:
                with pytest.raises(RuntimeError, match="thread"):
                    await client.reader.wait_for(1, timeout_s=60)
            finally:
                threading.stack_size(usual)
            waiting = asyncio.create_task(client.reader.wait_for(1, timeout_s=60))
            await asyncio.sleep(0)
            await client.create(Task(title="x"))
            assert await waiting == 1

    run(main())


def test_looking_back_does_not_block_the_loop(state, start_engine, run):
    """Through the journal, and with the error behind what is there."""
    start_engine(state, limits=SMALL)

    async def main():
        async with aio.connect(state) as client, aio.open_reader(state) as reader:
            made = [Create(Task(title="0", id=f"t{n}", description="d" * 100)) for n in range(100)]
            changes = [Update(Task.ref(f"t{n % 100}"), {"title": f"u{n}"}) for n in range(3_000)]
            async for reply in client.submit_many([*made, *changes]):
                reply.check()
            beats, looking = 0, asyncio.create_task(reader.at(50))
            while not looking.done():
                beats += 1
                await asyncio.sleep(0)
            assert beats > 1, "the loop went on meanwhile"
            assert (await looking).count(Task) == 50
            told = await reader.diff(100, 110, Task)
            assert [(one.old.title, one.new.version) for one in told] == [("0", 2)] * 10
            versions = [change.version async for change in reader.history(Task, "t7")]
            assert versions == list(range(31, 0, -1))
            watched = [change.revision async for change in reader.watch(since=0, timeout_s=0)]
            assert watched == list(range(1, 3_101))
            with pytest.raises(InvalidQuery):
                await reader.at(10_000)

    run(main())


def test_a_history_that_is_partly_gone_ends_with_the_reason(state, start_engine, run):
    start_engine(state, limits=SMALL, durability="memory")

    async def main():
        async with aio.connect(state) as client, aio.open_reader(state) as reader:
            await client.create(Task(title="0", id="t"))
            changes = [Update(Task.ref("t"), {"title": f"{n}", "description": "d" * 100}) for n in range(3_000)]
            async for reply in client.submit_many(changes):
                reply.check()
            history, versions = reader.history(Task, "t"), []
            with pytest.raises(Compacted):
                while change := await anext(history, None):
                    versions.append(change.version)
            assert versions == list(range(3_001, 3_001 - len(versions), -1))
            assert 10 < len(versions) < 3_001

    run(main())
