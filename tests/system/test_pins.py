"""A pin that nobody reads keeps all of its revision, however often the memory is turned over meanwhile."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from solewriter import (
    Client,
    Create,
    Delete,
    Limits,
    Project,
    Reader,
    Snapshot,
    Task,
    TaskPriority,
    Update,
    connect,
    open_reader,
)
from solewriter.shared.config import KIB
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.memory.segment import punch

SMALL = Limits(heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=128 * KIB, heartbeat_s=0.05)
TASKS, PROJECTS, NEVER = 300, 40, 10
PRIORITIES = [*TaskPriority]
Expected = dict[str, tuple[int, str, TaskPriority]]  # id -> version, description, priority


class Work:
    """Changes of a fixed set of tasks and of some projects, and what is stored after them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.dice = random.Random(1)
        self.number = 0
        self.tasks: Expected = {}
        self.versions: Counter[str] = Counter()
        self.apply([self.change(f"t{number}") for number in range(TASKS)])
        for number in range(PROJECTS):  # nobody changes them: they are only moved
            client.create(Project(id=f"p{number}", name=f"project {number}"))

    def run(self, count: int) -> None:
        self.apply([self.change(f"t{self.dice.randrange(TASKS)}") for _ in range(count)])

    def apply(self, mutations: list[Create | Update | Delete]) -> None:
        for reply in self.client.submit_many(mutations):
            reply.check()

    def change(self, id: str) -> Create | Update | Delete:
        self.number += 1
        self.versions[id] += 1
        if id in self.tasks and self.dice.random() < 0.1:
            del self.tasks[id]
            return Delete(Task.ref(id))
        fields = {
            "description": f"{self.number} " * self.dice.choice((1, 20, 60)),
            "priority": self.dice.choice(PRIORITIES),
        }
        was_there = id in self.tasks
        self.tasks[id] = (self.versions[id], fields["description"], fields["priority"])
        if was_there:
            return Update(Task.ref(id), fields)
        return Create(Task(id=id, title="x", **fields))


def turn_over(reader: Reader, work: Work, times: int) -> None:
    """Until so often none of the segments is left that there were before."""
    for _ in range(times):
        last = reader.snapshot().pin.root.last_segment
        while reader.snapshot().pin.root.first_segment <= last:
            work.run(400)


def one(task: Task | None) -> tuple[int, str, TaskPriority] | None:
    return task and (task.version, task.description, task.priority)


def by_get(snap: Snapshot, expected: Expected) -> None:
    ids = [f"t{number}" for number in range(TASKS + NEVER)]
    assert [one(snap.get(Task, id)) for id in ids] == [expected.get(id) for id in ids]
    assert [snap[Project, f"p{number}"].name for number in range(PROJECTS)] == [f"project {n}" for n in range(PROJECTS)]


def by_iteration(snap: Snapshot, expected: Expected) -> None:
    assert {task.id: one(task) for task in snap.entities(Task)} == expected
    assert {task["id"]: task["version"] for task in snap.entities("Task")} == {
        id: v for id, (v, _, _) in expected.items()
    }
    assert len([*snap.entities(Project)]) == PROJECTS


def by_scan(snap: Snapshot, expected: Expected) -> None:
    found = snap.scan(Task, order_by="-version")
    assert {task.id: one(task) for task in found} == expected
    assert [task.version for task in found] == sorted((version for version, _, _ in expected.values()), reverse=True)
    for priority in PRIORITIES:
        wanted = {id for id, (_, _, had) in expected.items() if had == priority}
        assert set(snap.ids(Task, {"priority": priority})) == wanted
    assert len(snap.scan(Project)) == PROJECTS


def by_count(snap: Snapshot, expected: Expected) -> None:
    assert snap.count(Task) == snap.counts["Task"] == len(expected)
    assert snap.count_by(Task, "priority") == Counter(priority for _, _, priority in expected.values())
    assert snap.count_by(Task, "version") == Counter(version for version, _, _ in expected.values())
    assert snap.count(Project) == PROJECTS


def by_columns(snap: Snapshot, expected: Expected) -> None:
    columns = snap.columns(Task)
    rows = zip(snap.ids(Task), columns["version"].tolist(), columns["priority"].tolist(), strict=True)
    assert {id: (version, priority) for id, version, priority in rows} == {
        id: (version, priority) for id, (version, _, priority) in expected.items()
    }


WAYS = (by_get, by_iteration, by_scan, by_count, by_columns)


@pytest.fixture
def work(state: Path, start_engine: Callable[..., object]) -> Iterator[Work]:
    start_engine(state, limits=SMALL, durability="memory")
    with connect(state) as client:
        yield Work(client)


def test_pins_that_were_idle_through_three_turnovers_say_everything(state, work):
    """In any way first, whether its reader had mapped the tables before or looks into them for the first time."""
    with ExitStack() as stack:
        reader = stack.enter_context(open_reader(state))
        pins = []
        for way in WAYS:
            idle, other = (stack.enter_context(open_reader(state)) for _ in range(2))
            way(other.snapshot(), work.tasks)
            pins += [(way, idle.snapshot(), dict(work.tasks)), (way, other.snapshot(), dict(work.tasks))]
            work.run(200)
        turn_over(reader, work, 3)
        for way, snap, expected in pins:
            assert snap.pin.root.last_segment < reader.snapshot().pin.root.first_segment
            way(snap, expected)
        work.run(300)
        for _, snap, expected in pins:
            for way in WAYS:
                way(snap, expected)


# --- the check can fail -----------------------------------------------------------------------------------------------


class Careless:
    """A reclaim that ignores pins: what leaves the root is given back at once."""

    def __init__(self, reader: Reader, give_back: Callable[[int, int], None]) -> None:
        where = reader.folder.whereabouts()
        self.reader = reader
        self._files = lambda: Path(where.memory_dir).glob(f"{where.prefix}-heap-*")
        self._give_back = give_back
        self._open: dict[int, int] = {}
        self.given_back = 0

    def look(self) -> None:
        for path in self._files():
            number = int(path.name.rpartition("-")[2])
            if number not in self._open:
                self._open[number] = os.open(path, os.O_RDWR)
        first = self.reader.snapshot().pin.root.first_segment
        for number in [number for number in self._open if number < first]:
            fd = self._open.pop(number)
            self._give_back(fd, os.fstat(fd).st_size)
            os.close(fd)
            self.given_back += 1

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)


def used_again(fd: int, size: int) -> None:
    """For records of another revision: those of the segment in another order."""
    data = os.pread(fd, size, 0)
    os.pwrite(fd, data[size // 2 :] + data[: size // 2], 0)


@pytest.mark.parametrize("give_back", [punch, used_again])
def test_a_reclaim_that_ignores_pins_is_seen(state, work, give_back):
    with open_reader(state) as idle, open_reader(state) as reader:
        snap, expected = idle.snapshot(), dict(work.tasks)
        careless = Careless(reader, give_back)
        last = snap.pin.root.last_segment
        while reader.snapshot().pin.root.first_segment <= last + 1:
            careless.look()
            work.run(100)
        careless.look()
        careless.close()
        assert careless.given_back > 0
        by_get(reader.snapshot(), work.tasks)  # whoever comes later sees nothing of it
        for way in WAYS:
            with pytest.raises((AssertionError, JournalCorrupt, IndexError, UnicodeDecodeError, OverflowError)):
                way(snap, expected)
