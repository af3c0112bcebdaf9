"""Whether a task is ready, why not, and whether anything is left to be done: told by a snapshot, by the engine's rules.

Nothing is asked of the engine for it. What a snapshot says is of its revision: a claim alone decides.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeGuard, TypeVar, overload

from solewriter.agents.snapshot import Plain, Snapshot
from solewriter.shared.config import READY_PAGE
from solewriter.shared.entity import Entity, name_of
from solewriter.shared.errors import InvalidQuery, SchemaMismatch, SnapshotExpired, safe_repr
from solewriter.shared.memory.catalog import Catalog
from solewriter.shared.models import BudgetPolicy, Project, ProjectStatus, Task
from solewriter.shared.readiness import (
    CLAIMABLE,
    FINISHED,
    HELD,
    Dependency,
    has_attempts_left,
    is_dead_letter,
    is_met,
    state_of,
)
from solewriter.shared.where import Where, single, typed_where

T = TypeVar("T", bound=Task)

_OF_TASKS = frozenset({"attempts", "claim", "cost", "project"})


class Obstacle(StrEnum):
    """What keeps a task from being claimed: the kind of a reason."""

    UNREADABLE = "unreadable"  # its class cannot read what is stored of it: claims pass over it
    FINISHED = "finished"
    HELD = "held"
    WAITING_FOR_PEOPLE = "waiting for people"  # blocked or suspended: somebody has to assign it
    NO_ATTEMPT_LEFT = "no attempt left"
    NOT_YET = "not yet"
    DEPENDENCY = "dependency"
    PROJECT = "project"
    BUDGET = "budget"


@dataclass(frozen=True)
class Reason:
    """Why a task is not ready, in words and as data."""

    obstacle: Obstacle
    words: str
    data: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.words


def why_not_ready(snap: Snapshot, task: Task, now: datetime.datetime | None = None) -> list[Reason]:
    """Everything that keeps a task from being claimed; nothing if it is ready. Whether its class can read it is asked
    of the one that is known here.
    """
    if not isinstance(task, Task):
        raise TypeError(f"why_not_ready takes a task, such as snap[Task, id], not {safe_repr(task)}")
    return [*_unreadable(snap, task), *_reasons(snap, task, now or datetime.datetime.now(datetime.UTC), {})]


def _unreadable(snap: Snapshot, task: Task) -> Iterator[Reason]:
    try:
        snap.get(type(task), task.id)
    except SchemaMismatch as error:
        yield Reason(Obstacle.UNREADABLE, f"its class cannot read what is stored of it: {error}", {"id": task.id})


def _reasons(snap: Snapshot, task: Task, now: datetime.datetime, budgets: dict[str, Budget]) -> Iterator[Reason]:
    """`budgets`: of projects that were looked at before, in the same snapshot."""
    status = single(task.status)  # in a class that narrows it, or has values in place of enums, it may be no enum's
    if status in FINISHED:
        yield Reason(Obstacle.FINISHED, f"it is {status}, which is final", {"status": status})
        return
    if status in HELD:
        yield Reason(Obstacle.HELD, f"{task.assigned_to} has it, {status}", {"assigned_to": task.assigned_to})
        return
    if status not in CLAIMABLE:
        yield Reason(Obstacle.WAITING_FOR_PEOPLE, f"it is {status} until somebody assigns it", {"status": status})
        return
    if not has_attempts_left(_field(task)):
        data = {"attempts": task.attempts, "max_retries": task.max_retries}
        told = "was interrupted" if status == "interrupted" else status
        words = f"it {told} in attempt {task.attempts}, and {task.max_retries} retries are allowed: redrive it"
        yield Reason(Obstacle.NO_ATTEMPT_LEFT, words, data)
    if task.not_before is not None and task.not_before > now:
        yield Reason(Obstacle.NOT_YET, f"its time comes at {task.not_before}", {"not_before": task.not_before})
    yield from _dependencies(snap, task)
    project = snap.get(Project, task.project) if task.project else None
    if project is not None and project.status is not ProjectStatus.ACTIVE:
        words = f"its project {project.id} is {project.status.value}"
        yield Reason(Obstacle.PROJECT, words, {"project": project.id, "status": project.status.value})
    if project is not None and project.budget_limit is not None and project.on_budget is BudgetPolicy.REFUSE:
        if project.id not in budgets:
            budgets[project.id] = budget_of(snap, project)
        budget = budgets[project.id]
        if budget.over:
            words = f"its project {project.id} has spent {budget.spent:g} of {budget.limit:g}"
            yield Reason(Obstacle.BUDGET, words, {"project": project.id, "spent": budget.spent, "limit": budget.limit})


def _dependencies(snap: Snapshot, task: Task) -> Iterator[Reason]:
    for one in task.dependencies:
        is_read, values = _task_fields(snap, type(task), one)
        state = Dependency.UNKNOWN if values is None else state_of(values)
        if is_met(state, task.on_dependency_failure):
            continue
        status = None if values is None else values("status")
        told = "does not exist" if status is None else f"is {status}"
        more = ", and will not be done" if state == Dependency.ENDED else ""
        more += "" if is_read else ", and which its class cannot read"
        data = {"id": one, "status": status}
        yield Reason(Obstacle.DEPENDENCY, f"it depends on {one}, which {told}{more}", data)


def _task_fields(snap: Snapshot, kind: type[Task], id: str) -> tuple[bool, Callable[[str], Any] | None]:
    """Whether its class can read a task, and its fields, as they are stored where it cannot; None if there is none."""
    try:
        found = snap.get(kind, id)
        return True, None if found is None else _field(found)
    except SchemaMismatch:
        stored = snap.get(kind.kind_name, id)
        return False, None if stored is None else stored.__getitem__


@dataclass(frozen=True)
class Budget:
    """What a project may spend, and what its tasks have cost so far."""

    limit: float | None
    spent: float

    @property
    def over(self) -> bool:
        """Whether all of it is spent."""
        return self.limit is not None and round(self.spent, 6) >= round(self.limit, 6)


def budget_of(snap: Snapshot, project: Project | str, *kinds: type[Task] | str) -> Budget:
    """Summed over a project's tasks of these kinds, given by class or by name; if none is named, of all kinds of tasks.
    The engine sums up those whose classes it has.
    """
    if not isinstance(project, Project | str):
        raise TypeError(f"budget_of takes a project, or its id, not {safe_repr(project)}")
    found = snap.get(Project, project) if isinstance(project, str) else project
    name = project if isinstance(project, str) else project.id
    each = {name_of(kind): kind for kind in kinds or _kinds_of_tasks(snap)}
    costs = [cost for kind in each.values() for cost in _costs(snap, kind, name)]
    return Budget(None if found is None else found.budget_limit, _sum(costs))


def _sum(costs: list[float]) -> float:
    """The exact sum; infinite where it is more than a float can hold."""
    try:
        return math.fsum(costs)
    except OverflowError:
        return math.inf


def _kinds_of_tasks(snap: Snapshot) -> Iterator[type[Task] | str]:
    """The kinds of tasks: their classes where these are known here, else the names of those that look like tasks."""
    catalog = snap.pin.catalog
    for code, model in enumerate(map(snap.model_of, catalog.kinds)):
        if _are_tasks(model, catalog, code):
            yield model


def _are_tasks(model: type[Entity] | str, catalog: Catalog, code: int) -> TypeGuard[type[Task] | str]:
    """Whether the entities of a kind are tasks, or, where its class is not known here, look like some."""
    return catalog.defaults(code).keys() >= _OF_TASKS if isinstance(model, str) else issubclass(model, Task)


def _costs(snap: Snapshot, kind: type[Task] | str, project: str) -> list[float]:
    try:
        return [*_read_costs(snap, kind, project)]
    except SchemaMismatch:  # of one that its class cannot read counts what is stored, as the engine counts it
        return [*_read_costs(snap, name_of(kind), project)]


def _read_costs(snap: Snapshot, kind: type[Task] | str, project: str) -> Iterator[float]:
    try:
        found: Iterable[Any] = snap.scan(kind, where={"project": project})
    except InvalidQuery:  # it declares other columns
        found = snap.entities(kind)
    for task in found:
        fields = task if isinstance(task, Mapping) else task.__dict__  # records of earlier classes may have neither
        if fields.get("project") == project:
            yield fields.get("cost", 0.0)


def _field(task: Task) -> Callable[[str], Any]:
    values = task.__dict__
    return lambda name: single(values[name])


@overload
def dead_letters(snap: Snapshot, *, where: Where | None = None) -> list[Task]: ...
@overload
def dead_letters(snap: Snapshot, kind: type[T], where: Where | None = None) -> list[T]: ...
@overload
def dead_letters(snap: Snapshot, kind: str, where: Where | None = None) -> list[Plain]: ...
def dead_letters(snap: Snapshot, kind: type[Task] | str = Task, where: Where | None = None) -> list[Any]:
    """Tasks that failed or were interrupted as often as they may be, oldest first. A kind given by name yields dicts of
    plain values.
    """
    asked = {"status": _states_of(snap, kind, ("failed", "interrupted")), **(where or {})}
    found: Iterable[Any] = snap.scan(kind, where=asked, order_by="created_at")
    name = name_of(kind)
    code = snap.pin.catalog.kind_code(name)
    defaults = {} if code is None else snap.pin.catalog.defaults(code)  # of what records of earlier classes have not
    try:
        return [
            task
            for task in found
            if is_dead_letter({**defaults, **task}.__getitem__ if isinstance(task, dict) else _field(task))
        ]
    except KeyError:
        raise InvalidQuery(f"{name} is no kind of task", kind=name) from None


def is_anything_left(snap: Snapshot, kind: type[Task], where: Where) -> bool:
    """Whether somebody works at one of these tasks, or one of them is ready, or will be when its time comes. True where
    this process was stopped in the middle of the look, for so long that it cannot tell: the next one does.
    """
    try:
        return _is_anything_left(snap, kind, where)
    except SnapshotExpired:
        return True


def _is_anything_left(snap: Snapshot, kind: type[Task], where: Where) -> bool:
    if (known := snap.kind_of(kind)) is not None:  # claims ask the same, of values
        where = typed_where(known, where)
    counts = {single(state): count for state, count in snap.count_by(kind, "status", where={**where}).items()}
    if any(counts.get(status) for status in HELD):
        return True
    if not any(counts.get(status) for status in CLAIMABLE):
        return False
    waiting = _readable_tasks(snap, kind, {"status": _states_of(snap, kind, CLAIMABLE), **where})
    keeps, budgets, now = {Obstacle.NOT_YET}, dict[str, Budget](), datetime.datetime.now(datetime.UTC)
    return any(all(reason.obstacle in keeps for reason in _reasons(snap, task, now, budgets)) for task in waiting)


def _states_of(snap: Snapshot, kind: type[Task] | str, states: Iterable[str]) -> list[str]:
    """The ones of these states that the class of a kind has: it may have fewer than `Task`."""
    catalog = snap.pin.catalog
    code = catalog.kind_code(name_of(kind))
    if code is not None and _are_tasks(kind, catalog, code):
        for column in catalog.tables[code].columns:
            if column.name == "status" and column.type == "enum":
                return [state for state in states if state in column.values]
    return [*states]


def _readable_tasks(snap: Snapshot, kind: type[T], where: Where) -> Iterator[T]:
    """The tasks that match, but for those that their class cannot read, which no claim takes. Those that rest behind an
    attempt come first, and few are read at first: one is enough for most who ask, again and again.
    """
    size, last = READY_PAGE, None
    try:
        while page := snap.scan(kind, where=where, order_by="-status", limit=size, after=last):
            yield from page
            size, last = 2 * size, page[-1].id
        return
    except SchemaMismatch:
        pass
    for id in snap.ids(kind, where=where):
        with suppress(SchemaMismatch):
            yield snap[kind, id]
