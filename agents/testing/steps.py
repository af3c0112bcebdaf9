"""A request as it was asked, in plain data: to be written down, asked again, and decided anew by a model.

It is made here from the public mutations, not by the code that sends them, so that a mistake there is seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from pydantic_core import to_jsonable_python

from solewriter.shared.models import Entity, Project, Ref, Task
from solewriter.shared.mutations import (
    Cancel,
    Create,
    Delete,
    Expect,
    FromTarget,
    GuardMutation,
    Mutation,
    Put,
    Require,
    RequireAbsent,
    Target,
    Transition,
    Update,
)

Fields = dict[str, Any]
Kinds = Mapping[str, type[Entity]]
SHIPPED: tuple[type[Entity], ...] = (Task, Project)


class Key(NamedTuple):
    """Which entity."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mutation. `expect`: the version that must be stored before the request, 0 for none, None for any."""

    op: str
    kind: str
    id: str
    expect: int | None = None
    fields: Fields = {}
    to: str = ""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.id)


class Condition(msgspec.Struct, frozen=True):
    """One guard: the version that must be stored, 0 for none."""

    kind: str
    id: str
    version: int

    @property
    def key(self) -> Key:
        return Key(self.kind, self.id)


def kinds_of(models: Iterable[type[Entity]]) -> Kinds:
    """The shipped models and these, by name."""
    return {model.kind_name: model for model in (*SHIPPED, *models)}


def plain(entity: Entity) -> Fields:
    """All fields of an entity as JSON has them: the one form in which contents are compared. Times are in UTC and sets
    in order, as they are stored.
    """
    fields = entity.model_dump(mode="json")
    for name, value in entity.__dict__.items():
        if isinstance(value, datetime) and value.utcoffset():
            fields[name] = to_jsonable_python(value.astimezone(UTC))
        elif isinstance(value, frozenset):
            fields[name] = sorted(fields[name], key=repr)
    return fields


def digest(fields: Fields) -> str:
    """Names one content in few characters."""
    return blake2b(msgspec.json.encode(fields, order="deterministic"), digest_size=8).hexdigest()


def step_of(mutation: Mutation) -> Step:
    match mutation:
        case Create(entity):
            return Step("create", type(entity).kind_name, entity.id, None, plain(entity))
        case Put(entity, expect):
            compared = (entity.version or None) if isinstance(expect, FromTarget) else expect
            return Step("put", type(entity).kind_name, entity.id, compared, plain(entity))
        case Update(target, changes, expect):
            return Step("update", _kind(target), target.id, _compared(target, expect), _values(changes))
        case Transition(target, to, changes, expect):
            return Step("transition", _kind(target), target.id, _compared(target, expect), _values(changes), str(to))
        case Cancel(target, expect):
            return Step("cancel", _kind(target), target.id, expect)
        case Delete(target, expect):
            return Step("delete", _kind(target), target.id, _compared(target, expect))
    raise TypeError(f"{mutation!r} is not a mutation that the history checker knows")


def mutation_of(step: Step, kinds: Kinds, reason: str = "") -> Mutation:
    """The mutation that was asked: sent again under the same request id, it is the same request."""
    model = kinds[step.kind]
    match step.op:
        case "create":
            return Create(model.model_validate(step.fields), reason)
        case "put":
            return Put(model.model_validate(step.fields), step.expect, reason)
        case "update":
            return Update(model.ref(step.id), step.fields, step.expect, reason)
        case "transition":
            return Transition(model.ref(step.id), step.to, step.fields, step.expect, reason)
        case "cancel":
            return Cancel(model.ref(step.id), step.expect, reason)
        case "delete":
            return Delete(model.ref(step.id), step.expect, reason)
    raise ValueError(f"{step.op!r} is no mutation")


def condition_of(guard: GuardMutation) -> Condition:
    match guard:
        case Require(entity):
            return Condition(type(entity).kind_name, entity.id, entity.version)
        case RequireAbsent(model, id):
            return Condition(model if isinstance(model, str) else model.kind_name, id, 0)
    raise TypeError(f"{guard!r} is not a guard that the history checker knows")


def _kind(target: Target) -> str:
    return target.model.kind_name if isinstance(target, Ref) else type(target).kind_name


def _compared(target: Target, expect: Expect) -> int | None:
    if isinstance(expect, FromTarget):
        return target.version if isinstance(target, Entity) else None
    return expect


def _values(changes: Mapping[str, Any]) -> Fields:
    values: Fields = to_jsonable_python(dict(changes), fallback=dict)  # of a FrozenMap
    return values
