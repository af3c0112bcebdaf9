"""The mutations that only tasks know, as plain data. See `wireform`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from solewriter.shared.config import LEASE_LEAST_S, LEASE_MOST_S, US_PER_S
from solewriter.shared.entity import model_of
from solewriter.shared.errors import InvalidMutation, safe_repr
from solewriter.shared.fieldform import changed_fields
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.mutations import Claim, Complete, Fail, Mutation, Op, Redrive, Release, Renew
from solewriter.shared.registry import Registry
from solewriter.shared.where import plain_where
from solewriter.shared.wirecheck import is_text

if TYPE_CHECKING:
    from solewriter.shared.wireform import PlainMutation

NO_ID = "*"  # of a mutation that says what it wants, and not which
TREE = "tree"  # in place of a state: a cancel takes descendants, too
FINAL = "final"  # in place of a state: what failed is not tried again


def plain_of_task(mutation: Mutation, registry: Registry) -> PlainMutation:
    """A mutation as plain data, as `wireform.plain_mutation`. Raises TypeError for what is no mutation at all."""
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
        f"{safe_repr(mutation)} is not a mutation: use Create, Put, Update, Transition, Cancel, Delete, Alter ..."
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
        raise InvalidMutation(f"a claim is of 1 or more, not {safe_repr(count)}", fields={"count": "not 1 or more"})
    return count


def _assignee(assignee: Any) -> str:
    if not isinstance(assignee, str) or not is_text(assignee):
        problem = f"text, not {safe_repr(assignee)}"
        raise InvalidMutation(f"an assignee is {problem}", fields={"assignee": problem})
    return str.__str__(assignee)


def _lease_us(lease_s: Any) -> int:
    if not isinstance(lease_s, int | float) or not LEASE_LEAST_S <= lease_s <= LEASE_MOST_S:
        problem = f"a lease is {LEASE_LEAST_S} to {LEASE_MOST_S:.0e} seconds, not {safe_repr(lease_s)}"
        raise InvalidMutation(problem, fields={"lease_s": problem})
    return int(lease_s * US_PER_S)
