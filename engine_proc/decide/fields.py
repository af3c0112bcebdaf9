"""Operations on fields: what becomes of whatever is stored. No version is compared, so nobody is ever overtaken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from solewriter.engine_proc.decide.content import free_fields
from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.shared.entity import Part
from solewriter.shared.errors import BadRequest, InvalidMutation
from solewriter.shared.kinds.payload import encode_asked, plain
from solewriter.shared.mutations import Op
from solewriter.shared.operations import Code
from solewriter.shared.where import rank_of
from solewriter.shared.wireform import PlainMutation

Operate = Callable[[Step, str, Any, Any, "int | None"], Any]  # of a field's value, an operand and a bound


def alter(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, fields, reason, _ = mutation
    step = draft.step(kind_name, key)
    step.require(expect)
    changes = {name: _new_value(step, name, said) for name, said in free_fields(step, fields).items()}
    step.change(Op.ALTER.value, reason, changes)
    return step


def _new_value(step: Step, name: str, said: Any) -> Any:
    """A field's new value. Raises BadRequest for another shape, InvalidMutation for what cannot be done with it."""
    if type(said) is not tuple or len(said) != 3 or type(said[0]) is not str:
        raise BadRequest("an operation is (code, operand, bound)")
    code, operand, bound = said
    operate = OPERATIONS.get(code)
    if operate is None:
        raise BadRequest(f"there is no operation {code!r:.100}")
    step.kind.check_known(name, None)
    try:
        return operate(step, name, _stored_value(step, name), operand, bound)
    except TypeError:
        problem = f"{code} cannot be done with what it holds"
        raise InvalidMutation(f"{step.kind.name}.{name}: {problem}", fields={name: problem}) from None


def _stored_value(step: Step, name: str) -> Any:
    """A field's value as it is stored, also where this request set it: then it is the model's own."""
    value = step.field(name)
    return plain(value) if isinstance(value, Enum | Part) else value


def _increment(_: Step, __: str, value: Any, by: Any, ___: int | None) -> Any:
    if type(by) not in (int, float) or type(value) not in (int, float, type(None)):
        raise TypeError
    return by if value is None else value + by


def _extreme(larger: bool) -> Operate:
    def operate(step: Step, name: str, value: Any, given: Any, _: int | None) -> Any:
        wanted = step.kind.field(name, given)
        if value is None:
            return wanted
        held = step.kind.field(name, value)
        if wanted is None:
            return held
        mine, other = rank_of(step.kind, name, wanted), rank_of(step.kind, name, held)
        return wanted if (mine > other if larger else mine < other) else held

    return operate


def _append(_: Step, __: str, value: Any, items: Any, most: int | None) -> list[Any]:
    if most is not None and (type(most) is not int or most < 0):
        raise BadRequest("a bound is a number of items")
    every = [*_members(value), *_items(items)]
    return every if most is None else every[max(0, len(every) - most) :]


def _add(step: Step, name: str, value: Any, items: Any, _: int | None) -> list[Any]:
    held = _normalize(step, name, _members(value))
    known = set(map(encode_asked, held))
    for item in _items(items):
        for made in _normalize(step, name, [item]):
            if (said := encode_asked(made)) not in known:
                known.add(said)
                held.append(made)
    return [plain(item) for item in held]


def _remove(step: Step, name: str, value: Any, items: Any, _: int | None) -> Any:
    if isinstance(value, Mapping):
        keys = _items(items)
        return {key: item for key, item in value.items() if key not in keys}
    gone = {encode_asked(made) for item in _items(items) for made in _normalize(step, name, [item])}
    return [plain(item) for item in _normalize(step, name, _members(value)) if encode_asked(item) not in gone]


def _normalize(step: Step, name: str, items: list[Any]) -> list[Any]:
    """Items as the field makes them: 1 is 1.0 to one of floats, and a moment is the same in each zone. As they are
    where it does not take them, or not as many.
    """
    try:
        made = list(step.kind.field(name, items))
    except Exception:  # its code may be a user's, which meets one item only; all of it is validated later
        return items
    return made if len(made) == len(items) else items


def _put(_: Step, __: str, value: Any, items: Any, ___: int | None) -> dict[str, Any]:
    if type(items) is not dict:
        raise BadRequest("what is put into a map is a dict")
    if value is not None and not isinstance(value, Mapping):
        raise TypeError
    return {**(value or {}), **items}


def _members(value: Any) -> list[Any]:
    """The items of a stored tuple or set, as they are in its payload. Raises TypeError for what is none."""
    if not isinstance(value, list | tuple | set | frozenset | type(None)):
        raise TypeError
    return list(plain(value or ()))


def _items(items: Any) -> list[Any]:
    if type(items) is not list:
        raise BadRequest("items are a list")
    return items


OPERATIONS: Mapping[str, Operate] = {
    Code.INCREMENT.value: _increment,
    Code.MAX.value: _extreme(larger=True),
    Code.MIN.value: _extreme(larger=False),
    Code.APPEND.value: _append,
    Code.ADD.value: _add,
    Code.REMOVE.value: _remove,
    Code.PUT.value: _put,
}
