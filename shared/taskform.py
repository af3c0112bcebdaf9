"""Mutations as plain data, second half: what they have in common, and those that only tasks know. See `wireform`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from solewriter.shared.config import LEASE_LEAST_S, LEASE_MOST_S, US_PER_S
from solewriter.shared.entity import Entity, Ref
from solewriter.shared.errors import InvalidMutation, shown
from solewriter.shared.kind import Kind
from solewriter.shared.mutations import Claim, Complete, Fail, Mutation, Op, Redrive, Release, Renew
from solewriter.shared.registry import Registry
from solewriter.shared.schema import in_whole_minutes, plain
from solewriter.shared.where import plain_where
from solewriter.shared.wirecheck import SCALARS, is_text

if TYPE_CHECKING:
    from solewriter.shared.wireform import PlainMutation

E = TypeVar("E", bound=Entity)

NO_ID = "*"  # of a mutation that says what it wants, and not which
TREE = "tree"  # in place of a state: a cancel takes descendants, too
FINAL = "final"  # in place of a state: what failed is not tried again


def model_of(target: E | Ref[E]) -> type[E]:
    """The class of a target. Raises TypeError for what is none."""
    if isinstance(target, Ref):
        return target.model
    if isinstance(target, Entity):
        return type(target)
    raise TypeError(f"a target is an entity or a Ref, such as Task.ref(id), not {shown(target)}")


def together(given: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What a verb was given as a mapping and by keyword, which is its own. Raises TypeError for no mapping."""
    if given is None:
        return fields
    try:
        return {**given, **fields}
    except TypeError:
        raise TypeError(
            f"changes are a mapping, by the names of fields, not {shown(given)}: a target is an entity or a Ref, such "
            "as Task.ref(id)"
        ) from None


def changed_fields(kind: Kind, changes: Any) -> dict[str, Any]:
    """The changes as plain values, each validated by its field. Raises InvalidMutation."""
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        if type(name) is not str:
            raise InvalidMutation(
                f"{kind.name} has no field {shown(name)}",
                fields={name if isinstance(name, str) else shown(name): "no such field"},
            )
        if name in kind.fixed:
            problem = kind.fixed_because(name)
            raise InvalidMutation(f"{kind.name}.{name} {problem}", fields={name: problem})
        valid = kind.field(name, value) if kind.checks_fields else kind.known(name, value)
        if type(valid) not in SCALARS:
            if name in kind.holders:
                check_parts(kind, name, valid)
            if name in kind.moments:
                valid = in_whole_minutes(valid)
            valid = plain_field(kind, name, valid)
        fields[name] = valid
    return fields


def plain_field(kind: Kind, name: str, value: Any) -> Any:
    """The value as plain data. Raises InvalidMutation for one that nobody looked at: its validators take anything."""
    try:
        return plain(value)
    except (NotImplementedError, TypeError) as error:
        raise InvalidMutation(f"{kind.name}.{name}: {error}", fields={name: str(error)}) from None


def check_parts(kind: Kind, name: str, value: Any) -> None:
    """Raises InvalidMutation for a part of a class that is nowhere declared: pydantic takes a subclass for the declared
    class, as which it would be read back, without what it has besides.
    """
    if (other := _undeclared(value, kind.parts)) is not None:
        problem = f"holds a {other.__name__}, which is none of the classes that are declared there"
        raise InvalidMutation(f"{kind.name}.{name} {problem}", fields={name: problem})


def _undeclared(value: Any, declared: frozenset[type[BaseModel]]) -> type[BaseModel] | None:
    kind = type(value)
    if kind in declared:
        value = value.__dict__.values()
    elif not isinstance(value, tuple | frozenset):
        return kind if isinstance(value, BaseModel) else None
    for one in value:
        if type(one) not in SCALARS and (found := _undeclared(one, declared)) is not None:
            return found
    return None


def plain_of_task(mutation: Mutation, registry: Registry) -> PlainMutation:
    """The same of those that only tasks know."""
    match mutation:
        case Claim(model, where, count, lease_s, assignee, until_us, reason):
            kind = _kind_of_tasks(registry.of(model))
            said = {"where": plain_where(kind, where), "count": _count(count), "until_us": until_us}
            if lease_s is not None:
                said["lease_us"] = _lease_us(lease_s)
            if assignee is not None:
                said["assignee"] = _assignee(assignee)
            return Op.CLAIM.value, kind.name, NO_ID, None, said, reason, None
        case Complete(target, changes, reason):
            kind = _kind_of_tasks(registry.of(model_of(target)))
            return Op.COMPLETE.value, kind.name, target.id, None, changed_fields(kind, changes), reason, None
        case Fail(target, changes, final, reason):
            kind = _kind_of_tasks(registry.of(model_of(target)))
            fields = changed_fields(kind, changes)
            return Op.FAIL.value, kind.name, target.id, None, fields, reason, FINAL if final else None
        case Release(target, reason):
            kind = _kind_of_tasks(registry.of(model_of(target)))
            return Op.RELEASE.value, kind.name, target.id, None, None, reason, None
        case Renew(target, lease_s, reason):
            kind = _kind_of_tasks(registry.of(model_of(target)))
            return Op.RENEW.value, kind.name, target.id, None, {"lease_us": _lease_us(lease_s)}, reason, None
        case Redrive(target, reason):
            kind = _kind_of_tasks(registry.of(model_of(target)))
            return Op.REDRIVE.value, kind.name, target.id, None, None, reason, None
    raise TypeError(
        f"{shown(mutation)} is not a mutation: use Create, Put, Update, Transition, Cancel, Delete, Alter ..."
    )


def check_kind_of_tasks(kind: Kind) -> None:
    """Raises InvalidMutation for another one."""
    if not kind.claimable:
        raise InvalidMutation(f"{kind.name} is no kind of task", fields={"kind": "is no kind of task"})


def _kind_of_tasks(kind: Kind) -> Kind:
    check_kind_of_tasks(kind)
    return kind


def tree_of(kind: Kind) -> str:
    """What says so. Raises InvalidMutation for a kind that has no descendants."""
    check_kind_of_tasks(kind)
    return TREE


def _count(count: Any) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InvalidMutation(f"a claim is of 1 or more, not {shown(count)}", fields={"count": "not 1 or more"})
    return count


def _assignee(assignee: Any) -> str:
    if not isinstance(assignee, str) or not is_text(assignee):
        problem = f"text, not {shown(assignee)}"
        raise InvalidMutation(f"an assignee is {problem}", fields={"assignee": problem})
    return str.__str__(assignee)


def _lease_us(lease_s: Any) -> int:
    if not isinstance(lease_s, int | float) or not LEASE_LEAST_S <= lease_s <= LEASE_MOST_S:
        problem = f"a lease is {LEASE_LEAST_S} to {LEASE_MOST_S:.0e} seconds, not {shown(lease_s)}"
        raise InvalidMutation(problem, fields={"lease_s": problem})
    return int(lease_s * US_PER_S)
