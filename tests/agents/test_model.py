"""The history checker's own idea of what an engine must do: small, independent, and right where words can say it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from solewriter import (
    Cancel,
    Create,
    Delete,
    Entity,
    Lifecycle,
    Project,
    Put,
    Require,
    RequireAbsent,
    Task,
    TaskStatus,
    Transition,
    Update,
)
from solewriter.agents.testing import model as module
from solewriter.agents.testing.model import Model, Refusal
from solewriter.agents.testing.steps import Key, condition_of, kinds_of, step_of

NOW = "2030-01-02T03:04:05.000006Z"
LATER = "2030-01-02T03:04:06Z"
T = Key("Task", "t")


class Door(Entity, lifecycle=Lifecycle("state", "shut", {"shut": ("open",), "open": ("shut",)})):
    state: str = "shut"


@pytest.fixture
def model() -> Model:
    return Model(kinds_of([Door]))


def ask(model: Model, *mutations, guards=(), actor="me", now=NOW) -> list[int]:
    """Decide a request: the version of each mutation's entity."""
    steps = [step_of(mutation) for mutation in mutations]
    model.take(model.decide(steps, [condition_of(guard) for guard in guards], actor, now))
    return [model.version(step.key) for step in steps]


def refusal(model: Model, *mutations, guards=()) -> tuple:
    """What a request is refused with. It changes nothing."""
    before, revision = dict(model.held), model.revision
    with pytest.raises(Refusal) as refused:
        ask(model, *mutations, guards=guards)
    assert (model.held, model.revision) == (before, revision)
    return refused.value.args


def entity(model: Model) -> Task:
    return Task.model_validate(model.stored(T))


def test_it_is_small_and_shares_nothing_with_the_engine():
    text = Path(module.__file__).read_text()
    assert len(text.splitlines()) < 200
    imported = {node.module for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("solewriter")} == {
        "solewriter.agents.testing",
        "solewriter.agents.testing.altered",
        "solewriter.agents.testing.steps",
        "solewriter.agents.testing.tasks",
        "solewriter.shared.entity",
        "solewriter.shared.models",
    }


def test_versions_and_revisions_count_what_changes(model):
    assert ask(model, Create(Task(title="x", id="t"))) == [1]
    assert ask(model, Update(Task.ref("t"), {"title": "y"})) == [2]
    assert ask(model, Update(Task.ref("t"), {"title": "y"})) == [2], "no change, no version"
    assert ask(model, Delete(Task.ref("t"))) == [3]
    assert ask(model, Create(Task(title="x", id="t"))) == [4]
    assert model.revision == 4


def test_a_request_is_one_version_at_one_revision(model):
    made = Create(Task(title="x", id="t"))
    assert ask(model, made, Update(Task.ref("t"), {"title": "y"}), Create(Task(title="u", id="u"))) == [1, 1, 1]
    assert model.revision == 1
    assert ask(model, Create(Task(title="v", id="v")), Delete(Task.ref("v"))) == [0, 0]
    assert ask(model, Delete(Task.ref("t")), Create(Task(title="z", id="t"))) == [2, 2]
    assert model.revision == 2


def test_the_engine_fills_in_who_and_when(model):
    ask(model, Create(Task(title="x", id="t")))
    ask(model, Update(Task.ref("t"), {"title": "y"}), actor="other", now=LATER)
    stored = model.stored(T)
    assert (stored["created_by"], stored["created_at"], stored["updated_at"]) == ("me", NOW, LATER)
    ask(model, Put(Task(title="z", id="t", created_by="somebody")), actor="other", now=LATER)
    assert (model.stored(T)["created_by"], model.stored(T)["created_at"]) == ("me", NOW)


def test_refusals_of_content(model):
    assert refusal(model, Update(Task.ref("t"), {"title": "y"})) == ("NotFound", None, None)
    assert refusal(model, Delete(Task.ref("t"))) == ("NotFound", None, None)
    assert refusal(model, Put(Task(title="x", id="t"), expect=2)) == ("VersionConflict", 0, None)
    ask(model, Create(Task(title="x", id="t")))
    assert refusal(model, Create(Task(title="x", id="t"))) == ("AlreadyExists", None, None)
    assert refusal(model, Put(Task(title="x", id="t"), expect=0)) == ("VersionConflict", 1, None)
    stale = entity(model)
    ask(model, Update(Task.ref("t"), {"title": "y"}))
    assert refusal(model, Update(stale, {"title": "z"})) == ("VersionConflict", 2, None)
    assert refusal(model, Update(entity(model), {"assigned_to": "me"})) == ("InvalidMutation", None, None)
    finished = Create(Task(title="x", id="u", status=TaskStatus.CANCELLED))
    assert refusal(model, finished) == ("InvalidMutation", None, None)


def test_what_was_asked_is_compared_with_the_state_before_the_request(model):
    ask(model, Create(Task(title="x", id="t")))
    now = entity(model)
    assert ask(model, Update(now, {"title": "y"}), Update(now, {"description": "z"})) == [2, 2]
    assert refusal(model, Create(Task(title="u", id="u")), Update(Task.ref("u"), {"title": "y"}, expect=1)) == (
        "VersionConflict",
        0,
        None,
    )


def test_refusals_along_a_lifecycle(model):
    ask(model, Create(Task(title="x", id="t")), Create(Door(id="d")), Create(Project(name="p", id="p")))
    ways = Task.lifecycle.allowed("created")
    assert refusal(model, Transition(Task.ref("t"), "completed")) == ("InvalidTransition", None, ways)
    assert refusal(model, Transition(Task.ref("t"), "assigned")) == ("InvalidMutation", None, None)
    assert refusal(model, Cancel(Door.ref("d"))) == ("InvalidMutation", None, None)
    assert ask(model, Transition(Door.ref("d"), "open")) == [2]
    assert refusal(model, Transition(Door.ref("d"), "open")) == ("InvalidTransition", None, ("shut",))
    assert ask(model, Cancel(Task.ref("t"))) == [2]
    assert ask(model, Cancel(Task.ref("t"))) == [2], "cancelled already"
    assert refusal(model, Put(Task(title="x", id="t"))) == ("InvalidTransition", None, ())


def test_guards_come_first_and_are_about_the_state_before(model):
    ask(model, Create(Task(title="x", id="t")))
    now = entity(model)
    assert ask(model, Update(now, {"title": "y"}), guards=[Require(now)]) == [2]
    assert refusal(model, Update(Task.ref("nobody"), {}), guards=[Require(now)]) == ("GuardFailed", 2, None)
    assert refusal(model, Delete(Task.ref("t")), guards=[RequireAbsent(Task, "t")]) == ("GuardFailed", 2, None)
    assert ask(model, Delete(Task.ref("t")), guards=[RequireAbsent("Task", "u")]) == [3]
    assert ask(model, Create(Task(title="z", id="t")), guards=[RequireAbsent(Task, "t")]) == [4]
