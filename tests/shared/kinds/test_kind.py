"""What is stored of an entity is the same bytes wherever it is made, reads back equal, and was validated as a whole."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import enum
import functools
import os
import re
import subprocess
import sys
import uuid
from typing import Annotated, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, ConfigDict, Field, create_model, field_validator, model_validator
from pydantic_core import core_schema

from solewriter.shared.entity import Entity, Part, broken, concerns
from solewriter.shared.errors import InvalidMutation
from solewriter.shared.frozen import FrozenMap, Json
from solewriter.shared.kinds.columns import text_hash, unpack_cells
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import plain
from solewriter.shared.models import (
    Artifact,
    Complexity,
    Criterion,
    Project,
    Task,
    TaskPriority,
    TaskStatus,
    TaskStructure,
    TaskType,
    Topology,
)

UTC = datetime.UTC
EAST, WEST = (datetime.timezone(datetime.timedelta(hours=hours)) for hours in (1, -1))
NOW = datetime.datetime(2030, 1, 1, tzinfo=UTC)
NOW_US = 1_893_456_000_000_000

# --- strategies -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["ann", "bob", "eve", "ünï", "x" * 300, ""])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
INTS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.datetimes(datetime.datetime(2, 1, 1), datetime.datetime(9998, 1, 1), timezones=st.just(UTC))
SCALARS = st.none() | st.booleans() | INTS | FLOATS | TEXTS
JSONS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
NAME_LISTS = st.lists(NAMES, unique=True, max_size=3)

TASK_FIELDS = {
    "title": st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    "description": TEXTS,
    "type": st.sampled_from(TaskType),
    "priority": st.sampled_from(TaskPriority),
    "project": NAMES,
    "created_by": NAMES,
    "reviewers": NAME_LISTS,
    "dependencies": NAME_LISTS,
    "artifacts_expected": st.lists(st.builds(Artifact, path=TEXTS, type=TEXTS), max_size=2),
    "acceptance_criteria": st.lists(st.builds(Criterion, description=TEXTS, met=st.booleans()), max_size=2),
    "estimated_complexity": st.sampled_from(Complexity),
    "budget_limit": st.none() | st.floats(0, 1e9),
    "deadline": st.none() | TIMES,
    "max_retries": st.integers(0, 2**63 - 1),
    "parent_task_id": st.none() | NAMES,
    "task_structure": st.sampled_from(TaskStructure),
    "coordination_topology": st.sampled_from(Topology),
    "source": TEXTS,
    "metadata": st.dictionaries(TEXTS, JSONS, max_size=3),
    "result": JSONS,
    "created_at": st.none() | TIMES,
    "updated_at": TIMES,
    "version": st.integers(1, 2**63 - 1),
}
ASSIGNED = st.fixed_dictionaries(
    {"assigned_to": st.just("zoe"), "status": st.sampled_from([one for one in TaskStatus if one != "created"])}
)
BLUNDERS = {
    "title": st.sampled_from(["", 7, None]),
    "priority": st.sampled_from(["urgent", 1, "high"]),
    "assigned_to": st.none() | NAMES,
    "status": st.sampled_from(TaskStatus),
    "reviewers": st.lists(NAMES, max_size=3),
    "dependencies": st.lists(NAMES | st.just("t-1"), max_size=3),
    "delegation_chain": st.lists(NAMES | st.just("zoe"), max_size=3),
    "budget_limit": FLOATS | st.just(float("nan")),
    "max_retries": st.integers(-2, 2),
    "deadline": st.sampled_from(["2030-01-01T00:00:00Z", "soon", NOW.replace(tzinfo=None)]),
    "parent_task_id": st.sampled_from(["t-1", "t-2", None]),
    "metadata": st.just({"a": float("inf")}) | st.just([1]),
    "no_such_field": st.just(1),
}
TASKS = st.builds(
    lambda fields, rest: Task(**{"title": "t", **fields, **rest, "id": "t-1"}),
    st.fixed_dictionaries({}, optional=TASK_FIELDS),
    st.just({}) | ASSIGNED,
)
CHANGES = st.fixed_dictionaries({}, optional={**TASK_FIELDS, **BLUNDERS}) | st.fixed_dictionaries(
    {}, optional=TASK_FIELDS
)


class Size(enum.StrEnum):
    SMALL = "small"
    LARGE = "large"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(Part):
    x: int = 0
    note: Json = None


class Line(Part):
    ends: tuple[Point, Point]
    name: str | None = None


class Everything(Entity, columns=("size", "level", "colour", "letter", "good", "count", "weight", "at", "owner")):
    size: Size = Size.SMALL
    level: Level = Level.LOW
    colour: Colour = Colour.RED
    letter: Literal["a", "b"] | None = None
    good: bool = True
    count: int | None = 0
    weight: float = 0.5
    owner: str = "nobody"
    raw: bytes = b"\x00"
    at: pydantic.AwareDatetime | None = None
    local: datetime.datetime = datetime.datetime(2000, 1, 1)
    naive: pydantic.NaiveDatetime | None = None
    day: datetime.date = datetime.date(2000, 1, 1)
    hour: datetime.time = datetime.time(12)
    span: datetime.timedelta = datetime.timedelta(seconds=1)
    price: decimal.Decimal = decimal.Decimal("1.5")
    ticket: uuid.UUID | None = None
    what: Json = None
    data: FrozenMap = FrozenMap(a=(1, 2))
    union: str | int | float | bool | None = None
    numbers: tuple[int, ...] = (1, 2)
    pair: tuple[str, float] = ("a", 1.0)
    tags: frozenset[str] = frozenset({"x", "y"})
    days: frozenset[datetime.date] = frozenset()
    sizes: frozenset[Size] = frozenset()
    nested: tuple[tuple[Json, ...], ...] = ()
    point: Point = Point()
    line: Line | None = None
    points: tuple[Point, ...] = ()
    required: Annotated[str, Field(max_length=20)]


POINTS = st.builds(Point, x=INTS, note=JSONS)
EVERY_FIELD = {
    "size": st.sampled_from(Size),
    "level": st.sampled_from(Level),
    "colour": st.sampled_from(Colour),
    "letter": st.sampled_from(["a", "b", None]),
    "good": st.booleans(),
    "count": st.none() | st.integers(-(2**63) + 1, 2**63 - 1),
    "weight": FLOATS,
    "owner": TEXTS,
    "raw": st.binary(max_size=8),
    "at": st.none() | TIMES,
    "local": st.datetimes() | TIMES,
    "naive": st.none() | st.datetimes(),
    "day": st.dates(),
    "hour": st.times(),
    "span": st.timedeltas(datetime.timedelta(days=-900_000), datetime.timedelta(days=900_000)),
    "price": st.decimals(allow_nan=False, allow_infinity=False),
    "ticket": st.none() | st.uuids(),
    "what": JSONS,
    "data": st.dictionaries(TEXTS, JSONS, max_size=3),
    "union": st.none() | TEXTS | INTS | FLOATS | st.booleans(),
    "numbers": st.lists(INTS, max_size=3),
    "pair": st.tuples(TEXTS, FLOATS),
    "tags": st.frozensets(TEXTS, max_size=4),
    "days": st.frozensets(st.dates(), max_size=3),
    "sizes": st.frozensets(st.sampled_from(Size)),
    "nested": st.lists(st.lists(JSONS, max_size=2), max_size=2),
    "point": POINTS,
    "line": st.none() | st.builds(Line, ends=st.tuples(POINTS, POINTS), name=st.none() | TEXTS),
    "points": st.lists(POINTS, max_size=2),
}
EVERYTHING = st.builds(
    lambda fields, required: Everything(id="e-1", required=required, **fields),
    st.fixed_dictionaries({}, optional=EVERY_FIELD),
    TEXTS,
)

TASK = Kind(Task)
EVERY = Kind(Everything)


def round_trip(kind, entity):
    time_us = (
        NOW_US
        if getattr(entity, "updated_at", None) is None
        else (entity.updated_at - NOW) // datetime.timedelta(microseconds=1) + NOW_US
    )
    return kind.decode_entity(kind.schema, entity.id, entity.version, time_us, kind.payload(kind.stored_fields(entity)))


def same(one, other):
    """Equal in content and in every type: 1, True and 1.0 are different data."""
    return one == other and exact(one) == exact(other)


def exact(value):
    fields = value.__dict__ if isinstance(value, Entity) else value
    return msgspec.msgpack.encode(plain(fields), order="deterministic")


def fully(kind, stored, changes, header):
    """What `change_fields` must be the same as: everything together, validated as a whole."""
    return kind.stored_fields(kind.validate({**stored, **changes, **header}))


def change(kind, stored, changes, header):
    return kind.change_fields(stored, changes, lambda: header)


# --- defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "default", "why"),
    [
        (int, 2**70, "ints"),
        (str, "\ud800", "surrogates"),
        (pydantic.AwareDatetime, datetime.datetime.min.replace(tzinfo=EAST), "out of range"),
        (Json, object(), "a object"),
        (frozenset[decimal.Decimal], frozenset({decimal.Decimal(1), decimal.Decimal("NaN")}), "no order"),
    ],
)
def test_a_default_that_cannot_be_stored_is_refused_by_its_field(annotation, default, why):
    with pytest.raises(TypeError, match=rf"Doc\.field: its default .* cannot be stored: .*{why}"):
        Kind(create_model("Doc", __base__=Entity, field=(annotation, default)))


NAN = decimal.Decimal("NaN")


def test_a_default_that_is_no_number_stays_out_of_the_payload_wherever_it_was_made():
    """Its field would not take it."""
    kind = Kind(create_model("Doc", __base__=Entity, field=(float, float("nan")), price=(decimal.Decimal, NAN)))
    elsewhere = kind.model.model_construct(id="d", version=0, field=float("nan"), price=decimal.Decimal("NaN"))
    for entity in (kind.model(id="d"), elsewhere):
        assert kind.stored_fields(entity) == {}


# --- payloads ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(TASKS)
def test_a_task_reads_back_equal(task):
    stamped = task if task.updated_at else task.model_copy(update={"updated_at": NOW})
    assert same(round_trip(TASK, task), stamped)


@settings(max_examples=80, deadline=None)
@given(EVERYTHING)
def test_every_field_type_reads_back_equal(entity):
    again = round_trip(EVERY, entity)
    assert again == entity
    assert same(again.what, entity.what)
    assert same(again.union, entity.union)


@settings(max_examples=50, deadline=None)
@given(EVERYTHING, st.randoms(use_true_random=False))
def test_a_payload_does_not_depend_on_the_order_of_construction(entity, random):
    def shuffled(value):
        if isinstance(value, dict):
            items = list(value.items())
            random.shuffle(items)
            return {key: shuffled(item) for key, item in items}
        if isinstance(value, frozenset):
            items = list(value)
            random.shuffle(items)
            return frozenset(items)
        return [shuffled(item) for item in value] if isinstance(value, list | tuple) else value

    again = EVERY.validate(shuffled(entity.model_dump()))
    assert EVERY.payload(EVERY.stored_fields(again)) == EVERY.payload(EVERY.stored_fields(entity))


@settings(max_examples=50, deadline=None)
@given(EVERYTHING)
def test_fields_that_were_read_are_the_same_bytes_again(entity):
    payload = EVERY.payload(EVERY.stored_fields(entity))
    assert EVERY.payload(EVERY.fields_of(EVERY.schema, payload)) == payload


def test_a_payload_holds_what_differs_from_the_defaults_and_nothing_of_the_header():
    assert TASK.payload(TASK.stored_fields(Task(title="t", version=7, updated_at=NOW))) == msgspec.msgpack.encode(
        {"title": "t"}
    )
    assert EVERY.stored_fields(Everything(required="", numbers=(1, 2), tags={"y", "x"}, data={"a": [1, 2]})) == {
        "required": ""
    }


def test_what_was_made_by_a_factory_is_always_stored():
    class Coin(Entity):
        side: str = Field(default_factory=lambda: "heads")

    assert Kind(Coin).stored_fields(Coin()) == {"side": "heads"}


@pytest.mark.parametrize("value", [0, 0.0, False, 1, 1.0, True, "", (), FrozenMap()], ids=repr)
def test_plain_data_that_python_calls_equal_is_told_apart(value):
    entity = Everything(required="r", what=value, union=value if not isinstance(value, tuple | FrozenMap) else None)
    assert same(round_trip(EVERY, entity), entity)


def test_json_that_only_python_calls_equal_to_the_default_is_stored():
    class Doc(Entity):
        falsy: Json = 0
        truthy: Json = 1

    kind = Kind(Doc)
    for value in (False, 0.0, "", None, True, 1.0):
        entity = Doc(falsy=value, truthy=value)
        assert same(round_trip(kind, entity), entity)


def test_a_map_that_only_python_calls_equal_to_the_default_is_stored():
    class Doc(Entity):
        data: FrozenMap = FrozenMap(a=1)
        many: tuple[Json, ...] = (1,)

    entity = Doc(data={"a": True}, many=(1.0,))
    assert same(round_trip(Kind(Doc), entity), entity)


@pytest.mark.parametrize(
    ("default", "value"),
    [
        (decimal.Decimal("0.00"), decimal.Decimal("0")),
        (decimal.Decimal("1"), decimal.Decimal("1.00")),
        (0.0, -0.0),
        (datetime.time(12, tzinfo=UTC), datetime.time(13, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))),
    ],
    ids=str,
)
def test_a_number_or_time_that_only_python_calls_equal_to_the_default_is_stored(default, value):
    kind = Kind(create_model("Doc", __base__=Entity, what=(type(default), default)))
    assert str(round_trip(kind, kind.model(what=value)).what) == str(value)
    assert str(change(kind, {}, {"what": value}, {"id": "d", "version": 2})["what"]) == str(value)
    assert change(kind, {"what": value}, {"what": default}, {"id": "d", "version": 2}) == {}


PAYLOAD_IN_ANOTHER_PROCESS = """
from solewriter.shared.models import Entity, Task
from solewriter.shared.kinds.kind import Kind
class Doc(Entity):
    tags: frozenset[str] = frozenset("abcdefghijkl")
task = Kind(Task).stored_fields(Task(title="t", metadata={"b": 1, "a": {"d": 1, "c": 2}}, reviewers=["x", "y"]))
doc = Kind(Doc).stored_fields(Doc(tags={"h", "g", "f", "e"}))
print(Kind(Task).payload(task).hex(), Kind(Doc).payload(doc).hex())
print(Kind(Task).schema.digest().hex(), Kind(Doc).schema.digest().hex())
"""


def in_another_process(seed):
    env = {**os.environ, "PYTHONHASHSEED": seed}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", PAYLOAD_IN_ANOTHER_PROCESS], env=env, capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines()


@pytest.fixture(scope="module")
def in_other_processes():
    return [in_another_process(seed) for seed in ("1", "2")]


def test_a_payload_is_the_same_bytes_in_every_process(in_other_processes):
    payloads = {payload for payload, _ in in_other_processes}
    assert len(payloads) == 1
    assert msgspec.msgpack.decode(bytes.fromhex(payloads.pop().split()[1])) == {"tags": ["e", "f", "g", "h"]}


def test_a_schema_is_the_same_in_every_process(in_other_processes):
    assert len({digests for _, digests in in_other_processes}) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_retries", 2**70), ("description", "\ud800"), ("metadata", {"a": "\ud800"}), ("result", ["\udfff"])],
    ids=["integer", "text", "map", "json"],
)
def test_a_value_that_cannot_be_stored_is_refused_by_its_field(name, value):
    with pytest.raises(InvalidMutation) as refusal:
        TASK.payload(change(TASK, {"title": "t"}, {name: value}, {"id": "t-1", "version": 2, "updated_at": NOW}))
    assert set(refusal.value.fields) == {name}


@pytest.mark.parametrize(
    "moment", [datetime.datetime.min.replace(tzinfo=EAST), datetime.datetime.max.replace(tzinfo=WEST)], ids=str
)
def test_a_moment_that_is_in_no_year_of_utc_is_refused_as_such(moment):
    with pytest.raises(InvalidMutation, match="deadline holds a time") as refusal:
        TASK.payload({"title": "t", "deadline": moment})
    assert set(refusal.value.fields) == {"deadline"}


# --- changes ----------------------------------------------------------------------------------------------------------


def compare(kind, entity, changes, header):
    stored = kind.fields_of(kind.schema, kind.payload(kind.stored_fields(entity)))
    before = dict(stored)
    expected = outcome(kind, fully, kind, stored, changes, header)
    found = outcome(kind, change, kind, stored, changes, header)
    if isinstance(expected, set):
        assert isinstance(found, set)
        assert found
        assert found <= expected | set(changes)
    else:
        assert found == expected
    assert stored == before


def outcome(kind, make, *args):
    """The bytes that a change ends in, or the fields for which it is refused."""
    try:
        return kind.payload(make(*args))
    except InvalidMutation as refusal:
        return set(refusal.fields)


@settings(max_examples=80, deadline=None)
@given(TASKS, CHANGES)
def test_a_change_of_a_task_is_the_same_as_validating_all_of_it(task, changes):
    for name in TASK.fixed - {"status"}:
        changes.pop(name, None)
    compare(TASK, task, changes, {"id": "t-1", "version": task.version + 1, "updated_at": NOW})


@settings(max_examples=50, deadline=None)
@given(EVERYTHING, st.fixed_dictionaries({}, optional=EVERY_FIELD))
def test_a_change_of_any_field_type_is_the_same_as_validating_all_of_it(entity, changes):
    compare(EVERY, entity, changes, {"id": "e-1", "version": 2})


@settings(max_examples=50, deadline=None)
@given(EVERYTHING, st.fixed_dictionaries({}, optional=EVERY_FIELD))
def test_a_change_is_the_same_after_it_crossed_the_wire(entity, changes):
    stored = EVERY.fields_of(EVERY.schema, EVERY.payload(EVERY.stored_fields(entity)))
    header = {"id": "e-1", "version": 2}
    here = change(EVERY, stored, {name: EVERY.field(name, value) for name, value in changes.items()}, header)
    sent = {name: plain(EVERY.field(name, value)) for name, value in changes.items()}
    assert EVERY.payload(change(EVERY, stored, sent, header)) == EVERY.payload(here)


@settings(max_examples=50, deadline=None)
@given(EVERYTHING, st.sets(st.sampled_from(sorted(EVERY_FIELD))))
def test_setting_what_is_there_already_changes_no_byte(entity, names):
    payload = EVERY.payload(EVERY.stored_fields(entity))
    stored = EVERY.fields_of(EVERY.schema, payload)
    again = change(EVERY, stored, {name: plain(getattr(entity, name)) for name in names}, {"id": "e-1", "version": 2})
    assert EVERY.payload(again) == payload


@settings(max_examples=50, deadline=None)
@given(EVERYTHING, st.fixed_dictionaries({}, optional=EVERY_FIELD))
def test_the_cells_of_a_change_are_those_of_the_whole(entity, changes):
    stored = EVERY.stored_fields(entity)
    after = change(EVERY, stored, changes, {"id": "e-1", "version": 2})
    block, cells = EVERY.layout.cut(after, "e-1", 2, NOW_US)
    assert unpack_cells(EVERY.columns, block) == tuple(cell for _, cell in sorted(cells))
    assert [place for place, _ in sorted(cells)] == list(range(len(EVERY.columns)))
    before, _ = EVERY.layout.cut(stored, "e-1", 1, NOW_US)
    again, new = EVERY.layout.recut(before, after, set(changes), 2, NOW_US)
    assert again == block
    assert dict(new).items() <= dict(cells).items()
    read = EVERY.fields_of(EVERY.schema, EVERY.payload(after))
    assert EVERY.layout.cut(read, "e-1", 2, NOW_US)[0] == block


def test_the_cells_of_id_version_and_time_are_those_of_the_record():
    class Doc(Entity, columns=("id", "updated_at", "version", "size")):
        size: int = 3
        updated_at: pydantic.AwareDatetime | None = None

    kind = Kind(Doc)
    block, cells = kind.layout.cut({}, "d-1", 7, NOW_US)
    assert unpack_cells(kind.columns, block) == (text_hash("d-1"), NOW_US, 7, 3)
    assert sorted(cells) == [(0, text_hash("d-1")), (1, NOW_US), (2, 7), (3, 3)]
    again, cells = kind.layout.recut(block, {"size": 4}, {"size"}, 8, NOW_US + 1)
    assert unpack_cells(kind.columns, again) == (text_hash("d-1"), NOW_US + 1, 8, 4)
    assert sorted(cells) == [(1, NOW_US + 1), (2, 8), (3, 4)]


def test_a_changed_field_is_validated_in_its_parts_too():
    with pytest.raises(InvalidMutation) as refusal:
        change(TASK, {"title": "t"}, {"artifacts_expected": [{"path": "p"}, {"type": 7}]}, {"id": "t-1", "version": 2})
    assert set(refusal.value.fields) == {"artifacts_expected.1.path", "artifacts_expected.1.type"}


def test_a_rule_is_asked_whenever_a_field_changes_that_it_concerns():
    asked = []

    class Span(Entity):
        first: int = 0
        last: int = 0
        note: str = ""

        @model_validator(mode="after")
        @concerns("first", "last")
        def _order(self):
            asked.append((self.first, self.last))
            if self.first > self.last:
                raise broken("last", "ends before it begins")
            return self

    kind = Kind(Span)
    header = {"id": "s", "version": 2}
    assert change(kind, {"last": 3}, {"note": "n"}, header) == {"last": 3, "note": "n"}
    assert asked == []
    assert change(kind, {"last": 3}, {"first": 3, "note": "n"}, header) == {"first": 3, "last": 3, "note": "n"}
    assert asked == [(3, 3)]
    with pytest.raises(InvalidMutation) as refusal:
        change(kind, {"first": 3, "last": 3}, {"last": 0}, header)
    assert refusal.value.fields == {"last": "ends before it begins"}


def test_a_rule_is_asked_with_what_it_looks_at_and_no_other_field_is_validated_again():
    made = []

    class Piece(Part):
        below: tuple[Piece, ...] = ()

    class Span(Entity):
        first: int = 0
        last: Annotated[int, Field(ge=0)] = 0
        pieces: tuple[Piece, ...] = ()

        @model_validator(mode="after")
        @concerns("first", "last")
        def _order(self):
            made.append(dict(self.__dict__))
            if self.first > self.last:
                raise broken("last", "ends before it begins")
            return self

    kind, header = Kind(Span), {"id": "s", "version": 2}
    stored = {"last": 3, "pieces": [{"below": [{}]}]}
    assert change(kind, stored, {"first": "2"}, header) == {**stored, "first": 2}
    assert made == [{"first": 2, "last": 3}]
    with pytest.raises(InvalidMutation) as refusal:
        change(kind, {"last": 3}, {"first": "x", "last": -1}, header)
    assert set(refusal.value.fields) == {"first", "last"}


def test_a_rule_that_looks_further_than_it_says_is_asked_with_everything():
    class Span(Entity):
        first: int = 0
        last: int = 0
        strict: bool = False

        @model_validator(mode="after")
        @concerns("first", "last")
        def _order(self):
            if self.strict and self.first > self.last:
                raise broken("last", "ends before it begins")
            return self

    kind, header = Kind(Span), {"id": "s", "version": 2}
    assert change(kind, {"last": 3}, {"first": 5}, header) == {"last": 3, "first": 5}
    with pytest.raises(InvalidMutation) as refusal:
        change(kind, {"last": 3, "strict": True}, {"first": 5}, header)
    assert refusal.value.fields == {"last": "ends before it begins"}


def test_a_rule_sees_values_that_were_made_once_only():
    seen = []

    class Sum(Entity):
        amount: Annotated[int, AfterValidator(lambda value: value + 1)] = 0

        @model_validator(mode="after")
        @concerns("amount")
        def _rule(self):
            seen.append(self.amount)
            return self

    assert change(Kind(Sum), {}, {"amount": 1}, {"id": "s", "version": 2}) == {"amount": 2}
    assert seen == [2]


class Ruled(Entity):
    low: int = 0
    high: int = 10
    seen: str = ""


class WithBefore(Ruled):
    @model_validator(mode="before")
    @classmethod
    def _order(cls, values):
        if values.get("low", 0) > values.get("high", 10):
            values = {**values, "low": values["high"], "high": values["low"]}
        return values


class WithWrap(Ruled):
    @model_validator(mode="wrap")
    @classmethod
    def _order(cls, values, handler):
        made = handler(values)
        if made.low > made.high:
            raise broken("low", "too high")
        return made


class WithFieldValidator(Ruled):
    @field_validator("high")
    @classmethod
    def _order(cls, high, info):
        if info.data["low"] > high:
            raise ValueError("below low")
        return high


class WithSilentRule(Ruled):
    @model_validator(mode="after")
    def _note(self):
        return self.model_copy(update={"seen": f"{self.low}-{self.high}"})


class WithAssertion(Ruled):
    @model_validator(mode="after")
    def _order(self):
        assert self.low <= self.high, "low is too high"
        return self


class WithInfo(Ruled):
    @model_validator(mode="after")
    def _order(self, info):
        if self.low > self.high:
            raise ValueError("low is too high")
        return self


class WithPostInit(Ruled):
    _cache: int = 0

    def model_post_init(self, context):
        if self.low > self.high:
            raise ValueError("low is too high")


class WithInit(Ruled):
    def __init__(self, **values):
        super().__init__(**{**values, "seen": f"{values['low']}-{values['high']}"})


class WithItsSchema(Ruled):
    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        def noted(made):
            return made.model_copy(update={"seen": f"{made.low}-{made.high}"})

        return core_schema.no_info_after_validator_function(noted, handler(source))


@settings(max_examples=30, deadline=None)
@given(changes=st.fixed_dictionaries({}, optional={"low": st.integers(0, 20), "high": st.integers(0, 20)}))
@pytest.mark.parametrize(
    "model",
    [
        WithBefore,
        WithWrap,
        WithFieldValidator,
        WithSilentRule,
        WithAssertion,
        WithInfo,
        WithPostInit,
        WithInit,
        WithItsSchema,
    ],
)
def test_a_model_with_rules_of_any_kind_is_validated_as_a_whole(model, changes):
    compare(Kind(model), model.model_validate({"id": "r", "low": 1, "high": 5}), changes, {"id": "r", "version": 2})


class Forgetful(Ruled):
    @model_validator(mode="after")
    @concerns("low", "high")
    def _order(self):
        if self.low > self.high:
            raise ValueError("low is too high")


class ForgetfulWrap(Ruled):
    @model_validator(mode="wrap")
    @classmethod
    def _order(cls, values, handler):
        handler(values)


class ForgetfulField(Ruled):
    label: str | None = None

    @field_validator("low", "high")
    @classmethod
    def _positive(cls, value):
        if value < 0:
            raise ValueError("below 0")


class ForgetfulStrip(ForgetfulField):
    _positive = field_validator("low", "high")(lambda value: value)

    @field_validator("label", mode="before")
    @classmethod
    def _strip(cls, value):
        value.strip()


class ForgetfulPart(Part):
    label: str | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _known(cls, value, handler):
        handler(value)


def look_only(value):
    assert value


class ForgetfulType(Entity):
    name: Annotated[str, AfterValidator(str.strip)] = "x"
    label: Annotated[str | None, AfterValidator(look_only)] = None


class ForgetfulWhole(Part):
    label: str = ""

    @model_validator(mode="after")
    def _look(self):
        assert self.label


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (ForgetfulField, "ForgetfulField._positive: returns nothing, and that would be the value of low, high: end it "
         "with `return the value`"),
        (ForgetfulStrip, "ForgetfulStrip._strip: returns nothing, and that would be the value of label: end it with "
         "`return the value`"),
        (ForgetfulType, "ForgetfulType.label's validator: returns nothing, and that would be its value: end it with "
         "`return the value`"),
        (create_model("Holder", __base__=Entity, parts=(tuple[ForgetfulPart, ...], ())),
         "ForgetfulPart._known: returns nothing, and that would be the value of all fields: end it with `return what "
         "its handler returns`"),
        (create_model("Holder", __base__=Entity, part=(ForgetfulWhole | None, None)), "ForgetfulWhole._look: returns "
         "nothing, and that would be the part: end it with `return self`"),
    ],
)  # fmt: skip
def test_a_validator_that_returns_nothing_is_refused_in_parts_too(model, said):
    """Else each value of these fields becomes None, where they take that in silence."""
    with pytest.raises(TypeError, match=re.escape(said)):
        Kind(model)


class Written(Entity):
    """Its defaults are written as other numbers than they are."""

    ratio: float = 0
    share: float | None = 1
    bound: Annotated[float, Field(ge=0)] | None = 1
    count: int = 2.0
    both: int | float = 0


class WrittenRuled(Written):
    @model_validator(mode="after")
    def _whole(self):
        return self


@pytest.mark.parametrize("model", [Written, WrittenRuled])
@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("ratio", [0, 0.0], [-0.0, 1.0]),
        ("share", [1, 1.0], [None, 0.0]),
        ("bound", [1, 1.0], [None, 0.0]),
        ("count", [2, 2.0], [3]),
        ("both", [0], [0.0]),
    ],
)
def test_a_default_that_is_written_as_another_number_is_changed_by_another_value_only(model, name, same, other):
    kind = Kind(model)
    left_out, header = kind.payload({}), {"id": "w", "version": 2}.copy
    for value in same:
        assert kind.payload(kind.change_fields({}, {name: value}, header)) == left_out
        assert kind.replace_fields(left_out, {name: value})[0] == left_out
        assert kind.stored_fields(model.model_validate({name: value}), {}) == {}
    for value in other:
        changed = kind.change_fields({}, {name: value}, header)
        assert repr(changed) == repr({name: value})
        assert kind.replace_fields(left_out, {name: value})[0] == kind.payload(changed)
        assert repr(kind.stored_fields(model.model_validate({name: value}), {})) == repr(changed)
    explicit = kind.stored_fields(model.model_validate({name: same[-1]}))
    assert kind.stored_fields(model(), explicit) == explicit, "what was put as the one is not put anew as the other"


class Renamed(Entity):
    first: int = 0

    @model_validator(mode="after")
    @concerns("frist")
    def _order(self):
        return self


def test_a_rule_that_concerns_no_field_is_refused():
    """It would not be asked of the changes that it is for, and what it keeps out would come in."""
    with pytest.raises(TypeError, match=r"Renamed\._order: concerns 'frist', which is no field"):
        Kind(Renamed)


@pytest.mark.parametrize("fields", [(), (5,), (["low"],), (look_only,)], ids=["none", "int", "list", "rule"])
def test_concerns_takes_names(fields):
    """Without its brackets it would be called with the rule, and the rule never."""
    with pytest.raises(TypeError, match="concerns takes the names of the fields that a rule looks at"):
        concerns(*fields)


class Reminded(Forgetful):
    @model_validator(mode="after")
    def _order(self):
        return self


def look_within(self):
    with contextlib.suppress(KeyError):
        return self


def look_sometimes(self):
    return self if self.low > 0 else None


def look_in_parts(self):
    return self.low <= self.high and self


def raise_always(self):
    raise ValueError("no such thing any more")


@pytest.mark.parametrize(("model", "instead"), [(Forgetful, "self"), (ForgetfulWrap, "what its handler returns")])
def test_a_rule_that_returns_nothing_is_refused(model, instead):
    said = f"_order: returns nothing, and that would be the entity: end it with `return {instead}`"
    with pytest.raises(TypeError, match=re.escape(f"{model.__name__}.{said}")):
        Kind(model)
    with pytest.raises(TypeError, match=re.escape(f"Derived.{said}")):
        Kind(create_model("Derived", __base__=model))
    Kind(Reminded)


@pytest.mark.parametrize(
    "rule", [look_within, look_sometimes, look_in_parts, raise_always, functools.partial(raise_always)]
)
def test_a_rule_that_may_return_something_is_not_refused(rule):
    Kind(create_model("Ruler", __base__=Ruled, __validators__={"rule": model_validator(mode="after")(rule)}))


@pytest.mark.parametrize(
    ("config", "value"),
    [
        ({"str_strip_whitespace": True}, "  x "),
        ({"str_to_lower": True}, "X"),
        ({"str_max_length": 3}, "toolong"),
        ({"strict": True}, 7),
        ({"coerce_numbers_to_str": True}, 7),
    ],
)
def test_the_configuration_of_a_model_holds_for_its_single_fields(config, value):
    class Configured(Entity):
        model_config = ConfigDict(**config)
        text: str = ""

    compare(Kind(Configured), Configured(id="c", text="x"), {"text": value}, {"id": "c", "version": 2})


def test_validators_in_the_annotations_hold_for_single_fields():
    def moved(point):
        return point.model_copy(update={"x": point.x + 1}) if point.x == 0 else point

    class Decorated(Entity):
        name: Annotated[str, AfterValidator(str.lower), Field(min_length=2)] = "xx"
        point: Annotated[Point, AfterValidator(moved)] = Point(x=1)
        maybe: Annotated[Point | None, Field(description="a point")] = None

    kind = Kind(Decorated)
    for changes in ({"name": "ABC"}, {"name": "A"}, {"point": {"x": 0}}, {"point": {"y": 0}}, {"maybe": {"x": 5}}):
        compare(kind, Decorated(id="a"), changes, {"id": "a", "version": 2})


def test_a_validator_in_an_annotation_that_looks_at_other_fields_sees_them():
    def above(high, info):
        if high < info.data["low"]:
            raise ValueError("below low")
        return high

    class Range(Entity):
        low: int = 0
        high: Annotated[int, AfterValidator(above)] = 10

    compare(Kind(Range), Range(id="r", low=5), {"high": 1}, {"id": "r", "version": 2})


def test_only_models_with_code_that_may_change_values_are_validated_again_before_they_are_stored():
    class Lower(Part):
        name: Annotated[str, AfterValidator(str.lower)] = ""

    class Nested(Entity):
        names: tuple[Lower, ...] = ()

    class Counted(Part):
        number: int = 0

        def model_post_init(self, _):
            object.__setattr__(self, "number", self.number + 1)

    class Private(Part):
        _seen: int = 0

    class OfParts(Entity):
        counted: Counted = Counted()

    class OfPrivate(Entity):
        private: Private = Private()

    class WithPrivate(Entity):
        text: str = ""
        _seen: int = 0

    class WithBoth(WithPrivate):
        def model_post_init(self, _):
            object.__setattr__(self, "text", self.text.lower())

    private = Kind(WithPrivate)
    assert not any(kind.recasts for kind in (TASK, EVERY, Kind(Project), Kind(OfPrivate), private))
    assert private.checks_fields
    assert private.plain_fields == {"text"}
    assert private.validate({"id": "w", "version": 1})._seen == 0
    assert Kind(WithBoth).recasts
    assert not Kind(WithBoth).checks_fields
    assert all(Kind(model).recasts for model in (Nested, WithBefore, WithFieldValidator, WithSilentRule, OfParts))


def test_what_a_change_leaves_alone_may_be_of_an_earlier_validator():
    """A validator alone is no other schema: what it would make of older values is seen when they are changed."""

    class Note(Entity):
        text: Annotated[str, AfterValidator(str.strip)] = ""
        number: Annotated[int, AfterValidator(lambda value: value * 2)] = 0
        title: str = ""

    kind = Kind(Note)
    before = kind.payload({"text": "  x "})
    kind.read_back("n", 2, 0, kind.payload({"text": "  x ", "title": "t"}), before)
    for altered in ({"text": " y"}, {"text": "  x ", "number": 2}):
        with pytest.raises(InvalidMutation, match="read back"):
            kind.read_back("n", 2, 0, kind.payload(altered), before)
    kind.read_back("n", 2, 0, kind.payload({"text": "y"}), before)


def test_a_rule_that_older_values_would_not_pass_hinders_no_change_of_others():
    class Note(Entity):
        text: Annotated[str, AfterValidator(str.strip)] = ""
        low: int = 0

        @model_validator(mode="after")
        @concerns("low")
        def _rule(self):
            if self.low < 1:
                raise broken("low", "at least 1")
            return self

    kind = Kind(Note)
    kind.read_back("n", 2, 0, kind.payload({"text": "y"}), kind.payload({"text": "x"}))
    with pytest.raises(InvalidMutation, match="low"):
        kind.read_back("n", 2, 0, kind.payload({"low": -1}), kind.payload({"text": "x"}))


def test_a_cached_property_is_no_field():
    class Doc(Entity):
        text: str = ""

        @functools.cached_property
        def words(self):
            return len(self.text.split())

    doc = Doc(text="a b")
    assert doc.words == 2
    assert Kind(Doc).stored_fields(doc) == {"text": "a b"}


def test_a_cached_property_of_a_part_is_no_field_either():
    class Box(Part):
        width: int = 1

        @functools.cached_property
        def area(self):
            return self.width**2

    class Doc(Entity):
        box: Box = Box()
        boxes: tuple[Box, ...] = ()

    kind = Kind(Doc)
    doc = Doc(box=Box(width=3), boxes=(Box(width=4),))
    before = kind.payload(kind.stored_fields(doc))
    assert (doc.box.area, doc.boxes[0].area) == (9, 16)
    assert plain(kind.stored_fields(doc)) == {"box": {"width": 3}, "boxes": ({"width": 4},)}
    assert kind.payload(kind.stored_fields(doc)) == before


def test_a_field_that_is_not_there_is_refused_by_its_name():
    for refuse in (
        lambda: TASK.field("colour", 1),
        lambda: TASK.check_known("colour", 1),
        lambda: change(TASK, {"title": "t"}, {"colour": 1}, {"id": "t", "version": 2}),
    ):
        with pytest.raises(InvalidMutation, match="colour") as refusal:
            refuse()
        assert set(refusal.value.fields) == {"colour"}


def test_the_engines_own_fields_are_fixed():
    assert TASK.fixed == {"id", "version", "created_by", "created_at", "updated_at", "status", "attempts", "claim"}
    assert TASK.stamps == {"created_by", "created_at", "updated_at"}
    assert EVERY.fixed == {"id", "version"}
    assert EVERY.stamps == set()


# --- plain ------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(EVERYTHING)
def test_plain_values_can_be_validated_again(entity):
    values = plain(EVERY.stored_fields(entity))
    assert same(EVERY.validate({**values, "id": "e-1"}).what, entity.what)
    assert EVERY.validate({**values, "id": "e-1"}) == entity

    def types_in(value):
        yield type(value)
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
            yield from types_in(inner)

    assert set(types_in(values)) <= {dict, list, tuple, str, int, float, bool, bytes, type(None)}


def test_project_reads_back_equal():
    kind = Kind(Project)
    project = Project(name="p", status="paused", budget_limit=1, owner="ann", created_at=NOW, updated_at=NOW, version=2)
    assert same(round_trip(kind, project), project)
