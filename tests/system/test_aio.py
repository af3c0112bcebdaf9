"""asyncio clients and readers: every verb, every cancellation, every death, and a loop that is never blocked."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import msgspec
import pytest
import uvloop

from solewriter import (
    AlreadyExists,
    Cancel,
    Client,
    Create,
    EngineUnavailable,
    Fenced,
    InvalidMutation,
    Limits,
    NotFound,
    OutcomeUnknown,
    Project,
    Reader,
    Refused,
    RequestTooLarge,
    ResultUnavailable,
    SchemaMismatch,
    SolewriterError,
    Task,
    TaskStatus,
    UnknownKind,
    Update,
    VersionConflict,
    aio,
    connect,
    open_reader,
)
from solewriter.agents.aio import exchange as aio_exchange
from solewriter.agents.aio.watch import AioWatch
from solewriter.agents.requesting import Requests
from solewriter.agents.verbs import Verbs
from solewriter.shared import handshake
from solewriter.shared.config import FRAME_BATCH
from solewriter.shared.mutations import Applied, NotApplied

Run = Callable[..., object]
POLL_S = 0.002
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test on one of the two loops, as its name decides; on the other one in the long run."""
    if "loop_factory" in metafunc.fixturenames:
        first = crc32(metafunc.function.__name__.encode()) % 2
        loops = [
            pytest.param(factory, id=name, marks=() if number == first else pytest.mark.long)
            for number, (name, factory) in enumerate(LOOPS.items())
        ]
        metafunc.parametrize("loop_factory", loops)


@pytest.fixture
def run(loop_factory) -> Run:
    """`run(coroutine)` in a fresh loop; nothing may end in the loop's own exception handler."""

    def ran(coroutine):
        unhandled: list[dict] = []

        async def watched():
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
            return await coroutine

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            result = runner.run(watched())
        gc.collect()
        assert unhandled == []
        return result

    return ran


async def until(condition: Callable[[], object], what: str, timeout_s: float = 30) -> None:
    """Until the condition holds, which is looked at again and again."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain: {what}"
        await asyncio.sleep(POLL_S)


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


@contextlib.asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """The gaps between the beats of a task that does nothing else: a loop that is blocked misses them. Where a thread
    beside it misses its own, it is the machine that stands still, and that is no gap.
    """
    gaps: list[float] = []
    beside, over = deque[float](), threading.Event()

    def beat_beside():
        while not over.wait(POLL_S):
            beside.append(time.monotonic())

    async def beat():
        last = time.monotonic()
        while True:
            await asyncio.sleep(POLL_S)
            now = time.monotonic()
            beats = [beside.popleft() for _ in range(len(beside))]
            still = max(after - before for before, after in pairwise((last, *beats, now)))
            gaps.append(now - last - still)
            last = now

    thread = threading.Thread(target=beat_beside)
    thread.start()
    task = asyncio.create_task(beat())
    try:
        yield gaps
    finally:
        task.cancel()
        over.set()
        thread.join()


async def cancelled(task: asyncio.Task) -> asyncio.CancelledError:
    """How a cancelled task ended."""
    with pytest.raises(asyncio.CancelledError) as error:
        await task
    return error.value


def open_fds() -> int:
    """Descriptors of this process, roots aside: the engine's owner maps one, too, when it looks at its heartbeat."""
    gc.collect()  # a mapping is in a cycle with its tables
    return len([target for target in descriptors().values() if not target.endswith("-root")])


def descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def pipes() -> set[str]:
    return {target for target in descriptors().values() if target.startswith("pipe:")}


def threads_named(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


# --- the verbs --------------------------------------------------------------------------------------------------------


def test_every_verb_does_what_the_synchronous_one_does(engine, run):
    async def main():
        async with aio.connect(engine.state, name="me") as client:
            assert client.name == "me"
            assert len(client.client_id) == 16
            task = await client.create(Task(title="x", id="t"))
            assert (task.version, task.created_by) == (1, "me")
            task = await client.update(task, {"title": "y"}, reason="r")
            task = await client.transition(task, TaskStatus.ASSIGNED, assigned_to="me")
            assert (task.title, task.version) == ("y", 3)
            assert await client.get(Task, "t") == task
            assert (await client.get("Task", "t"))["title"] == "y"
            assert await client.get(Task, "none") is None
            assert (await client.cancel(Task.ref("t"), reason="no longer")).status == TaskStatus.CANCELLED
            assert (await client.put(Task(title="put", id="p"))).version == 1
            await client.delete(Task.ref("p"))
            assert await client.get(Task, "p") is None
            reply = await client.submit(Create(Task(title="a", id="a")), Create(Task(title="b", id="b")))
            assert [entity.id for entity in reply.entities] == ["a", "b"]
            told = await client.outcome(reply.request_id)
            assert isinstance(told, Applied)
            assert told.reply.revision == reply.revision
            assert await client.outcome("never") == NotApplied()
            refused = await client.submit(Create(Task(title="a", id="a")))
            assert isinstance(refused.error, AlreadyExists)
            assert refused.error.current == await client.get(Task, "a")

    run(main())


def test_it_has_all_verbs_with_the_same_signatures_and_contracts():
    """What is added to the synchronous client belongs here too."""
    every = {**vars(Requests), **vars(Verbs), **vars(Client)}
    verbs = {name for name, verb in every.items() if inspect.isfunction(verb) and not name.startswith("_")}
    same = [(getattr(Client, name), getattr(aio.AioClient, name)) for name in verbs]
    asked = ("get", "snapshot", "wait_for", "wait_until", "wait_until_count", "watch", "at", "diff", "history", "close")
    same += [(getattr(Reader, name), getattr(aio.AioReader, name)) for name in asked]
    same.append((connect, aio.connect))
    for sync, ours in same:
        assert parameters(ours) == parameters(sync), sync
    offline = ("offline", False, inspect.Parameter.KEYWORD_ONLY)  # a folder is read once, in a thread if need be
    assert [*parameters(aio.open_reader), offline] == parameters(open_reader)
    for name in verbs - {"apply", "submit_many", "transaction"}:  # which take more, or another `with`
        assert inspect.getdoc(getattr(aio.AioClient, name)) == inspect.getdoc(getattr(Client, name)), name


def parameters(verb: Callable[..., object]) -> list[tuple[str, object, object]]:
    return [(one.name, one.default, one.kind) for one in inspect.signature(verb).parameters.values()]


@pytest.mark.usefixtures("shared_engine")
def test_refusals_are_raised_with_what_is_needed_next(engine, run):
    async def main():
        client = await aio.connect(engine.state)
        task = await client.create(Task(title="x", id="t"))
        await client.update(task, title="y")
        with pytest.raises(VersionConflict) as conflict:
            await client.update(task, title="z")
        assert conflict.value.current.title == "y"
        with pytest.raises(NotFound):
            await client.update(Task.ref("none"), title="z")
        with pytest.raises(InvalidMutation, match="request id"):
            await client.create(Task(title="x"), request_id="")
        with pytest.raises(RequestTooLarge):
            await client.create(Task(title="x", metadata={"x": "y" * 3_000_000}))
        await client.close()

    run(main())


def test_apply_takes_plain_and_async_functions_and_goes_on_after_conflicts(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x", id="t", max_retries=0))
            plain = [client.apply(Task.ref("t"), lambda task: {"max_retries": task.max_retries + 1}) for _ in range(20)]

            async def one_more(task: Task) -> Task:
                await asyncio.sleep(0)
                return task.model_copy(update={"max_retries": task.max_retries + 1})

            await asyncio.gather(*plain, *[client.apply(Task.ref("t"), one_more) for _ in range(20)])
            task = await client.get(Task, "t")
            assert (task.max_retries, task.version) == (40, 41)
            assert (await client.apply(task, lambda task: None)).version == 41
            with pytest.raises(NotFound):
                await client.apply(Task.ref("none"), one_more)

    run(main())


class Unlisted(Task):
    """That no engine was told of."""


def test_a_refusal_is_raised_close_to_the_verb_that_was_called(engine, run):
    """What reads the answer from memory is nothing that its caller looks for in a traceback."""

    async def main():
        async with aio.connect(engine.state) as client:
            task = await client.create(Task(title="x"))
            await client.update(task, title="y")
            for call, refusal in (
                (client.update(task, title="z"), VersionConflict),
                (client.create(await client.get(Task, task.id)), AlreadyExists),
                (client.claim(Unlisted), UnknownKind),
            ):
                with pytest.raises(refusal) as refused:
                    await call
                assert len(refused.traceback) <= 6, refused.traceback

    run(main())


def test_a_transaction_is_all_or_nothing_and_one_that_raises_inside_sends_nothing(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            task = await client.create(Task(title="x", id="t"))
            async with client.transaction(reason="both") as tx:
                tx.update(task, title="y")
                new = tx.create(Task(title="new", id="n"))
                tx.require_absent(Task, "none")
            assert (tx.result(task).version, tx.result(new).version, tx.revision) == (2, 1, client.reader.revision)
            assert [change.reason async for change in client.reader.watch(since=1, timeout_s=0)] == ["both", "both"]
            with pytest.raises(SolewriterError, match="ended"):
                tx.update(task, title="late")
            with pytest.raises(ZeroDivisionError):
                async with client.transaction() as tx:
                    tx.update(Task.ref("t"), title="never")
                    raise ZeroDivisionError
            with pytest.raises(VersionConflict):
                async with client.transaction() as tx:
                    tx.update(Task.ref("n"), title="never")
                    tx.update(task, title="never")
            with pytest.raises(InvalidMutation):
                async with client.transaction() as tx:
                    tx.update(Task.ref("n"), title="never")
                    tx.update(Task.ref("t"), title=5)
            async with client.transaction() as tx:
                pass
            with pytest.raises(SolewriterError, match="`async with`"):
                client.transaction().create(Task(title="never"))
            with pytest.raises(SolewriterError, match="not sent"):
                tx.revision  # noqa: B018  # it is the property that raises
            with pytest.raises(SolewriterError, match="already"):
                async with client.transaction() as tx:
                    tx.update(Task.ref("n"), title="never")
                    async with tx:
                        pass
            assert client._session.next_frame == 3, "what raised inside was sent"
            assert [(await client.get(Task, id)).title for id in ("t", "n")] == ["y", "new"]

    run(main())


def test_two_hundred_coroutines_share_one_client(engine, run):
    async def main():
        async with aio.connect(engine.state, name="shared") as client:
            task = await client.create(Task(title="x", id="t"))

            async def work(number: int) -> list[int]:
                made = await client.create(Task(title=str(number), id=f"w{number}"))
                assert (await client.update(made, description="y")).version == 2
                return [(await client.update(Task.ref("t"), max_retries=number * 10 + step)).version for step in (1, 2)]

            versions = [version for both in await asyncio.gather(*map(work, range(200))) for version in both]
            assert sorted(versions) == list(range(2, 402))
            assert (await client.get(Task, task.id)).version == 401

    run(main())


@pytest.mark.parametrize("source", ["sync", "async"])
def test_many_are_pipelined_in_order_with_refusals_as_values(engine, run, source):
    mutations = [Create(Task(title="x", id=f"t{number if number % 10 else 0}")) for number in range(2_000)]
    mutations[777] = Update(Task.ref("t1"), {}, reason="r" * 5_000)

    async def trickling():
        for mutation in mutations:
            await asyncio.sleep(0)
            yield mutation

    async def main():
        async with aio.connect(engine.state) as client, heartbeat() as gaps:
            given = mutations if source == "sync" else trickling()
            replies = [reply async for reply in client.submit_many(given)]
            assert len(replies) == 2_000
            errors = {number: reply.error for number, reply in enumerate(replies) if not reply.applied}
            assert sorted(errors) == sorted({*range(10, 2_000, 10), 777})
            assert isinstance(errors[777], Refused)
            assert isinstance(errors[10], AlreadyExists)
            revisions = [reply.revision for reply in replies if reply.applied]
            assert revisions == sorted(set(revisions))
            assert replies[1999].entity.id == "t1999"
            assert max(gaps) < 1

    run(main())


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("source", ["sync", "async", "blocking"])
def test_a_source_that_raises_ends_the_pipeline_behind_the_replies_to_what_it_gave(engine, run, source):
    """Wherever in a frame that is: all that it gave is sent, and what became of it is told."""
    given = [Create(Task(title=str(number))) for number in range(75)]

    def failing():
        yield from given
        raise LookupError("the source is broken")

    async def failing_too():
        for mutation in given:
            yield mutation
        raise LookupError("the source is broken")

    told: list[str] = []

    async def main():
        async with aio.connect(engine.state) as client:
            async for reply in client.submit_many(failing() if source == "sync" else failing_too()):
                assert reply.applied
                told.append(reply.entity.id)

    def blocking():
        with connect(engine.state) as client:
            told.extend(reply.entity.id for reply in client.submit_many(failing()))

    with pytest.raises(LookupError, match="the source is broken"):
        blocking() if source == "blocking" else run(main())
    assert told == [mutation.entity.id for mutation in given]


@pytest.mark.parametrize("what", ["closed", "no mutation"])
@pytest.mark.parametrize("client", ["blocking", "aio"])
def test_what_keeps_more_from_being_sent_ends_a_pipeline_behind_the_replies_to_what_was_sent(engine, run, client, what):
    """It says nothing of these, and nobody would know how they ended."""
    sent, told = 3 * FRAME_BATCH, []
    given = [Create(Task(title=str(number))) for number in range(sent)]
    last = Create(Task(title="last")) if what == "closed" else "none"

    def blocking():
        with connect(engine.state) as client:

            def source():
                yield from given
                if what == "closed":
                    client.close()
                yield last

            told.extend(client.submit_many(source()))

    async def main():
        async with aio.connect(engine.state) as client:

            async def source():
                for one in given:
                    yield one
                if what == "closed":
                    await client.close()
                yield last

            async for reply in client.submit_many(source()):
                told.append(reply)  # noqa: PERF401 - what came before it raises counts

    with pytest.raises((EngineUnavailable, TypeError), match="closed" if what == "closed" else "is not a mutation"):
        blocking() if client == "blocking" else run(main())
    assert len(told) == sent


@pytest.mark.usefixtures("shared_engine")
def test_what_is_too_much_for_one_frame_goes_in_several(engine, run):
    """And what is too large by itself is refused in its place."""

    async def main():
        async with aio.connect(engine.state) as client:
            sizes = [60_000] * 20 + [1_100_000] + [60_000] * 20
            large = [Create(Task(title="x", description="d" * size)) for size in sizes]
            replies = [reply async for reply in client.submit_many(large)]
            assert [type(reply.error) for reply in replies] == [
                type(None) if size < 1_000_000 else RequestTooLarge for size in sizes
            ]

    run(main())


@pytest.mark.usefixtures("shared_engine")
def test_a_window_of_one_sends_each_as_it_comes(engine, run):
    """A source that waits for the reply of what it gave last is served."""

    async def main():
        async with aio.connect(engine.state) as client:
            told: asyncio.Queue[int] = asyncio.Queue()

            async def source():
                for number in range(10):
                    yield Create(Task(title=str(number)))
                    assert await told.get() == number

            async with contextlib.aclosing(client.submit_many(source(), window=1)) as replies:
                number = 0
                async for reply in replies:
                    assert reply.applied
                    told.put_nowait(number)
                    number += 1
            assert number == 10

    run(main())


# --- back-pressure ----------------------------------------------------------------------------------------------------


def test_a_full_window_makes_callers_wait_in_order_and_never_blocks_the_loop(engine, run):
    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=3)) as client, heartbeat() as gaps:
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                calls = [asyncio.create_task(client.update(Task.ref("t"), title=f"u{number}")) for number in range(40)]
                beats = len(gaps)
                await until(lambda: len(gaps) > beats + 50, "heartbeats while callers are blocked")
                assert not any(call.done() for call in calls)
                assert client._session.in_flight == 3
                assert await client.get(Task, "t") is not None, "reading needs no engine"
            assert [(await call).version for call in calls] == list(range(2, 42)), "somebody was overtaken"
            assert max(gaps) < 1

    run(main())


def test_large_frames_into_a_full_pipe_never_block_the_loop(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, heartbeat() as gaps:
            with stopped(engine.pid):
                calls = [
                    asyncio.create_task(client.create(Task(title="x", metadata={"x": "y" * 200_000})))
                    for _ in range(20)
                ]
                beats = len(gaps)
                await until(lambda: len(gaps) > beats + 50, "heartbeats while frames are unsent")
                assert client._session.unsent is not None
                assert client._exchange._writing
            assert [(await call).version for call in calls] == [1] * 20
            assert not client._exchange._writing, "a writer is watched only while something is unsent"
            assert max(gaps) < 1

    run(main())


def test_time_outs_say_whether_something_was_sent(engine, run):
    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=2)) as client:
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                sent = [client.update(Task.ref("t"), title=f"u{number}", timeout_s=0.1) for number in range(2)]
                unsent = client.update(Task.ref("t"), title="never", timeout_s=0.05)
                told = await asyncio.gather(*sent, unsent, return_exceptions=True)
                assert [type(one) for one in told] == [OutcomeUnknown, OutcomeUnknown, EngineUnavailable]
                many = client.submit_many([Update(Task.ref("t"), {"title": "never"})], timeout_s=0.05)
                with pytest.raises(EngineUnavailable, match="window"):
                    await anext(many)
            for unknown, version in zip(told[:2], (2, 3), strict=True):
                outcome = await client.outcome(unknown.request_id)
                assert isinstance(outcome, Applied)
                assert outcome.reply.results[0].version == version
            assert (await client.update(Task.ref("t"), title="after")).version == 4

    run(main())


# --- cancellation -----------------------------------------------------------------------------------------------------


def test_cancelled_while_waiting_for_room_nothing_is_sent_and_the_others_keep_their_turns(engine, run):
    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=2)) as client:
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                calls = [asyncio.create_task(client.update(Task.ref("t"), title=str(number))) for number in range(12)]
                await asyncio.sleep(0)
                for number in (3, 4, 7, 11):
                    calls[number].cancel()
                for number in (3, 4, 7, 11):
                    assert (await cancelled(calls[number])).__cause__ is None, "nothing was sent"
                calls.append(asyncio.create_task(client.update(Task.ref("t"), title="last")))
                await asyncio.sleep(0)
            left = [await call for number, call in enumerate(calls) if number not in (3, 4, 7, 11)]
            assert [task.title for task in left] == ["0", "1", "2", "5", "6", "8", "9", "10", "last"]
            assert [task.version for task in left] == list(range(2, 11))

    run(main())


def test_whoever_stood_behind_a_cancelled_batch_goes_on(engine, run):
    """A pipeline that needs room for two waits first; a single request behind it fits when the pipeline is gone."""

    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=8)) as client:
            with stopped(engine.pid):
                calls = [asyncio.create_task(client.create(Task(title=str(number)))) for number in range(7)]
                pipelined = asyncio.create_task(anext(client.submit_many([Create(Task(title="never"))] * 4)))
                await asyncio.sleep(0)
                calls.append(asyncio.create_task(client.create(Task(title="behind"))))
                await asyncio.sleep(0)
                assert client._session.in_flight == 7
                pipelined.cancel()
                assert (await cancelled(pipelined)).__cause__ is None
                assert client._session.in_flight == 8
            assert [(await call).version for call in calls] == [1] * 8
            with await client.reader.snapshot() as snap:
                assert snap.counts["Task"] == 8

    run(main())


def test_cancelled_after_it_was_sent_the_request_is_named_and_its_outcome_is_definite(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                call = asyncio.create_task(client.update(Task.ref("t"), title="late"))
                other = asyncio.create_task(client.update(Task.ref("t"), description="other"))
                await asyncio.sleep(0)
                call.cancel()
                unknown = (await cancelled(call)).__cause__
                assert isinstance(unknown, OutcomeUnknown)
            assert (await other).version == 3
            told = await client.outcome(unknown.request_id)
            assert isinstance(told, Applied)
            assert (told.reply.entity.version, told.reply.entity.title) == (2, "late")
            assert (await client.update(Task.ref("t"), title="after")).version == 4

    run(main())


def test_cancelled_at_any_step_the_client_goes_on_and_knows_what_happened(engine, run):
    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=2)) as client:
            await client.create(Task(title="x", id="t"))
            seen = set()
            for steps in [*range(12), *range(12)]:
                id = f"s{steps}-{len(seen)}-{client._session.next_frame}"
                noise = [asyncio.create_task(client.create(Task(title="noise"))) for _ in range(steps % 4)]
                await asyncio.sleep(0)
                call = asyncio.create_task(client.create(Task(title="x", id=id)))
                for _ in range(steps):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
                if not call.cancelled():
                    seen.add("done")
                elif (unknown := (await cancelled(call)).__cause__) is not None:
                    seen.add("sent")
                    assert isinstance(await client.outcome(unknown.request_id), Applied)
                else:
                    seen.add("unsent")
                    await client.create(Task(title="behind everything"))
                    assert await client.get(Task, id) is None
                    id = "t"
                assert (await client.get(Task, id)).version == 1
                await asyncio.gather(*noise)
            assert {"unsent", "sent"} <= seen

    run(main())


def test_timeouts_and_task_groups_work_around_calls(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                with pytest.raises(TimeoutError) as late:
                    async with asyncio.timeout(0.05):
                        await client.update(Task.ref("t"), title="late")
                unknown = late.value.__context__.__cause__
                assert isinstance(unknown, OutcomeUnknown)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.update(Task.ref("t"), title="later"), 0.05)
                with pytest.raises(ExceptionGroup) as group:
                    async with asyncio.TaskGroup() as tasks:
                        calls = [tasks.create_task(client.create(Task(title="x"))) for _ in range(10)]
                        tasks.create_task(failing())
                assert [type(error) for error in group.value.exceptions] == [ZeroDivisionError]
                assert all(call.cancelled() for call in calls)
            assert isinstance(await client.outcome(unknown.request_id), Applied)
            assert (await client.update(Task.ref("t"), title="after")).version == 4

    async def failing():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    run(main())


def test_a_cancelled_pipeline_names_a_request_and_the_client_goes_on(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            with stopped(engine.pid):

                async def consume():
                    async for _ in client.submit_many(Create(Task(title="x", id=f"t{n}")) for n in range(100)):
                        raise AssertionError("the engine stands still")

                call = asyncio.create_task(consume())
                await asyncio.sleep(0)
                call.cancel()
                unknown = (await cancelled(call)).__cause__
            assert isinstance(await client.outcome(unknown.request_id), Applied)
            assert (await client.get(Task, "t0")).version == 1
            assert (await client.create(Task(title="after"))).version == 1

    run(main())


def test_cancelled_in_a_reconnect_the_request_is_sent_by_the_others_lane(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                call = asyncio.create_task(client.update(Task.ref("t"), title="late"))
                await asyncio.sleep(0)
                os.kill(engine.pid, signal.SIGKILL)
                await until(lambda: client._exchange._lane is None, "the lane is lost")
                call.cancel()
                unknown = (await cancelled(call)).__cause__
            assert isinstance(await client.outcome(unknown.request_id), Applied)
            assert (await client.update(Task.ref("t"), title="after")).version == 3

    run(main())


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_an_engine_killed_under_fifty_callers_loses_nothing_and_does_nothing_twice(engine, run):
    rounds, chance = 30, random.Random(5)

    async def main():
        versions: list[int] = []
        async with aio.connect(engine.state, name="many") as client, heartbeat() as gaps:
            await client.create(Task(title="shared", id="shared"))

            async def work(number: int) -> None:
                own = await client.create(Task(title="own", id=f"own-{number}"))
                for step in range(rounds):
                    mutation = Update(Task.ref("shared"), {"max_retries": number * rounds + step + 1})
                    versions.append((await client.submit(mutation)).check().results[0].version)
                    own = await client.update(own, max_retries=step + 1)

            async def kill() -> None:
                for _ in range(4):
                    before, target = engine.restarts, len(versions) + chance.randrange(20, 200)
                    await until(lambda target=target: len(versions) >= target, "progress")
                    os.kill(engine.pid, signal.SIGKILL)
                    await until(lambda before=before: engine.restarts > before, "a restart")

            async with asyncio.TaskGroup() as tasks:
                for number in range(50):
                    tasks.create_task(work(number))
                tasks.create_task(kill())
            assert sorted(versions) == list(range(2, 2 + 50 * rounds)), "an update was lost, or applied twice"
            for number in range(50):
                assert (await client.get(Task, f"own-{number}")).version == 1 + rounds
            assert max(gaps) < 2
        assert engine.restarts == 4

    run(main())


def test_an_engine_killed_while_frames_are_half_written_gets_them_again(engine, run):
    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=8)) as client, heartbeat() as gaps:
            for _ in range(3):
                with stopped(engine.pid):
                    calls = [
                        asyncio.create_task(client.create(Task(title="x", metadata={"x": "y" * 200_000})))
                        for _ in range(20)
                    ]
                    await asyncio.sleep(0)
                    assert client._session.unsent is not None
                    assert len(client._exchange._queue) == 14, "a window's bytes are used up before its requests"
                    os.kill(engine.pid, signal.SIGKILL)
                assert [(await call).version for call in calls] == [1] * 20
            with await client.reader.snapshot() as snap:
                assert snap.counts["Task"] == 60
            assert max(gaps) < 2

    run(main())


def test_pipelines_go_on_over_a_killed_engine(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x", id="t"))
            mutations = (Update(Task.ref("t"), {"max_retries": number}) for number in range(1, 2_001))
            seen = []
            async for reply in client.submit_many(mutations):
                seen.append(reply.check().results[0].version)
                if len(seen) in (300, 1_200):
                    os.kill(engine.pid, signal.SIGKILL)
            assert seen == list(range(2, 2_002))

    run(main())


def test_a_lane_that_is_lost_at_once_is_made_again_and_again_but_not_hastily(engine, run):
    """Whoever answers here says welcome and hangs up, as an engine does that dies in that moment."""
    welcomes: list[float] = []

    def rude(listening: socket.socket) -> None:
        while len(welcomes) < 8:
            connection, _ = listening.accept()
            with connection:
                words, fds, _, _ = socket.recv_fds(connection, 65536, 2)
                for fd in fds:
                    os.close(fd)
                first = handshake.unpack_hello(words[handshake.WORDS_HEADER_BYTES :]).first
                welcome = handshake.Welcome(ok=True, first=first, window=256, frame_bytes_max=1 << 20)
                connection.sendall(handshake.pack_words(welcome))
                welcomes.append(time.monotonic())

    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x", id="t"))
            engine.stop()
            with client.folder.bound_socket() as listening:
                listening.listen()
                thread = threading.Thread(target=rude, args=(listening,), daemon=True)
                thread.start()
                calls = [asyncio.create_task(client.update(Task.ref("t"), title=str(number))) for number in range(3)]
                await until(lambda: not thread.is_alive(), "eight welcomes")
            assert welcomes[-1] - welcomes[0] > 0.2, "nothing slowed it down"
            engine.start()
            assert [(await call).version for call in calls] == [2, 3, 4]

    run(main())


def test_without_an_engine_everything_ends_in_time(state, start_engine, run, hurry):
    """What was sent is unknown; what waited for room, or for a lane, was not sent."""
    engine = start_engine(state, limits=Limits(restart_backoff_s=1, restart_backoff_max_s=1))  # not soon

    async def main():
        async with aio.connect(engine.state, limits=Limits(window_max=2)) as client:
            hurry(client, 0.02)
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                calls = [asyncio.create_task(client.update(Task.ref("t"), title=str(number))) for number in range(4)]
                await asyncio.sleep(0)
                os.kill(engine.pid, signal.SIGKILL)
            told = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(one) for one in told] == [OutcomeUnknown] * 2 + [EngineUnavailable] * 2
            assert "no engine serves" in str(told[3])
            await until(lambda: engine.restarts == 1, "a restart")
            hurry(client, 60)
            for unknown in told[:2]:
                assert isinstance(await client.outcome(unknown.request_id), NotApplied | Applied)
            version = (await client.get(Task, "t")).version
            assert (await client.update(Task.ref("t"), title="after")).version == version + 1

    run(main())


def test_what_nobody_knows_is_raised_and_what_was_never_sent_says_so(state, start_engine, run, hurry):
    """Whether the patience was over or the client was closed."""
    engine = start_engine(state, limits=Limits(restart_backoff_s=60, restart_backoff_max_s=60))
    change = Update(Task.ref("t"), {"title": "y"})

    async def main():
        async with aio.connect(state) as client:
            hurry(client, 0.2)
            closing = await aio.connect(state)
            await client.create(Task(title="x", id="t"))
            with stopped(engine.pid):
                sent = asyncio.create_task(client.submit(change))
                await asyncio.sleep(0)
                os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(OutcomeUnknown):
                await sent
            assert isinstance((await client.submit(change)).error, EngineUnavailable)
            unsent = asyncio.create_task(closing.submit(change))
            await asyncio.sleep(0)
            await closing.close()
            assert "closed before it was sent" in str((await unsent).error)

    run(main())


def test_a_whole_entity_of_another_class_than_the_engines_is_refused(engine, run):
    class Other(Task, kind="Task"):
        title: str = "its own default"

    async def main():
        async with aio.connect(engine.state) as client:
            for call in (client.create(Other(id="t")), client.put(Other(id="t")), client.submit(Create(Other(id="t")))):
                with pytest.raises(SchemaMismatch, match="title is only here, or has no default there"):
                    await call
            asked = [Create(Project(name="first")), Create(Other(id="t")), Create(Project(name="last"))]
            refused = [reply.error async for reply in client.submit_many(asked)]
            assert [type(error) for error in refused] == [type(None), SchemaMismatch, type(None)]
            assert client.reader.revision == 2

    run(main())


def test_each_entity_is_compared_by_its_own_class_where_a_process_has_two_of_a_name(engine, run):
    class Before(Task, kind="Task"):
        title: str = "its own default"

    async def main():
        async with aio.connect(engine.state) as client:
            with pytest.raises(SchemaMismatch, match="title"):
                await client.create(Before(id="t"))
            assert (await client.create(Task(id="t", title="x"))).title == "x"
            asked = [Create(Before(id="a")), Create(Task(id="b", title="x")), [Create(Before(id="c"))]]
            told = [type(reply.error) async for reply in client.submit_many(asked)]
            assert told == [SchemaMismatch, type(None), SchemaMismatch]

    run(main())


def test_patience_is_counted_from_the_loss_of_the_lane(engine, run):
    async def main():
        limits = Limits(window_max=2, connect_timeout_s=1.0)
        async with aio.connect(engine.state, limits=limits) as client, heartbeat() as gaps:
            await client.create(Task(title="x", id="t"))
            before = await client.get(Task, "t")
            engine.stop()
            calls = [client.update(Task.ref("t"), title=str(number)) for number in range(4)]
            begun = time.monotonic()
            told = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in told} == {EngineUnavailable}, "nothing was sent"
            assert time.monotonic() - begun > 0.8
            begun = time.monotonic()
            with pytest.raises(EngineUnavailable, match="no engine serves"):
                await client.update(Task.ref("t"), title="again")
            assert time.monotonic() - begun < 0.8, "it has waited long enough"
            assert await client.get(Task, "t") == before, "the last snapshot stays"
            with pytest.raises(EngineUnavailable):
                await aio.connect(engine.state, limits=limits)
            engine.start()
            assert (await client.update(Task.ref("t"), title="after")).version == 2
            assert sum(gap > 1 for gap in gaps) <= 2, "stopping and starting an engine blocks, the client does not"

    run(main())


def test_a_client_whose_id_another_one_takes_tells_all_its_callers(engine, run):
    async def main():
        client = await aio.connect(engine.state, client_id="crawler", limits=Limits(window_max=2))
        await client.create(Task(title="x", id="t"))
        with stopped(engine.pid):
            calls = [asyncio.create_task(client.update(Task.ref("t"), title=str(number))) for number in range(400)]
            second = asyncio.create_task(connected())
            await until(lambda: threads_named("solewriter-hello"), "a hello is said")
        async with await second as other:
            told = await asyncio.gather(*calls, return_exceptions=True)
            kinds = [type(one) for one in told]
            assert kinds == sorted(kinds, key=[Task, OutcomeUnknown, Fenced].index)
            assert kinds.count(OutcomeUnknown) <= 2, "nothing else was on its way"
            assert kinds[-1] is Fenced
            with pytest.raises(Fenced):
                await client.update(Task.ref("t"), title="w")
            assert (await other.update(Task.ref("t"), title="mine")).title == "mine"
        await client.close()

    async def connected():
        return await aio.connect(engine.state, client_id="crawler")

    run(main())


@pytest.mark.usefixtures("shared_engine")
def test_a_refusal_for_good_is_told_at_once(engine, run):
    async def main():
        begun = time.monotonic()
        with pytest.raises(EngineUnavailable, match="engine's own") as refused:
            await aio.connect(engine.state, client_id="engine")
        assert refused.value.final
        assert time.monotonic() - begun < engine.limits.connect_timeout_s / 2

    run(main())


def test_a_session_that_is_not_remembered_ends_as_unknown_and_goes_on(state, start_engine, run):
    engine = start_engine(state, durability="memory")

    async def main():
        async with aio.connect(state) as client:
            await client.create(Task(title="x"))
            with stopped(engine.pid):
                calls = [asyncio.create_task(client.create(Task(title="y", id=f"y{number}"))) for number in range(3)]
                await asyncio.sleep(0)
                os.kill(engine.pid, signal.SIGKILL)
            told = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(one) for one in told} == {OutcomeUnknown}
            assert (await client.create(Task(title="z", id="z"))).version == 1
            assert await client.get(Task, "y0") is None, "a request of a forgotten session was decided again"

    run(main())


def test_outcomes_are_definite_over_a_restart_and_in_another_client(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            reply = await client.submit(Create(Task(title="x", id="t")), request_id="mine")
            before = engine.restarts
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: engine.restarts > before, "a restart")
            async with aio.connect(engine.state) as other:
                told = await asyncio.gather(*[client.outcome("mine"), other.outcome("mine")])
                assert {one.reply.revision for one in told} == {reply.revision}
                assert told[0].reply.entity == await other.get(Task, "t")

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin eagerly since Python 3.12")
def test_tasks_that_begin_eagerly_change_nothing(engine, run):
    def eager(loop, coroutine, **options):
        return asyncio.Task(coroutine, loop=loop, **{**options, "eager_start": True})

    async def main():
        asyncio.get_running_loop().set_task_factory(eager)
        async with aio.connect(engine.state, limits=Limits(window_max=4)) as client:
            for kill in range(3):
                calls = [asyncio.create_task(client.create(Task(title="x", id=f"{kill}-{n}"))) for n in range(50)]
                os.kill(engine.pid, signal.SIGKILL)
                assert [(await call).version for call in calls] == [1] * 50
                await until(lambda kill=kill: engine.restarts == kill + 1, "a restart")

    run(main())


# --- readers ----------------------------------------------------------------------------------------------------------


def test_a_reader_reads_snapshots_entities_and_revisions(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            task = await client.create(Task(title="x", id="t"))
            assert await reader.get(Task, "t") == task
            with await reader.snapshot() as snap:
                await client.update(task, title="y")
                assert snap[Task, "t"] is await reader.get(Task, "t") or snap[Task, "t"].title == "x"
                assert (snap.revision, snap.stale, list(snap.entities(Task))) == (1, False, [task])
            assert reader.revision == 2
            assert await reader.wait_for(1) == 2
            with pytest.raises(TimeoutError, match=r"revision 9 was not published in 0.02 s; the newest is 2"):
                await reader.wait_for(9, timeout_s=0.02)
            with pytest.raises(TimeoutError):
                await reader.wait_for(9, timeout_s=0)

    run(main())


def test_all_who_wait_share_one_thread_which_ends(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            assert threads_named("solewriter-waiter") == 0
            waits = [asyncio.create_task(reader.wait_for(revision)) for revision in [*range(1, 51), *range(1, 51)]]
            never = asyncio.create_task(reader.wait_for(10_000))
            await asyncio.sleep(0)
            assert threads_named("solewriter-waiter") == 1
            for number in range(50):
                await client.create(Task(title=str(number)))
                assert min(await asyncio.gather(waits[number], waits[number + 50])) >= number + 1
            assert not never.done()
            never.cancel()
            assert (await cancelled(never)).__cause__ is None
            await until(lambda: threads_named("solewriter-waiter") == 0, "the thread ends when nobody waits")
            assert await reader.wait_for(50) == 50
            again = asyncio.create_task(reader.wait_for(10_000))
            await asyncio.sleep(0)
            assert threads_named("solewriter-waiter") == 1
        with pytest.raises(EngineUnavailable, match="closed"):
            await again
        await until(lambda: threads_named("solewriter-waiter") == 0, "the thread ends with its reader")

    run(main())


@pytest.mark.parametrize("rounds", [80, pytest.param(800, marks=pytest.mark.long)])
def test_waiting_wakes_at_once_not_at_the_backstop(engine, run, rounds):
    """Whenever it begins: before, while and after the revision is published."""
    chance = random.Random(3)

    async def main():
        limits = Limits(wait_backstop_s=60)
        async with aio.connect(engine.state) as client:
            async with aio.open_reader(engine.state, limits=limits) as reader:
                never = asyncio.create_task(reader.wait_for(10_000))
                for revision in range(1, rounds + 1):
                    made = asyncio.create_task(client.create(Task(title="x")))
                    await asyncio.sleep(0)
                    later = time.monotonic() + chance.uniform(0, 0.0005)
                    while time.monotonic() < later:
                        pass
                    begun = time.monotonic()
                    assert await reader.wait_for(revision) == revision
                    assert time.monotonic() - begun < 30, "it was the backstop that woke"
                    await made
                assert not never.done()
            with pytest.raises(EngineUnavailable, match="closed"):
                await never
            await client.create(Task(title="x"))  # which wakes the thread: its reader is closed
            await until(lambda: threads_named("solewriter-waiter") == 0, "the thread ends")

    run(main())


def test_waiting_goes_on_over_restarts_and_reading_never_blocks(engine, run):
    async def main():
        async with (
            aio.connect(engine.state) as client,
            aio.open_reader(engine.state) as reader,
            heartbeat() as gaps,
        ):
            task = await client.create(Task(title="x", id="t"))
            waits = [asyncio.create_task(reader.wait_for(revision, timeout_s=60)) for revision in (2, 2, 3, 4)]
            reading, reads = True, 0

            async def read() -> None:
                nonlocal reads
                while reading:
                    assert (await reader.get(Task, "t")).version >= 1
                    assert (await client.get(Task, "t")).version >= 1
                    reads += 1
                    await asyncio.sleep(POLL_S)

            readers = asyncio.create_task(read())
            for _ in range(3):
                before = engine.restarts
                os.kill(engine.pid, signal.SIGKILL)
                task = await client.update(task, max_retries=task.max_retries + 1)
                await until(lambda before=before: engine.restarts > before, "a restart")
            assert [await wait for wait in waits] >= [2, 2, 3, 4]
            assert min(await asyncio.gather(*waits)) >= 2
            await until(lambda: reads > 20, "it was read meanwhile")
            reading = False
            await readers
            assert max(gaps) < 2

    run(main())


def test_waiting_over_a_stop_and_a_later_start(engine, run):
    async def main():
        async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
            await client.create(Task(title="x"))
            wait = asyncio.create_task(reader.wait_for(2, timeout_s=60))
            await asyncio.sleep(0)
            engine.stop()
            engine.start()
            await client.create(Task(title="y"))
            assert await wait == 2

    run(main())


def test_waiting_for_an_engine_that_was_stopped_ends(engine, run):
    async def main():
        async with aio.open_reader(engine.state, limits=Limits(connect_timeout_s=0.3)) as reader:
            (await reader.snapshot()).close()
            engine.stop()
            waits = [asyncio.create_task(reader.wait_for(5)) for _ in range(3)]
            told = await asyncio.gather(*waits, return_exceptions=True)
            assert [type(one) for one in told] == [EngineUnavailable] * 3
            with await reader.snapshot() as snap:
                assert (snap.revision, snap.stale) == (0, True)
            with pytest.raises(TimeoutError):
                await reader.wait_for(5, timeout_s=0.02)

    run(main())


@pytest.fixture
def unnoticing(state, start_engine, limits):
    """An engine that does not see in time that its memory is away."""
    return start_engine(state, limits=msgspec.structs.replace(limits, heartbeat_s=60.0))


@pytest.fixture
def unmapped(unnoticing) -> Iterator[Callable[[bool], None]]:
    """`unmapped(True)`: nobody can map the engine's memory from now on, as between two engines, only longer."""
    where = unnoticing.folder.whereabouts()
    root = Path(where.memory_dir) / f"{where.prefix}-root"
    away = root.with_name(f"{root.name}-away")
    yield lambda wanted: (root.rename(away) if wanted else away.rename(root)) and None
    if away.exists():
        away.rename(root)


def test_memory_that_is_being_handed_over_is_waited_for_without_blocking(unnoticing, run, unmapped):
    async def main():
        async with (
            aio.connect(unnoticing.state) as other,
            aio.connect(unnoticing.state) as client,
            heartbeat() as gaps,
        ):
            old = await other.create(Task(title="x", id="t"))
            await other.update(Task.ref("t"), title="y")
            unmapped(True)
            opening = asyncio.create_task(opened())
            reading = asyncio.create_task(client.get(Task, "t"))
            making = asyncio.create_task(client.create(Task(title="x", id="u")))
            unsent = asyncio.create_task(client.create(Task(title="x", id="never")))
            made = asyncio.create_task(client.update(Task.ref("t"), title="made"))
            left = asyncio.create_task(client.update(Task.ref("t"), description="left"))
            reply = await client.submit(Update(Task.ref("t"), {"max_retries": 9}))
            refused = asyncio.create_task(client.submit(Update(old, {"title": "never"})))
            beats = len(gaps)
            await until(lambda: len(gaps) > beats + 50, "heartbeats while the memory is away")
            assert not any(call.done() for call in (opening, reading, making, unsent, made, left, refused))
            with pytest.raises(EngineUnavailable):
                reply.entity  # noqa: B018  # it is decoded now or not at all
            left.cancel()
            assert isinstance((await cancelled(left)).__cause__, OutcomeUnknown)
            unsent.cancel()
            assert (await cancelled(unsent)).__cause__ is None
            with pytest.raises(TimeoutError):
                await client.reader.wait_for(1, timeout_s=0.02)
            unmapped(False)
            assert (reply.entity.version, reply.entity.max_retries) == (3, 9)
            assert ((await made).title, (await made).version) == ("made", 4)
            assert (await making).id == "u"
            assert (await reading).id == "t"
            assert (await refused).error.current.description == "left"
            assert await client.get(Task, "never") is None
            await (await opening).close()
            assert max(gaps) < 1

    async def opened():
        return await aio.open_reader(unnoticing.state)

    run(main())


def test_memory_that_nobody_hands_over_ends_the_wait(unnoticing, run, unmapped):
    async def main():
        async with (
            aio.connect(unnoticing.state) as other,
            aio.connect(unnoticing.state, limits=Limits(connect_timeout_s=0.5)) as client,
        ):
            await other.create(Task(title="x", id="t"))
            unmapped(True)
            with pytest.raises(ResultUnavailable, match="revision 2") as unread:
                await client.update(Task.ref("t"), title="y")
            with pytest.raises(EngineUnavailable, match="left no memory"):
                await client.get(Task, "t")
            with pytest.raises(EngineUnavailable, match="left no memory"):
                await client.create(Task(title="x"))
            unmapped(False)
            assert isinstance(await client.outcome(unread.value.request_id), Applied)
            assert (await client.get(Task, "t")).version == 2

    run(main())


def test_a_reader_without_an_engine_says_so(state, run):
    async def main():
        with pytest.raises(EngineUnavailable, match="no engine serves"):
            await aio.open_reader(state)
        with pytest.raises(EngineUnavailable):
            async with aio.open_reader(state):
                pass

    run(main())


def test_a_result_that_cannot_be_read_any_more_says_that_it_was_applied(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            task = await client.create(Task(title="x", id="t"))
            await client.reader.close()
            with pytest.raises(ResultUnavailable) as unread:
                await client.update(task, title="y")
            assert unread.value.revision == 2
            refused = await client.submit(Update(task, {"title": "z"}))
            assert isinstance(refused.error, VersionConflict)

    run(main())


# --- where and how long a client may be used --------------------------------------------------------------------------


def test_nothing_works_after_close_and_waiting_callers_are_told(engine, run):
    async def main():
        client = await aio.connect(engine.state, limits=Limits(window_max=2))
        await client.create(Task(title="x", id="t"))
        with await client.reader.snapshot() as snap, stopped(engine.pid):
            calls = [asyncio.create_task(client.update(Task.ref("t"), title=str(number))) for number in range(4)]
            wait = asyncio.create_task(client.reader.wait_for(100))
            await asyncio.sleep(0)
            await client.close()
            told = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(one) for one in told] == [OutcomeUnknown] * 2 + [EngineUnavailable] * 2
            assert str(told[3]) == "this client is closed"
            with pytest.raises(EngineUnavailable, match="closed"):
                await wait
            assert snap[Task, "t"].title == "x"
        for call in (client.create(Task(title="y")), client.get(Task, "t"), client.outcome("x"), anext(many(client))):
            with pytest.raises(EngineUnavailable, match="closed") as closed:
                await call
            assert closed.value.final
        await client.close()

    def many(client):
        return client.submit_many([Create(Task(title="x"))])

    run(main())


def test_closed_in_a_reconnect_nothing_is_left(engine, run):
    async def main():
        fds = open_fds()
        client = await aio.connect(engine.state)
        with stopped(engine.pid):
            call = asyncio.create_task(client.create(Task(title="x")))
            await asyncio.sleep(0)
            os.kill(engine.pid, signal.SIGKILL)
            await until(lambda: client._exchange._lane is None, "the lane is lost")
            await client.close()
        with pytest.raises(OutcomeUnknown):
            await call
        await until(lambda: threads_named("solewriter-hello") == 0, "the greeting ends")
        await until(lambda: engine.restarts == 1, "a restart")
        assert open_fds() <= fds + 2, "the restarted engine's own pipes aside"

    run(main())


def test_another_loop_is_told_and_harms_nothing(engine, loop_factory):
    async def opened():
        reader = await aio.open_reader(engine.state)
        fresh, begun = reader.watch(), reader.watch(timeout_s=0)
        assert [change async for change in begun] == []
        return await aio.connect(engine.state), reader, fresh, begun

    async def elsewhere():
        for call in (
            client.create(Task(title="never")),
            client.get(Task, "t"),
            client.outcome("x"),
            client.apply(Task.ref("t"), lambda task: None),
            client.close(),
            reader.snapshot(),
            reader.wait_for(100),
            anext(fresh),
            anext(begun),
            reader.close(),
        ):
            with pytest.raises(EngineUnavailable, match="another event loop") as wrong:
                await call
            assert wrong.value.final

    async def used():
        assert (await client.create(Task(title="x", id="t"))).version == 1
        assert await reader.get(Task, "t") is not None
        assert (await anext(fresh)).id == (await anext(begun)).id == "t"
        await client.close()
        await reader.close()

    with asyncio.Runner(loop_factory=loop_factory) as first, asyncio.Runner(loop_factory=loop_factory) as second:
        client, reader, fresh, begun = first.run(opened())
        second.run(elsewhere())
        first.run(used())


def test_what_its_loop_left_open_can_be_closed_in_another_one(engine, loop_factory, wait_until):
    async def opened():
        client = await aio.connect(engine.state)
        await client.create(Task(title="x"))
        return client

    with asyncio.Runner(loop_factory=loop_factory) as once:  # the first loop of a process opens what stays
        once.run(once.run(opened()).close())
    fds = open_fds()
    with asyncio.Runner(loop_factory=loop_factory) as first:
        client = first.run(opened())
    with asyncio.Runner(loop_factory=loop_factory) as second:
        second.run(client.close())
    del client
    wait_until(lambda: open_fds() <= fds, 20, "all is closed")  # the engine's owner opens something now and then


def test_a_forked_child_neither_uses_nor_holds_its_parents_lane(engine, run):
    async def main():
        async with aio.connect(engine.state) as client:
            await client.create(Task(title="x"))
            lane = client._exchange._lane
            watch = client.reader.watch(timeout_s=0)
            assert [change async for change in watch] == []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # the pytest process has threads; the child exits
                child = os.fork()
            if child == 0:
                os._exit(in_the_child(client, watch, (lane.requests, lane.replies)))
            assert os.waitpid(child, 0)[1] == 0
            assert (await client.create(Task(title="y"))).version == 1
            os.kill(engine.pid, signal.SIGKILL)
            assert (await client.create(Task(title="z"))).version == 1, "the loop's poll was harmed"

    run(main())


def in_the_child(client: aio.AioClient, watch: AioWatch, fds: tuple[int, int]) -> int:
    """0 if everything says that it is the parent's, and nothing of the lane is open."""
    for call in (
        client.create(Task(title="never")),
        client.get(Task, "t"),
        client.reader.wait_for(9),
        watch.__anext__(),
    ):
        try:
            call.send(None)
            return 1
        except EngineUnavailable as error:
            if not error.final or "parent" not in str(error):
                return 2
    for fd in fds:
        with contextlib.suppress(OSError):
            os.fstat(fd)
            return 3
    with contextlib.suppress(StopIteration):
        client.close().send(None)
    return 0


def test_a_child_forked_in_a_handshake_holds_nothing_of_it(engine, run):
    async def main():
        async with aio.connect(engine.state):
            with stopped(engine.pid):
                before = pipes()
                task = asyncio.create_task(connected())
                await until(
                    lambda: [*ends(before).values()] == [1, 1], "a lane is made, its other ends are handed over"
                )
                own = pipes() - before
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork()
                if child == 0:
                    os._exit(len(own & pipes()))
                assert os.waitpid(child, 0)[1] == 0
            await (await task).close()

    async def connected():
        return await aio.connect(engine.state)

    def ends(before: set[str]) -> Counter[str]:
        """How many of each pipe."""
        return Counter(
            target for target in descriptors().values() if target.startswith("pipe:") and target not in before
        )

    run(main())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads: the child only looks and ends
def test_a_child_forked_at_any_step_of_a_new_lane_holds_nothing_of_it(engine, at_step, run):
    """When the thread of the handshake is done with it."""

    async def main():
        await (await aio.connect(engine.state)).close()
        before, forks = pipes(), 0

        def fork() -> None:
            nonlocal forks
            if any(one._greeting is not None and not one._greeting._welcomed for one in aio_exchange._open):
                return
            lane = pipes() - before
            child = os.fork()
            if child == 0:
                os._exit(len(pipes() & lane))
            assert os.waitpid(child, 0)[1] == 0, f"forked at {reached}"
            forks += 1

        steps, reached = 0, [""]
        while reached:
            steps += 1
            with at_step(steps, fork, aio_exchange) as reached:
                client = await aio.connect(engine.state)
            await client.close()
        assert forks > 10

    run(main())


def test_descriptors_and_threads_do_not_leak(engine, run):
    async def main():
        async def cycle(number: int) -> None:
            async with aio.connect(engine.state) as client, aio.open_reader(engine.state) as reader:
                await client.create(Task(title=str(number)))
                await reader.wait_for(1)
                assert await client.get(Task, "none") is None

        await cycle(0)
        fds = open_fds()
        for number in range(50):
            await cycle(number)
        await until(lambda: open_fds() <= fds, "the descriptors of 50 clients are closed")
        for name in ("solewriter-hello", "solewriter-waiter"):
            await until(lambda name=name: threads_named(name) == 0, "the threads of 50 clients end")

    run(main())


def test_what_is_forgotten_is_closed_and_says_so(engine, loop_factory, wait_until):
    """In a loop that runs, and behind its end: a client, and a reader."""

    async def opened():
        client, reader = await aio.connect(engine.state), await aio.open_reader(engine.state)
        task = await client.create(Task(title="x"))
        assert await reader.get(Task, task.id) == await client.get(Task, task.id) == task
        return client, reader

    async def forgetful() -> None:
        client, reader = await opened()
        await client.close()
        await reader.close()
        fds = open_fds()
        with pytest.warns(ResourceWarning, match="was never closed") as told:
            await opened()
        assert len(told) == 2
        await until(lambda: open_fds() <= fds, "all is closed")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(forgetful())
    fds = open_fds()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        both = runner.run(opened())
    with pytest.warns(ResourceWarning, match="was never closed") as told:
        del both
    assert len(told) == 2
    wait_until(lambda: open_fds() == fds, 20, "all is closed")  # the engine's owner opens something now and then


def test_a_claim_that_the_end_of_its_loop_cuts_off_is_not_complained_of(engine, loop_factory, caplog):
    """That nobody closed its client is: once."""

    async def left() -> None:
        client = await aio.connect(engine.state)
        client.claiming = asyncio.create_task(client.claim(Task, timeout_s=60))
        await until(lambda: client._session.waiting, "it waits")

    def ended() -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(left())
        gc.collect()

    with pytest.warns(ResourceWarning, match="was never closed") as told:
        ended()
    assert (len(told), caplog.messages) == (1, [])


def test_a_claim_that_cannot_be_given_back_before_its_client_is_closed_is_not_complained_of(engine, run):
    """It is given back when the engine hears that the client is closed."""

    async def main() -> None:
        async with aio.connect(engine.state) as client:
            claim = asyncio.create_task(client.claim(Task, timeout_s=60))
            await until(lambda: client._session.waiting, "it waits")
            with stopped(engine.pid):
                claim.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await claim
                await client.close()

    run(main())


@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("opener", [aio.connect, aio.open_reader])
def test_what_opens_a_client_serves_one_with_at_a_time(engine, run, opener):
    """Else the first one that ends would close the other one's, and its own would stay open."""

    async def main():
        opening = opener(engine.state)
        entered, leave = asyncio.Event(), asyncio.Event()

        async def held():
            async with opening as opened:
                entered.set()
                await leave.wait()
                return await opened.get(Task, "nobody")

        holding = asyncio.create_task(held())
        await entered.wait()
        with pytest.raises(SolewriterError, match=r"call aio\.connect"):
            async with opening:
                pass
        leave.set()
        assert await holding is None
        async with opening as opened:
            assert await opened.get(Task, "nobody") is None

    run(main())


def test_cancelled_connects_leave_nothing_open(engine, run):
    limits = Limits(connect_timeout_s=60)  # as long as nothing is told would a thread wait for its answer

    async def main():
        await (await aio.connect(engine.state)).close()
        fds = open_fds()
        for steps in range(25):  # cancelled at any step of one that would succeed
            call = asyncio.create_task(opened())
            for _ in range(steps):
                await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await call).close()
        with stopped(engine.pid):
            calls = [asyncio.create_task(opened()) for _ in range(25)]
            await until(lambda: threads_named("solewriter-hello") == 25, "all say hello")
            for call in calls:
                call.cancel()
            for call in calls:
                await cancelled(call)
            await until(lambda: threads_named("solewriter-hello") == 0, "a thread that waits for an answer stops")
            await until(lambda: open_fds() <= fds, "the lanes of cancelled connects are closed")
        with pytest.raises(TimeoutError), stopped(engine.pid):
            async with asyncio.timeout(0.05):
                async with aio.connect(engine.state):
                    pass
        await until(lambda: open_fds() <= fds, "all is closed")
        async with aio.connect(engine.state) as client:
            assert (await client.create(Task(title="x"))).version == 1

    async def opened() -> aio.AioClient:
        return await aio.connect(engine.state, limits=limits)

    run(main())


@pytest.mark.usefixtures("shared_engine")
def test_many_clients_of_one_loop_connect_and_work_at_once(engine, run):
    async def work(number: int) -> int:
        async with aio.connect(engine.state, name=f"agent-{number}") as client:
            task = await client.create(Task(title="x", id=f"a{number}"))
            return (await client.submit(Cancel(task))).check().results[0].version

    async def main():
        assert await asyncio.gather(*map(work, range(40))) == [2] * 40

    run(main())
