"""A request as it was asked, in plain data: to be written down, asked again, and decided anew by a model.

It is made here from the public mutations, not by the code that sends them, so that a mistake there is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from pydantic_core import to_jsonable_python

from solewriter.shared.entity import Entity, Ref
from solewriter.shared.models import Project, Task
from solewriter.shared.mutations import (
    Alter,
    Cancel,
    Claim,
    Complete,
    Create,
    Delete,
    Expect,
    Fail,
    FromTarget,
    GuardMutation,
    Mutation,
    Put,
    Redrive,
    Release,
    Renew,
    Require,
    RequireAbsent,
    RequireFields,
    RequireNone,
    Target,
    Transition,
    Unchanged,
    Update,
)
from solewriter.shared.operations import Add, Append, Increment, Max, Min, Operation, PutIn, Remove
from solewriter.shared.where import Range, Where

Fields = dict[str, Any]
Kinds = Mapping[str, type[Entity]]
SHIPPED: tuple[type[Entity], ...] = (Task, Project)
ANY_ID = "*"  # of what names no entity: a claim, a guard about all of a kind


class Key(NamedTuple):
    """Which entity."""

    kind: str
    id: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mutation. `expect`: the version that must be stored before the request, 0 for none, None for any. `fields`:
    what it sets; of a claim, what it asks for; of operations, `[which, operands ...]`.
    """

    op: str
    kind: str
    id: str
    expect: int | None = None
    fields: Fields = {}
    to: str = ""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.id)


class Condition(msgspec.Struct, frozen=True, omit_defaults=True):
    """One guard: the version that must be stored, 0 for none; or, of each of some fields, the values that it may have.
    With both, these fields are compared in place of that version. Of ANY_ID: none of the kind may be like this.
    """

    kind: str
    id: str
    version: int | None = None
    fields: Fields | None = None

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
        case Cancel(target, expect, _, tree):
            return Step("cancel", _kind(target), target.id, expect, {}, "tree" if tree else "")
        case Delete(target, expect):
            return Step("delete", _kind(target), target.id, _compared(target, expect))
        case Alter(target, operations, expect):
            said = {name: _said(operation) for name, operation in operations.items()}
            return Step("alter", _kind(target), target.id, expect, said)
    return _step_of_task(mutation)


def _step_of_task(mutation: Mutation) -> Step:
    match mutation:
        case Claim(model, where, count, lease_s, assignee, until_us):
            asked = {"where": _among(where), "count": count, "lease_s": lease_s, "assignee": assignee}
            return Step("claim", model.kind_name, ANY_ID, None, {**asked, "until_us": until_us})
        case Complete(target, changes):
            return Step("complete", _kind(target), target.id, None, _values(changes))
        case Fail(target, changes, final):
            return Step("fail", _kind(target), target.id, None, _values(changes), "final" if final else "")
        case Release(target):
            return Step("release", _kind(target), target.id)
        case Renew(target, lease_s):
            return Step("renew", _kind(target), target.id, None, {"lease_s": lease_s})
        case Redrive(target):
            return Step("redrive", _kind(target), target.id)
    raise TypeError(f"{mutation!r} is not a mutation that the history checker knows")


def mutation_of(step: Step, kinds: Kinds) -> Mutation:
    """The mutation that was asked: sent again under the same request id, it is the same request."""
    model, fields, expect = kinds[step.kind], step.fields, step.expect
    ref: Ref[Any] = model.ref(step.id)
    made: dict[str, Callable[[], Mutation]] = {
        "create": lambda: Create(model.model_validate(fields)),
        "put": lambda: Put(model.model_validate(fields), expect),
        "update": lambda: Update(ref, fields, expect),
        "transition": lambda: Transition(ref, step.to, fields, expect),
        "cancel": lambda: Cancel(ref, expect, tree=bool(step.to)),
        "delete": lambda: Delete(ref, expect),
        "alter": lambda: Alter(ref, {name: _operation(*said) for name, said in fields.items()}, expect),
        "claim": lambda: Claim(model, **fields),
        "complete": lambda: Complete(ref, fields),
        "fail": lambda: Fail(ref, fields, bool(step.to)),
        "release": lambda: Release(ref),
        "renew": lambda: Renew(ref, fields["lease_s"]),
        "redrive": lambda: Redrive(ref),
    }
    return made[step.op]()


def condition_of(guard: GuardMutation) -> Condition:
    match guard:
        case Require(entity):
            return Condition(type(entity).kind_name, entity.id, entity.version)
        case RequireAbsent(model, id):
            return Condition(model if isinstance(model, str) else model.kind_name, id, 0)
        case RequireFields(target, where):
            return Condition(_kind(target), target.id, None, _among(where))
        case RequireNone(model, where):
            return Condition(model.kind_name, ANY_ID, None, _among(where))
        case Unchanged(entity, fields):
            held = plain(entity)
            return Condition(_kind(entity), entity.id, entity.version, {name: [held[name]] for name in fields})
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


def _among(where: Where) -> Fields:
    """Of each field, the values that it may have. Raises TypeError for a range."""
    found: Fields = {}
    for name, wanted in where.items():
        if isinstance(wanted, Range):
            raise TypeError(f"{name}: ranges are nothing that the history checker knows")
        several = [*wanted] if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        found[name] = to_jsonable_python(several)
    return found


def _said(operation: Operation) -> list[Any]:
    match operation:
        case Increment(by):
            return ["increment", by]
        case Max(value):
            return ["max", value]
        case Min(value):
            return ["min", value]
        case Append():
            return ["append", [*operation.items], operation.most]
        case Add():
            return ["add", [*operation.items]]
        case Remove():
            return ["remove", [*operation.items]]
        case PutIn(items):
            return ["put in", dict(items)]
    raise TypeError(f"{operation!r} is not an operation that the history checker knows")


def _operation(which: str, *operands: Any) -> Operation:
    if which == "append":
        return Append(*operands[0], most=operands[1])
    if which in ("add", "remove"):
        return (Add if which == "add" else Remove)(*operands[0])
    made: dict[str, Callable[[Any], Operation]] = {"increment": Increment, "max": Max, "min": Min, "put in": PutIn}
    return made[which](*operands)
