"""Mutations along a lifecycle: transition, cancel. Which step may follow which is data in the model."""

from __future__ import annotations

from typing import Any

from solewriter.engine_proc.decide.dependencies import cancel_tree
from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.engine_proc.decide.fencing import end_claim
from solewriter.shared.entity import Lifecycle
from solewriter.shared.errors import InvalidMutation, InvalidTransition
from solewriter.shared.mutations import Op
from solewriter.shared.readiness import HELD
from solewriter.shared.taskform import TREE, check_kind_of_tasks
from solewriter.shared.wireform import PlainMutation


def transition(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, fields, reason, to = mutation
    step = draft.step(kind_name, key)
    lifecycle = _lifecycle(step)
    step.require(expect)
    state = step.field(lifecycle.field)
    if to is None or to not in lifecycle.allowed(state):
        raise refusal(step, state, to or "?")
    step.change(Op.TRANSITION.value, reason, {**free_step_fields(step, fields), lifecycle.field: to})
    if draft.attended and step.kind.claimable and to not in HELD:
        end_claim(draft, step)
    return step


def free_step_fields(step: Step, fields: dict[str, Any] | None) -> dict[str, Any]:
    """Fields that change together with a state. Raises InvalidMutation."""
    others = step.kind.fixed.intersection(fields or ())
    if others:
        raise InvalidMutation(
            f"{step.kind.name}: {', '.join(sorted(others))} cannot be set",
            fields=dict.fromkeys(others, "cannot be set"),
        )
    return fields or {}


def cancel(draft: Draft, mutation: PlainMutation) -> Step:
    _, kind_name, key, expect, _, reason, what = mutation
    step = draft.step(kind_name, key)
    lifecycle = _lifecycle(step)
    step.require(expect)
    state = step.field(lifecycle.field)
    if what == TREE:
        check_kind_of_tasks(step.kind)
        cancel_tree(draft, step, reason)
    if lifecycle.cancelled is None:
        raise InvalidMutation(f"{kind_name} has no cancelled state", fields={lifecycle.field: "has no cancelled state"})
    if state != lifecycle.cancelled:
        check_step(step, state, lifecycle.cancelled)
    step.change(Op.CANCEL.value, reason, {lifecycle.field: lifecycle.cancelled})
    return step


def check_step(step: Step, state: str, to: Any) -> None:
    """Raises InvalidTransition unless `to`, which may be no state at all, is `state` or may follow it."""
    lifecycle = _lifecycle(step)
    if to != state and to not in lifecycle.allowed(state):
        raise refusal(step, state, to)


def refusal(step: Step, state: str, to: Any) -> InvalidTransition:
    allowed = _lifecycle(step).allowed(state)
    ways = f"from there: {', '.join(allowed)}" if allowed else "that is final"
    return InvalidTransition(
        f"{step.kind.name} {step.key!r} is {state} and cannot become {to}; {ways}",
        kind=step.kind.name, id=step.key, state=str(state), allowed=tuple(allowed),
    )  # fmt: skip


def _lifecycle(step: Step) -> Lifecycle:
    if step.kind.lifecycle is None:
        raise InvalidMutation(f"{step.kind.name} has no lifecycle", fields={"kind": "has no lifecycle"})
    return step.kind.lifecycle
