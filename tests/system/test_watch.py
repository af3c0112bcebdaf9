"""A watch brings every change once and in order, waits miss nothing, whatever happens to the engine meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import weakref

import msgspec
import pytest
import uvloop

from solewriter import (
    Compacted,
    Create,
    EngineUnavailable,
    Entity,
    InvalidQuery,
    Limits,
    Project,
    Put,
    Task,
    TaskStatus,
    Update,
    connect,
    open_reader,
)
from solewriter.agents import watch as watches
from solewriter.agents.reading import feed as feeds
from solewriter.shared.config import KIB, WATCH_BATCH
from solewriter.shared.journal.chain import journal_files

FORGETFUL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB, snapshot_age_max_s=0)


def told(change):
    return change.mutation, change.kind, change.id, change.version, change.revision


def test_a_change_says_all_about_itself(client, reader):
    watch = reader.watch(since=reader.revision, timeout_s=0)
    task = client.create(Task(title="a", id="t"), reason="because", request_id="mine")
    client.update(task, title="b")
    client.delete(Task.ref("t"), reason="done")
    client.create(Project(name="p", id="p"))
    created, updated, deleted, project = watch
    assert told(created) == ("create", "Task", "t", 1, 1)
    assert (created.actor, created.reason, created.request_id) == ("tester", "because", "mine")
    assert (created.old, created.new) == (None, task)
    assert created.time == task.created_at
    assert (updated.old, updated.new.title) == (task, "b")
    assert updated.request_id.startswith(client.client_id)
    assert (told(deleted), deleted.new, deleted.old.title) == (("delete", "Task", "t", 3, 3), None, "b")
    assert (project.kind, project.new.name) == ("Project", "p")
    assert watch.revision == 4


@pytest.mark.parametrize("of_one", [False, True])
def test_a_watch_that_goes_on_from_the_middle_of_another_one_leaves_nothing_out(client, reader, of_one):
    """Where that one stands between the changes of a request, they come again."""
    for request in range(3):
        client.submit(*(Create(Task(id=f"{request}-{n}", title="t")) for n in range(3))).check()
    asked = {"kind": Task, "id": "2-1"} if of_one else {}
    left = [told(change) for change in reader.watch(since=0, timeout_s=0, **asked)]
    watch = reader.watch(since=0, timeout_s=0, **asked)
    for change in watch:
        del left[0]
        following = [told(one) for one in reader.watch(since=watch.revision, timeout_s=0, **asked)]
        again = len(following) - len(left)
        assert following[again:] == left
        assert all(revision == change.revision for *_, revision in following[:again])
    assert watch.revision == reader.revision


def test_leaving_a_filter_is_a_change_too(client, reader):
    client.create(Task(title="a", id="other"))
    watch = reader.watch(Task, since=0, where={"status": "created", "project": "p"}, timeout_s=0)
    task = client.create(Task(title="a", id="t", project="p"))
    task = client.update(task, title="b")
    task = client.transition(task, TaskStatus.ASSIGNED, assigned_to="me")
    client.update(task, title="outside")
    assert [(change.mutation, change.new.status) for change in watch] == [
        ("create", "created"),
        ("update", "created"),
        ("transition", "assigned"),
    ]


def test_leaving_a_filter_is_told_by_what_was_there_before_its_column_was(state, start_engine):
    class Before(Entity, kind="Doc", columns=("title",)):
        title: str
        level: float = 0.0

    class After(Entity, kind="Doc", columns=("level", "title")):
        title: str
        level: float = 0.0

    engine = start_engine(state, models=[Before])
    with connect(state) as client, open_reader(state) as reader:
        one = client.create(Before(id="d", title="x", level=2.0))
        client.update(client.update(one, level=5.0), level=6.0)
        engine.register(After)
        found = [change.new.level for change in reader.watch(After, since=0, where={"level": 2.0}, timeout_s=0)]
    assert found == [2.0, 5.0]


def levels(state, start_engine, durability, columns=("n",)):
    """An engine, and a class whose only column is new to what its memory has; most of what was before has left that."""

    class Before(Entity, kind="Doc", columns=columns):
        n: int = 0
        level: int = 0

    class After(Entity, kind="Doc", columns=("level",)):
        n: int = 0
        level: int = 0

    engine = start_engine(state, models=[Before], durability=durability, limits=FORGETFUL)
    with connect(state) as client:
        for level in range(5):
            wishes = [Put(Before(id=f"d{number}", level=level)) for number in range(350)]
            for reply in client.submit_many(wishes):
                reply.check()
    engine.register(After)
    return After


@pytest.mark.parametrize("columns", [("n",), ()])
def test_leaving_a_filter_is_told_though_what_was_before_has_left_memory(state, start_engine, columns):
    model = levels(state, start_engine, "process", columns)
    with open_reader(state) as reader:
        for level in range(5):
            for since in (0, 1_200, 1_400):
                watch = reader.watch(model, since=since, where={"level": level}, timeout_s=0)
                begin, end = max(since, level * 350), min((level + 2) * 350, 1_750)  # it came, and the next one did
                assert [change.revision for change in watch] == list(range(begin + 1, end + 1))


@pytest.mark.parametrize("columns", [("n",), ()])
def test_a_watch_that_nothing_tells_what_left_its_filter_says_so(state, start_engine, columns):
    """Without a journal; and goes on behind that, or from a snapshot where that was asked for."""
    model = levels(state, start_engine, "memory", columns)
    with connect(state) as client, open_reader(state) as reader:
        with pytest.raises(Compacted, match=r"these columns are newer, .* nothing is journaled") as gone:
            list(reader.watch(model, since=1_300, where={"level": 3}, timeout_s=0))
        (resync,) = reader.watch(model, since=1_300, where={"level": 3}, timeout_s=0, resync=True)
        assert (resync.revision, resync.snapshot.count(model, {"level": 4})) == (1_750, 350)
        watch = reader.watch(model, since=gone.value.oldest, where={"level": 4}, timeout_s=0)
        client.update(model.ref("d0"), level=5)
        assert [change.id for change in watch] == ["d0"]


def test_every_change_comes_once_and_in_order_across_deaths_of_the_engine(engine, wait_until):
    """Transactions of several entities, too: a death in the middle of reading one neither repeats nor loses a part."""
    seen = []
    reader = open_reader(engine.state)

    def watch() -> None:
        for change in reader.watch(since=0):
            seen.append((change.revision, change.id, change.version, change.new.max_retries))
            if change.id == "end":
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    with connect(engine.state) as client:
        client.submit(*[Create(Task(title="x", id=f"t{n}", max_retries=0)) for n in range(5)]).check()
        for death in range(3):
            for number in range(100):
                client.submit(
                    *[Update(Task.ref(f"t{n}"), {"max_retries": death * 100 + number + 1}) for n in range(5)]
                ).check()
            before = engine.restarts
            os.kill(engine.pid, signal.SIGKILL)
            wait_until(lambda before=before: engine.restarts > before, 20, "a restart")
        client.create(Task(title="x", id="end", max_retries=0))
    watcher.join(60)
    reader.close()
    assert not watcher.is_alive()
    assert seen[:-1] == [(rev + 1, f"t{n}", rev + 1, rev) for rev in range(301) for n in range(5)]


def test_a_watch_goes_on_where_another_one_ended(client, reader):
    for number in range(600):
        client.create(Task(title="x", id=f"t{number}"))
    first = reader.watch(since=0, timeout_s=0)
    got = [next(first).id for _ in range(256)]
    got += [change.id for change in reader.watch(since=first.revision, timeout_s=0)]
    assert got == [f"t{number}" for number in range(600)]


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_same_object_iterates_asynchronously(client, reader, factory):
    async def follow() -> list[str]:
        got = []
        async for change in reader.watch(Task, since=0, timeout_s=60):
            got.append(change.id)
            if len(got) == 3:
                break
            await asyncio.to_thread(client.create, Task(title="x", id=f"t{len(got)}"))
        return got

    client.create(Task(title="x", id="t0"))
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(follow()) == ["t0", "t1", "t2"]


def test_a_look_whose_caller_was_cancelled_is_gone_on_with(engine, client):
    """A second one beside it would hold another thread, and read on in the same place."""

    async def follow() -> None:
        with open_reader(engine.state, limits=Limits(wait_backstop_s=60)) as reader:
            watch = reader.watch(since=0, timeout_s=60)
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await anext(watch)
            assert sum(thread.name.startswith("asyncio") for thread in threading.enumerate()) == 1
            client.create(Task(title="x", id="t"))
            assert (await anext(watch)).id == "t"

    asyncio.run(follow())


def test_a_look_that_failed_is_followed_by_another_one(state, start_engine):
    """With `async for` as with `for`: by the next engine, the watch goes on."""
    impatient = Limits(connect_timeout_s=0.1, wait_backstop_s=0.05)

    async def follow() -> None:
        engine = start_engine(state)
        with open_reader(state, limits=impatient) as reader:
            watch = reader.watch(since=0, timeout_s=60)
            engine.stop()
            with pytest.raises(EngineUnavailable):
                await anext(watch)
            start_engine(state)
            with connect(state) as client:
                client.create(Task(title="x", id="t"))
            assert (await anext(watch)).id == "t"

    asyncio.run(follow())


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["in memory", "in the journal"])
def test_a_look_interrupted_at_any_step_is_followed_by_one_that_brings_the_same(state, start_engine, at_step, where):
    """Ctrl-C in a notebook's cell, say, that is run again: none is missed, and none comes twice."""
    if where == "in memory":
        start_engine(state)
    else:  # of which a small memory holds the newest only
        start_engine(state, limits=FORGETFUL)
    with connect(state) as client, open_reader(state) as reader:
        client.submit(*[Create(Task(title="x", id=f"t{number}")) for number in range(3)]).check()
        if where == "in the journal":
            turn_over(client, reader)
        steps, reached = 0, [""]
        while reached:
            steps += 1
            watch, seen = reader.watch(since=0, timeout_s=0), []
            with contextlib.suppress(KeyboardInterrupt), at_step(steps, interrupt, watches, feeds) as reached:
                seen.append(next(watch).id)
            seen += [next(watch).id for _ in range(3 - len(seen))]
            assert seen == ["t0", "t1", "t2"], f"interrupted in {reached}"
        assert steps > 10


def test_a_watch_that_reads_from_the_journal_is_gone_when_nobody_has_it(state, start_engine):
    """With all that it read there, and no collection of garbage later."""
    start_engine(state, limits=FORGETFUL)
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="t2"))
        for reply in client.submit_many([Update(Task.ref("t2"), {"source": f"{n}"}) for n in range(WATCH_BATCH)]):
            reply.check()
        turn_over(client, reader)
        watch = reader.watch(since=0, timeout_s=0)
        next(watch)
        feed = weakref.ref(watch._looked[0])
        assert feed()._journaled.gi_frame is not None, "it has more to read there"
        collected = gc.isenabled()
        gc.disable()
        try:
            del watch
            assert feed() is None
        finally:
            if collected:
                gc.enable()


def test_a_watch_goes_on_in_memory_where_the_journal_is_trimmed_while_it_reads_there(state, start_engine):
    start_engine(state, limits=msgspec.structs.replace(FORGETFUL, journal_file_bytes=16 * KIB))
    with connect(state) as client, open_reader(state) as reader:
        text, count = KIB * "x", 2 * WATCH_BATCH
        wishes = [Put(Task(title=f"{n}", id=f"{n % count}", description=text)) for n in range(4 * count)]
        for reply in client.submit_many(wishes):
            reply.check()
        watch = reader.watch(since=0, timeout_s=0)
        seen = [next(watch).revision]
        while watch.revision < 3 * count:
            seen.append(next(watch).revision)
        assert 1 < reader.snapshot().pin.root.oldest < watch.revision
        for path in journal_files(state)[:-1]:
            path.unlink()
        assert [*seen, *[change.revision for change in watch]] == [*range(1, 4 * count + 1)]


def turn_over(client, reader) -> None:
    """Until the first revisions have left memory."""
    text = "x" * KIB
    for _ in range(100):
        if reader.snapshot().pin.root.oldest > 2:
            return
        for reply in client.submit_many(
            [Update(Task.ref("t2"), {"description": f"{number}{text}"}) for number in range(64)]
        ):
            reply.check()
    raise AssertionError("memory holds everything")


def test_a_watch_ends_when_nothing_comes_and_can_be_asked_again(client, reader):
    watch = reader.watch(timeout_s=0.05)
    assert list(watch) == []
    client.create(Task(title="x", id="t"))
    assert [change.id for change in watch] == ["t"]


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_a_watch_for_what_does_not_come_ends_in_time_while_others_write_without_a_pause(
    client, reader, plant, timeout_s
):
    looks = 0

    def written_meanwhile(true, watch):
        nonlocal looks
        looks += 1
        if looks > 10_000:
            pytest.fail("it goes on and on")
        client.put(Project(id="p", name=str(looks)))
        return true(watch)

    client.create(Task(title="a", id="a"))
    plant(watches.Watch, "take", written_meanwhile)
    watch = reader.watch(Task, since=0, timeout_s=timeout_s)
    assert [change.id for change in watch] == ["a"]
    client.create(Task(title="b", id="b"))
    assert [change.id for change in watch] == ["b"]


def test_an_engine_without_a_past_says_so_and_a_resync_goes_on(state, start_engine, wait_until):
    """Under `memory` a new engine has another history: its revisions mean something else."""
    engine = start_engine(state, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="lost"))
        strict, patient = reader.watch(since=0, timeout_s=0), reader.watch(since=0, timeout_s=0, resync=True)
        assert [change.id for change in strict] == [change.id for change in patient] == ["lost"]
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        client.create(Task(title="x", id="new"))
        with pytest.raises(Compacted, match="another history"):
            next(strict)
        (resync,) = patient
        assert [task.id for task in resync.snapshot.entities(Task)] == ["new"]
        client.create(Task(title="x", id="after"))
        assert [change.id for change in patient] == ["after"]


def test_a_watch_behind_what_was_never_published_leaves_nothing_out_silently(client, reader):
    """A revision that was kept, of a folder that began anew or is an older copy: what comes next is not behind it."""
    client.create(Task(title="x", id="a"))
    strict, patient = reader.watch(since=7, timeout_s=0), reader.watch(since=7, timeout_s=0, resync=True)
    with pytest.raises(Compacted, match="no revision 7 here; the newest is 1") as gone:
        next(strict)
    assert gone.value.oldest <= 1
    patient.take()
    assert patient.revision == 7, "it was taken, as where a coroutine was cancelled, and not brought"
    (resync,) = patient
    assert patient.revision == resync.revision
    assert (resync.revision, [task.id for task in resync.snapshot.entities(Task)]) == (1, ["a"])
    client.create(Task(title="x", id="after"))
    assert [change.id for change in patient] == ["after"]


@pytest.mark.parametrize("durability", ["process", "memory"])
def test_a_watch_from_before_the_first_change_begins_with_that(state, start_engine, durability):
    """Such as that of the last five changes, where there were none so far."""
    start_engine(state, durability=durability)
    with connect(state) as client:
        watch = client.reader.watch(since=client.reader.revision - 5, timeout_s=0)
        assert list(watch) == []
        client.create(Task(title="x", id="t"))
        for one in (watch, client.reader.watch(since=client.reader.revision - 5, timeout_s=0)):
            assert [change.id for change in one] == ["t"]


def test_what_a_watch_asks_for_stays_when_its_caller_asks_something_else(client, reader):
    states = ["created"]
    where = {"status": states, "project": "p"}
    watch = reader.watch(Task, since=0, where=where, timeout_s=0)
    states.append("cancelled")
    where["project"] = "q"
    other = reader.watch(Task, since=0, where=where, timeout_s=0)
    for project in ("p", "q"):
        client.create(Task(title="x", id=project, project=project))
    assert [change.id for change in watch] == ["p"]
    assert [change.id for change in other] == ["q"]


@pytest.mark.parametrize("collected", [list, tuple, set, frozenset, lambda kinds: dict.fromkeys(kinds).keys()])
def test_several_kinds_are_watched_together_in_order(client, reader, collected):
    kinds = collected([Task, "Project"])
    watch = reader.watch(kinds, since=0, timeout_s=0)
    with contextlib.suppress(AttributeError):
        kinds.clear()
    client.create(Project(name="p", id="p"))
    client.create(Task(title="a", id="t"))
    client.update(Task.ref("t"), title="b")
    project, created, updated = watch
    assert project.new["name"] == "p", "a kind that is given by name brings dicts"
    assert (created.new.title, updated.old.title, updated.new.title) == ("a", "a", "b")
    (only,) = reader.watch(collected([Project]), since=0, where={"status": "active"}, timeout_s=0)
    assert only.new == client.get(Project, "p")


def test_one_entity_is_watched_from_before_it_is_there_until_it_is_made_again(client, reader):
    watch = reader.watch(Task, id="t", timeout_s=0)
    renamed = reader.watch("Task", id="t", where={"project": "q"}, timeout_s=0)
    for id in ("t", "other"):
        client.create(Task(title="a", id=id))
        client.update(Task.ref(id), project="q")
        client.delete(Task.ref(id))
    client.create(Project(name="p", id="t"))
    client.create(Task(title="b", id="t"))
    assert [told(change)[:4] for change in watch] == [
        ("create", "Task", "t", 1),
        ("update", "Task", "t", 2),
        ("delete", "Task", "t", 3),
        ("create", "Task", "t", 4),
    ]
    assert [change.version for change in renamed] == [2, 3]


def test_what_names_no_kind_or_more_than_one_is_refused(client, reader):
    for wrong in ([], set()):
        with pytest.raises(InvalidQuery, match="no kind is asked for"):
            reader.watch(wrong)
    with pytest.raises(InvalidQuery, match=r"Task is asked for as <class .* and as 'Task'"):
        reader.watch([Task, "Task"])
    with pytest.raises(TypeError, match="a kind is an entity's class, or its name, not 3"):
        reader.watch([Task, 3])
    for several in (None, [Task, Project]):
        with pytest.raises(InvalidQuery, match="an id is that of one kind"):
            reader.watch(several, id="t")
        with pytest.raises(InvalidQuery, match="one kind"):
            reader.watch(several, where={"status": "created"})
    with pytest.raises(TypeError, match="an id is a str, not 3"):
        reader.watch(Task, id=3)


def test_where_needs_a_kind_and_a_column(client, reader):
    with pytest.raises(InvalidQuery, match="one kind"):
        reader.watch(where={"status": "created"})
    client.create(Task(title="x"))
    with pytest.raises(InvalidQuery, match="no declared column"):
        reader.watch(Task, since=0, where={"title": "x"})


# --- waiting for one entity -------------------------------------------------------------------------------------------


def test_wait_until_sees_what_changes_just_before_and_just_after_the_look(engine, client, reader):
    client.create(Task(title="0", id="t"))

    def change() -> None:
        for number in range(1, 200):
            client.update(Task.ref("t"), title=str(number))

    writer = threading.Thread(target=change)
    writer.start()
    for number in range(1, 200, 20):
        found = reader.wait_until(Task, "t", lambda task, least=number: int(task.title) >= least, timeout_s=60)
        assert int(found.title) >= number
    writer.join()


def test_wait_until_of_what_is_not_there_and_of_what_never_comes(client, reader):
    timer = threading.Timer(0.05, lambda: client.create(Task(title="x", id="late")))
    timer.start()
    assert reader.wait_until(Task, "late", lambda task: task is not None, timeout_s=60).title == "x"
    timer.join()
    with pytest.raises(TimeoutError, match="did not become so"):
        reader.wait_until(Task, "late", lambda task: task.title == "y", timeout_s=0.05)


# --- waiting for how many ---------------------------------------------------------------------------------------------


def test_wait_until_count_sees_what_changes_just_before_and_just_after_the_look(engine, client, reader):
    for number in range(200):
        client.create(Task(title="x", id=str(number)))

    def cancel() -> None:
        for number in range(200):
            client.cancel(Task.ref(str(number)))

    writer = threading.Thread(target=cancel)
    writer.start()
    for most in range(200, -1, -20):
        asked = {"status": "created"}
        with reader.wait_until_count(Task, asked, lambda count, most=most: count <= most, timeout_s=60) as snap:
            assert snap.count(Task, asked) <= most
            assert snap.count(Task) == 200
    writer.join()


def test_what_does_not_match_is_not_counted(client, reader, wait_until):
    counted, waiting = [], threading.Event()

    def enough(count: int) -> bool:
        counted.append(count)
        waiting.set()
        return count == 2

    found = []
    asked = {"project": "p", "priority": ["high", "critical"]}
    waiter = threading.Thread(target=lambda: found.append(reader.wait_until_count(Task, asked, enough, timeout_s=60)))
    waiter.start()
    waiting.wait()
    for number in range(300):
        client.put(Project(id="p", name=str(number)))
        client.create(Task(title="x", project="p"))
    client.create(Task(title="x", id="a", project="p", priority="high"))
    wait_until(lambda: counted == [0, 1], 20, "the first that matches")
    client.update(Task.ref("a"), priority="critical")
    client.create(Task(title="x", project="p", priority="high"))
    waiter.join()
    assert counted[-1] == found[0].count(Task, asked) == 2
    assert len(counted) <= 4


def test_wait_until_count_of_what_is_so_and_of_what_never_comes(client, reader):
    assert reader.wait_until_count("NoSuchKind", {"any": 1}, lambda count: count == 0).revision == 0
    client.create(Task(title="x"))
    assert reader.wait_until_count("Task", None, lambda count: count == 1, timeout_s=0).counts["Task"] == 1
    with pytest.raises(TimeoutError, match=r"number of Task did not become so in 0.05 s; it is 1"):
        reader.wait_until_count(Task, None, lambda count: count > 1, timeout_s=0.05)
    with pytest.raises(TimeoutError, match=r"Task that are {'project': 'p'} did not become so in 0 s; it is 0"):
        reader.wait_until_count(Task, {"project": "p"}, bool, timeout_s=0)
    with pytest.raises(InvalidQuery, match="no declared column"):
        reader.wait_until_count(Task, {"title": "x"}, bool)
    with pytest.raises(InvalidQuery, match="timeout_s is seconds"):
        reader.wait_until_count(Task, None, bool, timeout_s="1")

    async def over(count: int) -> bool:
        return True

    with contextlib.closing(over(1)) as answer, pytest.raises(TypeError, match="nothing to await"):
        reader.wait_until_count(Task, None, lambda _: answer)


@pytest.mark.parametrize("durability", ["process", "memory"])
def test_wait_until_count_goes_on_with_the_next_engine_also_where_that_has_nothing(state, start_engine, durability):
    engine = start_engine(state, durability=durability)
    with connect(engine.state) as client, open_reader(engine.state) as reader:
        client.create(Task(title="x", id="a"))
        counted, found = [], []

        def none(count: int) -> bool:
            counted.append(count)
            if len(counted) == 1:
                os.kill(engine.pid, signal.SIGKILL)
            return not count

        waiter = threading.Thread(target=lambda: found.append(reader.wait_until_count(Task, None, none, 60)))
        waiter.start()
        if durability == "process":
            client.delete(Task.ref("a"))
        waiter.join()
        assert counted == [1, 0]
        assert found[0].revision == (2 if durability == "process" else 0)
