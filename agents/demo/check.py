"""Was anything lost, applied twice, or computed wrongly? Compared are the logs, the final state and a single process.

Every version of every task must have been told to exactly one process, as the answer to one request. A version told
to two or to nobody was applied twice. Forgiven is one for each request whose process died before it could log the
answer, and one for each task that the engine took from a dead agent. A dead engine is forgiven nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from solewriter import Task, TaskStatus
from solewriter.agents.demo.acks import Line
from solewriter.agents.demo.measure import Figures
from solewriter.agents.demo.plan import Plan, outcome


@dataclass(frozen=True)
class Verdict:
    """What became of the requests."""

    acked: int
    conflicts: int
    lost: int
    duplicated: int


@dataclass(frozen=True)
class FinalState:
    """What the engine published last."""

    revision: int
    tasks: Mapping[str, Task]
    engine_restarts: int

    @property
    def taken_over(self) -> int:
        """How often a task was claimed again, because its agent died."""
        return sum(max(0, task.attempts - 1) for task in self.tasks.values())


def verdict(lines: Iterable[Line], final: FinalState, *, unanswered: int) -> Verdict:
    """Compare what all processes were told with the final state. Nobody was told what `unanswered` requests changed."""
    told = list(lines)
    acks = [line for line in told if not line.conflict]
    changes = [line for line in acks if line.task]
    return Verdict(
        acked=len(acks),
        conflicts=len(told) - len(acks),
        lost=sum(line.revision > final.revision or is_lost(line, final.tasks.get(line.task)) for line in changes),
        duplicated=told_twice(changes) + max(0, told_to_nobody(changes, final.tasks) - unanswered - final.taken_over),
    )


def is_lost(line: Line, task: Task | None) -> bool:
    """Whether the final state does not hold this acked change, or a later one of the same task."""
    if task is None or task.version < line.version:
        return True
    return line.status == TaskStatus.COMPLETED and (task.status is not TaskStatus.COMPLETED or task.result is None)


def told_twice(changes: list[Line]) -> int:
    """How many acks claim a version that another one claims too, or complete a task again."""
    versions = Counter((line.task, line.version) for line in changes)
    completed = {(line.task, line.version) for line in changes if line.status == TaskStatus.COMPLETED}
    completions = Counter(task for task, _ in completed)
    return sum(count - 1 for count in (*versions.values(), *completions.values()))


def told_to_nobody(changes: list[Line], tasks: Mapping[str, Task]) -> int:
    """How many versions no ack claims."""
    claimed = {(line.task, line.version) for line in changes}
    return sum((task.id, version) not in claimed for task in tasks.values() for version in range(1, task.version + 1))


@dataclass(frozen=True)
class Comparison:
    """What a single process came to, and whether the agents did too."""

    everything: Figures
    matches: bool
    seconds: float


def compare(plan: Plan, final: FinalState) -> Comparison:
    """Compute everything again, in this process, and compare each result with the stored one."""
    started = time.perf_counter()
    figures = single_process(plan)
    seconds = time.perf_counter() - started
    stored = {task.id: Figures(**task.result) for task in final.tasks.values() if task.result is not None}
    return Comparison(figures[plan.tasks[-1].id], stored == figures, seconds)


def single_process(plan: Plan) -> dict[str, Figures]:
    """Every figure, by the same functions, one after the other."""
    figures: dict[str, Figures] = {}
    for task in plan.tasks:
        figures[task.id] = outcome(task, plan.root, figures.__getitem__)
    return figures
