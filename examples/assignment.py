"""Who gets what, by a policy of your own: roles, load, price. A policy is a function of a snapshot, not a framework.

Agents claim what is meant for them, or for anybody of their role. A dispatcher looks at a snapshot and decides whom a
task is meant for; it writes that on condition that nobody decided before, so any number of dispatchers may run. What
it decides is advice: when the chosen agent dies, the claim is lost, the advice is taken back, and another one gets it.

    python assignment.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from solewriter import Client, Engine, GuardFailed, Snapshot, Task, TaskStatus, connect


class Job(Task, columns=("role", "meant_for")):
    """A task with a role, and with the agent that it is meant for, "" for anybody."""

    role: str = "any"
    meant_for: str = ""
    size: int = 1


@dataclass(frozen=True)
class Worker:
    """What a policy knows of an agent."""

    name: str
    roles: frozenset[str]
    price: float


WORKERS = [
    Worker("ann", frozenset({"writer", "any"}), 3.0),
    Worker("bob", frozenset({"writer", "coder", "any"}), 2.0),
    Worker("eve", frozenset({"coder", "any"}), 1.0),
]
Policy = Callable[[Job, list[Worker], Mapping[str, int]], Worker]


# --- policies: of those who can do it, which one? ---------------------------------------------------------------------


def least_loaded(job: Job, able: list[Worker], load: Mapping[str, int]) -> Worker:
    return min(able, key=lambda worker: (load.get(worker.name, 0), worker.name))


def cheapest(job: Job, able: list[Worker], load: Mapping[str, int]) -> Worker:
    return min(able, key=lambda worker: (worker.price * job.size, worker.name))


# --- the dispatcher ---------------------------------------------------------------------------------------------------


def load_of(snap: Snapshot) -> Counter[str]:
    """How much is meant for each agent, or in its hands."""
    load: Counter[str] = Counter()
    for job in snap.scan(Job, where={"status": [TaskStatus.CREATED, TaskStatus.IN_PROGRESS]}):
        load[job.assigned_to or job.meant_for] += job.size
    return load


def dispatch(client: Client, policy: Policy) -> int:
    """Decide about everything that is meant for nobody yet; how much that was."""
    with client.reader.snapshot() as snap:
        load = load_of(snap)
        undecided = snap.scan(Job, where={"status": TaskStatus.CREATED, "meant_for": ""}, order_by="created_at")
    for job in undecided:
        chosen = policy(job, [worker for worker in WORKERS if job.role in worker.roles], load)
        try:
            client.update(job, where={"meant_for": "", "status": TaskStatus.CREATED}, meant_for=chosen.name)
            load[chosen.name] += job.size
        except GuardFailed:
            pass  # another dispatcher was faster, or somebody has it already
    return len(undecided)


# --- the agents -------------------------------------------------------------------------------------------------------


def next_job(client: Client, worker: Worker) -> Job | None:
    """What is meant for this agent; else what is meant for nobody, of its roles."""
    return client.claim(Job, where={"meant_for": worker.name}) or client.claim(
        Job, where={"meant_for": "", "role": sorted(worker.roles)}
    )


def play(state: Path) -> bool:
    with (
        Engine(state, models=[Job], durability="process") as engine,
        connect(engine.state, name="dispatcher") as client,
    ):
        for number, role in enumerate(("writer", "coder", "any", "coder", "writer", "any")):
            client.create(Job(id=f"{role}-{number}", title=role, role=role, size=number + 1))
        decided = dispatch(client, least_loaded)
        with client.reader.snapshot() as snap:
            advice = {job.id: job.meant_for for job in snap.entities(Job)}
        print(f"least loaded: {advice}")
        client.create(Job(id="night", title="night run", size=9))
        dispatch(client, cheapest)
        print(f"cheapest:     night -> {client.reader.snapshot()[Job, 'night'].meant_for}")
        done: dict[str, list[str]] = {worker.name: [] for worker in WORKERS}
        for worker in WORKERS:
            with connect(engine.state, name=worker.name) as agent:
                while (job := next_job(agent, worker)) is not None:
                    agent.complete(job, cost=worker.price * job.size)
                    done[worker.name].append(job.id)
        print(f"done:         {done}")
        with client.reader.snapshot() as snap:
            right = all(job.assigned_to == job.meant_for for job in snap.entities(Job))
            return right and decided == 6 and snap.count(Job, where={"status": TaskStatus.COMPLETED}) == 7


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fine = play(Path(sys.argv[1] if sys.argv[1:] else folder))
    sys.exit(not fine)
