"""Mutations of content: create, put, update, delete."""

from __future__ import annotations

from typing import Any

from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.engine_proc.decide.lifecycle import check_step
from solewriter.shared.entity import Lifecycle
from solewriter.shared.errors import AlreadyExists, InvalidMutation, SchemaMismatch
from solewriter.shared.mutations import Op
from solewriter.shared.wireform import PlainMutation

_OPS = (Op.CREATE, Op.PUT, Op.UPDATE, Op.DELETE)
_CREATE, _PUT, _UPDATE, _DELETE = [op.value for op in _OPS]  # asked of the enum each time, it takes as long as a line


def create(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, _, fields, reason, schema_id = mutation
    step = draft.step(kind_name, key)
    if step.exists:
        raise AlreadyExists(f"there is a {kind_name} {key!r} already", kind=kind_name, id=key)
    _check_class(step, schema_id)
    values = dict(fields or {})
    lifecycle = step.kind.lifecycle
    if lifecycle is not None and _state(step, lifecycle, values) != lifecycle.initial:
        problem = f"begins as {lifecycle.initial}: change it by a transition, or import finished ones with put"
        raise InvalidMutation(f"{kind_name}.{lifecycle.field} {problem}", fields={lifecycle.field: problem})
    return _replace(draft, step, _CREATE, reason, values)


def put(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, fields, reason, schema_id = mutation
    step = draft.step(kind_name, key)
    if expect is not None:
        step.compare(expect)
    _check_class(step, schema_id)
    values = dict(fields or {})
    if step.exists:
        lifecycle = step.kind.lifecycle
        if lifecycle is not None:
            check_step(step, step.field(lifecycle.field), _state(step, lifecycle, values))
        for name in ("created_by", "created_at"):
            if name in step.kind.stamps:
                values[name] = step.field(name)
    return _replace(draft, step, _PUT, reason, values)


def update(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, fields, reason, _ = mutation
    step = draft.step(kind_name, key)
    step.require(expect)
    step.change(_UPDATE, reason, free_fields(step, fields))
    return step


def delete(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, _, reason, _ = mutation
    step = draft.step(kind_name, key)
    step.require(expect)
    step.delete(_DELETE, reason)
    return step


def _check_class(step: Step, schema_id: str | None) -> None:
    """Clients look before they send, and another class may have come since: what theirs leaves out as a default, it
    would read as another value.
    """
    name = step.kind.name
    if schema_id is not None and schema_id != step.kind.schema_id:
        problem = f"the class {name} of whoever asks differs from the engine's, which is another one since"
        raise SchemaMismatch(f"{problem}: use one everywhere", kind=name)


def _state(step: Step, lifecycle: Lifecycle, values: dict[str, Any]) -> Any:
    """The state that a whole content is in: what is not said is its class's default."""
    return values.get(lifecycle.field, step.state.schema.defaults.get(lifecycle.field, lifecycle.initial))


def free_fields(step: Step, fields: dict[str, Any] | None) -> dict[str, Any]:
    """The same fields, none of them one that only the engine or a transition sets. Raises InvalidMutation."""
    if not fields:
        return {}
    if not step.kind.fixed.isdisjoint(fields):
        names = sorted(step.kind.fixed.intersection(fields))
        raise InvalidMutation(
            f"{step.kind.name}: {', '.join(names)} cannot be updated", fields=dict.fromkeys(names, "cannot be updated")
        )
    return fields


def _replace(draft: Draft, step: Step, op: int, reason: str, values: dict[str, Any]) -> Step:
    """A whole new content, with the engine's own fields set."""
    stamps = step.kind.stamps
    if "created_by" in stamps and not values.get("created_by"):
        values["created_by"] = draft.actor
    if step.kind.claimable:
        for name in ("attempts", "claim"):  # the engine counts
            values[name] = step.field(name) if step.exists else 0
    if "created_at" in stamps and (op == _CREATE or values.get("created_at") is None):
        values["created_at"] = draft.turn.now
    step.replace(op, reason, values)
    return step
