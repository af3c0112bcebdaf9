"""What an update function wants changed: the difference of two states of one entity, as a mutation under the version of
the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from inspect import getattr_static
from typing import Any, TypeVar

from solewriter.shared.entity import Entity
from solewriter.shared.errors import InvalidMutation, VersionConflict, safe_repr
from solewriter.shared.kinds.payload import is_same
from solewriter.shared.mutations import Mutation, Transition, Update

E = TypeVar("E", bound=Entity)


def difference(before: E, after: E | Mapping[str, Any] | None, reason: str) -> Mutation | None:
    """None if nothing differs. A different lifecycle state is a transition, with the other changes in the same step.

    Raises InvalidMutation for another entity, TypeError for what is neither entity nor mapping.
    """
    if after is None:
        return None
    if isinstance(after, Entity):
        if type(after) is not type(before) or after.id != before.id:
            raise InvalidMutation(
                f"{after.kind_name} {after.id!r} is not {before.kind_name} {before.id!r}",
                fields={"id": "another entity"},
            )
        wanted: Mapping[str, Any] = {
            name: value
            for name, value in after.__dict__.items()
            if not isinstance(getattr_static(type(after), name, None), cached_property)
        }
    elif isinstance(after, Mapping):
        wanted = after
    else:
        raise TypeError(f"an update function returns the entity, the changed fields, or None, not {safe_repr(after)}")
    changes = {name: value for name, value in wanted.items() if not is_same(before.__dict__.get(name, _ABSENT), value)}
    if not changes:
        return None
    lifecycle = before.lifecycle
    if lifecycle is not None and lifecycle.field in changes:
        to = changes.pop(lifecycle.field)
        return Transition(before, to, changes, reason=reason)
    return Update(before, changes, reason=reason)


def newer(conflict: VersionConflict, model: type[E]) -> E | None:
    """The entity that won; None where that was read as another class of its kind, or not: look again."""
    return conflict.current if isinstance(conflict.current, model) else None


_ABSENT = object()
