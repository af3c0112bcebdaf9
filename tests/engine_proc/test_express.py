"""The express way says and writes what the general way does, or leaves a request to it untouched."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BeforeValidator, Field, model_validator

from solewriter import Cancel, Create, Delete, Entity, Limits, Task, Transition, Update
from solewriter.engine_proc import express
from solewriter.engine_proc.decide import Draft, decide
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.state import State
from solewriter.engine_proc.turn import Turn
from solewriter.engine_proc.writing import form, results_of, write
from solewriter.shared.config import KIB, MEMORY_VERSION
from solewriter.shared.entity import concerns
from solewriter.shared.errors import InvalidMutation, Refused, RequestTooLarge
from solewriter.shared.folder import Whereabouts
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.mutations import Op
from solewriter.shared.registry import Registry
from solewriter.shared.system.processes import start_time_of
from solewriter.shared.wireform import plain_request

LARGE = 2 * KIB
TIME_US = 1_800_000_000_000_000


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Mapped(enum.Enum):
    KNOWN = "known"

    @classmethod
    def _missing_(cls, value: object) -> Mapped:
        return cls.KNOWN


class Odd(enum.Enum):
    """Comparing it is somebody's code."""

    ONE = "one"
    TWO = "two"

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("never compared")

    __hash__ = enum.Enum.__hash__


class Note(Entity, columns=("version", "size", "mood", "weight", "updated_at")):
    """A kind whose own cells are in other places, and with fields of all sorts."""

    size: Annotated[int, Field(ge=0, le=2**70)] = 0
    mood: Mood = Mood.GOOD
    text: str | None = None
    share: float = 1.0
    weight: float = 0.0
    mapped: Mapped = Mapped.KNOWN
    odd: Odd | None = None
    doubled: Annotated[int, BeforeValidator(lambda value: value)] = 0
    tags: tuple[str, ...] = ()
    low: int = 0
    high: int = 9
    updated_at: AwareDatetime | None = None

    @model_validator(mode="after")
    @concerns("low", "high")
    def _ordered(self) -> Note:
        assert self.low <= self.high
        return self


class Whole(Entity):
    """Every change of it is validated as a whole."""

    text: str = ""

    @model_validator(mode="after")
    def _short(self) -> Whole:
        assert len(self.text) < 9
        return self


class Bare(Entity, columns=("size",)):
    """Nothing of it is the engine's own cell."""

    size: int = 0


class AtOnce(Executor):
    def submit(self, work: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **options))
        return future


class Ways:
    """One state, and both ways to decide a request about it."""

    def __init__(self, folder: Path) -> None:
        self.limits = Limits(
            memory_dir=str(folder), heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB,
            entity_bytes_max=LARGE,
        )  # fmt: skip
        pid = os.getpid()
        own = Whereabouts(MEMORY_VERSION, pid, start_time_of(pid), 1, str(folder), "ways")
        self.publisher = Publisher(own, "memory", self.limits, AtOnce())
        self.registry = Registry([Note, Whole, Bare])
        self.state = State(self.registry, self.publisher, self.limits, TimeBudget(0))
        new = self.state.new_kinds(self.registry)
        self.state.add_kinds(new.kinds, new.schemas)
        self.publisher.describe([kind.name for kind in self.state.kinds], self.state.schemas)
        self.publisher.reserve({}, {})
        self.publisher.publish([], 0, 0, self.state.counts())
        self.session = Session(1, "writer", "ann")
        self.sequence = 0
        self.begun_ones: list[tuple[int, int]] = []

    def begun(self, *which: int) -> None:
        self.begun_ones.append((which[0], which[1]))

    def plain(self, *mutations: Any, **given: Any) -> Any:
        return plain_request(mutations, given.get("guards", ()), given.get("request_id"), self.registry, self.limits)

    def express(self, turn: Turn, request: Any) -> Any:
        try:
            heap, bytes_max = self.publisher.heap, self.limits.entity_bytes_max
            return express.update(turn, request, self.session, self.sequence, heap, bytes_max, self.begun)
        except Refused as error:
            return error

    def general(self, turn: Turn, request: Any) -> Any:
        draft = Draft(turn, self.session.name)
        try:
            touched = decide(draft, request)
            steps = form(draft, turn, self.limits)
        except Refused as error:
            return error
        if steps:
            write(turn, steps, request[2], self.session, self.sequence, self.publisher.heap)
        return results_of(touched)

    def both(self, requests: list[Any], prelude: Any = None) -> list[bool]:
        """Decide these in one turn, behind a first request, both ways: everything must be the same. Which of them the
        express way took.
        """
        turns = []
        tail = self.publisher.heap.tail
        told_by: list[list[Any]] = []
        taken: list[bool] = []
        for way in ("general", "express"):
            turn = Turn(self.state, tail, TIME_US + self.sequence, 0)
            said = [self.general(turn, prelude)] if prelude is not None else []
            for request in requests:
                before = seen(turn)
                found = self.express(turn, request) if way == "express" else None
                if found is None:
                    assert seen(turn) == before
                    found_generally = self.general(turn, request)
                    taken += [False] if way == "express" else []
                    said.append(found_generally)
                else:
                    taken.append(True)
                    said.append(found)
            turns.append(seen(turn))
            told_by.append([comparable(one) for one in said])
            if way == "general":
                self.publisher.reset(tail)
        assert told_by[0] == told_by[1]
        assert turns[0] == turns[1]
        self.publisher.reserve(turn.slots(), turn.new_keys)
        self.state.merge(turn)
        self.publisher.publish(turn.installed, turn.revision, self.sequence, self.state.counts())
        self.sequence += 1
        return taken


def seen(turn: Turn) -> tuple[Any, ...]:
    changed = [(key, one) for key, one in turn.changed.items()]
    installed = [(one, sorted(one.cells)) for one in turn.installed]
    installed = [(cells, *without_cells(one)) for one, cells in installed]
    return [*turn.bodies], installed, changed, turn.bytes, turn.revision, {**turn.alive}, {**turn.new_keys}


def without_cells(one: Any) -> tuple[Any, ...]:
    """How the cells are held is nobody's matter."""
    return one.kind, one.slot, one.address, one.new_key, one.alive, one.size, one.overtaken, one.overtaken_alive


def comparable(told_: Any) -> Any:
    return (type(told_), str(told_), told_.details) if isinstance(told_, Refused) else told_


@pytest.fixture
def ways(tmp_path: Path) -> Iterator[Ways]:
    made = Ways(tmp_path)
    made.both([], made.plain(
        Create(Task(id="t", title="x")), Create(Note(id="n")), Create(Whole(id="w")), Create(Bare(id="b"))
    ))  # fmt: skip
    yield made
    made.publisher.remove()


def test_what_it_is_there_for_it_takes(ways: Ways) -> None:
    plain = ways.plain
    for mutation in (
        Update(Task.ref("t"), {"budget_limit": 2.0}),
        Update(Task.ref("t"), {"budget_limit": None, "title": "y"}, expect=2),
        Update(Task.ref("t"), {"priority": "high", "project": "p"}),  # columns
        Update(Task.ref("t"), {"project": "p"}),  # which changes nothing
        Update(Note.ref("n"), {"size": 3, "mood": "bad", "text": "z", "share": 0.5}),
        Update(Note.ref("n"), {"weight": -0.0, "size": 4}),  # the default, but for its sign
        Update(Bare.ref("b"), {"size": 3}),
    ):
        assert ways.both([plain(mutation)]) == [True], mutation
    assert ways.begun_ones == [(1, sequence) for sequence in range(1, 8)]


def test_what_is_unusual_it_leaves(ways: Ways) -> None:
    plain = ways.plain
    for request in (
        plain(Update(Task.ref("t"), {"title": "y"}, reason="why")),
        plain(Update(Task.ref("t"), {"title": "y"}), request_id="mine"),
        plain(Update(Task.ref("t"), {"title": "y"}), Update(Note.ref("n"), {"size": 1})),
        plain(Update(Task.ref("t"), {})),
        plain(Update(Task.ref("t"), {"dependencies": ("a",)})),  # a rule concerns it
        plain(Update(Task.ref("t"), {"metadata": {"a": 1}})),  # a container
        plain(Update(Note.ref("n"), {"doubled": 4})),  # somebody's code validates it
        plain(Update(Note.ref("n"), {"mapped": "known"})),
        ([(Op.UPDATE.value, "Note", "n", None, {"odd": "one"}, "", None)], [], None, None),
        plain(Update(Note.ref("n"), {"low": 4})),
        plain(Update(Whole.ref("w"), {"text": "y"})),
        ([(Op.UPDATE.value, "Task", "t", None, {"title": "y"}, "", None)], [], None, 1),
        plain(Update(Task.ref("t"), {"title": "y"}, expect=77)),
        plain(Update(Task.ref("nobody"), {"title": "y"})),
        plain(Transition(Task.ref("t"), "assigned", {"assigned_to": "ann"})),
        plain(Cancel(Task.ref("t"))),
        plain(Delete(Whole.ref("w"))),
        ([(Op.UPDATE.value, "Unknown", "t", None, {"title": "y"}, "", None)], [], None, None),
        ([(Op.UPDATE.value, "Task", "t", None, {"version": 9}, "", None)], [], None, None),
        ([(Op.UPDATE.value, "Task", "t", None, {"status": "completed"}, "", None)], [], None, None),
        ([(Op.UPDATE.value, "Task", "t", None, {"nothing": 9}, "", None)], [], None, None),
    ):
        assert ways.both([request]) == [False], request
    assert not ways.begun_ones


def test_what_was_stored_under_an_older_schema_it_leaves_once(ways: Ways) -> None:
    """A class would have to read it first, with code that is to be watched; then it is stored under the newest."""
    known, schemas = ways.state.named("Note"), ways.state.schemas
    assert known is not None
    schemas.append(msgspec.structs.replace(known.schema, code=len(schemas)))
    known.schema = schemas[-1]
    for taken in (False, True):
        assert ways.both([ways.plain(Update(Note.ref("n"), {"size": 3 + taken}))]) == [taken]
    assert len(ways.begun_ones) == 1


def test_what_no_field_takes_is_refused_alike(ways: Ways) -> None:
    for name, value in (("title", ""), ("budget_limit", -1.0), ("priority", "odd"), ("max_retries", "x")):
        request = ([(Op.UPDATE.value, "Task", "t", None, {name: value}, "", None)], [], None, None)
        assert ways.both([request]) == [True]
    too_large = ([(Op.UPDATE.value, "Note", "n", None, {"size": 2**69}, "", None)], [], None, None)
    assert ways.both([too_large]) == [True]
    with pytest.raises(InvalidMutation):
        raise ways.express(Turn(ways.state, ways.publisher.heap.tail, TIME_US, 0), too_large)
    too_long = ([(Op.UPDATE.value, "Task", "t", None, {"title": "x" * LARGE}, "", None)], [], None, None)
    assert ways.both([too_long]) == [True]
    with pytest.raises(RequestTooLarge, match="entity_bytes_max"):
        raise ways.express(Turn(ways.state, ways.publisher.heap.tail, TIME_US, 0), too_long)


values = (
    st.none()
    | st.integers(-2, 2**64)
    | st.floats(-1, 3)
    | st.sampled_from(["", "x", "high", "bad", "good", True, -0.0])
)
fields = st.dictionaries(
    st.sampled_from(
        ["title", "budget_limit", "priority", "project", "max_retries", "deadline", "size", "mood", "text", "share",
         "weight", "mapped", "low", "tags", "reviewers", "metadata", "status", "version"]
    ),
    values, min_size=1, max_size=3,
)  # fmt: skip
targets = st.sampled_from([("Task", "t"), ("Task", "u"), ("Note", "n"), ("Whole", "w"), ("Bare", "b")])
updates = st.tuples(targets, st.none() | st.integers(0, 4), fields)


@settings(max_examples=150, deadline=None)
@given(turns=st.lists(st.lists(updates, min_size=1, max_size=4), min_size=1, max_size=4))
def test_both_ways_are_one(tmp_path_factory: pytest.TempPathFactory, turns: list[list[Any]]) -> None:
    ways = Ways(tmp_path_factory.mktemp("ways"))
    try:
        ways.both([], ways.plain(Create(Task(id="t", title="x")), Create(Note(id="n")), Create(Bare(id="b"))))
        for turn in turns:
            ways.both([
                ([(Op.UPDATE.value, kind, key, expect, changes, "", None)], [], None, None)
                for (kind, key), expect, changes in turn
            ])  # fmt: skip
    finally:
        ways.publisher.remove()


def test_the_fields_of_the_shipped_kinds_that_it_takes() -> None:
    assert Kind(Task).plain_fields == {
        "budget_limit", "coordination_topology", "cost", "deadline", "description", "estimated_complexity",
        "max_retries", "not_before", "priority", "project", "retry_delay_s", "source",
        "task_structure", "title", "type",
    }  # fmt: skip
    assert Kind(Note).plain_fields == {"size", "mood", "text", "share", "weight"}
    assert Kind(Whole).plain_fields == frozenset()
