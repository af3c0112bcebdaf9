"""A dashboard: reads a state that others change, and knows nothing about their models.

It never talks to the engine: a snapshot is read from shared memory, and waiting for the next revision is a futex in it,
not polling. Kinds come by name, entities as dicts. When the engine is killed the last snapshot stays, marked stale;
when the next engine serves, the same reader goes on with that one.

    python dashboard.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from solewriter import Engine, Entity, Limits, Project, Snapshot, Task, TaskStatus, connect, open_reader

# --- the dashboard ----------------------------------------------------------------------------------------------------

LOOK_S = 0.2  # when nothing changes for so long, look whether there is an engine at all


def dashboard(state: Path) -> list[tuple[int, bool]]:
    """Print what is stored whenever it has changed, until no project is active. The (revision, stale) of each table."""
    shown: list[tuple[int, bool]] = []
    with open_reader(state) as reader:
        while True:
            with reader.snapshot() as snap:
                if (snap.revision, snap.stale) not in shown[-1:]:
                    shown.append((snap.revision, snap.stale))
                    print("\n".join(table(snap)), flush=True)
                if not any(project["status"] == "active" for project in snap.entities("Project")):
                    return shown
            try:
                reader.wait_for(snap.revision + 1, timeout_s=LOOK_S)
            except TimeoutError:
                pass  # nobody has changed anything, or nobody can


def table(snap: Snapshot) -> Iterator[str]:
    """A line for each kind, all at one revision."""
    yield f"revision {snap.revision}{', stale: the engine is gone' if snap.stale else ''}"
    for kind, count in snap.counts.items():
        states = Counter(entity["status"] for entity in snap.entities(kind) if "status" in entity)
        yield f"  {kind:8}{count:4}  {dict(sorted(states.items())) or ''}".rstrip()


# --- what it looks at -------------------------------------------------------------------------------------------------


class Sample(Entity):
    """A model that the dashboard has never heard of."""

    loss: float


def work(state: Path) -> None:
    """Another process: tasks, and a sample with each of them."""
    with connect(state, name="worker") as client:
        for number in range(8):
            task = client.create(Task(title=f"step {number}", project="demo"))
            time.sleep(0.05)
            with client.transaction() as tx:
                tx.transition(task, TaskStatus.ASSIGNED, assigned_to=client.name)
                tx.create(Sample(loss=random.random()))
            time.sleep(0.05)
        client.transition(Project.ref("demo"), "archived", reason="that was all")


def accident(engine: Engine) -> None:
    """Kill the engine in the middle of it. Its supervisor starts the next one, the worker sends again by itself."""
    with open_reader(engine.state) as reader:
        reader.wait_for(9)
    os.kill(engine.pid, signal.SIGKILL)


def main(state: Path) -> bool:
    """Whether the dashboard saw the outage, and what came after it."""
    limits = Limits(restart_backoff_s=1.0)  # 0.05 by default, but this outage is to be seen
    with Engine(state, models=[Sample], durability="process", limits=limits) as engine:
        with connect(engine.state) as client:
            client.create(Project(id="demo", name="a demo"))
        worker = multiprocessing.get_context("spawn").Process(target=work, args=(engine.state,), daemon=True)
        worker.start()
        threading.Thread(target=accident, args=(engine,)).start()
        shown = dashboard(engine.state)
        worker.join()
    revisions = [revision for revision, _ in shown]
    outage = [revision for revision, stale in shown if stale]
    print(f"{len(shown)} tables up to revision {revisions[-1]}, stale at {outage}; engine restarts: {engine.restarts}")
    return revisions == sorted(revisions) and bool(outage) and outage[-1] < revisions[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        right = main(Path(sys.argv[1] if sys.argv[1:] else folder))
    sys.exit(not right)
