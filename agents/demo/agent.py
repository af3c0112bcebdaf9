"""An agent: find a task that is ready, take it by compare-and-set, work, hand in the result; until all are completed.

Many agents share one state and no lock. Looking costs the engine nothing, so an agent looks in memory twice: at
everything, for a handful of tasks in random order, and once more at each of them right before it takes it. Whoever is
slower is told so by VersionConflict and goes on with the next. Two requests for each task, taken and done; each of
them is one revision.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from solewriter import Client, EngineUnavailable, Snapshot, Task, TaskStatus, Transition, VersionConflict, connect
from solewriter.agents.demo.acks import Log
from solewriter.agents.demo.measure import Figures
from solewriter.agents.demo.plan import outcome

FREE = (TaskStatus.CREATED, TaskStatus.INTERRUPTED)  # nobody works at these
HANDFUL = 64  # tasks between two looks at everything; one of those takes about a millisecond for each thousand tasks
IDLE_S = 1.0  # how often an agent that waits for others makes sure that its parent is still there


def run(state: Path, root: Path, name: str, log_file: Path) -> None:
    """The whole life of an agent's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; it is the parent's to handle
    try:
        with connect(state, name=name) as client, Log(log_file) as log:
            work(client, log, root)
    except EngineUnavailable as error:
        sys.exit(f"{name}: {error}")  # the engine was given up: a line for people, status 1 for the parent


def work(client: Client, log: Log, root: Path) -> None:
    """Task after task, until all are completed."""
    for candidate in candidates(client):
        task = take(client, log, candidate)
        if task is not None:
            finish(client, log, task, root)


def take(client: Client, log: Log, candidate: Task) -> Task | None:
    """The task, now this agent's; None if somebody was faster."""
    task = client.get(Task, candidate.id)
    if task is None or task.status not in FREE:
        return None  # taken since the look at everything
    try:
        return log.step(
            client,
            Transition(task, TaskStatus.ASSIGNED, {"assigned_to": client.name}),
            Transition(task, TaskStatus.IN_PROGRESS),
        )
    except VersionConflict:
        return None  # taken since that second look


def finish(client: Client, log: Log, task: Task, root: Path) -> None:
    """Do the work and hand in the result. What other tasks came to is read from memory."""
    with client.reader.snapshot() as snap:
        figures = outcome(task, root, partial(figures_in, snap))
    log.step(
        client,
        Transition(task, TaskStatus.IN_REVIEW),
        Transition(task, TaskStatus.COMPLETED, {"result": asdict(figures)}),
    )


def figures_in(snap: Snapshot, task_id: str) -> Figures:
    """The result of a completed task."""
    return Figures(**snap[Task, task_id].result)


def candidates(client: Client) -> Iterator[Task]:
    """Tasks that were ready a moment ago, a handful at a time. Waits while there are none; ends with the last one."""
    while True:
        with client.reader.snapshot() as snap:
            revision, tasks = snap.revision, {task.id: task for task in snap.entities(Task)}
        if all(task.status is TaskStatus.COMPLETED for task in tasks.values()):
            return
        ready = [task for task in tasks.values() if is_ready(task, tasks)]
        if ready:
            yield from handful(ready)
        else:
            wait(client, revision + 1)


def is_ready(task: Task, tasks: Mapping[str, Task]) -> bool:
    """Whether nobody has this task and everything that it depends on is completed, which is final."""
    return task.status in FREE and all(tasks[part].status is TaskStatus.COMPLETED for part in task.dependencies)


def handful(ready: list[Task]) -> list[Task]:
    """Some of them: interrupted ones first, the others at random, so that agents seldom meet."""
    random.shuffle(ready)
    ready.sort(key=lambda task: task.status is TaskStatus.CREATED)
    return ready[:HANDFUL]


def wait(client: Client, revision: int) -> None:
    """Until something happens."""
    try:
        client.reader.wait_for(revision, timeout_s=IDLE_S)
    except TimeoutError:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            sys.exit("the demo is gone, so nobody is left to work for")
