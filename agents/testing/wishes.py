"""What a random agent asks for: a bit of everything, right and wrong, of a few entities that all agents fight for."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from solewriter.agents.client import Client
from solewriter.shared.models import DependencyPolicy, Project, ProjectStatus, Task, TaskPriority, TaskStatus
from solewriter.shared.mutations import (
    Alter,
    Cancel,
    Claim,
    Complete,
    Create,
    Delete,
    Fail,
    GuardMutation,
    Mutation,
    Put,
    Redrive,
    Release,
    Renew,
    Require,
    RequireAbsent,
    RequireFields,
    RequireNone,
    Transition,
    Unchanged,
    Update,
)
from solewriter.shared.operations import Add, Append, Increment, Max, PutIn, Remove
from solewriter.shared.readiness import FINISHED
from solewriter.shared.where import Where

TASKS = [f"t{number}" for number in range(32)]  # few, so that agents meet, and a look at all of them is cheap
PROJECTS = [f"p{number}" for number in range(6)]
LEASE_S = 0.2  # less than an agent is stopped for, so that some come back too late
RETRY_DELAY_S = 0.1  # of a task, at most, so that what failed is ready again while somebody is there
PATIENCE_S = 0.1  # of a claim that waits, at most


class Wishes:
    """Of one agent; `unique` makes a text that nobody else makes: every change to it is a change."""

    def __init__(self, client: Client, chance: random.Random, unique: Callable[[], str]) -> None:
        self._client = client
        self._chance = chance
        self._unique = unique

    def mutation(self) -> Mutation:
        """Something about one of the entities that all agents share."""
        if self._chance.random() < 0.15:
            return self._of_project(self._chance.choice(PROJECTS))
        return self._of_task(self._chance.choice(TASKS))

    def _of_task(self, id: str) -> Mutation:
        chance, unique = self._chance, self._unique
        task = self._client.get(Task, id)
        if task is None:
            return self._of_no_task(id)
        if task.status in FINISHED and chance.random() < 0.5:
            return Delete(task)
        return chance.choice(
            (
                lambda: Update(task, {"description": unique()}),
                lambda: Update(task, {"description": unique(), "priority": chance.choice([*TaskPriority])}),
                lambda: Update(Task.ref(id), {"source": unique(), "max_retries": chance.randrange(4)}),
                lambda: Update(task, {"priority": task.priority}),  # changes nothing
                lambda: Update(task, {"description": unique()}, expect=max(0, task.version - 1)),
                lambda: Update(task, {"metadata": {"by": unique(), "parts": [1, {"deep": True}]}}),
                lambda: Update(task, {"dependencies": self._others(id), "on_dependency_failure": self._policy()}),
                lambda: Update(task, {"project": chance.choice(PROJECTS), "cost": chance.randrange(20) / 4}),
                lambda: Put(task.model_copy(update={"description": unique()})),
                lambda: Put(self._draft(id)),
                lambda: self._altered(id),
                lambda: self._altered(id),
                lambda: self._step(task),
                lambda: self._step(task),
                lambda: Redrive(task),
                lambda: Cancel(task) if chance.random() < 0.3 else Cancel(task, expect=task.version),
                lambda: Cancel(Task.ref(id), tree=True),
                lambda: Create(self._draft(id)),
                lambda: Delete(Task.ref(id) if chance.random() < 0.5 else task),
            )
        )()

    def _of_no_task(self, id: str) -> Mutation:
        return self._chance.choice(
            (
                lambda: Create(self._draft(id)),
                lambda: Create(self._draft(id)),
                lambda: Put(self._draft(id)),
                lambda: Update(Task.ref(id), {"source": self._unique()}),
                lambda: Put(self._draft(id), expect=self._chance.randrange(1, 4)),
            )
        )()

    def _draft(self, id: str) -> Task:
        """A new task: half of them wait for others, some belong to others."""
        chance = self._chance
        about = {
            "metadata": {"by": self._client.name},
            "reviewers": ("r1", "r2"),
            "priority": chance.choice([*TaskPriority]),
        }
        if chance.random() < 0.5:
            about |= {"dependencies": self._others(id), "on_dependency_failure": self._policy()}
        if chance.random() < 0.3:
            about |= {"parent_task_id": next(iter(self._others(id)), None), "project": chance.choice(PROJECTS)}
        retry_delay_s = chance.choice((0.0, RETRY_DELAY_S))
        return Task.model_validate(
            {
                "title": self._unique(),
                "id": id,
                "max_retries": chance.randrange(4),
                "retry_delay_s": retry_delay_s,
                **about,
            }
        )

    def _others(self, id: str) -> tuple[str, ...]:
        """Two at most. Some depend on each other in a circle, which is refused."""
        return tuple(one for one in self._chance.sample(TASKS, self._chance.randrange(3)) if one != id)

    def _policy(self) -> DependencyPolicy:
        policy: DependencyPolicy = self._chance.choice([*DependencyPolicy])
        return policy

    def _altered(self, id: str) -> Mutation:
        chance = self._chance
        operations = chance.choice(
            (
                {"cost": Increment(chance.randrange(-4, 8) / 4)},  # may be refused: a cost is not negative
                {"max_retries": Max(chance.randrange(4)), "reviewers": Add("r3", "r1")},
                {"reviewers": Append(self._unique(), most=3)},
                {"reviewers": Remove("r2", "nobody"), "metadata": Remove("by")},
                {"metadata": PutIn({self._client.name: self._unique()})},
                {"title": Increment()},  # refused
            )
        )
        return Alter(Task.ref(id), operations)

    def _step(self, task: Task) -> Mutation:
        """Along the lifecycle; a third of the steps are not allowed, or lack what they need."""
        assert task.lifecycle is not None
        allowed = task.lifecycle.allowed(task.status)
        to = self._chance.choice(allowed if allowed and self._chance.random() < 0.7 else [*TaskStatus])
        changes = {"assigned_to": self._client.name} if self._chance.random() < 0.8 else {}
        target = task if self._chance.random() < 0.7 else Task.ref(task.id)
        return Transition(target, to, changes)

    def _of_project(self, id: str) -> Mutation:
        project = self._client.get(Project, id)
        if project is None:
            return Create(Project(name=self._unique(), id=id, budget_limit=self._chance.randrange(100) / 4))
        return self._chance.choice(
            (
                lambda: Update(project, {"description": self._unique()}),
                lambda: Update(Project.ref(id), {"budget_limit": self._chance.randrange(1_000) / 8}),
                lambda: Transition(project, self._chance.choice([*ProjectStatus])),
                lambda: Delete(project),
            )
        )()

    # --- conditions --------------------------------------------------------------------------------------------------

    def guards(self) -> list[GuardMutation]:
        """Conditions on entities as they are now, or were a moment ago."""
        chance, id = self._chance, self._chance.choice(TASKS)
        task = self._client.get(Task, id)
        if task is None or chance.random() < 0.3:
            return []
        return [
            chance.choice(
                (
                    lambda: Require(task),
                    lambda: RequireAbsent(Task, id),
                    lambda: RequireFields(task, {"status": task.status}),
                    lambda: RequireFields(Task.ref(id), {"status": [*TaskStatus][:3], "project": ["", *PROJECTS]}),
                    lambda: RequireNone(Task, {"status": "in_review", "priority": "critical"}),
                )
            )()
        ]

    def merge(self) -> tuple[Mutation, list[GuardMutation]] | None:
        """A change that compares the field that it changes in place of the version."""
        task = self._client.get(Task, self._chance.choice(TASKS))
        if task is None:
            return None
        field = self._chance.choice(("description", "source"))
        return Update(task, {field: self._unique()}, expect=None), [Unchanged(task, (field,))]

    # --- work --------------------------------------------------------------------------------------------------------

    def claim(self) -> Claim:
        """Of some of the tasks, for ever or for a moment; some claims wait."""
        chance = self._chance
        until_us = time.monotonic_ns() // 1000 + int(chance.uniform(0, PATIENCE_S) * 1e6)
        return Claim(
            Task,
            self._where(),
            count=chance.choice((1, 1, 1, 3)),
            lease_s=chance.choice((None, LEASE_S)),
            until_us=chance.choice((None, until_us)),
        )

    def _where(self) -> Where:
        chance = self._chance
        return chance.choice(({}, {}, {"priority": chance.sample([*TaskPriority], 2)}, {"project": ""}))

    def about_work(self, id: str) -> Mutation:
        """About a task that this agent has, or had."""
        chance, task = self._chance, Task.ref(id)
        return chance.choice(
            (
                lambda: Complete(task, {"result": self._unique()}),
                lambda: Complete(task, {"result": self._unique()}),
                lambda: Complete(task),
                lambda: Fail(task, {"description": self._unique()}),
                lambda: Fail(task, final=True),
                lambda: Release(task),
                lambda: Renew(task, LEASE_S),
                lambda: Update(task, {"description": self._unique()}),
                lambda: Transition(task, TaskStatus.IN_REVIEW),
                lambda: self._altered(id),
            )
        )()
