"""What Task and Project promise (DESIGN 5.1), written down a second time, and how users' own models take part."""

from __future__ import annotations

import copy
import datetime
import json
import pickle
import time
from typing import Annotated

import pytest
from pydantic import Field, ValidationError, model_validator

from solewriter.shared.errors import InvalidMutation
from solewriter.shared.frozen import FrozenMap, Json
from solewriter.shared.kind import Kind
from solewriter.shared.models import (
    PROJECT_LIFECYCLE,
    TASK_LIFECYCLE,
    Artifact,
    BudgetPolicy,
    Complexity,
    Criterion,
    DependencyPolicy,
    Entity,
    Lifecycle,
    Part,
    Project,
    ProjectStatus,
    Ref,
    Task,
    TaskPriority,
    TaskStatus,
    TaskStructure,
    TaskType,
    Topology,
    broken,
    new_id,
)

# The table of DESIGN 5.1, cell by cell: a row is a state, x a step that is allowed.
TASK_TABLE = """
                 cr as ip ir co au bl fa in su re ca
  created         .  x  .  .  .  .  .  .  .  .  x  x
  assigned        .  .  x  .  .  x  x  x  x  x  .  x
  in_progress     .  .  .  x  .  x  x  x  x  x  .  x
  in_review       .  .  x  .  x  .  x  .  .  .  .  x
  completed       .  .  .  .  .  .  .  .  .  .  .  .
  auth_required   .  x  .  .  .  .  .  .  .  .  .  x
  blocked         .  x  .  .  .  .  .  .  .  .  .  x
  failed          .  x  .  .  .  .  .  .  .  .  .  x
  interrupted     .  x  .  .  .  .  .  .  .  .  .  x
  suspended       .  x  .  .  .  .  .  .  .  .  .  x
  rejected        .  .  .  .  .  .  .  .  .  .  .  .
  cancelled       .  .  .  .  .  .  .  .  .  .  .  .
"""
CELLS = {line.split()[0]: line.split()[1:] for line in TASK_TABLE.strip().splitlines()[1:]}
STATES = tuple(CELLS)
NEEDS_NOBODY = {"created", "blocked", "failed", "interrupted", "suspended", "rejected", "cancelled"}

TASK = Kind(Task)
PROJECT = Kind(Project)


def refused_fields(kind, **values):
    with pytest.raises(InvalidMutation) as refusal:
        kind.validated(values)
    assert all(refusal.value.fields.values())
    return set(refusal.value.fields)


# --- lifecycles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STATES)
def test_every_cell_of_the_task_table_is_as_in_the_design(state):
    allowed = {to for to, mark in zip(STATES, CELLS[state], strict=True) if mark == "x"}
    assert set(TASK_LIFECYCLE.allowed(state)) == allowed
    assert len(TASK_LIFECYCLE.allowed(state)) == len(allowed)


def test_the_task_table_knows_exactly_the_states_of_the_field():
    assert set(TASK_LIFECYCLE.steps) == set(STATES) == {status.value for status in TaskStatus}
    assert (TASK_LIFECYCLE.field, TASK_LIFECYCLE.initial) == ("status", "created")
    assert TASK_LIFECYCLE.cancelled == "cancelled"
    assert TASK_LIFECYCLE.allowed("no such state") == ()


def test_a_state_can_be_asked_for_by_its_enum_member_too():
    assert TASK_LIFECYCLE.allowed(TaskStatus.CREATED) == TASK_LIFECYCLE.allowed("created")


@pytest.mark.parametrize(
    ("state", "allowed"),
    [("active", {"paused", "archived"}), ("paused", {"active", "archived"}), ("archived", {"active"})],
)
def test_every_step_of_a_project(state, allowed):
    assert set(PROJECT_LIFECYCLE.allowed(state)) == allowed
    assert set(PROJECT_LIFECYCLE.steps) == {status.value for status in ProjectStatus}
    assert PROJECT_LIFECYCLE.initial == "active"


def test_the_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        TASK_LIFECYCLE.steps["completed"] = ("assigned",)
    with pytest.raises(AttributeError):
        TASK_LIFECYCLE.field = "type"


# --- the rules of a task ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATES)
def test_a_task_has_an_assignee_exactly_where_its_state_says_so(status):
    without = {"title": "t", "status": status}
    if status in NEEDS_NOBODY:
        assert TASK.validated(without).assigned_to is None
    else:
        assert refused_fields(TASK, **without) == {"assigned_to"}
    if status == "created":
        assert refused_fields(TASK, **without, assigned_to="ann") == {"assigned_to"}
    else:
        assert TASK.validated({**without, "assigned_to": "ann"}).assigned_to == "ann"


@pytest.mark.parametrize("name", ["dependencies", "reviewers", "delegation_chain"])
def test_nobody_and_nothing_is_named_twice(name):
    assert refused_fields(TASK, title="t", **{name: ("a", "b", "a")}) == {name}
    assert getattr(TASK.validated({"title": "t", name: ("a", "b")}), name) == ("a", "b")


def test_a_task_does_not_depend_on_itself():
    assert refused_fields(TASK, title="t", id="t-1", dependencies=("t-0", "t-1")) == {"dependencies"}


def test_a_task_is_not_its_own_parent():
    assert refused_fields(TASK, title="t", id="t-1", parent_task_id="t-1") == {"parent_task_id"}
    assert TASK.validated({"title": "t", "id": "t-1", "parent_task_id": "t-0"}).parent_task_id == "t-0"


def test_an_assignee_is_not_in_the_delegation_chain():
    values = {"title": "t", "status": "assigned", "delegation_chain": ("ann", "bob")}
    assert refused_fields(TASK, **values, assigned_to="bob") == {"assigned_to"}
    assert TASK.validated({**values, "assigned_to": "eve"}).delegation_chain == ("ann", "bob")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("title", ""),
        ("title", 7),
        ("id", ""),
        ("id", "x" * 256),
        ("version", -1),
        ("type", "sleeping"),
        ("priority", "urgent"),
        ("status", "done"),
        ("estimated_complexity", "hard"),
        ("task_structure", "circular"),
        ("coordination_topology", "ring"),
        ("budget_limit", -0.01),
        ("budget_limit", float("nan")),
        ("budget_limit", float("inf")),
        ("max_retries", -1),
        ("max_retries", 0.5),
        ("deadline", "tomorrow"),
        ("deadline", datetime.datetime(2030, 1, 1)),
        ("deadline", "2030-01-01T00:00:00"),
        ("dependencies", "t-1"),
        ("metadata", [1]),
        ("metadata", {"x": float("nan")}),
        ("metadata", {1: "x"}),
        ("result", object()),
        ("result", {1, 2}),
        ("no_such_field", 1),
    ],
)
def test_a_value_that_its_field_cannot_have_is_refused_by_the_name_of_the_field(name, value):
    assert refused_fields(TASK, **{"title": "t", name: value}) == {name}


def test_the_place_inside_a_part_is_named_too():
    assert refused_fields(TASK, title="t", artifacts_expected=[{"path": "a"}, {"paht": "b"}]) == {
        "artifacts_expected.1.path",
        "artifacts_expected.1.paht",
    }
    assert refused_fields(TASK, title="t", acceptance_criteria=[{"description": "d", "met": "perhaps"}]) == {
        "acceptance_criteria.0.met"
    }


def test_every_failing_field_is_named_at_once():
    assert refused_fields(TASK, priority="urgent", max_retries=-1) == {"title", "priority", "max_retries"}


def test_only_a_title_is_required_and_the_other_defaults_are_these():
    task = Task(title="t")
    assert task.model_dump(exclude={"id"}) == {
        "version": 0,
        "title": "t",
        "description": "",
        "type": TaskType.DEVELOPMENT,
        "priority": TaskPriority.MEDIUM,
        "project": "",
        "created_by": "",
        "assigned_to": None,
        "reviewers": (),
        "dependencies": (),
        "artifacts_expected": (),
        "acceptance_criteria": (),
        "estimated_complexity": Complexity.MEDIUM,
        "budget_limit": None,
        "deadline": None,
        "max_retries": 0,
        "status": TaskStatus.CREATED,
        "parent_task_id": None,
        "delegation_chain": (),
        "task_structure": TaskStructure.SEQUENTIAL,
        "coordination_topology": Topology.AUTO,
        "source": "",
        "metadata": {},
        "result": None,
        "cost": 0.0,
        "not_before": None,
        "retry_delay_s": None,
        "on_dependency_failure": DependencyPolicy.BLOCK,
        "attempts": 0,
        "claim": 0,
        "created_at": None,
        "updated_at": None,
    }
    assert refused_fields(TASK) == {"title"}


@pytest.mark.parametrize(
    ("enum", "values"),
    [
        (TaskType, "development design research review meeting admin"),
        (TaskPriority, "critical high medium low"),
        (Complexity, "simple medium complex epic"),
        (TaskStructure, "sequential parallel mixed"),
        (Topology, "auto sas centralized decentralized context_dependent"),
        (ProjectStatus, "active paused archived"),
        (DependencyPolicy, "block cancel ignore"),
        (BudgetPolicy, "refuse warn"),
    ],
)
def test_the_words_of_a_task_are_those_of_the_design(enum, values):
    assert [member.value for member in enum] == values.split()


def test_a_project_needs_a_name_and_has_these_defaults():
    assert refused_fields(PROJECT) == {"name"}
    assert refused_fields(PROJECT, name="", budget_limit=-1) == {"name", "budget_limit"}
    assert refused_fields(PROJECT, name="p", titel="x") == {"titel"}
    assert Project(name="p").model_dump(exclude={"id"}) == {
        "version": 0,
        "name": "p",
        "description": "",
        "status": ProjectStatus.ACTIVE,
        "budget_limit": None,
        "on_budget": BudgetPolicy.REFUSE,
        "owner": "",
        "created_at": None,
        "updated_at": None,
    }


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


def test_a_subclass_of_task_keeps_the_table_the_columns_and_the_rules():
    class Errand(Task, columns=("street",)):
        street: str = ""

        @model_validator(mode="after")
        def _rules(self):
            if self.street == "nowhere":
                raise broken("street", "is none")
            return self

    assert refused_fields(Kind(Errand), title="t", street="nowhere") == {"street"}
    assert Errand.lifecycle is TASK_LIFECYCLE
    assert Errand.column_names == (*Task.column_names, "street")
    assert refused_fields(Kind(Errand), title="t", status="assigned") == {"assigned_to"}
    assert refused_fields(Kind(Errand), title="t", id="a", dependencies=["a"]) == {"dependencies"}


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
        Kind(Span).validated({"first": 2, "last": 1})
    assert refusal.value.fields == {"last": "ends before it begins"}


def test_parts_refuse_what_they_do_not_declare():
    class Point(Part):
        x: Annotated[float, Field(ge=0)]

    class Place(Entity):
        at: Point

    assert refused_fields(Kind(Place), at={"x": 1, "y": 2}) == {"at.y"}
    assert refused_fields(Kind(Place), at={"x": -1}) == {"at.x"}
    assert refused_fields(Kind(Place), at={"x": float("inf")}) == {"at.x"}


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
