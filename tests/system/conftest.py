"""What system tests share: work that changes much of a small state, a reading of all of it in every way, what a journal
says of its engines, and what a process holds open.
"""

from __future__ import annotations

import gc
import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from solewriter import Client, Create, Delete, Project, Reply, Snapshot, Task, TaskPriority, Update
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import journal_files
from solewriter.shared.journal.entry import Life
from solewriter.shared.mutations import Mutation

TASKS, PROJECTS, NEVER = 300, 20, 10
PRIORITIES = [*TaskPriority]
Stored = tuple[int, str, TaskPriority]  # version, description, priority
Expected = dict[str, Stored]  # of the tasks that there are, by id
Way = Callable[[Snapshot, Expected], None]


class Work:
    """Changes of a fixed set of tasks, and what is stored after them. Projects are there, and nobody changes them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.dice = random.Random(1)
        self.number = 0
        self.tasks: Expected = {}
        self.versions: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self._apply([f"t{number}" for number in range(TASKS)])
        for number in range(PROJECTS):
            client.create(Project(id=f"p{number}", name=f"project {number}"))

    def run(self, count: int, *, refusable: bool = False) -> None:
        """So many changes, pipelined. Raises what a request is refused with, unless it is `refusable`."""
        while count > 0:
            ids = self.dice.sample(range(TASKS), min(count, 100))  # each once: one may be refused
            self._apply([f"t{number}" for number in ids], refusable)
            count -= len(ids)

    def _apply(self, ids: list[str], refusable: bool = False) -> None:
        planned = [self._planned(id) for id in ids]
        for reply, (_, id, stored) in zip(self.client.submit_many(one for one, _, _ in planned), planned, strict=True):
            if reply.error is not None and refusable:
                self.refused[type(reply.error).__name__] += 1
            else:
                self._take(reply.check(), id, stored)

    def _planned(self, id: str) -> tuple[Mutation, str, Stored | None]:
        self.number += 1
        version = self.versions[id] + 1
        if id in self.tasks and self.dice.random() < 0.1:
            return Delete(Task.ref(id)), id, None
        description = f"{self.number} " * self.dice.choice((1, 20, 60))
        priority = self.dice.choice(PRIORITIES)
        fields = {"description": description, "priority": priority}
        mutation = Update(Task.ref(id), fields) if id in self.tasks else Create(Task(id=id, title="x", **fields))
        return mutation, id, (version, description, priority)

    def _take(self, reply: Reply, id: str, stored: Stored | None) -> None:
        self.versions[id] += 1
        assert reply.results[0].version == self.versions[id]
        if stored is None:
            del self.tasks[id]
        else:
            self.tasks[id] = stored


@pytest.fixture
def descriptors() -> Callable[[], list[str]]:
    """`descriptors()`: what this process holds open, but for memory: a supervisor maps its engine's root when it first
    looks at the pulse.
    """

    def held() -> list[str]:
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                pass  # of the listing itself
        return sorted(path for path in found if not path.startswith("/dev/shm/"))

    return held


@pytest.fixture(scope="session")
def work_on() -> type[Work]:
    """`work_on(client)`: fills an empty state; then `run(count)` changes it, and `tasks` are what there is."""
    return Work


# --- reading ----------------------------------------------------------------------------------------------------------


def one(task: Task | None) -> Stored | None:
    return task and (task.version, task.description, task.priority)


def by_get(snap: Snapshot, expected: Expected) -> None:
    ids = [f"t{number}" for number in range(TASKS + NEVER)]
    assert [one(snap.get(Task, id)) for id in ids] == [expected.get(id) for id in ids]
    names = [f"project {number}" for number in range(PROJECTS)]
    assert [snap[Project, f"p{number}"].name for number in range(PROJECTS)] == names


def by_iteration(snap: Snapshot, expected: Expected) -> None:
    assert {task.id: one(task) for task in snap.entities(Task)} == expected
    by_name = {task["id"]: (task["version"], task["description"], task["priority"]) for task in snap.entities("Task")}
    assert by_name == expected
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


@pytest.fixture(scope="session")
def ways() -> Sequence[Way]:
    """Ways to read: `way(snapshot, expected)` asserts that it is just what there was in `Work.tasks`."""
    return (by_get, by_iteration, by_scan, by_count, by_columns)


@pytest.fixture(scope="session")
def read_whole(ways: Sequence[Way]) -> Way:
    """`read_whole(snapshot, expected)`: all of them."""

    def read(snap: Snapshot, expected: Expected) -> None:
        for way in ways:
            way(snap, expected)

    return read


@contextmanager
def small_file_system(folder: Path, size: str) -> Iterator[Path]:
    """One of this size, unmounted whatever happens. Skips where nothing can be mounted."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        gc.collect()  # mappings that nobody needs any more
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_memory(tmp_path: Path) -> Iterator[Path]:
    """A memory file system of 24 MB."""
    with small_file_system(tmp_path / "memory", "24m") as folder:
        yield folder


@pytest.fixture
def small_disk(state: Path) -> Iterator[Path]:
    """A state folder that is a file system of 8 MB. To be asked for before engines, which end before it does."""
    with small_file_system(state, "8m") as folder:
        yield folder


# --- what a journal says of its engines -------------------------------------------------------------------------------


def lives_in(state: Path) -> list[Life]:
    found: list[Life] = []
    for path in journal_files(state):
        buffer, at = path.read_bytes(), entries.FILE_HEADER_BYTES
        while (unpacked := entries.unpack(buffer, at)) is not None:
            found += [unpacked[0].private.life] if unpacked[0].private.life is not None else []
            at = unpacked[2]
    return found


@pytest.fixture(scope="session")
def lives() -> Callable[[Path], list[Life]]:
    """`lives(state)`: every start and clean end that the journal holds, oldest first."""
    return lives_in
