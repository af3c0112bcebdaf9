"""What claiming costs, by how many tasks are ready: it should be flat.

    python -m solewriter.bench.claims [--json] [--sizes 1000,10000,100000] [--claims 500] [--deaths 20]

One engine of durability "process" for each size, filled with that many tasks: half of them ready, the others each
depending on up to three earlier ones, chosen at random; four priorities, 100 projects.
  - first: the first claim after a start, which waits until the board of all tasks is made; once for each start.
    Beside: the longest round trip of another agent meanwhile, which updates one entity all the time.
  - one by one: round trips of `claim`, and of `claim` by project, one after the other, by the caller's clock.
  - pipelined: the engine's processor time (by /proc) for each of many claims in flight.
  - cycle: round trips of updates that would make one of the first tasks wait for the last one, which waits for it, with
    many between them: all of them refused.
  - handed in: `complete`, which may make others ready, by the caller's clock.
Death to claim: an agent that holds a task is killed while another one waits in `claim`: from just before the kill to
the return of that claim, by CLOCK_MONOTONIC; the waiting agent, the killer and the engine share the processors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from solewriter import Claim, Client, Complete, Create, Engine, InvalidMutation, Project, Task, TaskPriority, connect
from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.measure import NS_PER_US, Latency, Usage, latency
from solewriter.bench.kit.scratch import scratch_folder, tidy_when_told_to_end

PRIORITIES = tuple(TaskPriority)
PROJECTS, FAN_IN, SEED = 100, 3, 20261126
CYCLES = 50
_fork = multiprocessing.get_context("fork")


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


def filled(client: Client, count: int) -> None:
    dice = random.Random(SEED)
    for reply in client.submit_many(Create(task(number, dice)) for number in range(count)):
        reply.check()


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
    state = folder / f"state-{count}"
    with Engine(state, durability="process") as engine, connect(state) as client:
        filled(client, count)
    with Engine(state, durability="process") as engine, connect(state) as client:
        with beside(state) as spent:
            begun = time.monotonic_ns()
            held = [client.claim(Task)]
            first_ms = (time.monotonic_ns() - begun) / NS_PER_US / 1000
        beside_ms = max(spent) / NS_PER_US / 1000
        claim = timed(claims // 4, lambda: held.append(client.claim(Task)))
        dice = random.Random(SEED)
        by_project = timed(
            claims // 4, lambda: held.append(client.claim(Task, where={"project": f"p{dice.randrange(PROJECTS)}"}))
        )
        work = [one for one in held if one is not None]
        handed_in = timed(len(work), lambda: client.complete(work.pop()))
        first, last = first_and_last(count)
        cycle = timed(CYCLES, lambda: refused(client, first, last))
        before = Usage.of(engine.pid)
        taken = sum(len(reply.results) for reply in client.submit_many([Claim(Task)] * (claims // 2)))
        used = Usage.of(engine.pid).since(before)
        assert taken == claims // 2, "there was enough for all"
        cpu_us = used.cpu_ns / taken / NS_PER_US
        return Row(count, first_ms, beside_ms, claim, by_project, handed_in, cycle, cpu_us)


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
    dice = random.Random(SEED)
    needs = {one.id: one.dependencies for one in (task(number, dice) for number in range(count))}
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


def victim(state: Path, told: Any) -> None:
    with connect(state, name="victim") as client:
        client.claim(Task, timeout_s=10)
        told.set()
        signal.pause()


def deaths(folder: Path, count: int) -> Latency | None:
    """How long until a dead agent's task is another one's."""
    spent = []
    state = folder / "deaths"
    with Engine(state, durability="process"), connect(state) as client:
        for number in range(count):
            client.create(Task(id=str(number), title="x", max_retries=1))
            told = _fork.Event()
            process = _fork.Process(target=victim, args=(state, told))
            process.start()
            told.wait(20)
            came: list[int] = []

            def wait(came: list[int] = came) -> None:
                claimed = client.claim(Task, timeout_s=20)
                came.append(time.monotonic_ns())
                assert claimed is not None
                client.submit(Complete(claimed)).check()

            thread = threading.Thread(target=wait)
            thread.start()
            time.sleep(0.02)  # it waits in the engine by then; if not, the figure is no better for it
            begun = time.monotonic_ns()
            os.kill(process.pid or 0, signal.SIGKILL)
            thread.join()
            process.join()
            spent.append(came[0] - begun)
    return latency(spent)


def table(rows: list[Row], death: Latency | None) -> str:
    lines = [
        f"{'tasks':>9} {'first':>10} {'beside':>9} {'claim p50':>10} {'p99':>9} {'by project':>11} {'complete':>9} "
        f"{'cycle p50':>10} {'max':>10} {'engine CPU':>11}"
    ]
    lines += [
        f"{row.tasks:>9,} {row.first_ms:>7.1f} ms {row.beside_ms:>6.1f} ms "
        f"{row.claim.p50_us:>7.0f} us {row.claim.p99_us:>6.0f} us "
        f"{row.claim_by_project.p50_us:>8.0f} us {row.handed_in.p50_us:>6.0f} us {row.cycle.p50_us:>7.0f} us "
        f"{row.cycle.max_us:>7.0f} us {row.engine_us_per_claim:>8.1f} us"
        for row in rows
    ]
    if death is not None:
        lines.append(
            f"death to claim: p50 {death.p50_us / 1000:.1f} ms, p99 {death.p99_us / 1000:.1f} ms, "
            f"most {death.max_us / 1000:.1f} ms"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m solewriter.bench.claims", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--sizes", type=arguments.numbers, default="1000,10000,100000", help="how many tasks, separated by commas"
    )
    parser.add_argument(
        "--claims", type=arguments.number, default=400, help="of each size, at most a third of the least"
    )
    parser.add_argument("--deaths", type=int, default=20, help="agents killed")
    parser.add_argument(
        "--folder",
        type=arguments.existing_folder,
        default=Path("/tmp"),
        help="where everything is put, and removed again",
    )
    given = parser.parse_args()
    tidy_when_told_to_end()
    with scratch_folder(given.folder) as folder:
        rows = [measured(folder, size, given.claims) for size in given.sizes]
        death = deaths(folder, given.deaths) if given.deaths else None
        facts = machine(folder)
    if given.json:
        print(msgspec.json.encode({"machine": facts, "rows": rows, "death_to_claim": death}).decode())
    else:
        print(table(rows, death))
    return 0


if __name__ == "__main__":
    sys.exit(main())
