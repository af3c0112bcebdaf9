"""Which models a process knows, by class and by name: those of the house, and those that it registers."""

from __future__ import annotations

import pytest
from pydantic import create_model

from solewriter.shared.config import KINDS_MAX
from solewriter.shared.entity import Entity, Part
from solewriter.shared.errors import UnknownKind
from solewriter.shared.models import Artifact, Task
from solewriter.shared.registry import Registry


class Older(Entity, kind="Doc"):
    pass


class Newer(Entity, kind="Doc"):
    pass


def test_task_and_project_come_with_the_house():
    assert [kind.name for kind in Registry()] == ["Task", "Project"]
    assert Registry().of(Task).model is Task


def test_a_class_is_one_kind_under_its_declared_name():
    registry = Registry([Older])
    assert registry.of(Older) is registry.named("Doc") is registry.add(Older)
    assert registry.get("Older") is None


def test_a_newer_class_of_the_same_name_takes_the_place_of_the_older():
    registry = Registry([Older, Newer])
    assert registry.named("Doc").model is Newer
    assert registry.of(Older).model is Older
    assert len(list(registry)) == 3


def test_a_class_is_registered_at_its_first_use():
    registry = Registry()
    assert registry.get("Doc") is None
    assert registry.of(Older) is registry.named("Doc")


def test_an_unknown_name_is_a_refusal_that_lists_the_known_ones():
    with pytest.raises(UnknownKind, match=r"'Ship'.*Task, Project") as refusal:
        Registry().named("Ship")
    assert refusal.value.kind == "Ship"


@pytest.mark.parametrize(
    "thing", [Part, Artifact, int, "Task", Task(id="t", title="t")], ids=lambda thing: str(thing)[:40]
)
def test_only_entities_can_be_registered(thing):
    with pytest.raises(TypeError):
        Registry().add(thing)


def test_a_state_has_at_most_64_kinds():
    registry = Registry()
    for number in range(KINDS_MAX - 2):
        registry.add(create_model(f"Kind{number}", __base__=Entity))
    with pytest.raises(TypeError, match=f"more than {KINDS_MAX} kinds"):
        registry.add(create_model("OneMore", __base__=Entity))
    assert registry.add(create_model("Kind0", __base__=Entity)).name == "Kind0"
