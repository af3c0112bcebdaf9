"""A field that the engine itself reads or fills in holds what the engine can read, or fills in."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal, NewType

import pydantic
import pytest
from pydantic import Field, create_model

from solewriter.shared.entity import Entity
from solewriter.shared.kinds.fieldtypes import UnsuitableField
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import Task


class Size(enum.StrEnum):
    SMALL = "small"
    LARGE = "large"


Name = NewType("Name", str)


@pytest.mark.parametrize(
    ("name", "annotation", "default"),
    [
        ("id", int, 1),
        ("id", uuid.UUID, Field(default_factory=uuid.uuid4)),
        ("id", str | None, None),
        ("version", str, "1"),
        ("created_by", int, 0),
        ("created_by", uuid.UUID | None, None),
        ("created_at", datetime.date | None, None),
        ("updated_at", str, ""),
        ("updated_at", pydantic.NaiveDatetime | None, None),
        ("updated_at", float, 0.0),
    ],
)
def test_a_field_that_the_engine_fills_in_can_hold_what_it_is_filled_with(name, annotation, default):
    with pytest.raises(UnsuitableField, match=rf"Doc\.{name}: .*{'str' if name in ('id', 'created_by') else ''}"):
        create_model("Doc", __base__=Entity, **{name: (annotation, default)})


@pytest.mark.parametrize(
    ("name", "annotation", "default"),
    [
        ("id", Name, "one"),
        ("id", Annotated[str, Field(pattern="^d")], ...),
        ("version", pydantic.NonNegativeInt, 0),
        ("created_by", str | None, None),
        ("created_by", Size, Size.SMALL),
        ("created_by", Literal["ann", ""], ""),
        ("created_at", datetime.datetime | None, None),
        ("updated_at", pydantic.AwareDatetime, ...),
    ],
)
def test_a_field_that_the_engine_fills_in_may_say_more(name, annotation, default):
    assert Kind(create_model("Doc", __base__=Entity, **{name: (annotation, default)}))


# --- of tasks, what the engine coordinates by -------------------------------------------------------------------------


def task_with(name: str, annotation: Any, default: Any) -> type[Task]:
    return type("Own", (Task,), {"__annotations__": {name: annotation}, name: default, "__module__": __name__})


@pytest.mark.parametrize(
    ("name", "annotation", "default", "instead"),
    [
        ("cost", str, "much", "float"),
        ("cost", decimal.Decimal, decimal.Decimal(1), "float"),
        ("cost", float | None, None, "float"),
        ("attempts", int | None, None, "int"),
        ("not_before", str, "soon", "AwareDatetime | None"),
        ("not_before", datetime.datetime | None, None, "AwareDatetime | None"),
        ("dependencies", tuple[int, ...], (), "tuple[str, ...]"),
        ("project", int, 5, "str"),
        ("status", int, 5, "TaskStatus"),
    ],
)
def test_a_field_that_the_engine_coordinates_by_has_values_that_it_can_compare_and_add(
    name: str, annotation: Any, default: Any, instead: str
) -> None:
    """A claim, or the first look at a project's costs, would end the engine."""
    with pytest.raises(UnsuitableField) as refusal:
        task_with(name, annotation, default)
    assert f"Own.{name}: the engine coordinates by it: use {instead}, " in str(refusal.value)


def test_such_a_field_may_be_narrowed_and_others_may_be_anything() -> None:
    for name, annotation, default in [
        ("cost", int, 1),
        ("max_retries", Literal[1, 2], 1),
        ("assigned_to", Literal["ann", "bob"] | None, None),
        ("dependencies", tuple[Annotated[str, Field(max_length=9)], ...], ()),
        ("priority", int, 3),
        ("metadata", str, ""),
    ]:
        assert Kind(task_with(name, annotation, default)).claimable
