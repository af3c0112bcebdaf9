"""Claims at one size of the state, and across the death of who holds a task."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from solewriter import Claim, Client, Complete, Engine, InvalidMutation, Project, Task, TaskPriority, connect
from solewriter.bench.claiming import holder
from solewriter.bench.kit.children import children
from solewriter.bench.kit.measure import NS_PER_MS, NS_PER_US, Latency, Usage, latency, running_ns
from solewriter.bench.kit.workload import fill

PRIORITIES = tuple(TaskPriority)
PROJECTS, FAN_IN, SEED = 100, 3, 20261126
CYCLES = 50
WAIT_S = 20.0  # for a dead agent's task
SETTLE_S = 0.02  # who claims waits in the engine by then; if not, the figure is no better for it


class Row(msgspec.Struct, frozen=True):
    """What was measured at one size."""

    tasks: int
    first_ms: float
    beside_ms: float
    claim: Latency
    claim_by_project: Latency
    handed_in: Latency
    cycle: Latency
    engine_us_per_claim: float


def task(number: int, dice: random.Random) -> Task:
    needs = {f"t{dice.randrange(number):07d}" for _ in range(dice.randrange(FAN_IN) + 1)} if number % 2 else set()
    return Task(
        id=f"t{number:07d}",
        title=f"task {number}",
        priority=PRIORITIES[number % 4],
        project=f"p{number % PROJECTS}",
        dependencies=tuple(sorted(needs)),
        max_retries=3,
    )


def tasks(count: int) -> Iterator[Task]:
    """Always the same ones."""
    dice = random.Random(SEED)
    return (task(number, dice) for number in range(count))


def timed(deeds: int, deed: Callable[[], Any]) -> Latency:
    spent = []
    for _ in range(deeds):
        begun = time.monotonic_ns()
        deed()
        spent.append(time.monotonic_ns() - begun)
    found = latency(spent)
    assert found is not None
    return found


def measured(folder: Path, count: int, claims: int) -> Row:
    """The row of one size: a new engine, filled, and started once more."""
    state = folder / f"state-{count}"
    with Engine(state, durability="process"), connect(state) as client:
        fill(client, tasks(count))
    with Engine(state, durability="process") as engine, connect(state) as client:
        with beside(state) as spent:
            begun = time.monotonic_ns()
            held = [client.claim(Task)]
            first_ms = (time.monotonic_ns() - begun) / NS_PER_MS
        beside_ms = max(spent) / NS_PER_MS
        claim = timed(claims // 4, lambda: held.append(client.claim(Task)))
        dice = random.Random(SEED)
        by_project = timed(
            claims // 4, lambda: held.append(client.claim(Task, where={"project": f"p{dice.randrange(PROJECTS)}"}))
        )
        work = [one for one in held if one is not None]
        handed_in = timed(len(work), lambda: client.complete(work.pop()))
        first, last = first_and_last(count)
        cycle = timed(CYCLES, lambda: refused(client, first, last))
        before = spent_ns(engine.pid)
        taken = sum(len(reply.results) for reply in client.submit_many([Claim(Task)] * (claims // 2)))
        used_ns = spent_ns(engine.pid) - before
        assert taken == claims // 2, "there was enough for all"
        cpu_us = used_ns / taken / NS_PER_US
        return Row(count, first_ms, beside_ms, claim, by_project, handed_in, cycle, cpu_us)


def spent_ns(pid: int) -> int:
    """Processor time; in clock ticks, each of a hundred claims, only where the kernel tells no better."""
    return running_ns(pid) or Usage.of(pid).cpu_ns


@contextmanager
def beside(state: Path) -> Iterator[list[int]]:
    """Round trips of another agent as long as this lasts, at least one."""
    spent: list[int] = []
    over = threading.Event()
    with connect(state) as client:
        client.put(Project(id="beside", name="beside"))

        def write() -> None:
            while not over.is_set():
                begun = time.monotonic_ns()
                client.update(Project.ref("beside"), owner=str(begun))
                spent.append(time.monotonic_ns() - begun)

        thread = threading.Thread(target=write)
        thread.start()
        yield spent
        over.set()
        thread.join()


def first_and_last(count: int) -> tuple[str, str]:
    """A task that depends on many, and the first one that it depends on by some way: which has the most dependants."""
    needs = {one.id: one.dependencies for one in tasks(count)}
    last = max(needs, key=lambda id: (bool(needs[id]), id))
    found, waiting = {last}, [last]
    while waiting:
        new = [id for id in needs[waiting.pop()] if id not in found]
        found.update(new)
        waiting += new
    return min(found - {last}), last


def refused(client: Client, first: str, last: str) -> None:
    try:
        client.update(Task.ref(first), dependencies=(last,))
    except InvalidMutation:
        return
    raise AssertionError(f"{first} waits for {last}, which waits for it")


def deaths(folder: Path, count: int) -> Latency | None:
    """From a holder's death to the return of a claim that waits for its task; so many times, None of none."""
    spent, state = list[int](), folder / "deaths"
    with Engine(state, durability="process"), connect(state) as client:
        for number in range(count):
            client.create(Task(id=str(number), title="x", max_retries=1))
            with children(holder.PROGRAM, [holder.Orders(str(state))]) as group:
                spent.append(_until_claimed(client, *group.pids))
    return latency(spent)


def _until_claimed(client: Client, holder_pid: int) -> int:
    came: list[int] = []

    def wait() -> None:
        claimed = client.claim(Task, timeout_s=WAIT_S)
        came.append(time.monotonic_ns())
        assert claimed is not None
        client.submit(Complete(claimed)).check()

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(SETTLE_S)
    begun = time.monotonic_ns()
    os.kill(holder_pid, signal.SIGKILL)
    thread.join()
    return came[0] - begun
