"""Engines that are killed again and again, and how soon the next one acknowledges something."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from solewriter import Client, Engine, Task, connect
from solewriter.bench.kit.journaled import BehindCheckpoint
from solewriter.bench.kit.measure import percentile
from solewriter.bench.kit.workload import fill
from solewriter.bench.restarting.busy import PATIENT, busy_agents, varied_task
from solewriter.engine_proc.process import Durability
from solewriter.shared.config import MIB

LOOK_EVERY_S = 0.2  # at the journal
CYCLES, CYCLES_MAX_S = 2, 600.0  # from one checkpoint to the next, until it is known how long the journal becomes
LONG = 0.9  # of that length, at a kill under sustained load
SUSTAINED_KILLS_MAX = 5  # each of them is waited for


class Restart(msgspec.Struct):
    """From the kill to the first ack, in milliseconds."""

    tasks: int
    durability: str
    beside: str  # "quiet", "busy agents", "sustained", "grown"
    kills: int
    p50_ms: float
    max_ms: float
    journal_mib: float  # behind the newest checkpoint, at the longest


def restarts(folder: Path, durabilities: Sequence[Durability], sizes: Sequence[int], kills: int) -> Iterator[Restart]:
    """Row after row; a new engine for each durability and size."""
    for durability in durabilities:
        for tasks in sizes:
            state = folder / f"{durability}-{tasks}"
            with (
                Engine(state, durability=durability, limits=PATIENT) as engine,
                connect(state, limits=PATIENT) as client,
            ):
                fill(client, map(varied_task, range(tasks)))
                yield _killed(engine, client, tasks, "grown", 1)
                yield _killed(engine, client, tasks, "quiet", kills)
                with busy_agents(state, tasks):
                    yield _killed(engine, client, tasks, "busy agents", kills)
                    yield _killed(engine, client, tasks, "sustained", min(kills, SUSTAINED_KILLS_MAX))


def _killed(engine: Engine, client: Client, tasks: int, beside: str, kills: int) -> Restart:
    dice, taken, longest, behind = random.Random(tasks), list[float](), 0, BehindCheckpoint(engine.state)
    for number in range(kills):
        if beside == "sustained":
            _await_longest(behind)
        elif beside != "grown":
            time.sleep(dice.uniform(0, 1))
        longest = max(longest, behind.bytes())
        begun = time.monotonic()
        os.kill(engine.pid, signal.SIGKILL)
        client.put(Task(title=f"{number}", id="after the kill"))
        taken.append((time.monotonic() - begun) * 1_000)
        with client.reader.snapshot() as snap:
            held = snap.counts["Task"]
        assert held == tasks + 1, f"{held} of {tasks + 1} tasks are there"
    taken.sort()
    return Restart(tasks, engine.durability, beside, kills, percentile(taken, 0.5), taken[-1], longest / MIB)


def _await_longest(behind: BehindCheckpoint) -> None:
    """Until the journal behind a checkpoint is about as long as it was when the last ones were named. The first of them
    is not counted: it may have begun before this load. Raises TimeoutError.
    """
    deadline, last, peaks = time.monotonic() + CYCLES_MAX_S, behind.bytes(), list[int]()
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError(f"in {CYCLES_MAX_S:g} s {len(peaks)} checkpoints were made")
        time.sleep(LOOK_EVERY_S)
        found = behind.bytes()
        if found < last:  # a checkpoint was named
            peaks.append(last)
        elif len(peaks) > CYCLES and found >= LONG * max(peaks[-CYCLES:]):
            return
        last = found
