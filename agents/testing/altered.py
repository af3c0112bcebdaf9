"""Operations on fields, on the values that JSON has: the model's own, besides the engine's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from solewriter.agents.testing.steps import Fields
from solewriter.agents.testing.tasks import Refusal


def altered(before: Fields, operations: Mapping[str, Any]) -> Fields:
    """What becomes of the fields that are named. Raises Refusal for what cannot be done with one."""
    try:
        return {name: WAYS[said[0]](before.get(name), *said[1:]) for name, said in operations.items()}
    except TypeError:
        raise Refusal("InvalidMutation", None, None) from None


def _increment(held: Any, by: Any) -> Any:
    return (held or 0) + by


def _max(held: Any, other: Any) -> Any:
    return other if held is None else max(held, other)


def _min(held: Any, other: Any) -> Any:
    return other if held is None else min(held, other)


def _append(held: Any, items: Any, most: int | None) -> Any:
    every = [*(held or ()), *items]
    return every if most is None else every[len(every) - min(most, len(every)) :]


def _add(held: Any, items: Any) -> Any:
    every = [*(held or ())]
    for item in items:
        every += [item] * (item not in every)
    return every


def _remove(held: Any, items: Any) -> Any:
    if isinstance(held, dict):
        return {key: value for key, value in held.items() if key not in items}
    return [item for item in held or () if item not in items]


def _put(held: Any, items: Any) -> Any:
    return {**(held or {}), **items}


WAYS: dict[str, Callable[..., Any]] = {
    "increment": _increment,
    "max": _max,
    "min": _min,
    "append": _append,
    "add": _add,
    "remove": _remove,
    "put in": _put,
}
