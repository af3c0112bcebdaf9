"""What an engine must do for those who share work, second half of the model: claims, their tokens, what is ready, who
goes with whom. All of it looked up in the contents of the tasks, each time: a model need not be quick.

Which tasks a claim takes the model does not choose: it says whether the engine might. Likewise how long a failed one
rests, which is chance between two bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from solewriter.agents.testing.steps import Fields, Key, Step
from solewriter.shared.models import TaskPriority

if TYPE_CHECKING:
    from solewriter.agents.testing.model import Model

FENCED_CLAIM = "Fenced claim"  # the error's name where it was a task's claim, not a session, that was lost
FREE = ("created", "interrupted", "failed")
HELD = ("assigned", "in_progress", "in_review", "auth_required")
FINAL = ("completed", "cancelled", "rejected")
PRIORITIES = [str(priority) for priority in TaskPriority]  # the first one is the most urgent
TAKEN = {"status", "assigned_to"}  # by whoever has no token: nothing besides
ENDING = {"status", "attempts", "max_retries", "dependencies", "on_dependency_failure"}  # decide who goes with whom
REST_MAX_S = 300.0
ACCURACY = timedelta(microseconds=2)  # of a time that was computed in floats


class Refusal(Exception):
    """A request must be refused. `args`: the error's name, the version and the allowed states that it tells, if any."""


class Draft:
    """What a request changes: contents, None where it deletes; tokens of claims, 0 where one ended."""

    def __init__(
        self, model: Model, actor: str, now: str, shown: Mapping[Key, int], chosen: Mapping[Key, Fields | None]
    ) -> None:
        self.model = model
        self.actor = actor
        self.now = now
        self.shown = shown
        self.chosen = chosen
        self.contents: dict[Key, Fields | None] = {}
        self.claims: dict[Key, int] = {}
        self.claimed: list[Key] = []
        self.given_back: set[Key] = set()
        self._ops: dict[Key, tuple[str, set[str]]] = {}  # the last one, and the names of all fields that were set

    def content(self, key: Key) -> Fields | None:
        return self.contents[key] if key in self.contents else self.model.stored(key)

    def put(self, key: Key, content: Fields | None, op: str, named: Iterable[str]) -> None:
        self.contents[key] = content
        self._ops[key] = op, self.touched(key) | {*named}

    def change(self, key: Key, op: str, **fields: Any) -> None:
        """Replace some fields. Raises Refusal."""
        self.put(key, self.model.valid(key.kind, {**(self.content(key) or {}), **fields}), op, fields)

    def touched(self, key: Key) -> set[str]:
        return self._ops[key][1] if key in self._ops else set()

    def op(self, key: Key) -> str:
        return self._ops[key][0] if key in self._ops else ""

    def tasks(self, kind: str) -> Iterator[tuple[Key, Fields]]:
        """All that there are by now."""
        for key in {**self.model.held, **self.contents}:
            content = self.content(key) if key.kind == kind else None
            if content is not None and "claim" in content:
                yield key, content


def broken(content: Fields, conditions: Fields) -> bool:
    """Whether one of these fields has none of the values that it may have."""
    return any(content.get(name) not in among for name, among in conditions.items())


# --- what is ready ---------------------------------------------------------------------------------------------------


def is_over(task: Fields) -> bool:
    """It will not be done, unless somebody sees to it."""
    return task["status"] in ("cancelled", "rejected") or (
        task["status"] in ("failed", "interrupted") and task["attempts"] > task["max_retries"]
    )


def is_ready(draft: Draft, kind: str, task: Fields) -> bool:
    if task["status"] not in FREE or is_over(task):
        return False
    if task["not_before"] is not None and moment(task["not_before"]) > moment(draft.now):
        return False
    return not is_kept(draft, task["project"]) and all(
        (on := draft.content(Key(kind, id))) is not None
        and (on["status"] == "completed" or (is_over(on) and task["on_dependency_failure"] == "ignore"))
        for id in task["dependencies"]
    )


def is_kept(draft: Draft, id: str) -> bool:
    """By its project: which is paused, or has spent what it may."""
    project = draft.content(Key("Project", id))
    if project is None:
        return False
    spent = sum(round(task["cost"] * 1_000_000) for _, task in draft.tasks("Task") if task["project"] == id)
    limit = project["budget_limit"] if project["on_budget"] == "refuse" else None
    return project["status"] != "active" or (limit is not None and spent >= round(limit * 1_000_000))


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def order(task: Fields) -> tuple[int, float]:
    """The most urgent one first, then the oldest."""
    created = task["created_at"]
    return PRIORITIES.index(task["priority"]), moment(created).timestamp() if created else 0.0


# --- mutations -------------------------------------------------------------------------------------------------------


def claim(draft: Draft, step: Step) -> None:
    """Of all that are ready and asked for, the engine took those that come first: as many as it was asked for, or all.
    Raises Refusal where it did not.
    """
    assignee = step.fields.get("assignee") or draft.actor
    ready = {
        key: task
        for key, task in draft.tasks(step.kind)
        if is_ready(draft, step.kind, task)
        and not broken(task, step.fields["where"])
        and assignee not in task["delegation_chain"]
    }
    taken = [*draft.chosen]
    wrong = [key for key in taken if key not in ready]
    if wrong:
        raise Refusal(f"not to be claimed: {', '.join(map(str, wrong))}", None, None)
    left = [order(task) for key, task in ready.items() if key not in draft.chosen]
    ranks = [order(ready[key]) for key in taken]
    if ranks != sorted(ranks) or (left and ranks and min(left) < ranks[-1]):
        raise Refusal("claimed in another order", None, None)
    if len(taken) != min(len(ready), step.fields["count"]):
        raise Refusal(f"{len(taken)} were claimed, and {len(ready)} are ready", None, None)
    for key in taken:
        token = draft.model.version(key) + 1
        attempts = ready[key]["attempts"] + 1
        draft.change(
            key, "claim", status="in_progress", assigned_to=assignee, attempts=attempts, claim=token, not_before=None
        )
        draft.claims[key] = token
    draft.claimed += taken


def _complete(draft: Draft, step: Step, task: Fields) -> None:
    _among(draft, step, task, "in_progress", "in_review")
    draft.change(step.key, "complete", **{**step.fields, "status": "completed"})


def _fail(draft: Draft, step: Step, task: Fields) -> None:
    _among(draft, step, task, "assigned", "in_progress", "in_review")
    fields = {**step.fields, "status": "failed", "assigned_to": None}
    if step.to:
        fields["attempts"] = max(task["attempts"], task["max_retries"] + 1)
    elif task["attempts"] <= task["max_retries"]:
        fields["not_before"] = _rest(draft, step.key, task)
    draft.change(step.key, "fail", **fields)
    draft.given_back.add(step.key)


def _rest(draft: Draft, key: Key, task: Fields) -> str | None:
    """Until when, as the engine chose. Raises Refusal where it must not."""
    first = 1.0 if task["retry_delay_s"] is None else task["retry_delay_s"]
    most = min(first * 2.0 ** min(max(0, task["attempts"] - 1), 60), max(REST_MAX_S, first))
    until: str | None = (draft.chosen.get(key) or {}).get("not_before")
    if until is None:
        if key in draft.chosen and most >= 2e-6:
            raise Refusal("it failed and does not rest", None, None)
        return None
    rested = moment(until) - moment(draft.now)
    if not timedelta(seconds=most / 2) - ACCURACY <= rested <= timedelta(seconds=most) + ACCURACY:
        raise Refusal(f"it rests for {rested}, and {most} s are the most", None, None)
    return until


def _release(draft: Draft, step: Step, task: Fields) -> None:
    _among(draft, step, task, "assigned", "in_progress", "in_review")
    attempts = max(0, task["attempts"] - 1)
    draft.change(step.key, "release", status="interrupted", assigned_to=None, attempts=attempts)
    draft.given_back.add(step.key)


def _renew(draft: Draft, step: Step, task: Fields) -> None:
    if not draft.model.claims.get(step.key) or draft.shown.get(step.key) != draft.model.claims[step.key]:
        raise Refusal("InvalidMutation", None, None)


def _redrive(draft: Draft, step: Step, task: Fields) -> None:
    _among(draft, step, task, *FREE)
    draft.change(step.key, "redrive", attempts=0, not_before=None)


def _expire(draft: Draft, step: Step, task: Fields) -> None:
    """The engine takes a claim away."""
    if step.key not in draft.model.claims:
        raise Refusal("nobody holds it", None, None)
    draft.change(step.key, "expire", status="interrupted", assigned_to=None)


def _among(draft: Draft, step: Step, task: Fields, *states: str) -> None:
    life = draft.model.kinds[step.kind].lifecycle
    if task["status"] not in states:
        raise Refusal("InvalidTransition", None, life.allowed(task["status"]) if life else None)


STEPS: Mapping[str, Callable[[Draft, Step, Fields], None]] = {
    "complete": _complete,
    "fail": _fail,
    "release": _release,
    "renew": _renew,
    "redrive": _redrive,
    "expire": _expire,
}


def cancel_below(draft: Draft, root: Key) -> None:
    """All that has it for a parent by now, and so on."""
    found, waiting = {root}, [root]
    now = dict(draft.tasks(root.kind))
    while waiting:
        parent = waiting.pop()
        below = [key for key, task in now.items() if task["parent_task_id"] == parent.id]
        waiting += [key for key in below if key not in found]
        found.update(below)
    for key in found - {root}:
        task = draft.content(key)
        if task is not None and task["status"] not in FINAL:
            draft.change(key, "cancel", status="cancelled")


# --- after all of them -----------------------------------------------------------------------------------------------


def show(draft: Draft, key: Key, token: int) -> None:
    """A token is of the newest claim. Raises Refusal."""
    if (draft.model.stored(key) or {}).get("claim", 0) != token:
        raise Refusal(FENCED_CLAIM, None, None)


def follow(draft: Draft) -> None:
    """What the changes of a request bring with them, or must not do. Raises Refusal."""
    for key in [*draft.contents]:
        if draft.touched(key) & {"dependencies", "on_dependency_failure"}:
            _depends_well(draft, key)
    for kind in {key.kind for key in draft.contents if draft.touched(key) & ENDING}:
        while over := next(_going_with_others(draft, kind), None):
            draft.change(over, "cancel", status="cancelled")
    for key in [*draft.contents]:
        _fence(draft, key)


def _depends_well(draft: Draft, key: Key) -> None:
    wanted = (draft.contents[key] or {}).get("dependencies", ())
    known = (draft.model.stored(key) or {}).get("dependencies", ())
    new = [Key(key.kind, id) for id in wanted if id not in known]
    found, waiting = set[Key](), new[:]
    while waiting:
        one = waiting.pop()
        found.add(one)
        following = [Key(key.kind, id) for id in (draft.content(one) or {}).get("dependencies", ())]
        waiting += [other for other in following if other not in found]
    if any(draft.content(one) is None for one in new) or key in found:
        raise Refusal("InvalidMutation", None, None)


def _going_with_others(draft: Draft, kind: str) -> Iterator[Key]:
    """Those that are to be cancelled with something that they depend on, and that is over."""
    for key, task in draft.tasks(kind):
        if task["on_dependency_failure"] == "cancel" and task["status"] not in FINAL:
            on = [draft.content(Key(kind, id)) for id in task["dependencies"]]
            if any(one is not None and is_over(one) for one in on):
                yield key


def _fence(draft: Draft, key: Key) -> None:
    """A claimed task is changed by its claimer, or taken away. Raises Refusal."""
    token = draft.model.claims.get(key)
    if token is None or key in draft.claimed:
        return
    content = draft.contents[key]
    if draft.shown.get(key) != token:
        if draft.op(key) not in ("cancel", "expire") or not draft.touched(key) <= TAKEN:
            raise Refusal(FENCED_CLAIM, None, None)
        draft.change(key, draft.op(key), claim=draft.model.version(key) + 1)
        draft.claims[key] = 0
    elif key in draft.given_back or content is None or content["status"] not in HELD:
        draft.claims[key] = 0
