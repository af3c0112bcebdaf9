"""The rules of readiness, on plain values: the engine claims by them, agents explain by them. Nothing here is stored.

A task is ready when nobody has it, an attempt is left, everything that it depends on is done, its time has come, and
its project is active.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from solewriter.shared.models import DependencyPolicy, TaskPriority

CLAIMABLE = frozenset({"created", "interrupted", "failed"})  # nobody works at these
HELD = frozenset({"assigned", "in_progress", "in_review", "auth_required"})  # somebody does: a claim lasts so long
FINISHED = frozenset({"completed", "cancelled", "rejected"})
RANK = {priority.value: rank for rank, priority in enumerate(TaskPriority)}  # critical first
LAST = len(RANK)  # of priorities that only a class of tasks of somebody's own has
DEPENDS = frozenset({"dependencies", "on_dependency_failure"})  # fields that decide what a task waits for
ENDING = frozenset({"status", "attempts", "max_retries"})  # fields that decide whether it has ended

Field = Callable[[str], Any]  # a field's name -> its plain value


class Dependency(IntEnum):
    """How far a task is, for those that depend on it."""

    OPEN = 0
    DONE = 1
    ENDED = 2  # it will not be done: cancelled, rejected, a dead letter
    UNKNOWN = 3  # there is no such task


def has_attempts_left(field: Field) -> bool:
    """Whether a task that nobody has may be tried, or tried again."""
    return bool(field("status") == "created" or field("attempts") <= field("max_retries"))


def is_dead_letter(field: Field) -> bool:
    """Whether a task failed or was interrupted as often as it may be: somebody has to look at it."""
    return field("status") in ("failed", "interrupted") and not has_attempts_left(field)


def state_of(field: Field) -> Dependency:
    status = field("status")
    if status == "completed":
        return Dependency.DONE
    if status in ("cancelled", "rejected") or is_dead_letter(field):
        return Dependency.ENDED
    return Dependency.OPEN


def is_met(state: Dependency, policy: str) -> bool:
    """Whether a dependency in this state lets its dependant go on."""
    return state == Dependency.DONE or (state == Dependency.ENDED and policy == DependencyPolicy.IGNORE)
