"""A farm of agents: processes that share CPU-bound tasks without a lock, and go on when one of them is killed.

An agent claims a task, counts primes, hands in the result; two never get the same. The parent kills one agent in the
middle of a task: the engine sees that it died, and another agent gets what it was working at.

    python farm.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from solewriter import Engine, FrozenMap, Reader, Task, TaskStatus, connect

AGENTS, TASKS, NUMBERS = 4, 40, 10_000  # each task is to count the primes among so many numbers
PATIENCE_S = 20  # when nothing happens for so long, nobody is left


def agent(state: Path, name: str) -> None:
    """The whole life of an agent's process: task after task, until none is left."""
    with connect(state, name=name) as client:
        for task in client.work(Task):
            client.complete(task, result=primes(task.metadata["begin"], task.metadata["end"]))


def primes(begin: int, end: int) -> int:
    """How many primes there are from `begin` up to, not including, `end`; slowly."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(begin, 2), end))


# --- the parent -------------------------------------------------------------------------------------------------------


def farm(state: Path) -> bool:
    """Create the tasks, let agents do them, kill one; whether every prime was counted and the dead one replaced."""
    with Engine(state, durability="process") as engine, connect(engine.state, name="parent") as client:
        for number in range(TASKS):
            bounds = FrozenMap(begin=number * NUMBERS, end=(number + 1) * NUMBERS)
            client.create(Task(id=f"range-{number}", title="count primes", metadata=bounds, max_retries=3))
        agents = started(engine.state)
        victim, orphan = kill_one(agents, client.reader)
        for process in agents.values():
            process.join()
        with client.reader.snapshot() as snap:
            tasks = {task.id: task for task in snap.entities(Task)}

    counted, expected = sum(task.result for task in tasks.values()), sieve(TASKS * NUMBERS)
    print(f"primes below {TASKS * NUMBERS:,}: {counted:,} by {AGENTS} agents, {expected:,} by a sieve")
    for name, process in agents.items():
        completed = sum(task.assigned_to == name for task in tasks.values())
        print(f"  {name}: {completed} tasks, exit code {process.exitcode}")
    print(f"{orphan}: begun by {victim}, completed by {tasks[orphan].assigned_to} in attempt {tasks[orphan].attempts}")
    return bool(counted == expected and tasks[orphan].assigned_to != victim)


def started(state: Path) -> dict[str, BaseProcess]:
    """The agents by name. By `spawn` they get nothing of the parent's but the path of the state folder."""
    spawn = multiprocessing.get_context("spawn")
    agents: dict[str, BaseProcess] = {}
    for name in (f"agent-{number}" for number in range(AGENTS)):
        agents[name] = spawn.Process(target=agent, args=(state, name), daemon=True)
        agents[name].start()
    return agents


def kill_one(agents: dict[str, BaseProcess], reader: Reader) -> tuple[str, str]:
    """Kill an agent in the middle of a task, when a quarter is done: its name, and what it was working at. One that
    handed its task in right then was killed for nothing: another one is.
    """
    while sum(process.is_alive() for process in agents.values()) > 1:
        with reader.snapshot() as snap:
            done = snap.count(Task, where={"status": TaskStatus.COMPLETED})
            begun = snap.scan(Task, where={"status": TaskStatus.IN_PROGRESS})
        held = {task.assigned_to: task.id for task in begun if task.assigned_to is not None}
        if done > TASKS // 4 and any(agents[name].is_alive() for name in held):
            victim = random.choice([name for name in held if agents[name].is_alive()])
            agents[victim].kill()  # SIGKILL, at whatever instruction it is
            agents[victim].join()
            task = reader.wait_until(Task, held[victim], partial(is_settled, victim), timeout_s=PATIENCE_S)
            if task is not None and task.assigned_to != victim:
                return victim, task.id
        else:
            reader.wait_for(snap.revision + 1, timeout_s=PATIENCE_S)
    sys.exit("nobody was found in the middle of a task")


def is_settled(dead: str, task: Task | None) -> bool:
    """Whether a task was taken from a dead agent, or was the last thing that it handed in."""
    return task is None or task.assigned_to != dead or task.status is TaskStatus.COMPLETED


def sieve(end: int) -> int:
    """How many primes there are below `end`, quickly."""
    prime = bytearray(2) + bytearray([1]) * (end - 2)
    for n in range(2, int(end**0.5) + 1):
        if prime[n]:
            prime[n * n :: n] = bytes(len(range(n * n, end, n)))
    return sum(prime)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        right = farm(Path(sys.argv[1] if sys.argv[1:] else folder))
    sys.exit(not right)
