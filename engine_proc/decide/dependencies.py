"""What tasks depend on: it exists, no way leads back, and what ends takes those with it that are to end with it."""

from __future__ import annotations

from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.graph import Foreseen
from solewriter.engine_proc.decide.draft import Draft, Step
from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.turn import Key
from solewriter.shared.config import DEPENDENCIES_SHOWN
from solewriter.shared.errors import InvalidMutation, RequestTooLarge
from solewriter.shared.models import DependencyPolicy
from solewriter.shared.mutations import Op
from solewriter.shared.readiness import DEPENDS, ENDING, FINISHED, Dependency, state_of


def check(draft: Draft, steps: list[Step]) -> None:
    """What these tasks newly depend on exists, and none of it depends on the task. Raises InvalidMutation."""
    foreseen: dict[KindState, Foreseen] = {}
    for step in steps:
        if step.field("on_dependency_failure") == DependencyPolicy.CANCEL:
            draft.turn.cascades |= {step.state.code} - draft.turn.coordination.cascades
        if not _depends_anew(draft, step):
            continue
        if step.state not in foreseen:
            foreseen[step.state] = _foreseen(draft, step)
        way = foreseen[step.state].cycle(step.key)
        if way is not None:
            told = way if len(way) <= DEPENDENCIES_SHOWN else [*way[: DEPENDENCIES_SHOWN - 2], "...", way[-1]]
            raise InvalidMutation(
                f"{step.kind.name} {step.key!r} would wait for itself: {' -> '.join(told)}",
                fields={"dependencies": f"a cycle: {' -> '.join(told)}"},
            )


def _depends_anew(draft: Draft, step: Step) -> bool:
    """Whether it depends on what it did not depend on before. Raises InvalidMutation where there is no such task."""
    known = _dependencies_before(step)
    new = [one for one in step.field("dependencies") if one not in known]
    unknown = [one for one in new if not _exists(draft, step, one)]
    if unknown:
        listed = ", ".join(unknown[:DEPENDENCIES_SHOWN])
        raise InvalidMutation(
            f"{step.kind.name} {step.key!r} depends on {listed}: there is no such {step.kind.name}",
            fields={"dependencies": f"unknown: {listed}"},
        )
    return bool(new)


def _foreseen(draft: Draft, step: Step) -> Foreseen:
    """What all tasks of its kind depend on behind this request."""
    changed = {
        one.key: one.field("dependencies") if one.exists else ()
        for one in draft.steps.values()
        if one.state is step.state and one.op and (not one.exists or "dependencies" in one.altered)
    }
    return _board(draft, step).graph.foreseen(changed)


def _dependencies_before(step: Step) -> frozenset[str]:
    if step.before is None or not step.before.alive:
        return frozenset()
    return frozenset(Step(step.state, step.kind, step.key, step.before, step.turn).field("dependencies"))


def _exists(draft: Draft, step: Step, key: str) -> bool:
    other = draft.steps.get((step.kind.name, key))
    if other is not None:
        return other.exists
    stored = draft.turn.find(step.state, (step.kind.name, key))
    return stored is not None and stored.alive


def _board(draft: Draft, step: Step) -> Board:
    return draft.turn.coordination.board(step.state)


def cascade(draft: Draft) -> None:
    """Cancel those that are to be cancelled with what this request ended, and so on; and those that it made depend on
    what had ended before. Raises RequestTooLarge.
    """
    cascades = draft.turn.coordination.cascades | draft.turn.cascades
    written = [step for step in draft.steps.values() if step.op and step.exists and step.state.code in cascades]
    new = [step for step in written if not DEPENDS.isdisjoint(step.altered)]  # which the board does not know yet
    for step in new:
        for key in step.field("dependencies"):
            on = draft.look(step.kind.name, key)
            if on.exists and state_of(on.field) == Dependency.ENDED and _goes_with_it(step, on):
                _go_with(step, on)
    coming: dict[Key, list[Step]] = {}  # these, by what they depend on
    for step in new:
        for key in step.field("dependencies"):
            coming.setdefault((step.kind.name, key), []).append(step)
    looked: dict[Key, Step] = {}  # what depends on many of those that end is looked at once
    ended = [step for step in written if _has_ended(step)]
    while ended:
        over = ended.pop()
        name, board = over.kind.name, _board(draft, over)
        places = [(name, key) for key in board.dependants(over.key) if not board.stays(key)]
        looked.update((place, draft.look(*place)) for place in places if place not in looked)
        for step in [*map(looked.__getitem__, places), *coming.get((name, over.key), ())]:
            if _goes_with_it(step, over):
                draft.take(step)
                _go_with(step, over)
                _count(draft)
                ended.append(step)


def _has_ended(step: Step) -> bool:
    return not ENDING.isdisjoint(step.altered) and state_of(step.field) == Dependency.ENDED


def _goes_with_it(step: Step, over: Step) -> bool:
    return (
        step.exists
        and step.field("on_dependency_failure") == DependencyPolicy.CANCEL
        and step.field("status") not in FINISHED
        and over.key in step.field("dependencies")
    )


def _go_with(step: Step, over: Step) -> None:
    """What the request says of it itself stays."""
    if step.op:
        step.change(step.op, step.reason, {"status": "cancelled"})
    else:
        cancel(step, f"{over.key} is {over.field('status')}")


def cancel(step: Step, reason: str) -> None:
    step.change(Op.CANCEL.value, reason, {"status": "cancelled"})


def cancel_tree(draft: Draft, root: Step, reason: str) -> None:
    """All descendants that a task has by now, but for what is in a final state. Raises RequestTooLarge."""
    changed = {
        one.key: one.field("parent_task_id") if one.exists else None
        for one in draft.steps.values()
        if one.op
        and (not one.exists or "parent_task_id" in one.touched or one.kind.recasts)
        and one.state is root.state
    }
    for key in _board(draft, root).graph.below(root.key, changed):
        step = draft.look(root.kind.name, key)
        if step.exists and step.field("status") not in FINISHED:
            draft.take(step)
            cancel(step, reason)
            _count(draft)


def _count(draft: Draft) -> None:
    """One more is cancelled with what the request says. What it says besides is bounded elsewhere."""
    draft.cancelled += 1
    most = draft.turn.coordination.limits.cascade_max
    if draft.cancelled > most:
        raise RequestTooLarge(f"more than {most:,} entities would be cancelled at once (cascade_max)")
