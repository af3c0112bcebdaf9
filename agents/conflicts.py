"""What to do about a refusal that somebody else's change caused: a verdict on it, from what the reply already brought.

Nothing is read again for it: the refusal carries the entity as it is now, who made it so, and at which revision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from solewriter.shared.entity import Entity
from solewriter.shared.errors import InvalidTransition, Verdict, VersionConflict
from solewriter.shared.kinds.kind import STAMPS
from solewriter.shared.kinds.payload import encode, is_same, plain
from solewriter.shared.mutations import (
    Alter,
    Cancel,
    Delete,
    FromTarget,
    GuardMutation,
    Mutation,
    Put,
    Reply,
    RequireFields,
    Transition,
    Unchanged,
    Update,
)
from solewriter.shared.where import Where, single

M = TypeVar("M", Update, Transition, Alter, Cancel, Delete)


def conditional(mutation: M, where: Where | None, merge: bool = False) -> tuple[M, list[GuardMutation]]:
    """A change that compares fields in place of the version, where it is asked for: `where` those that the caller
    names, `merge` those that it changes. Raises TypeError for a merge of what was not read.
    """
    guards: list[GuardMutation] = []
    if where is not None and where != {}:  # one that names no field takes the place of nothing
        guards.append(RequireFields(mutation.target, where))
    if merge:
        guards.append(_unchanged_guard(mutation))
    if not guards:
        return mutation, guards
    return msgspec.structs.replace(mutation, expect=_explicit(mutation.expect)), guards


def _unchanged_guard(mutation: Any) -> Unchanged:
    """That what an update or a transition changes is as it was read."""
    target = mutation.target
    if not isinstance(target, Entity) or not target.version:
        raise TypeError("merge=True compares with an entity that was read, not with a Ref")
    names = [*mutation.changes]
    if isinstance(mutation, Transition) and target.lifecycle is not None:
        names.append(target.lifecycle.field)
    return Unchanged(target, tuple([name for name in names if name in type(target).model_fields]))


def _explicit(expect: Any) -> int | None:
    """The version that a caller named, and not the target's own."""
    return None if isinstance(expect, FromTarget) else expect


def judge_conflict(reply: Reply, mutation: Mutation) -> Reply:
    """The same reply; a conflict in it says what it comes to."""
    error = reply.error
    if isinstance(error, VersionConflict | InvalidTransition) and error.verdict is None:
        error.verdict = _verdict(error, mutation)
    return reply


def _verdict(error: VersionConflict | InvalidTransition, mutation: Mutation) -> Verdict:
    current = error.current
    if not isinstance(current, Entity):
        return Verdict.LOST
    mine = _wanted_fields(mutation, current)
    if mine and all(_is_same_value(current, name, value) for name, value in mine.items()):
        return Verdict.YOURS
    lifecycle = current.lifecycle
    if lifecycle is not None and not lifecycle.allowed(single(current.__dict__[lifecycle.field])):
        return Verdict.TERMINAL
    if isinstance(error, InvalidTransition) or not isinstance(mutation, Update | Transition):
        return Verdict.LOST
    seen = mutation.target
    is_merged = not isinstance(mutation.expect, int)  # a version that was named is compared with merge=True as well
    if isinstance(seen, Entity) and is_merged and mine and not any(_differs(seen, current, name) for name in mine):
        return Verdict.MERGEABLE
    return Verdict.LOST


def _wanted_fields(mutation: Mutation, current: Entity) -> Mapping[str, Any]:
    """The fields that a mutation sets, and to what."""
    match mutation:
        case Update(_, changes):
            return changes
        case Transition(_, to, changes) if current.lifecycle is not None:
            return {**changes, current.lifecycle.field: to}
        case Cancel(tree=False) if current.lifecycle is not None and current.lifecycle.cancelled is not None:
            return {current.lifecycle.field: current.lifecycle.cancelled}
        case Put(entity):
            named = type(entity).model_fields.keys() - {"id", "version", *STAMPS}  # all of it: a put resets the others
            return {name: value for name, value in entity.__dict__.items() if name in named}
    return {}


def _is_same_value(current: Entity, name: str, value: Any) -> bool:
    try:
        held = current.__dict__[name]  # as an attribute, a deprecated field warns of what nobody did
        if {type(held), type(value)} == {int, float}:  # given one for the other, it becomes what the field is
            return bool(held == value)
        return is_same(held, value) or bool(encode(plain(held)) == encode(plain(value)))
    except (KeyError, TypeError, NotImplementedError, OverflowError, UnicodeEncodeError):
        return False


def _differs(seen: Entity, current: Entity, name: str) -> bool:
    return not is_same(seen.__dict__.get(name), current.__dict__.get(name))
