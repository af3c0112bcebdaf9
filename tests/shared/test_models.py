"""What Task and Project promise (DESIGN 5.1), written down a second time."""

from __future__ import annotations

import datetime
import enum
from typing import Literal

import pytest
from pydantic import ConfigDict, model_validator

from solewriter.shared.entity import broken
from solewriter.shared.errors import InvalidMutation
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import (
    PROJECT_LIFECYCLE,
    TASK_LIFECYCLE,
    BudgetPolicy,
    Complexity,
    DependencyPolicy,
    Project,
    ProjectStatus,
    Task,
    TaskPriority,
    TaskStatus,
    TaskStructure,
    TaskType,
    Topology,
)
from solewriter.shared.where import single

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
        kind.validate(values)
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
        assert TASK.validate(without).assigned_to is None
    else:
        assert refused_fields(TASK, **without) == {"assigned_to"}
    if status == "created":
        assert refused_fields(TASK, **without, assigned_to="ann") == {"assigned_to"}
    else:
        assert TASK.validate({**without, "assigned_to": "ann"}).assigned_to == "ann"


@pytest.mark.parametrize("name", ["dependencies", "reviewers", "delegation_chain"])
def test_nobody_and_nothing_is_named_twice(name):
    assert refused_fields(TASK, title="t", **{name: ("a", "b", "a")}) == {name}
    assert getattr(TASK.validate({"title": "t", name: ("a", "b")}), name) == ("a", "b")


def test_a_task_does_not_depend_on_itself():
    assert refused_fields(TASK, title="t", id="t-1", dependencies=("t-0", "t-1")) == {"dependencies"}


def test_a_task_is_not_its_own_parent():
    assert refused_fields(TASK, title="t", id="t-1", parent_task_id="t-1") == {"parent_task_id"}
    assert TASK.validate({"title": "t", "id": "t-1", "parent_task_id": "t-0"}).parent_task_id == "t-0"


def test_an_assignee_is_not_in_the_delegation_chain():
    values = {"title": "t", "status": "assigned", "delegation_chain": ("ann", "bob")}
    assert refused_fields(TASK, **values, assigned_to="bob") == {"assigned_to"}
    assert TASK.validate({**values, "assigned_to": "eve"}).delegation_chain == ("ann", "bob")


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


Words = enum.StrEnum("Words", [*STATES])
Names = enum.Enum("Names", {state.upper(): state for state in STATES})


class ByLiterals(Task):
    status: Literal["created", "assigned", "in_progress", "completed"] = "created"


class ByWords(Task):
    status: Words = Words.created


class ByNames(Task):
    status: Names = Names.CREATED


class ByValues(Task):
    model_config = ConfigDict(use_enum_values=True)


@pytest.mark.parametrize("cls", [ByLiterals, ByWords, ByNames, ByValues])
def test_a_class_that_has_the_states_in_another_form_keeps_the_rules(cls):
    kind = Kind(cls)
    assert refused_fields(kind, title="t", assigned_to="ann") == {"assigned_to"}
    for status in ("created", "assigned", "completed"):
        nobody = None if status == "created" else "ann"
        assert single(kind.validate({"title": "t", "status": status, "assigned_to": nobody}).status) == status
        somebody = "ann" if status == "created" else None
        assert refused_fields(kind, title="t", status=status, assigned_to=somebody) == {"assigned_to"}


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
