"""The fields that a mutation changes, as plain data: each validated by its kind, and of no class that is not declared.

See `wireform`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from solewriter.shared.errors import InvalidMutation, safe_repr
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.payload import in_whole_minutes, plain
from solewriter.shared.kinds.validation import no_changes
from solewriter.shared.wirecheck import SCALARS


def merge_given(given: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What a verb was given as a mapping and by keyword, which is its own. Raises TypeError for no mapping."""
    if given is None:
        return fields
    try:
        return {**given, **fields}
    except TypeError:
        raise no_changes(given) from None


def changed_fields(kind: Kind, changes: Any) -> dict[str, Any]:
    """The changes as plain values, each validated by its field. Raises InvalidMutation, TypeError for no mapping."""
    fields: dict[str, Any] = {}
    try:
        named = changes.items()
    except AttributeError:
        raise no_changes(changes) from None
    for name, value in named:
        if type(name) is not str:
            raise InvalidMutation(
                f"{kind.name} has no field {safe_repr(name)}",
                fields={name if isinstance(name, str) else safe_repr(name): "no such field"},
            )
        if name in kind.fixed:
            problem = kind.fixed_because(name)
            raise InvalidMutation(f"{kind.name}.{name} {problem}", fields={name: problem})
        valid = kind.field(name, value) if kind.checks_fields else kind.check_known(name, value)
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
