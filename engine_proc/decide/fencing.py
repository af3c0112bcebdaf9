"""Who may write to a claimed task: whoever shows the newest token. Everybody may cancel it, which takes it away.

No token is as good as an old one: it fails closed.
"""

from __future__ import annotations

from typing import Any

from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.shared.errors import Fenced
from solewriter.shared.mutations import Op
from solewriter.shared.readiness import HELD

TAKING = (Op.CANCEL, Op.EXPIRE)
TAKEN = frozenset({"status", "assigned_to"})  # and nothing besides


def show(draft: Draft, kind_name: str, key: str, token: int) -> None:
    """A token, before anything else of a request is looked at. Raises Fenced for one that is not the newest."""
    step = draft.before(kind_name, key)
    held = step.field("claim") if step.exists and step.kind.claimable else 0
    if held != token:
        raise fenced(step, f"claim {token} of it was lost or ended: its newest is {held}", token=token)
    draft.shown[step.state.code, key] = token


def end_claim(draft: Draft, step: Step) -> None:
    """Its claimer gave the task back: whoever has it behind this request is not kept from it by that claim."""
    place = step.state.code, step.key
    lease = draft.lease(place)
    if lease is not None and (place in draft.leases or draft.shown.get(place) == lease.token):
        draft.leases[place] = None


def settle(draft: Draft) -> None:
    """After all mutations: each step of a claimed task was its claimer's, or took it away; and what nobody works at any
    more, nobody holds. Raises Fenced.
    """
    for step in draft.steps.values():
        place = step.state.code, step.key
        if place in draft.leases:  # this request claimed it, renewed it or gave it back
            if not _is_worked_at(step):
                draft.leases[place] = None
            continue
        if not step.op or not step.kind.claimable:
            continue
        lease = draft.turn.lease(place)
        if lease is None:
            continue
        if draft.shown.get(place) != lease.token:
            if step.op not in TAKING or not TAKEN.issuperset(step.touched):
                raise fenced(
                    step, f"it is claimed by {_holder(draft, step)}: only its claimer may change it, or cancel it"
                )
            step.change(step.op, step.reason, {"claim": step.version})
            draft.leases[place] = None
        elif not _is_worked_at(step):
            draft.leases[place] = None


def _is_worked_at(step: Step) -> bool:
    return step.exists and step.field("status") in HELD


def _holder(draft: Draft, step: Step) -> Any:
    return draft.before(step.kind.name, step.key).field("assigned_to")


def fenced(step: Step, why: str, **details: Any) -> Fenced:
    name, key = step.kind.name, step.key
    return Fenced(f"{name} {key!r}: {why}", kind=name, id=key, **details, **step.newest)
