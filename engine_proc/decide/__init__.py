"""Deciding a request: (what is stored, the request, now) -> what each entity becomes, or a refusal.

Pure: no clock, no I/O, no randomness, and no change to anything but the draft. One file for each family of mutations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from solewriter.engine_proc.decide import claims, content, dependencies, fencing, fields, guards, lifecycle
from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.shared.errors import BadRequest
from solewriter.shared.mutations import Op
from solewriter.shared.readiness import DEPENDS
from solewriter.shared.wireform import PlainMutation, PlainRequest

DECIDERS: Mapping[int, Callable[[Draft, PlainMutation], Step | list[Step]]] = {
    Op.CREATE.value: content.create,
    Op.PUT.value: content.put,
    Op.UPDATE.value: content.update,
    Op.DELETE.value: content.delete,
    Op.TRANSITION.value: lifecycle.transition,
    Op.CANCEL.value: lifecycle.cancel,
    Op.ALTER.value: fields.alter,
    **claims.DECIDERS,
}


def decide(draft: Draft, request: PlainRequest) -> list[Step]:
    """Take the request into the draft, all of it; each mutation's entity. Raises a refusal, after which the draft is
    worth nothing.
    """
    mutations, conditions, _, _ = request
    for guard in conditions:
        guards.check(draft, guard)
    touched: list[Step] = []
    for mutation in mutations:
        decider = DECIDERS.get(mutation[0])
        if decider is None:
            raise BadRequest(f"there is no mutation {mutation[0]}")
        found = decider(draft, mutation)
        if isinstance(found, Step):
            touched.append(found)
        else:
            touched += found
    if draft.attended:
        _follow(draft)
    return touched


def _follow(draft: Draft) -> None:
    """What the changes of tasks bring with them, or must not do."""
    turn = draft.turn
    linked = [
        step
        for step in draft.steps.values()
        if step.op and step.kind.claimable and step.exists and not DEPENDS.isdisjoint(step.altered)
    ]
    dependencies.check(draft, linked)
    if (turn.coordination.cascades or turn.cascades) and not draft.alone:
        dependencies.cascade(draft)
    if turn.has_claims or draft.leases:
        fencing.settle(draft)


__all__ = ["Draft", "Step", "decide"]
