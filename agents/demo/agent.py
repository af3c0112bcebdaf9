"""An agent: claim a task that is ready, work, hand in the result; until nothing is left.

Many agents share one state and no lock: the engine gives each task to one of them, in the order of what depends on
what, and a dead agent's to another one. Two requests for each task, taken and done; each of them is one revision.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from solewriter import EngineUnavailable, Snapshot, Task
from solewriter.agents.demo.acks import Log, Scribe
from solewriter.agents.demo.measure import Figures
from solewriter.agents.demo.plan import outcome


def run(state: Path, root: Path, name: str, log_file: Path) -> None:
    """The whole life of an agent's process."""
    try:
        with Log(log_file) as log, Scribe(state, name, log) as client:
            for task in client.work(Task):
                with client.reader.snapshot() as snap:  # what other tasks came to is read from memory
                    figures = outcome(task, root, partial(figures_in, snap))
                client.complete(task, result=asdict(figures))
    except EngineUnavailable as error:
        sys.exit(f"{name}: {error}")  # the engine was given up: a line for people, status 1 for the parent


def figures_in(snap: Snapshot, task_id: str) -> Figures:
    """The result of a completed task."""
    return Figures(**snap[Task, task_id].result)
