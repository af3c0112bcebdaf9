"""What every entity is, and how users' own models say what the engine needs to know."""

from __future__ import annotations

import copy
import datetime
import enum
import json
import pickle
import time
from typing import Annotated

import pytest
from pydantic import Field, ValidationError, model_validator

from solewriter.shared.entity import Entity, Lifecycle, Part, Ref, broken, new_id
from solewriter.shared.errors import InvalidMutation
from solewriter.shared.frozen import FrozenMap, Json
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import Artifact, Criterion, Project, Task

# --- immutable --------------------------------------------------------------------------------------------------------


def test_no_field_of_an_entity_can_be_set_or_deleted():
    task = Task(title="t", artifacts_expected=(Artifact(path="a"),))
    for name in Task.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(task, name, getattr(task, name))
        with pytest.raises(ValidationError, match="frozen"):
            delattr(task, name)
    with pytest.raises(ValidationError, match="frozen"):
        task.artifacts_expected[0].path = "b"
    with pytest.raises(ValidationError, match="frozen"):
        task.artifacts_expected[0].size = 1


def test_plain_lists_and_dicts_become_immutable_on_their_way_in():
    given = {"deep": [{"er": [1, 2]}]}
    task = Task(title="t", reviewers=["a"], metadata=given, result=given, acceptance_criteria=[{"description": "d"}])
    given["deep"].append("later")
    assert task.reviewers == ("a",)
    assert task.acceptance_criteria == (Criterion(description="d", met=False),)
    assert task.metadata == task.result == {"deep": ({"er": (1, 2)},)}
    assert type(task.result) is FrozenMap
    assert type(task.metadata["deep"][0]) is FrozenMap


def test_equal_entities_are_one_member_of_a_set():
    values = {"id": "t-1", "title": "t", "metadata": {"a": [1, {"b": None}]}, "result": [1, 2]}
    assert len({Task(**values), Task(**values), Task(**{**values, "result": [2, 1]})}) == 2


def test_an_entity_survives_pickle_copy_and_json():
    task = Task(
        title="t",
        metadata={"a": [1, {"b": 2.5}]},
        result={"done": True},
        deadline="2030-01-01T12:00:00+02:00",
        artifacts_expected=[Artifact(path="p")],
        status="assigned",
        assigned_to="ann",
    )
    assert pickle.loads(pickle.dumps(task)) == task
    assert copy.deepcopy(task) == task
    assert Task.model_validate_json(task.model_dump_json()) == task
    assert json.loads(task.model_dump_json())["metadata"] == {"a": [1, {"b": 2.5}]}
    assert task.deadline == datetime.datetime(2030, 1, 1, 10, tzinfo=datetime.UTC)


def test_ids_are_24_hex_digits_and_begin_with_their_time():
    before = time.time_ns() // 1_000_000
    ids = [new_id() for _ in range(1_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == 1_000
    assert {len(one) for one in ids} == {24}
    assert all(before <= int(one[:12], 16) <= after for one in ids)


# --- users' own models ------------------------------------------------------------------------------------------------


class Doc(Entity, kind="document", columns=("owner", "size")):
    owner: str
    size: int = 0


class Report(Doc, columns=("pages", "owner")):
    pages: int = 1


LIGHTS = Lifecycle("light", "red", {"red": ("green",), "green": ("red",)})


class Crossing(Entity, lifecycle=LIGHTS):
    light: str = "red"


class QuietCrossing(Crossing):
    pass


def test_a_subclass_goes_on_with_the_columns_and_adds_its_own_once():
    assert Doc.column_names == ("owner", "size")
    assert Report.column_names == ("owner", "size", "pages")
    assert Entity.column_names == ()


def test_a_kind_is_named_by_its_class_unless_it_says_otherwise():
    assert Doc.kind_name == "document"
    assert Report.kind_name == "Report"
    assert (Task.kind_name, Project.kind_name) == ("Task", "Project")


def test_a_subclass_inherits_the_lifecycle():
    assert QuietCrossing.lifecycle is LIGHTS
    assert LIGHTS.cancelled is None
    assert Doc.lifecycle is None


def test_a_class_of_several_bases_goes_on_with_the_columns_and_the_lifecycle_of_all_of_them():
    class Owned(Entity, columns=("owner",)):
        owner: str = ""

    class Chore(Owned, Task, columns=("room",)):
        room: str = ""

    class Errand(Task, Owned):
        pass

    class Lights(Owned, Crossing, lifecycle=Lifecycle("light", "red", {"red": ()})):
        pass

    assert Chore.column_names == ("owner", *Task.column_names, "room")
    assert Errand.column_names == (*Task.column_names, "owner")
    assert Chore.lifecycle is Errand.lifecycle is Task.lifecycle
    assert Lights.lifecycle.steps == {"red": ()}
    assert "status" in Kind(Chore).fixed


def test_a_class_of_two_lifecycles_says_which_one_it_has():
    """The field of the other one would be changed by updates, to anything."""
    slow = Lifecycle("light", "red", {"red": ("green",), "green": ("red",)})

    class Paid(Entity, lifecycle=Lifecycle("paid", "no", {"no": ("yes",), "yes": ()})):
        paid: str = "no"

    class Slow(Crossing, lifecycle=slow):
        pass

    with pytest.raises(TypeError, match=r"^Toll has the lifecycles of Crossing and Paid, which differ: .* lifecycle="):

        class Toll(Crossing, Paid):
            pass

    class Bridge(Crossing, Paid, lifecycle=slow):
        pass

    class Ferry(Slow, Crossing):
        pass

    class Same(QuietCrossing, Crossing):
        pass

    assert Bridge.lifecycle is Ferry.lifecycle is slow
    assert Same.lifecycle is LIGHTS


def test_a_rule_of_the_users_own_names_its_field():
    class Span(Entity):
        first: int
        last: int

        @model_validator(mode="after")
        def _order(self):
            if self.first > self.last:
                raise broken("last", "ends before it begins")
            return self

    with pytest.raises(InvalidMutation, match="ends before it begins") as refusal:
        Kind(Span).validate({"first": 2, "last": 1})
    assert refusal.value.fields == {"last": "ends before it begins"}


@pytest.mark.parametrize(
    ("at", "named"), [({"x": 1, "y": 2}, "at.y"), ({"x": -1}, "at.x"), ({"x": float("inf")}, "at.x")], ids=repr
)
def test_parts_refuse_what_they_do_not_declare(at, named):
    class Point(Part):
        x: Annotated[float, Field(ge=0)]

    class Place(Entity):
        at: Point

    with pytest.raises(InvalidMutation) as refusal:
        Kind(Place).validate({"at": at})
    assert set(refusal.value.fields) == {named}
    assert all(refusal.value.fields.values())


def test_a_ref_is_a_class_and_an_id_and_can_be_pickled():
    ref = Task.ref("t-1")
    assert ref == Ref(Task, "t-1") != Project.ref("t-1")
    assert pickle.loads(pickle.dumps(ref)) == ref
    with pytest.raises(AttributeError):
        ref.id = "t-2"


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_models_have_a_json_schema(mode):
    """Web frameworks ask every class for it that they answer with."""

    class Described(Entity):
        settings: FrozenMap = FrozenMap()
        few: Annotated[FrozenMap, Field(max_length=3, description="a few")] = FrozenMap()
        answers: tuple[Json, ...] = ()

    fields = Described.model_json_schema(mode=mode)["properties"]
    assert fields["settings"] == {"default": {}, "title": "Settings", "type": "object"}
    assert fields["few"] == {"default": {}, "title": "Few", "type": "object", "maxLength": 3, "description": "a few"}
    assert fields["answers"] == {"default": [], "title": "Answers", "type": "array", "items": {}}
    assert Task.model_json_schema(mode=mode)["properties"]["metadata"]["type"] == "object"
    assert Project.model_json_schema(mode=mode)["properties"]["status"]


@pytest.mark.parametrize(
    ("initial", "steps", "cancelled"),
    [
        ("gone", {"red": ("green",), "green": ()}, None),
        ("red", {"red": ("green", "gone"), "green": ()}, None),
        ("red", {"red": ("green",), "green": ()}, "gone"),
    ],
)
def test_a_lifecycle_names_every_state_in_its_steps(initial, steps, cancelled):
    """Another one could never be reached, or left."""
    with pytest.raises(TypeError, match=r"'gone' is none of the states in steps: red, green"):
        Lifecycle("light", initial, steps, cancelled)


@pytest.mark.parametrize(
    "steps", ["red", ["red"], {"red": ("green"), "green": ()}], ids=["text", "list", "no comma"]
)  # fmt: skip
def test_steps_that_are_no_mapping_to_tuples_are_told_as_that(steps):
    with pytest.raises(TypeError, match=r"a lifecycle: steps is a mapping of each state to a tuple"):
        Lifecycle("light", "red", steps)


@pytest.mark.parametrize("states", [enum.Enum("Light", ["RED", "OFF"]), enum.IntEnum("Number", ["RED", "OFF"])])
def test_states_that_are_no_text_are_told_where_they_are_named(states):
    """An enum's values are meant: of other members no entity could be made, and of numbers no step."""
    with pytest.raises(TypeError, match=r"states are text, as an enum's values are, not <(Light|Number)\.RED"):
        Lifecycle("light", states.RED, {states.RED: (states.OFF,), states.OFF: ()})
    texts = enum.Enum("Text", {"RED": "red", "OFF": "off"}, type=str)
    assert Lifecycle("light", texts.RED, {texts.RED: (texts.OFF,), texts.OFF: ()}).allowed("red") == ("off",)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"kind": 5}, "kind is a name, not 5"),
        ({"lifecycle": "light"}, r"lifecycle is a Lifecycle\(\.\.\.\), not 'light'"),
        ({"lifecycle": {}}, r"lifecycle is a Lifecycle\(\.\.\.\), not {}"),
        ({"columns": None}, "columns is a tuple of names, not None"),
        ({"columns": {"light"}}, "columns is a tuple of names, not {'light'}"),
        ({"column": ("light",)}, "a class takes kind, columns and lifecycle, not column"),
    ],
    ids=repr,
)
def test_what_a_class_declares_is_told_where_it_is_declared(declared, said):
    """A set of columns has another order in each process: one could not write what the other has."""
    with pytest.raises(TypeError, match=rf"Lamp: {said}"):

        class Lamp(Entity, **declared):
            light: str = "red"


def test_a_column_that_is_named_twice_is_one():
    class Lamp(Entity, columns=("light", "room", "light")):
        light: str = "red"
        room: str = ""

    assert Lamp.column_names == ("light", "room")
    assert Kind(Lamp).layout.cut({"light": "green"}, "id", 1, 0)
