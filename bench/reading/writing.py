"""What a writer costs, and how soon others see what it wrote: publish cost, memory after many updates, latency."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from solewriter import Task, Update
from solewriter.bench.kit.children import PATIENCE_S, children
from solewriter.bench.kit.measure import NS_PER_US, Interval, Spread, Usage
from solewriter.bench.kit.workload import WINDOW
from solewriter.bench.reading.population import Population, live_record_bytes, shared_bytes
from solewriter.bench.reading.waiting import PROGRAM, SEEN, Orders

UPDATES_DRAWN = 100_000  # at random, before a round; an engine does not get through more in one
LOOKS = 20  # at the memory, during a run of updates
KEEP_UP = 1_000  # updates between two snapshots of the client's own reader, which holds what it has mapped
PAUSE_S = 0.001  # before each update whose way is measured: everybody sleeps then, longer than anybody spins

# --- publish cost ----------------------------------------------------------------------------------------------------


def publish_costs(populations: Sequence[Population], rounds: int, seconds: float) -> list[Spread | None]:
    """Microseconds of the engine's processor time for one update at each size, in rounds in which sizes take turns."""
    taken: list[list[float]] = [[] for _ in populations]
    for number in range(-1, rounds):
        for place, population in enumerate(populations):
            cost_us = _publish_cost_us(population, number, seconds)
            if number >= 0:  # the one before warms up
                taken[place].append(cost_us)
    return [Spread.of(one) for one in taken]


def _publish_cost_us(population: Population, number: int, seconds: float) -> float:
    """All that the engine does from the first request to the last reply, over the updates that it was asked for."""
    engine, updates = population.engine, 0
    drawn = random.Random(number).choices(population.ids, k=UPDATES_DRAWN)
    before, end = Usage.of(engine.pid), time.monotonic() + seconds
    for reply in population.client.submit_many(_until(end, population, drawn), window=WINDOW):
        reply.check()
        updates += 1
    return Usage.of(engine.pid).since(before).cpu_ns / updates / NS_PER_US


def _until(end: float, population: Population, drawn: Sequence[str]) -> Iterator[Update]:
    """Updates of these entities, each to a value that it never had, until then."""
    begun = time.monotonic_ns()
    for number, id in enumerate(drawn):
        if time.monotonic() >= end:
            return
        yield Update(population.model.ref(id), {"steps": begun + number})


# --- memory ----------------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Shared memory after the updates, the most that was seen during them, and what the live records alone take."""

    updates: int
    bytes: int
    bytes_max: int
    live_bytes: int


def memory_after(population: Population, updates_per_entity: int) -> Memory:
    """Many updates of tasks chosen at random, in a pipeline; nobody holds an older snapshot meanwhile."""
    count = len(population.ids) * updates_per_entity
    drawn = random.Random(0).choices(population.ids, k=count)
    updates = (Update(Task.ref(id), {"budget_limit": number + 2.0}) for number, id in enumerate(drawn))
    seen: list[int] = []
    for number, reply in enumerate(population.client.submit_many(updates, window=WINDOW), 1):
        reply.check()
        if number % KEEP_UP == 0:
            population.client.reader.snapshot().close()
        if number % (count // LOOKS) == 0:
            seen.append(shared_bytes(population.state))
    with population.client.reader.snapshot() as snapshot:
        return Memory(count, seen[-1], max(seen), live_record_bytes(snapshot, population.model))


# --- latency ---------------------------------------------------------------------------------------------------------


def latencies_ns(population: Population, samples: int, cpus: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """From the call of `submit` until `wait_for` returned in a process on these CPUs that slept in it; and until the
    reply was in the caller's hands. One update at a time, after a moment in which all three processes sleep.
    """
    ref = Task.ref(population.ids[0])
    seen_ns: list[int] = []
    replied_ns: list[int] = []
    with _seeing(population, cpus) as seen:
        for number in range(samples):
            time.sleep(PAUSE_S)
            begun_ns = time.monotonic_ns()
            reply = population.client.submit(Update(ref, {"budget_limit": number + 2.0}))
            replied_ns.append(time.monotonic_ns() - begun_ns)
            revision, at_ns = SEEN.unpack(seen.read(SEEN.size))
            assert revision == reply.check().revision
            seen_ns.append(at_ns - begun_ns)
    return seen_ns, replied_ns


@contextmanager
def _seeing(population: Population, cpus: tuple[int, ...]) -> Iterator[BinaryIO]:
    """What a process says that waits for one revision after the other."""
    read_fd, write_fd = os.pipe()
    orders = Orders(cpus, str(population.state), write_fd)
    with (
        os.fdopen(read_fd, "rb", buffering=0) as seen,
        os.fdopen(write_fd, "wb") as theirs,
        children(PROGRAM, [orders]) as group,
    ):
        theirs.close()  # so that its end is our end of file
        group.go(Interval.soon(0.0, PATIENCE_S))
        yield seen
