"""A farm of agents: processes that share CPU-bound tasks without a lock, and go on when one of them is killed.

An agent finds a free task in a snapshot, takes it under the version that it saw, counts primes, hands in the result.
When two want the same task, the slower one gets VersionConflict and looks for another. The parent kills one agent in
the middle of a task; it is the one who knows that a process ended, so it frees what is still in that agent's name.

    python farm.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path

from solewriter import Client, Engine, Task, TaskStatus, VersionConflict, connect

AGENTS, TASKS, NUMBERS = 4, 40, 10_000  # each task is to count the primes among so many numbers
FREE = (TaskStatus.CREATED, TaskStatus.INTERRUPTED)
PATIENCE_S = 20  # when nothing happens for so long, nobody is left


# --- an agent ---------------------------------------------------------------------------------------------------------


def agent(state: Path, name: str) -> None:
    """The whole life of an agent's process: task after task, until all are completed."""
    with connect(state, name=name) as client:
        while (task := take(client)) is not None:
            count = primes(task.metadata["begin"], task.metadata["end"])
            with client.transaction() as tx:  # two steps at one revision
                tx.transition(task, TaskStatus.IN_REVIEW)
                tx.transition(task, TaskStatus.COMPLETED, result=count)


def take(client: Client) -> Task | None:
    """A task that is this agent's from now on, or None when all are completed. Waits while others have the rest."""
    while True:
        with client.reader.snapshot() as snap:
            left = [task for task in snap.entities(Task) if task.status is not TaskStatus.COMPLETED]
        if not left:
            return None
        free = [task for task in left if task.status in FREE]
        if not free:
            client.reader.wait_for(snap.revision + 1, timeout_s=PATIENCE_S)
            continue
        task = random.choice(free)
        try:
            with client.transaction() as tx:  # goes through only if the task still is what the snapshot said
                tx.transition(task, TaskStatus.ASSIGNED, assigned_to=client.name)
                tx.transition(task, TaskStatus.IN_PROGRESS)
            return tx.result(task)
        except VersionConflict:
            pass  # somebody was faster: look again


def primes(begin: int, end: int) -> int:
    """How many primes there are from `begin` up to, not including, `end`; slowly."""
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(begin, 2), end))


# --- the parent -------------------------------------------------------------------------------------------------------


def farm(state: Path) -> bool:
    """Create the tasks, let agents do them, kill one; whether every prime was counted and the dead one replaced."""
    with Engine(state, durability="process") as engine, connect(engine.state, name="parent") as client:
        for number in range(TASKS):
            bounds = {"begin": number * NUMBERS, "end": (number + 1) * NUMBERS}
            client.create(Task(id=f"range-{number}", title="count primes", metadata=bounds))
        agents = started(engine.state)
        freed = supervise(agents, client)
        for process in agents.values():
            process.join()
        with client.reader.snapshot() as snap:
            tasks = {task.id: task for task in snap.entities(Task)}

    counted, expected = sum(task.result for task in tasks.values()), sieve(TASKS * NUMBERS)
    print(f"primes below {TASKS * NUMBERS:,}: {counted:,} by {AGENTS} agents, {expected:,} by a sieve")
    for name, process in agents.items():
        completed = sum(task.assigned_to == name for task in tasks.values())
        print(f"  {name}: {completed} tasks, exit code {process.exitcode}")
    for task in freed:
        print(f"{task.id}: begun by {task.assigned_to}, completed by {tasks[task.id].assigned_to}")
    taken_over = freed and all(task.assigned_to != tasks[task.id].assigned_to for task in freed)
    return bool(counted == expected and taken_over)


def started(state: Path) -> dict[str, BaseProcess]:
    """The agents by name. By `spawn` they get nothing of the parent's but the path of the state folder."""
    spawn = multiprocessing.get_context("spawn")
    agents: dict[str, BaseProcess] = {}
    for name in (f"agent-{number}" for number in range(AGENTS)):
        agents[name] = spawn.Process(target=agent, args=(state, name), daemon=True)
        agents[name].start()
    return agents


def supervise(agents: dict[str, BaseProcess], client: Client) -> list[Task]:
    """Kill one in the middle of a task, free what the dead leave, until all is completed. What was freed."""
    freed: list[Task] = []
    while True:
        with client.reader.snapshot() as snap:
            tasks = list(snap.entities(Task))
        held = {task.assigned_to or "": task for task in tasks if task.status is TaskStatus.IN_PROGRESS}
        done = sum(task.status is TaskStatus.COMPLETED for task in tasks)
        alive = [name for name, process in agents.items() if process.is_alive()]
        if done == TASKS or not alive:
            return freed
        orphans = [task for name, task in held.items() if name not in alive]
        if orphans:
            freed += [task for task in orphans if free(task, client)]
        elif held and not freed and done > TASKS // 4 and len(alive) > 1:
            victim = agents[random.choice(list(held))]
            victim.kill()  # SIGKILL, at whatever instruction it is
            victim.join()
        else:
            client.reader.wait_for(snap.revision + 1, timeout_s=PATIENCE_S)


def free(task: Task, client: Client) -> bool:
    """Let others have a dead agent's task, unless the last thing that it sent completed it."""
    try:
        client.transition(task, TaskStatus.INTERRUPTED, reason=f"{task.assigned_to} died")
        return True
    except VersionConflict:
        return False


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
