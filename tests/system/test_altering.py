"""Operations on fields, conditions on fields, merges: changes that go through whatever others do meanwhile."""

from __future__ import annotations

import asyncio
import datetime
import operator
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, ConfigDict, Field

from solewriter import (
    Add,
    Alter,
    Append,
    Claim,
    Create,
    Entity,
    FrozenMap,
    GuardFailed,
    Increment,
    InvalidMutation,
    InvalidTransition,
    Json,
    Lifecycle,
    Max,
    Min,
    NotFound,
    Part,
    PutIn,
    Range,
    Remove,
    Require,
    RequireAbsent,
    RequireFields,
    RequireNone,
    Task,
    TaskPriority,
    TaskStatus,
    Transition,
    Update,
    VersionConflict,
    aio,
    connect,
)
from solewriter.shared.errors import Verdict


class Size(StrEnum):
    """Whose order is not that of its texts."""

    SMALL = "small"
    LARGE = "large"
    HUGE = "huge"


class Rights(IntFlag):
    """Whose members are combined."""

    WRITE = 2
    READ = 1


class Grade(IntEnum):
    LOW = 1
    HIGH = 2


class Mark(Part):
    row: int
    note: str = ""


class Board(Entity, columns=("count", "size", "worth")):
    count: int = 0
    ratio: float | None = None
    level: str | None = None
    size: Size | None = None
    rights: Rights | None = None
    seen_at: datetime.datetime | None = None
    names: tuple[str, ...] = ()
    marks: frozenset[int] = frozenset()
    notes: FrozenMap = FrozenMap()
    anything: Json = None
    ratios: tuple[float, ...] = (0,)  # as it is written, which is no float
    times: tuple[AwareDatetime, ...] = ()
    prices: Annotated[tuple[Decimal, ...], Field(max_length=2)] = ()
    shares: frozenset[float] = frozenset()
    places: tuple[Mark, ...] = ()
    worth: float = 0  # likewise
    grade: Grade = Grade.LOW
    place: Mark = Mark(row=0)


class Sign(Entity, columns=("size", "mark")):
    """Whose values have another order than their own."""

    model_config = ConfigDict(use_enum_values=True)

    size: Size | None = None
    mark: Literal["b", 2, "a", 1] | None = None


@pytest.fixture(scope="module", autouse=True)
def boards(shared_engine):
    shared_engine.register(Board)
    shared_engine.register(Sign)


pytestmark = pytest.mark.usefixtures("shared_engine")
EARLY = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
ELSEWHERE = EARLY.astimezone(datetime.timezone(datetime.timedelta(hours=2)))
LATE = EARLY + datetime.timedelta(microseconds=1)


def test_an_operation_needs_no_read_and_meets_no_conflict(client, engine):
    board = client.create(Board())
    with connect(engine.state, name="other") as other:
        other.alter(Board.ref(board.id), count=Increment(), names=Add("ann"))
    left = client.alter(board, count=Increment(2), names=Add("bob", "ann"))  # its version is an old one
    assert (left.count, left.names, left.version) == (3, ("ann", "bob"), 3)


@pytest.mark.parametrize(
    ("name", "steps", "left"),
    [
        ("count", [Increment(5), Increment(-7)], -2),
        ("ratio", [Increment(1), Increment(0.5)], 1.5),
        ("ratio", [Max(0.5), Max(0.25), Min(0.375)], 0.375),
        ("level", [Min("b"), Min("a"), Max("ab")], "ab"),
        ("ratio", [Max(0.5), Max(None), Min(None)], 0.5),
        ("size", [Max("large"), Max(Size.SMALL)], Size.LARGE),
        ("size", [Min("huge"), Min("large")], Size.LARGE),
        ("seen_at", [Max(LATE), Max(EARLY)], LATE),
        ("seen_at", [Min(LATE), Min(EARLY)], EARLY),
        ("names", [Append("a", "b", "a"), Append("c", most=3)], ("b", "a", "c")),
        ("names", [Append("a"), Append("b", most=0)], ()),
        ("names", [Add("a", "b"), Add("b", "c"), Remove("a", "z")], ("b", "c")),
        ("marks", [Add(3, 1), Add(2), Remove(3)], frozenset({1, 2})),
        ("notes", [PutIn({"a": 1, "b": (1, 2)}), PutIn({"a": None}), Remove("b", "z")], FrozenMap(a=None)),
        ("anything", [Append(1), Append(True), Add(1, 1.0)], (1, True, 1.0)),
        ("ratios", [Add(0, 1), Add(1), Remove(0)], (1.0,)),
        ("ratios", [Add(-0.0, 1), Add(0.0), Remove(1)], (-0.0,)),
        ("ratios", [Add(0.0, 1), Remove(-0.0)], (1.0,)),
        ("times", [Add(EARLY, LATE), Add(ELSEWHERE)], (EARLY, LATE)),
        ("times", [Add(EARLY, LATE), Remove(ELSEWHERE)], (LATE,)),
        ("prices", [Add(Decimal(1), Decimal(2)), Add("1"), Remove(2)], (Decimal(1),)),
        ("shares", [Add(1, 2), Add(1.0), Remove(2)], frozenset({1.0})),
        ("places", [Add(Mark(row=1), Mark(row=2)), Add({"row": 1}), Remove({"row": 2})], (Mark(row=1),)),
        ("anything", [PutIn({"k": {"x": 1}})], FrozenMap(k=FrozenMap(x=1))),
    ],
)
def test_what_operations_come_to(client, name, steps, left):
    board = client.create(Board())
    for step in steps:
        board = client.alter(board, {name: step})
    assert getattr(board, name) == left
    assert type(getattr(board, name)) is type(left)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("names", Increment()),
        ("count", Increment(0.5)),
        ("count", Append(1)),
        ("count", Max("high")),
        ("count", PutIn({"a": 1})),
        ("count", Increment(Decimal(1))),
        ("count", Increment(True)),
        ("count", Max(object())),
        ("names", Append("x", most=-1)),
        ("notes", PutIn({1: "x"})),
        ("names", Add(3)),
        ("notes", Append("x")),
        ("nothing", Increment()),
        ("version", Increment()),
        ("count", 7),
    ],
)
def test_what_cannot_be_done_with_a_field_names_it(client, name, operation):
    board = client.create(Board())
    with pytest.raises(InvalidMutation) as refused:
        client.alter(board, {name: operation})
    assert any(field.startswith(name) for field in refused.value.fields)
    assert client.get(Board, board.id) == board


def test_a_default_that_is_written_as_another_number_is_no_change(client):
    """`worth: float = 0` is 0.0 to whoever writes it."""
    board = client.create(Board())
    for value in (0, 0.0):
        assert client.update(Board.ref(board.id), worth=value).version == 1
        assert client.put(Board(id=board.id, worth=value)).version == 1
    assert client.alter(board, worth=Increment(0.0)).version == 1
    assert client.update(Board.ref(board.id), worth=-0.0).version == 2
    assert client.put(Board(id=board.id)).version == 3
    assert client.update(Board.ref(board.id), worth=1.0).version == 4


class Span(Part):
    first: float = 0
    last: float = 0


class Road(Entity, columns=("worth",)):
    worth: float = 0.0
    ratios: tuple[float, ...] = (0, 1)
    either: tuple[int | float, ...] = (0,)
    span: Span = Span()
    spans: tuple[Span, ...] = (Span(), Span(last=7))


@pytest.mark.parametrize(
    ("name", "same", "other", "minus"),
    [
        ("ratios", (0.0, 1.0), (0.0,), (-0.0, 1.0)),
        ("span", {"first": 0.0}, {"last": 0.5}, {"first": -0.0}),
        ("spans", ({}, {"last": 7.0}), ({},), ({"last": -0.0}, {"last": 7})),
    ],
)
def test_a_default_that_holds_other_numbers_than_its_field_is_no_change(
    client, shared_engine, name, same, other, minus
):
    shared_engine.register(Road)
    road = client.create(Road())
    for value in (same, getattr(road, name)):
        assert client.update(Road.ref(road.id), {name: value}).version == 1
        assert client.put(Road(id=road.id, **{name: value})).version == 1
    assert client.update(Road.ref(road.id), {name: minus}).version == 2
    assert client.put(Road(id=road.id)).version == 3
    assert client.update(Road.ref(road.id), {name: other}).version == 4
    assert client.update(Road.ref(road.id), {name: same}).version == 5
    assert client.put(Road(id=road.id)).version == 5
    assert client.update(Road.ref(road.id), either=(0.0,)).version == 6, "which is another value than 0"


def test_what_cannot_be_done_takes_nothing_with_it_that_goes_in_the_same_frame(client):
    wrong = Alter(Board.ref("b"), {"count": Increment(Decimal(1))}), Claim(Task, assignee=5)
    asked = [Create(Board(id="b")), *wrong, Alter(Board.ref("b"), {"count": Increment()})]
    told = [type(reply.error) for reply in client.submit_many(asked)]
    assert told == [type(None), InvalidMutation, InvalidMutation, type(None)]


@pytest.mark.parametrize(
    ("name", "value", "operation"),
    [
        ("grade", Grade.LOW, Increment()),
        ("rights", Rights.READ, Increment()),
        ("place", Mark(row=1, note="x"), PutIn({"row": 2})),
        ("place", Mark(row=1, note="x"), Remove("note")),
        ("notes", FrozenMap(a=1), Remove("a")),
        ("marks", frozenset({1}), Append(2)),
        ("prices", (Decimal(1),), Add("1.0", "1")),
        ("seen_at", ELSEWHERE, Max(EARLY)),
    ],
)
def test_an_operation_comes_to_the_same_behind_what_the_same_request_set(client, name, value, operation):
    alone = client.alter(client.create(Board(**{name: value})), {name: operation})
    created, other = Board(**{name: value}), client.create(Board())
    with client.transaction() as tx:
        tx.create(created)
        tx.alter(created, {name: operation})
        tx.update(other, {name: value})
        tx.alter(other, {name: operation})
    assert getattr(alone, name) != value or name in ("seen_at", "prices")
    for board in (created, other):
        assert getattr(tx.result(board), name) == getattr(alone, name)


def test_an_operation_that_changes_nothing_makes_no_version(client):
    board = client.create(Board(names=("a",)))
    assert client.alter(board, names=Add("a"), count=Increment(0), ratio=Min(None)) == board


def test_operations_are_refused_by_the_models_rules(client):
    task = client.create(Task(title="x", reviewers=("ann",)))
    with pytest.raises(InvalidMutation) as refused:
        client.alter(task, reviewers=Append("ann"))
    assert "reviewers" in refused.value.fields
    with pytest.raises(NotFound):
        client.alter(Task.ref("nobody"), max_retries=Increment())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)  # a new board each
@given(st.lists(st.tuples(st.sampled_from(["append", "add", "remove"]), st.lists(st.integers(0, 3), max_size=3))))
def test_many_operations_at_once_are_what_they_are_one_by_one(client, steps):
    kinds = {"append": Append, "add": Add, "remove": Remove}
    expected: list[int] = []
    for name, items in steps:
        if name == "append":
            expected += items
        elif name == "add":
            expected += [one for place, one in enumerate(items) if one not in expected and one not in items[:place]]
        else:
            expected = [one for one in expected if one not in items]
    board = client.create(Board(anything=()))
    if steps:
        client.submit(*(Alter(board, {"anything": kinds[name](*items)}) for name, items in steps)).check()
    assert list(client.get(Board, board.id).anything) == expected


# --- conditions -------------------------------------------------------------------------------------------------------


def test_an_update_on_a_condition_compares_fields_and_no_version(client):
    task = client.create(Task(title="x", priority="low"))
    client.update(task, title="y")
    task = client.update(task, where={"priority": ["low", "medium"], "status": TaskStatus.CREATED}, priority="high")
    assert (task.title, task.priority) == ("y", TaskPriority.HIGH)
    with pytest.raises(GuardFailed) as refused:
        client.update(task, where={"priority": "low", "title": "y"}, priority="critical")
    assert refused.value.fields == ["priority"]
    assert refused.value.current == task
    assert (refused.value.actor, refused.value.version) == ("tester", 3)


def test_a_condition_that_names_no_field_leaves_the_version_compared(client):
    """As one does that a program put together, and found nothing to put into it."""
    task = client.create(Task(title="x"))
    client.update(task, title="y")
    for deed in (
        lambda: client.update(task, where={}, title="z"),
        lambda: client.transition(task, "assigned", where={}, assigned_to="me"),
        lambda: client.delete(task, where={}),
    ):
        with pytest.raises(VersionConflict):
            deed()
    assert client.update(Task.ref(task.id), where={}, title="z").version == 3


def test_what_is_no_version_is_refused_beside_a_condition_too(client):
    task = client.create(Task(title="x"))
    with pytest.raises(InvalidMutation) as refused:
        client.update(task, where={"title": "x"}, expect="7", source="here")
    assert "expect" in refused.value.fields


def test_a_guard_that_failed_says_of_what_wherever_it_comes_from(client):
    task = client.create(Task(title="x"))
    client.delete(task)

    def refused(*guards: Any) -> tuple[str, int, Any, int, Any]:
        error = client.submit(guards=guards).error
        assert isinstance(error, GuardFailed)
        return error.id, error.version, error.fields, error.count, error.current

    assert refused(RequireFields(task, {"title": "x"})) == (task.id, 0, (), 0, None)
    assert refused(Require(task)) == (task.id, 0, (), 0, None)
    board = client.create(Board(count=7_001))
    assert refused(RequireAbsent(Board, board.id)) == (board.id, 1, (), 0, board)
    assert refused(RequireNone(Board, {"count": 7_001})) == ("", 0, (), 1, None)
    assert refused(RequireFields(board, {"count": 3})) == (board.id, 1, ["count"], 0, board)


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ({"count": Range(ge=3, lt=4)}, True),
        ({"count": Range(gt=3)}, False),
        ({"ratio": None}, True),
        ({"ratio": Range(ge=0)}, False),
        ({"seen_at": Range(gt=EARLY, le=LATE)}, True),
        ({"names": [("a", "b")]}, True),
        ({"names": [("a",), ()]}, False),
        ({"anything": 1}, True),
        ({"anything": True}, False),
        ({"worth": 0}, True),
        ({"worth": [0.0, -1.0], "ratios": [(0.0,)]}, True),
        ({"worth": 1}, False),
        ({"ratios": [(-0.0,)], "anything": FrozenMap(a=(0.0, 1))}, True),
        ({"ratios": [(-0.0, 0.0)]}, False),
        ({"size": Range(ge="large")}, True),
        ({"size": Range(lt=Size.LARGE)}, False),
        ({"rights": Range(gt=Rights.WRITE)}, True),
        ({"version": 1}, False),
        ({"version": 2}, True),
        ({"version": Range(gt=1), "count": 3}, True),
        ({"id": "another one"}, False),
        ({"count": []}, False),
        ({}, True),
    ],
)
def test_what_a_condition_asks(client, where, holds):
    board = client.create(Board(count=3, size="huge", rights=3, seen_at=LATE, names=("a", "b"), anything=1))
    if type(where.get("anything")) is FrozenMap:
        board = client.update(board, anything={"a": (-0.0, 1)})
    if "version" in where:
        board = client.update(board, level="x")
    if holds:
        assert client.update(board, where=where, level="y").level == "y"
    else:
        with pytest.raises(GuardFailed):
            client.update(board, where=where, level="y")


def test_a_condition_asks_what_only_the_record_says_too(client):
    first = client.create(Task(title="x"))
    second = client.update(first, where={"id": first.id, "updated_at": first.updated_at, "version": 1}, title="y")
    for where in ({"id": "y"}, {"updated_at": first.updated_at}, {"version": Range(lt=2)}):
        with pytest.raises(GuardFailed) as refused:
            client.update(second, where=where, title="z")
        assert refused.value.fields == list(where)
    third = client.update(second, where={"updated_at": Range(gt=first.updated_at)}, source="here")
    both = client.submit(
        Update(third, {"title": "both"}),
        Update(third, {"source": "there"}),
        guards=[RequireFields(third, {"version": 3, "updated_at": third.updated_at})],
    )
    assert both.applied


@pytest.mark.parametrize(
    "where",
    [
        {"nothing": 1},
        {"count": "three"},
        {"notes": Range(ge={"a": 1})},
        {"anything": Range(ge=1)},
        {"seen_at": Range(ge=EARLY.replace(tzinfo=None))},
    ],
)
def test_a_condition_that_nothing_can_meet_is_refused_by_name(client, where):
    board = client.create(Board(seen_at=LATE, anything="text"))
    with pytest.raises(InvalidMutation) as refused:
        client.update(board, where=where, level="y")
    assert list(refused.value.fields) == list(where)


def test_a_default_that_is_written_as_another_number_is_the_same_to_whoever_asks(client):
    board = client.create(Board(id="worth nothing", count=7_002))
    wanted = {"count": 7_002, "worth": [-1.0, -2.0, 0.0, *(float(number) for number in range(1, 50))]}
    assert client.submit(guards=[RequireNone(Board, wanted)]).error.count == 1
    assert client.submit(guards=[RequireNone(Board, {"count": 7_002, "worth": 0})]).error.count == 1
    assert client.update(board, worth=1, merge=True).worth == 1.0
    assert client.submit(guards=[RequireNone(Board, {"count": 7_002, "worth": [0, *range(2, 50)]})]).applied


def test_an_enums_order_is_that_of_its_definition_whoever_is_asked(client):
    boards = {board.id: board for board in [client.create(Board(size=size)) for size in (*Size, None)]}
    for bounds in (Range(ge="large"), Range(gt="small", lt="huge"), Range(le="large"), Range(lt="small")):
        asked = {id: client.submit(guards=[RequireFields(board, {"size": bounds})]) for id, board in boards.items()}
        with client.reader.snapshot() as snap:
            scanned = {*snap.ids(Board, {"size": bounds})} & {*boards}
        assert {id for id, reply in asked.items() if reply.applied} == scanned


@pytest.mark.parametrize(
    ("name", "values"), [("size", ["small", "large", "huge", None]), ("mark", [1, 2, "a", "b", None])]
)
def test_values_that_have_no_order_of_their_own_have_that_of_scans_whoever_is_asked(client, name, values):
    signs = {sign.id: sign for sign in [client.create(Sign(**{name: value})) for value in values]}
    *ordered, _ = signs
    for place, bound in enumerate(values[:-1]):
        for bounds, expected in (
            (Range(ge=bound), ordered[place:]),
            (Range(gt=bound), ordered[place + 1 :]),
            (Range(le=bound), ordered[: place + 1]),
            (Range(lt=bound), ordered[:place]),
        ):
            replies = {id: client.submit(guards=[RequireFields(sign, {name: bounds})]) for id, sign in signs.items()}
            asked = [id for id, reply in replies.items() if reply.applied]
            with client.reader.snapshot() as snap:
                assert asked == [id for id in snap.ids(Sign, {name: bounds}) if id in signs] == expected
        larger = client.alter(client.create(Sign(**{name: values[0]})), {name: Max(bound)})
        assert getattr(larger, name) == bound


def test_conditions_guard_a_whole_transaction(client):
    board, task = client.create(Board(count=1)), client.create(Task(title="x"))
    with pytest.raises(GuardFailed), client.transaction() as tx:
        tx.require_fields(board, {"count": 2})
        tx.alter(board, count=Increment())
        tx.cancel(task)
    with client.transaction() as tx:
        tx.require_fields(board, {"count": 1})
        tx.alter(board, {"count": Increment()})
        tx.cancel(task)
    assert tx.result(board).count == 2
    with pytest.raises(GuardFailed), client.transaction() as tx:
        tx.require_fields(Board.ref("nobody"), {})
    with pytest.raises(VersionConflict), client.transaction() as tx:
        tx.require_unchanged(board, "count")


# --- merges and verdicts ----------------------------------------------------------------------------------------------


def test_changes_of_different_fields_merge(client):
    task = client.create(Task(title="x"))
    other = client.update(task, description="theirs", merge=True)
    both = client.update(task, title="mine", merge=True)
    assert (both.title, both.description, both.version) == ("mine", "theirs", other.version + 1)
    with pytest.raises(VersionConflict) as lost:
        client.update(task, title="late", merge=True)
    assert lost.value.verdict is Verdict.LOST
    assert lost.value.current == both
    assert (lost.value.actor, lost.value.expected, lost.value.version) == ("tester", 1, 3)
    with pytest.raises(TypeError):
        client.update(Task.ref(task.id), title="unread", merge=True)


def test_a_transition_merges_with_changes_of_other_fields(client):
    task = client.create(Task(title="x"))
    client.update(task, description="theirs")
    assigned = client.transition(task, "assigned", assigned_to="me", merge=True)
    assert (assigned.status, assigned.description) == (TaskStatus.ASSIGNED, "theirs")
    with pytest.raises(VersionConflict) as lost:
        client.transition(task, "rejected", merge=True)
    assert lost.value.verdict is Verdict.LOST


def test_every_verb_takes_a_condition_in_place_of_the_version(client):
    task = client.create(Task(title="x", source="here"))
    client.update(task, description="somebody else's")
    for deed in (
        lambda: client.alter(task, where={"source": "there"}, cost=Increment(1)),
        lambda: client.cancel(task, where={"source": "there"}),
        lambda: client.cancel(Task.ref(task.id), where={"source": "there"}, tree=True),
        lambda: client.delete(task, where={"source": "there"}),
    ):
        with pytest.raises(GuardFailed) as failed:
            deed()
        assert failed.value.current.version == 2
    assert client.alter(task, where={"source": "here"}, cost=Increment(1)).cost == 1
    assert client.cancel(task, where={"source": ["here", "there"]}).status is TaskStatus.CANCELLED
    client.delete(task, where={"status": "cancelled"})
    assert client.get(Task, task.id) is None


def test_a_conflict_says_what_it_comes_to(client, engine):
    seen = client.create(Task(title="x"))
    with connect(engine.state, name="faster") as faster:
        theirs = faster.update(seen, priority="high")

    def verdict(deed: Any) -> tuple[Verdict, str, int]:
        with pytest.raises((VersionConflict, InvalidTransition)) as caught:
            deed()
        error = caught.value
        assert error.current.version >= theirs.version
        return error.verdict, getattr(error, "actor", ""), getattr(error, "revision", 0)

    revision = client.reader.revision
    assert verdict(lambda: client.update(seen, priority="high")) == (Verdict.YOURS, "faster", revision)
    assert verdict(lambda: client.update(seen, priority="low")) == (Verdict.LOST, "faster", revision)
    assert verdict(lambda: client.update(seen, title="y")) == (Verdict.MERGEABLE, "faster", revision)
    named = seen.version  # is compared whatever is merged: the same call would meet the same conflict again
    assert verdict(lambda: client.update(seen, title="y", expect=named)) == (Verdict.LOST, "faster", revision)
    assert verdict(lambda: client.transition(theirs, "completed"))[0] is Verdict.LOST, "no merge makes a step of it"
    client.cancel(theirs)
    assert verdict(lambda: client.cancel(seen, expect=named))[0] is Verdict.YOURS
    assert verdict(lambda: client.update(seen, title="y"))[0] is Verdict.TERMINAL
    assert verdict(lambda: client.transition(theirs, "assigned", expect=None, assigned_to="me"))[0] is Verdict.TERMINAL
    assert verdict(lambda: client.transition(seen, "cancelled"))[0] is Verdict.YOURS


Light = Enum("Light", {"RED": "red", "GREEN": "green", "OFF": "off"})
LightText = Enum("LightText", {"RED": "red", "GREEN": "green", "OFF": "off"}, type=str)
STEPS = Lifecycle("light", "red", {"red": ("green", "off"), "green": ("red",), "off": ()})


class Crossing(Entity, lifecycle=STEPS):
    light: Light = Light.RED
    name: str = ""


class TextCrossing(Entity, lifecycle=STEPS):
    light: LightText = LightText.RED
    name: str = ""


@pytest.mark.parametrize("cls", [Crossing, TextCrossing])
def test_a_state_of_any_enum_is_final_only_where_nothing_follows(engine, client, cls):
    engine.register(cls)
    seen = client.create(cls())
    others = client.transition(seen, "green")
    with pytest.raises(VersionConflict) as caught:
        client.update(seen, name="a")
    assert caught.value.verdict is Verdict.MERGEABLE
    client.transition(client.transition(others, "red"), "off")
    with pytest.raises(VersionConflict) as caught:
        client.update(seen, name="a")
    assert caught.value.verdict is Verdict.TERMINAL


def test_a_put_is_told_that_its_content_is_stored_only_where_all_of_it_is(client):
    seen = client.create(Board())
    client.update(seen, count=5, ratio=2.0)
    for wanted, verdict in (
        ({"ratio": 2.0}, Verdict.LOST),  # which would make the count 0 again
        ({"count": 5, "ratio": 2.0}, Verdict.YOURS),
    ):
        with pytest.raises(VersionConflict) as caught:
            client.put(seen.model_copy(update=wanted))
        assert caught.value.verdict is verdict, wanted
    task = client.create(Task(title="x"))
    client.update(task, title="y")
    with pytest.raises(VersionConflict) as caught:
        client.put(task.model_copy(update={"title": "y"}))
    assert caught.value.verdict is Verdict.YOURS


def test_a_verdict_sees_a_difference_that_is_none_to_python(client):
    seen = client.create(Board(anything=1))
    client.update(seen, anything=True, ratio=2)
    for wanted, verdict in (
        ({"anything": True, "ratio": 2}, Verdict.YOURS),
        ({"anything": 1}, Verdict.LOST),
        ({"anything": "1"}, Verdict.LOST),
        ({"count": 1}, Verdict.MERGEABLE),
    ):
        with pytest.raises(VersionConflict) as caught:
            client.update(seen, wanted)
        assert caught.value.verdict is verdict, wanted


def test_the_loser_of_a_race_within_one_turn_is_told_the_winner(client):
    task = client.create(Task(title="x"))
    changes = [Update(task, {"title": str(number)}) for number in range(8)]
    replies = list(client.submit_many(changes))
    assert replies[0].applied
    assert {(one.error.actor, one.error.revision) for one in replies[1:]} == {("tester", replies[0].revision)}


def test_coroutines_do_the_same(engine):
    async def story() -> None:
        async with aio.connect(engine.state, name="me") as client:
            board = await client.create(Board())
            board = await client.alter(board, count=Increment(3))
            assert (await client.update(board, where={"count": 3}, level="x")).level == "x"
            assert (await client.update(board, ratio=0.5, merge=True)).level == "x"
            with pytest.raises(VersionConflict) as lost:
                await client.update(board, level="y")
            assert lost.value.verdict is Verdict.LOST
            task = await client.create(Task(title="x"))
            step = Transition(task, "rejected")
            assert (await client.transition(task, step.to, merge=True)).status is TaskStatus.REJECTED
            for deed in (client.cancel, client.delete, client.alter):
                with pytest.raises(GuardFailed):
                    await deed(task, where={"title": "y"})
            await client.delete(task, where={"title": "x"})

    asyncio.run(story())


def test_operations_are_values():
    assert operator.eq(Append("a", most=2), Append("a", most=2))
    assert Append("a") != Add("a")
    assert hash(Increment(2)) == hash(Increment(2))
