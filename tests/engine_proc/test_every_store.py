"""Between any two stores of a publish, or of a reclaim, the memory shows one revision or the other, whole: to those who
looked before and to those who come then. So it does not matter at which of them the engine dies.

The writer is the engine's own, in this process, without journal and lanes. It is traced: before each line that it
executes in the rooms of the memory, everything is read, if anything was stored since the last look. No line has two
stores that a reader could tell apart.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from solewriter import (
    Create,
    Delete,
    EngineUnavailable,
    Entity,
    Limits,
    Reader,
    Snapshot,
    SnapshotExpired,
    Task,
    TaskPriority,
    Update,
    open_reader,
)
from solewriter.engine_proc import publisher as publishing
from solewriter.engine_proc import reclaim
from solewriter.engine_proc.decide import Draft, decide
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.state import State
from solewriter.engine_proc.turn import Turn
from solewriter.engine_proc.writing import form, write
from solewriter.shared import wireform
from solewriter.shared.config import KIB, MEMORY_VERSION
from solewriter.shared.folder import StateFolder, Whereabouts
from solewriter.shared.memory import heap, index, revlog, root, table
from solewriter.shared.mutations import Mutation
from solewriter.shared.registry import Registry
from solewriter.shared.system.processes import start_time_of

ROOMS = (publishing, reclaim, heap, index, revlog, root, table)
TRACED = {__file__, *(module.__file__ for module in ROOMS)}
KEPT = 16  # tasks that are there from the beginning


@pytest.fixture(autouse=True)
def line_by_line(interpreted: Callable[..., None]) -> None:
    interpreted(*ROOMS)


class Note(Entity, columns=("size", "text", "version")):
    """A kind of which few columns change."""

    size: int
    text: str = ""


IDS: tuple[tuple[type[Entity], list[str]], ...] = (
    (Task, [f"t{number}" for number in range(KEPT)]),
    (Note, [*[f"n{number}" for number in range(12)], "new"]),
)


class AtOnce(Executor):
    """Beside the loop, but done at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **options))
        return future


class Memory:
    """What an engine does with the memory: decide, append, publish, reclaim."""

    def __init__(self, folder: Path, name: str) -> None:
        self.limits = Limits(
            memory_dir=str(folder), heap_segment_bytes_first=16 * KIB, heap_segment_bytes_max=16 * KIB, window_max=1
        )
        self.folder = StateFolder(folder / name)
        self.folder.path.mkdir()
        own = Whereabouts(MEMORY_VERSION, os.getpid(), start_time_of(os.getpid()), 1, str(folder), name)
        self.publisher = Publisher(own, "memory", self.limits, AtOnce())  # type: ignore[arg-type]
        self.registry = Registry([Note])
        self.state = State(self.registry, self.publisher, self.limits, TimeBudget(0))
        new = self.state.new_kinds(self.registry)
        self.state.add_kinds(new.kinds, new.schemas)
        self.publisher.describe([kind.name for kind in self.state.kinds], self.state.schemas)
        self.publisher.reserve({}, {})
        self.publisher.publish([], 0, 0, self.state.counts())
        self.folder.announce(own)
        self._session = Session(1, "writer", "writer")
        self._sequence = 0

    def prepared(self, requests: list[list[Mutation]]) -> Turn:
        """A turn of these requests, behind the tail and committed, but not published."""
        turn = Turn(self.state, self.publisher.heap.tail, 1_000_000 * (self._sequence + 1), 0)
        for mutations in requests:
            self._sequence += 1
            plain = wireform.plain_request(mutations, (), None, self.registry, self.limits)
            draft = Draft(turn, "writer")
            decide(draft, plain)
            write(turn, form(draft, turn, self.limits), None, self._session, self._sequence, self.publisher.heap)
        self.publisher.reserve(turn.slots(), turn.new_keys)
        self.state.merge(turn)
        return turn

    def apply(self, *requests: list[Mutation]) -> None:
        turn = self.prepared([*requests])
        self.publisher.publish(turn.installed, turn.revision, self._sequence, self.state.counts())


def visible(memory: Memory) -> int:
    """Changes with all that readers can come by. The heap behind the tail is nothing yet."""
    publisher = memory.publisher
    words = publisher.root.segment.map
    parts: list[Any] = [words[64:72], words[128:144], words[256:]]
    for one in publisher._tables:
        parts += [bytes(array[:64].cast("B")) for arrays in (one._heads, *one._cells) for array in arrays]
    parts += [arena.map[:] for one in publisher._indexes for arena in one._arena.values()]
    parts += [bytes(words[:64].cast("B")) for words in publisher.revlog._words.values()]
    parts += sorted(path.name for path in Path(memory.limits.memory_dir).glob(f"{publisher.prefix}-*"))
    return hash(tuple(parts))


def look_between_stores(memory: Memory, act: Callable[[], None], look: Callable[[], None]) -> int:
    """Look before every line, if something is different from the last time. How often that was."""
    seen = [0, visible(memory)]

    def at_line(frame: Any, event: str, argument: Any) -> Any:
        if (now := visible(memory)) != seen[1]:
            seen[:] = [seen[0] + 1, now]
            look()
        return at_line

    def at_call(frame: Any, event: str, argument: Any) -> Any:
        return at_line if frame.f_code.co_filename in TRACED else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        act()
    finally:
        sys.settrace(before)
    look()
    return seen[0]


# --- what is written --------------------------------------------------------------------------------------------------


def beginning() -> list[list[Mutation]]:
    return [
        [Create(Task(id=f"t{number}", title="old", project=f"p{number % 3}")) for number in range(KEPT)],
        [Create(Note(id=f"n{number}", size=number, text="old" * number)) for number in range(12)],
        [Delete(Note.ref("n11")), Update(Task.ref("t3"), {"title": "older"})],
    ]


def last_turn() -> list[list[Mutation]]:
    """Two requests: changed ones, new ones, one that is deleted, one that comes back, and the same one twice."""
    return [
        [Update(Task.ref(f"t{number}"), {"title": "new", "project": "p9"}) for number in range(0, KEPT, 6)],
        [
            Create(Note(id="new", size=99)), Create(Note(id="n11", size=11)), Delete(Note.ref("n2")),
            Update(Note.ref("n3"), {"size": 33, "text": "new"}), Delete(Task.ref("t5")),
            Update(Task.ref("t0"), {"priority": TaskPriority.LOW}),
        ],
    ]  # fmt: skip


def content(snap: Snapshot) -> dict[str, Any]:
    """All that a snapshot says, by every way; each way is compared with the others."""
    found: dict[str, Any] = {"revision": snap.revision}
    for model, ids in (
        (Task, [f"t{number}" for number in range(KEPT)]),
        (Note, [*[f"n{n}" for n in range(12)], "new"]),
    ):
        entities = [*snap.entities(model)]
        assert entities == snap.scan(model)
        assert [one for id in ids if (one := snap.get(model, id))] == sorted(
            entities, key=lambda one: ids.index(one.id)
        )
        assert snap.ids(model) == [one.id for one in entities]
        assert snap.count(model) == snap.counts[model.kind_name] == len(entities)
        columns = {name: values.tolist() for name, values in snap.columns(model).items()}
        assert columns == {name: [plain(getattr(one, name)) for one in entities] for name in model.column_names}
        by_version = Counter(one.version for one in entities)
        assert snap.count_by(model, "version") == by_version
        found[model.kind_name] = [one.model_dump() for one in entities]
    return found


def plain(value: Any) -> Any:
    """As it comes out of a column: times without their zone."""
    return value.replace(tzinfo=None) if hasattr(value, "tzinfo") else value


@pytest.fixture
def memories(tmp_path: Path) -> Iterator[Callable[[], Memory]]:
    """`memories()`: a memory in which the beginning is published."""
    made: list[Memory] = []

    def make() -> Memory:
        made.append(Memory(tmp_path, f"solewriter-{len(made)}"))
        for request in beginning():
            made[-1].apply(request)
        return made[-1]

    yield make
    for memory in made:
        memory.publisher.remove()


class Looks:
    """Everybody who may look at a memory: at what they hold, and at what is newest."""

    def __init__(self, memory: Memory, new: dict[str, Any] | None, idle: int = 0) -> None:
        self._folder = memory.folder.path
        self._early = Reader(self._folder)
        self._held = self._early.snapshot()
        self.old = content(self._held)
        self._allowed = [self.old if new is None else new, self.old]  # what may be the newest; never the other way
        self._idle = [Reader(self._folder).snapshot() for _ in range(idle)]  # they never looked into a table

    def look(self) -> None:
        assert content(self._held) == self.old, "what is held changed"
        if self._idle:
            assert content(self._idle.pop()) == self.old, "what was held and not looked at changed"
        with open_reader(self._folder) as late:
            seen = content(late.snapshot())
        assert seen in self._allowed, "this never was"
        assert content(self._early.snapshot()) == seen, "the newest is not the same for all"
        if seen == self._allowed[0]:
            self._allowed = [seen]  # what was shown is not taken back

    @property
    def ended(self) -> bool:
        return len(self._allowed) == 1


Publish = Callable[[Publisher, Any, int, int, Any], None]


def look_at_a_publish(memories: Callable[[], Memory], publish: Publish) -> None:
    other, memory = memories(), memories()
    other.apply(*last_turn())
    with open_reader(other.folder.path) as reader:
        new = content(reader.snapshot())
    looks = Looks(memory, new, idle=40)
    turn, publisher, counts = memory.prepared(last_turn()), memory.publisher, memory.state.counts()
    count = look_between_stores(
        memory, lambda: publish(publisher, turn.installed, turn.revision, 9, counts), looks.look
    )
    assert count > 25, "not all stores were met"
    assert looks.ended


def test_between_any_two_stores_of_a_publish_there_is_one_revision_or_the_other(memories):
    look_at_a_publish(memories, Publisher.publish)


Reclaim = Callable[[Publisher, int, int, int, Any], Any]


def look_at_a_reclaim(memories: Callable[[], Memory], reclaim_slice: Reclaim) -> None:
    memory = memories()
    for number in range(30):
        memory.apply(*[[Update(Note.ref(f"n{one}"), {"text": f"{number}" * 50})] for one in (1, 2, 3)])
    publisher, first = memory.publisher, memory.publisher.heap.first
    assert publisher.reclaimer.due
    looks = Looks(memory, None, idle=40)

    def act() -> None:
        while publisher.reclaimer.due:
            reclaim_slice(publisher, 2 * KIB, memory.state.revision, 9, memory.state.counts())

    assert look_between_stores(memory, act, looks.look) > 25, "not all stores were met"
    assert publisher.heap.first > first


def test_between_any_two_stores_of_a_reclaim_nothing_is_different(memories):
    """Records are moved, and segments leave; what is newest and what is held stay as they are."""
    look_at_a_reclaim(memories, Publisher._reclaim_slice)


# --- this can fail ----------------------------------------------------------------------------------------------------


def installed_before_the_tail_moves(self: Publisher, installed: Any, revision: int, entry: int, kinds: Any) -> None:
    self.heap.flush()
    self.usage.count_installed(installed)
    for one in installed:
        self._tables[one.kind].install(one.slot, one.address, one.cells, one.alive)
        if one.new_key is not None:
            self._indexes[one.kind].insert(index.key_hash(one.new_key), one.slot)
    self.root.move_tail(self.heap.tail)
    self.revlog.append(revision, self.heap.tail)
    self._fill(revision, entry, kinds)
    self.root.show()


def shown_before_it_is_installed(self: Publisher, installed: Any, revision: int, entry: int, kinds: Any) -> None:
    self.heap.flush()
    self.usage.count_installed(installed)
    self.root.move_tail(self.heap.tail)
    self._fill(revision, entry, kinds)
    self.root.show()
    for one in installed:
        self._tables[one.kind].install(one.slot, one.address, one.cells, one.alive)
        if one.new_key is not None:
            self._indexes[one.kind].insert(index.key_hash(one.new_key), one.slot)


def shown_before_the_keys_are_found(self: Publisher, installed: Any, revision: int, entry: int, kinds: Any) -> None:
    self.heap.flush()
    self.usage.count_installed(installed)
    self.root.move_tail(self.heap.tail)
    for one in installed:
        self._tables[one.kind].install(one.slot, one.address, one.cells, one.alive)
    self._fill(revision, entry, kinds)
    self.root.show()
    for one in installed:
        if one.new_key is not None:
            self._indexes[one.kind].insert(index.key_hash(one.new_key), one.slot)


def shown_request_by_request(self: Publisher, installed: Any, revision: int, entry: int, kinds: Any) -> None:
    self.heap.flush()
    self.usage.count_installed(installed)
    self.root.move_tail(self.heap.tail)
    for one in installed:
        self._tables[one.kind].install(one.slot, one.address, one.cells, one.alive)
        if one.new_key is not None:
            self._indexes[one.kind].insert(index.key_hash(one.new_key), one.slot)
        self._fill(revision, entry, kinds)
        self.root.show()


def filled_in_the_place_of_the_newest(self: Publisher, installed: Any, revision: int, entry: int, kinds: Any) -> None:
    self.heap.flush()
    self.usage.count_installed(installed)
    self.root._number -= 1
    self._fill(revision, entry, kinds)
    self.root.move_tail(self.heap.tail)
    for one in installed:
        self._tables[one.kind].install(one.slot, one.address, one.cells, one.alive)
        if one.new_key is not None:
            self._indexes[one.kind].insert(index.key_hash(one.new_key), one.slot)
    self.root.show()


PUBLISHES: tuple[Publish, ...] = (
    installed_before_the_tail_moves,
    shown_before_it_is_installed,
    shown_before_the_keys_are_found,
    shown_request_by_request,
    filled_in_the_place_of_the_newest,
)


@pytest.mark.parametrize("publish", PUBLISHES)
def test_a_publish_whose_stores_are_in_another_order_is_seen(memories, publish):
    with pytest.raises(AssertionError):
        look_at_a_publish(memories, publish)


def unlinked_before_the_survivors_are_published(self: Publisher, budget: int, *given: Any) -> Any:
    moved, dropped = self.reclaimer.move(budget)
    self.heap.flush()
    if self.reclaimer.emptied:
        self.reclaimer.bury(self.reclaimer.condemn(given[0]))
    self.root.move_tail(self.heap.tail)
    for one in moved:
        self._tables[one.kind].point(one.slot, one.address)
    self._fill(*given)
    self.root.show()
    return dropped


def a_segment_that_leaves_half_way(self: Publisher, budget: int, *given: Any) -> Any:
    moved, dropped = self.reclaimer.move(budget)
    self.heap.flush()
    self.root.move_tail(self.heap.tail)
    for one in moved:
        self._tables[one.kind].point(one.slot, one.address)
    emptied = self.reclaimer.condemn(given[0])
    self.reclaimer._cursor = heap.address_of(self.heap.first, heap.START)
    self._fill(*given)
    self.root.show()
    self.reclaimer.bury(emptied)
    return dropped


RECLAIMS: tuple[Reclaim, ...] = (unlinked_before_the_survivors_are_published, a_segment_that_leaves_half_way)


@pytest.mark.parametrize("reclaim_slice", RECLAIMS)
def test_a_reclaim_that_loses_something_is_seen(memories, reclaim_slice):
    with pytest.raises((AssertionError, EngineUnavailable, SnapshotExpired)):
        look_at_a_reclaim(memories, reclaim_slice)
