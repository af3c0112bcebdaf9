"""Memory that is full, readers that are killed or stopped anywhere, an engine that dies in a publish: whoever reads has
one revision or the other, whole, and everybody else goes on.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solewriter import (
    Create,
    Delete,
    Engine,
    EngineStartFailed,
    Limits,
    MemoryFull,
    OutcomeUnknown,
    Project,
    Snapshot,
    Task,
    TaskPriority,
    Update,
    aio,
    connect,
    open_reader,
    status_of,
)
from solewriter.shared.config import KIB
from solewriter.shared.failpoint import VARIABLE

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.05)


def with_limits(**changed: Any) -> Limits:
    return msgspec.structs.replace(SMALL, **changed)


class Onlooker:
    """A reader in a process of its own, which says a word for each look, and ends with what went wrong, if anything."""

    def __init__(self, program: str, state: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(state), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def hears(self) -> str:
        """Its next word; "" when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def is_told(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def end(self) -> int:
        """Its status, when it was told nothing more. Killed, if that does not help."""
        try:
            self._process.communicate(timeout=60)
        finally:
            self._process.kill()
            self._process.wait()
        return self._process.returncode


@pytest.fixture
def onlooker(state: Path) -> Iterator[Callable[..., Onlooker]]:
    made: list[Onlooker] = []

    def start(program: str, *arguments: str) -> Onlooker:
        made.append(Onlooker(program, state, *arguments))
        return made[-1]

    yield start
    for one in made:
        one._process.kill()
        one._process.communicate()


# --- a full memory file system ----------------------------------------------------------------------------------------


class Memory:
    """A memory file system of its own, that can be filled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.limits = with_limits(memory_dir=str(folder))
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Until there is no room at all."""
        room = os.statvfs(self.folder)
        fd = os.open(self._ballast, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.posix_fallocate(fd, 0, room.f_bavail * room.f_frsize)
        os.close(fd)
        assert os.statvfs(self.folder).f_bavail == 0

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def memory(small_memory: Path) -> Iterator[Memory]:
    """It is empty again when the engine has stopped."""
    yield Memory(small_memory)
    left = [path.name for path in small_memory.iterdir() if path.name != "ballast"]
    assert left == [], "an engine that stopped left memory behind"


LOOKING = """
import select, sys
from solewriter import Project, Task, open_reader

with open_reader(sys.argv[1]) as reader:
    held = reader.snapshot()
    count = held.count(Task)
    print("looks", flush=True)
    while not select.select([0], [], [], 0)[0]:
        snap = reader.snapshot()
        for one in (held, snap):
            tasks = [*one.entities(Task)]
            assert [one.get(Task, task.id) for task in tasks] == tasks == one.scan(Task)
            assert one.count(Task) == len(tasks) == len(one.columns(Task)["version"])
            assert all(task.description.split()[0] == task.description.split()[-1] for task in tasks)
        assert held.count(Task) == count
    print(snap.revision, flush=True)
"""


def test_a_full_memory_is_a_definite_error_for_writers_and_nothing_for_readers(
    state, memory, start_engine, onlooker, work_on, read_whole
):
    """The dead make no room by themselves while a snapshot holds them, but the ballast does, without a restart."""
    engine = start_engine(state, limits=memory.limits)
    pid = engine.pid
    with connect(state) as client, open_reader(state) as idle, open_reader(state) as reader:
        work = work_on(client)
        looking = onlooker(LOOKING)
        assert looking.hears() == "looks"
        held = [(idle.snapshot(), dict(work.tasks)), (reader.snapshot(), dict(work.tasks))]
        read_whole(*held[1])
        memory.fill()
        while not work.refused:
            work.run(20, refusable=True)
        before = reader.revision
        work.run(600, refusable=True)
        assert work.refused.keys() == {"MemoryFull"}
        held.append((reader.snapshot(), dict(work.tasks)))
        for snap, expected in held:
            read_whole(snap, expected)
        with open_reader(state) as newcomer:
            read_whole(newcomer.snapshot(), work.tasks)
        told = client.submit(Create(Task(title="x", id="large", description="d" * 200_000))).error
        assert isinstance(told, MemoryFull)
        assert str(memory.folder) in str(told)
        assert "memory_dir" in str(told)
        assert client.get(Task, "large") is None
        assert status_of(state).engine == "alive"
        memory.make_room()
        refused = work.refused.total()
        turned = reader.snapshot().pin.root.first_segment
        work.run(3_000)
        assert work.refused.total() == refused
        assert reader.snapshot().pin.root.first_segment > turned + 3, "memory is reclaimed again"
        held.append((reader.snapshot(), dict(work.tasks)))
        for snap, expected in held:
            read_whole(snap, expected)
        looking.is_told("enough")
        assert int(looking.hears()) > before
        assert looking.end() == 0
    assert engine.pid == pid
    assert engine.restarts == 0


def test_whatever_cannot_grow_refuses_the_request_that_needs_it_and_no_other(state, memory, start_engine):
    """A kind's first table, an index, a segment for something large; in a transaction, with all that is in it."""
    engine = start_engine(state, limits=memory.limits, durability="memory")
    with connect(state) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="t"))
        memory.fill()
        many = [Create(Task(title="x", id=f"m{number}")) for number in range(900)]
        for mutations in (
            [Create(Project(name="first of its kind", id="p"))],
            [Update(Task.ref("t"), {"title": "y"}), Create(Project(name="first of its kind", id="p"))],
            [Create(Task(title="x", id="large", description="d" * 400_000))],
            many,
        ):
            revision = reader.revision
            for _ in range(2):
                assert isinstance(client.submit(*mutations).error, MemoryFull)
            assert reader.revision == revision
        assert client.update(Task.ref("t"), title="fits").version == 2
        assert reader.snapshot().counts == {"Task": 1, "Project": 0}
        assert reader.snapshot().scan(Task, {"version": 2})[0].title == "fits"
        memory.make_room()
        assert client.submit(*many, Create(Project(name="first", id="p"))).check().revision == reader.revision
        assert reader.snapshot().counts == {"Task": 901, "Project": 1}
        assert all(reader.get(Task, mutation.entity.id) == task for mutation, task in zip(
            many, reader.snapshot().scan(Task)[1:], strict=True))  # fmt: skip
    assert engine.restarts == 0


def test_an_engine_that_dies_while_memory_is_full_comes_back_when_there_is_room(
    state, memory, start_engine, wait_until, work_on, read_whole, capfd
):
    """What readers hold is not given back, and so the next engine has no room; it tries again and again."""
    limits = msgspec.structs.replace(memory.limits, restart_backoff_max_s=0.2, restarts_max=1)
    engine = start_engine(state, limits=limits)
    with connect(state) as client, open_reader(state) as reader:
        work = work_on(client)
        held, expected = reader.snapshot(), dict(work.tasks)
        read_whole(held, expected)
        work.run(500)
        newest = reader.snapshot()
        memory.fill()
        os.kill(engine.pid, signal.SIGKILL)
        said = [""]

        def tried() -> bool:
            said[0] += capfd.readouterr().err
            return said[0].count("MemoryFull") > 2

        wait_until(tried, 30, "a start that finds no room")
        assert engine.failure is None
        read_whole(held, expected)
        read_whole(newest, work.tasks)
        memory.make_room()
        wait_until(lambda: engine.restarts, 30, "a start")
        work.run(500)
        read_whole(reader.snapshot(), work.tasks)
        read_whole(held, expected)


def goes_on(state: Path, limits: Limits, kill: Callable[[], None], wait_until: Any) -> tuple[Any, ...]:
    """Clients and readers that looked, and wait when the engine is killed, or come behind that: what they are told."""
    with ThreadPoolExecutor(4) as beside, connect(state, limits=limits) as client, ExitStack() as opened:
        readers = [opened.enter_context(open_reader(state, limits=limits)) for _ in range(4)]
        before = [one.get(Task, "t1").version for one in (client, *readers)]
        wanted = readers[1].revision + 1
        watch = readers[0].watch(since=wanted - 2, timeout_s=20)
        next(watch)
        waits = [beside.submit(next, watch), beside.submit(readers[1].wait_for, wanted, 20)]
        waits.append(beside.submit(readers[2].wait_until, Task, "t1", lambda task: task.version > before[0], 20))
        root = readers[3].view().root
        kill()
        wait_until(lambda: root.successor, 20, "a start gives up what was mapped")
        waits.append(beside.submit(readers[3].get, Task, "t1"))
        newest = client.update(Task.ref("t1"), title="y")
        change, revision, task, read = [wait.result(20) for wait in waits]
        return before, newest.version, change.version, revision - wanted, task.version, read.version > 0


def goes_on_in_a_loop(state: Path, limits: Limits, kill: Callable[[], None], _: Any) -> tuple[Any, ...]:
    async def story() -> tuple[Any, ...]:
        async with aio.connect(state, limits=limits) as client, AsyncExitStack() as readers:
            opened = [await readers.enter_async_context(aio.open_reader(state, limits=limits)) for _ in range(4)]
            before = [(await one.get(Task, "t1")).version for one in (client, *opened)]
            wanted = opened[1].revision + 1
            watch = opened[0].watch(since=wanted - 2)
            await anext(watch)
            waits = [anext(watch), opened[1].wait_for(wanted)]
            waits.append(opened[2].wait_until(Task, "t1", lambda task: task.version > before[0]))
            told = asyncio.gather(*waits)
            await asyncio.sleep(0)
            root = opened[3].memory.mapped.root
            kill()
            while not root.successor:
                await asyncio.sleep(0)
            reading = asyncio.create_task(opened[3].get(Task, "t1"))
            newest = await client.update(Task.ref("t1"), title="y")
            change, revision, task = await asyncio.wait_for(told, 20)
            read = (await reading).version
            return before, newest.version, change.version, revision - wanted, task.version, read > 0

    return asyncio.run(story())


@pytest.mark.parametrize("going_on", [goes_on, goes_on_in_a_loop])
def test_who_waits_for_the_engine_that_follows_a_dead_one_leaves_it_the_room(
    state, memory, start_engine, wait_until, going_on
):
    """There is room for one of them, and what somebody maps is not given back."""
    limits = msgspec.structs.replace(memory.limits, restart_backoff_max_s=0.2, connect_timeout_s=5.0)
    engine = start_engine(state, limits=limits)
    with connect(state) as client:
        for number in range(90):
            client.create(Task(title="x", id=f"t{number}", description=f"{number % 10}" * 100_000))
    del client
    told = going_on(state, limits, lambda: os.kill(engine.pid, signal.SIGKILL), wait_until)
    assert told == ([1] * 5, 2, 2, 0, 2, True)


def test_the_start_behind_one_that_made_room_does_not_wait_for_it(state, memory, start_engine):
    """The one that found none took the dead engine's memory away: only where that did not help, time may."""
    engine = start_engine(state, limits=msgspec.structs.replace(memory.limits, restart_backoff_max_s=60.0))
    with connect(state, limits=with_limits(connect_timeout_s=30.0)) as client:
        for number in range(90):
            client.create(Task(title="x", id=f"t{number}", description=f"{number % 10}" * 100_000))
        os.kill(engine.pid, signal.SIGKILL)
        assert client.update(Task.ref("t1"), title="y").version == 2


def test_a_start_without_room_names_who_holds_what_a_dead_engine_left(state, memory, start_engine, wait_until, capfd):
    """A snapshot, and a reader that nobody uses: both let go in the end, and the engine comes."""
    engine = start_engine(state, limits=msgspec.structs.replace(memory.limits, restart_backoff_max_s=0.2))
    with connect(state) as client:
        for number in range(90):
            client.create(Task(title="x", id=f"t{number}", description=f"{number % 10}" * 100_000))
    client.reader.let_go()
    idle, said = open_reader(state), [""]
    held = idle.snapshot()
    os.kill(engine.pid, signal.SIGKILL)

    def is_told() -> bool:
        said[0] += capfd.readouterr().err
        return f"is still mapped by process {os.getpid()}:" in said[0]

    wait_until(is_told, 20, "a start that names this process")
    assert held.get(Task, "t1").version == 1
    held.close()
    assert engine.restarts == 0
    assert idle.get(Task, "t1").version == 1
    wait_until(lambda: engine.restarts, 20, "its owner heard that it serves")
    idle.close()


def test_a_start_without_room_says_so_and_leaves_nothing_behind(state, memory, start_engine):
    memory.fill()
    with pytest.raises(EngineStartFailed, match=r"MemoryFull.*memory_dir"):
        Engine(state, limits=memory.limits, durability="process").start()
    assert [path.name for path in memory.folder.iterdir()] == ["ballast"]
    memory.make_room()
    start_engine(state, limits=memory.limits)
    with connect(state) as client:
        assert client.create(Task(title="x", id="t")).version == 1


# --- readers that are killed, or stopped ------------------------------------------------------------------------------

CHILDREN = """
import os, sys
from solewriter import Project, Task, open_reader
import solewriter.agents.reading.query

def look(state):
    with open_reader(state) as reader:
        held = [reader.snapshot()]
        seen = [*held[0].entities(Task)]
        os.write(1, b"%d\\n" % os.getpid())
        while True:
            held = [held[0], *held[1:][-3:], reader.snapshot()]
            for snap in held:
                tasks = [*snap.entities(Task)]
                if not (tasks == snap.scan(Task) == [snap.get(Task, id) for id in snap.ids(Task)]
                        and snap.count(Task) == len(tasks) and len(snap.scan(Project)) == 20):
                    os._exit(1)
            if [*held[0].entities(Task)] != seen:
                os._exit(2)

while os.read(0, 1):
    pid = os.fork()
    if not pid:
        try:
            look(sys.argv[1])
        finally:
            os._exit(3)
    os.write(1, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_readers_killed_in_mid_read_again_and_again_change_nothing_for_anyone(
    state, start_engine, onlooker, wait_until, work_on, read_whole
):
    """Neither for the engine, which goes on and gets its memory back, nor for those who read on."""
    engine = start_engine(state, limits=SMALL, durability="memory")
    dice = random.Random(3)
    with connect(state) as client, open_reader(state) as reader:
        work = work_on(client)
        children = onlooker(CHILDREN)
        for _ in range(25):
            children.is_told("")
            pid = int(children.hears())
            work.run(dice.randrange(1, 250))  # which is how long it looks
            os.kill(pid, signal.SIGKILL)
            assert children.hears() == str(-signal.SIGKILL), "it saw what it never should"
        assert children.end() == 0
        read_whole(reader.snapshot(), work.tasks)
        assert reader.snapshot().pin.root.first_segment > 10, "memory was turned over meanwhile"
        reader.close()
        client.reader.let_go()
        gc.collect()
        wait_until(lambda: status_of(state).memory_held_bytes == 0, 20, "all that they held is given back")
        work.run(500)
    assert engine.restarts == 0


STOPPED = """
import sys
from solewriter import Compacted, SnapshotExpired, Task, open_reader

def rows(snap, kind):
    columns = snap.columns(kind)
    return sorted(zip(columns["version"].tolist(), columns["priority"].tolist()))

with open_reader(sys.argv[1]) as reader:
    while True:
        snap = reader.snapshot()
        ids = snap.ids(Task)
        ways = [
            lambda: [snap.get(Task, id) for id in ids],
            lambda: [*snap.entities(Task)],
            lambda: [one["description"] for one in snap.entities("Task")],
            lambda: snap.scan(Task, order_by="version"),
            lambda: snap.count_by(Task, "priority"),
            lambda: (snap.count(Task), snap.count(Task, {"version": 1})),
            lambda: rows(snap, Task),
        ]
        watch = reader.watch(Task, since=snap.revision, timeout_s=0)
        first = [way() for way in ways]
        print(snap.pin.root.last_segment, flush=True)
        expired = set()
        while len(expired) < 3:
            for number, way in enumerate(ways):
                try:
                    found = way()
                except SnapshotExpired:
                    expired.add(number)
                else:
                    assert found == first[number], f"way {number} found other data"
        try:
            next(watch)
        except Compacted:
            print("expired", flush=True)
        else:
            assert False, "the watch missed what was taken away"
"""


def test_a_reader_stopped_anywhere_past_the_maximum_age_wakes_up_to_the_same_or_to_nothing(
    state, start_engine, onlooker, wait_until, work_on
):
    """Stopped in the middle of a look, whatever it was at; what it held is taken away from it, and it begins anew."""
    engine = start_engine(state, limits=with_limits(snapshot_age_max_s=0.2), durability="memory")
    dice = random.Random(4)
    with connect(state) as client:
        work = work_on(client)
        looking = onlooker(STOPPED)
        for _ in range(4):
            last = int(looking.hears())
            work.run(dice.randrange(1, 100))
            os.kill(looking.pid, signal.SIGSTOP)
            while client.reader.snapshot().pin.root.first_segment <= last + 1:
                work.run(200)
            expired = partial(lambda root, last: root.readable_from > last, client.reader.view().root, last)
            wait_until(expired, 20, "it is about to be taken away")
            client.reader.let_go()
            wait_until(lambda: not status_of(state).memory_held_bytes, 20, "it is taken away")
            os.kill(looking.pid, signal.SIGCONT)
            assert looking.hears() == "expired"
        assert int(looking.hears()) > last
    assert engine.restarts == 0


# --- an engine that dies between two stores ---------------------------------------------------------------------------

OLD = ("turn.decided", "commit.written", "publish.tail-moved", "publish.installed", "publish.filled")
NEW = ("publish.shown", "turn.published", "turn.reply")
REQUESTS = 12  # that are answered before the one in which the engine dies


def request(number: int) -> list[Any]:
    """Many changes at one revision: new ones, changed ones, deleted ones, of two kinds."""
    priority = [*TaskPriority][number % 4]
    made = [Create(Task(id=f"n{number}-{one}", title="x", project="new")) for one in range(3)]
    made += [Create(Project(id=f"p{number}", name="x"))]
    if not number:
        return [*[Create(Task(id=f"t{one}", title="0 ", priority=priority)) for one in range(12)], *made]
    changed = [
        Update(Task.ref(f"t{one}"), {"title": f"{number} " * (one % 7 + 1), "priority": priority}) for one in range(12)
    ]
    return [*changed, *made, *[Delete(Task.ref(f"n{number - 1}-{one}")) for one in range(2)]]


def state_after(revision: int) -> dict[str, Any]:
    """What there is when so many requests were applied."""
    newest = revision - 1
    titles = {f"t{one}": f"{newest} " * (one % 7 + 1 if newest else 1) for one in range(12)}
    new = [f"n{number}-{one}" for number in range(revision) for one in range(3) if one == 2 or number == newest]
    return {
        "titles": titles | dict.fromkeys(new, "x"),
        "new": new,
        "projects": [f"p{number}" for number in range(revision)],
        "priorities": [[*TaskPriority][newest % 4]] * 12,
    }


def state_in(snap: Snapshot) -> dict[str, Any]:
    """The same as every way of reading says it."""
    tasks = [*snap.entities(Task)]
    ids = [task.id for task in tasks]
    ever = [f"n{number}-{one}" for number in range(REQUESTS + 2) for one in range(3)]
    assert tasks == snap.scan(Task) == [snap.get(Task, id) for id in ids]
    assert snap.count(Task) == snap.counts["Task"] == len(ids) == sum(snap.count_by(Task, "version").values())
    assert snap.columns(Task)["version"].tolist() == [task.version for task in tasks]
    assert [project["id"] for project in snap.entities("Project")] == snap.ids(Project)
    assert snap.count(Project) == snap.counts["Project"] == len(snap.ids(Project))
    new = snap.ids(Task, {"project": "new"})
    assert [id for id in ever if snap.get(Task, id)] == new
    return {
        "titles": {task.id: task.title for task in tasks},
        "new": new,
        "projects": snap.ids(Project),
        "priorities": snap.columns(Task, {"project": ""})["priority"].tolist(),
    }


def thinned(points):
    """The first and the last of them in a plain run."""
    ends = (points[0], points[-1])
    return [point if point in ends else pytest.param(point, marks=pytest.mark.heavy) for point in points]


@pytest.mark.parametrize("point", [*thinned(OLD), *thinned(NEW)])
def test_an_engine_killed_in_a_publish_leaves_one_revision_or_the_other(
    state, start_engine, monkeypatch, wait_until, hurry, point
):
    """Whole in every way, for those who looked before and for those who come when it is dead."""
    before = 2 if point.startswith("commit") else 1  # the start, or a hello, or both
    monkeypatch.setenv(VARIABLE, f"{point}:kill:hit={before + REQUESTS + 1}")
    start_engine(state, limits=with_limits(restart_backoff_s=60, restart_backoff_max_s=60))
    with open_reader(state) as early, connect(state) as client:
        hurry(client, 0.1)
        for number in range(REQUESTS):
            client.submit(*request(number)).check()
            assert state_in(early.snapshot()) == state_after(number + 1)
        held, watch = early.snapshot(), early.watch(since=REQUESTS, timeout_s=0)
        with pytest.raises(OutcomeUnknown):
            client.submit(*request(REQUESTS))
        wait_until(lambda: early.snapshot().stale, 20, "the death")
        newest = REQUESTS + (point in NEW)
        assert len([*watch]) == (len(request(REQUESTS)) if point in NEW else 0)
        for reader in (early, open_reader(state)):
            with reader:
                assert reader.revision == newest
                assert state_in(reader.snapshot()) == state_after(newest)
        assert state_in(held) == state_after(REQUESTS)
