"""What only our engine is asked for: replies across its death, its processor time when nobody asks, and two yardsticks.

`journaled_bytes` and `validate_us` are what the marks compare with: the bytes of one journal entry, and what pydantic
takes for one whole task.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import pairwise
from pathlib import Path

from solewriter import Engine, Task, Update, connect
from solewriter.bench.kit.journaled import Journal
from solewriter.bench.kit.measure import NS_PER_MS, NS_PER_S, US_PER_S, Interval, running_ns, sleep_until
from solewriter.bench.kit.workload import WINDOW, sample_task
from solewriter.bench.load.agent import Orders
from solewriter.bench.load.crew import crew
from solewriter.bench.load.evidence import Evidence
from solewriter.bench.load.peers.engine import EnginePeer
from solewriter.bench.load.plan import AGENTS
from solewriter.bench.load.rows import Timeline
from solewriter.bench.load.work import WORKLOADS, fields_of

VALIDATIONS = 20_000  # of one task, timed together
IDLE_SETTLE_S = 1.0  # after the last reply: nobody spins any more, and files are made ahead
STEP_MS = 20  # of a time line
KILLED_AT = 0.4  # of the time that it shows


def across_kill(folder: Path, tasks: int, seconds: float) -> Timeline:
    """Agents update, pipelined; in the middle of it SIGKILL ends the engine. The next one is started by its owner."""
    workload = WORKLOADS["update-one"]
    evidence = Evidence(workload, tasks)
    everywhere = tuple(os.sched_getaffinity(0))
    with Engine(folder, durability="process") as engine:
        peer = EnginePeer(engine)
        peer.load(workload.population(tasks))
        shares = evidence.shares(AGENTS)
        orders = [Orders("write and tell when", workload.name, share, WINDOW, everywhere) for share in shares]
        with crew(orders, [peer.link(share.number) for share in shares]) as group:
            interval = Interval.soon(0.2, seconds)
            group.go(interval)
            sleep_until(interval.start_ns + int(KILLED_AT * seconds * NS_PER_S))
            killed_ns = time.monotonic_ns()
            os.kill(engine.pid, signal.SIGKILL)
            reports = group.reports(interval)
        for share, report in zip(shares, reports, strict=True):
            evidence.note(share, report.applied, report.versions)
        faults = list(evidence.faults(peer.stored()))
        ended_ns = sorted(moment for report in reports for moment in report.ended_ns)
        return _timeline(ended_ns, interval, killed_ns, engine.restarts, verified=not faults)


def _timeline(ended_ns: list[int], interval: Interval, killed_ns: int, restarts: int, *, verified: bool) -> Timeline:
    """Replies that were already in a pipe when the engine died are read after that: the gap ends where the next engine
    replies, which is behind the longest silence.
    """
    counts = [0] * (1 + (interval.end_ns - interval.start_ns) // NS_PER_MS // STEP_MS)
    for moment in ended_ns:
        if interval.start_ns <= moment < interval.end_ns:
            counts[(moment - interval.start_ns) // NS_PER_MS // STEP_MS] += 1
    later = [killed_ns, *(moment for moment in ended_ns if moment > killed_ns)]
    silences = [(after - before, after) for before, after in pairwise(later)]
    first_ns = max(silences)[1] if silences else interval.end_ns
    return Timeline(
        step_ms=STEP_MS,
        acked=counts,
        killed_ms=round((killed_ns - interval.start_ns) / NS_PER_MS, 1),
        first_ack_ms=round((first_ns - killed_ns) / NS_PER_MS, 1),
        engine_restarts=restarts,
        verified=verified,
    )


def idle_percent(folder: Path, seconds: float) -> float | None:
    """Processor time of an engine with one client that asks nothing, in percent of one processor. None where the
    kernel does not tell it finely enough.
    """
    with Engine(folder, durability="process") as engine, connect(engine.state, name="idle") as client:
        client.create(sample_task(0))
        time.sleep(IDLE_SETTLE_S)
        before, begun = running_ns(engine.pid), time.monotonic()
        time.sleep(seconds)
        after, passed_s = running_ns(engine.pid), time.monotonic() - begun
    if before is None or after is None:
        return None
    return round((after - before) / NS_PER_S / passed_s * 100, 4)


def journaled_bytes(folder: Path) -> int:
    """What our journal takes for the update of one task, alone in its turn."""
    with Engine(folder, durability="process") as engine, connect(engine.state, name="bench-0") as client:
        task = client.create(sample_task(0))
        before = Journal(engine.state).bytes()
        client.submit(Update(Task.ref(task.id), {"budget_limit": 2.0}, 1)).check()
        return Journal(engine.state).bytes() - before


def validate_us() -> float:
    """Processor time of one validation of the whole task by pydantic."""
    fields, validate = {**fields_of(0), "version": 1}, Task.model_validate
    begun_s = time.process_time()
    for _ in range(VALIDATIONS):
        validate(fields)
    return (time.process_time() - begun_s) / VALIDATIONS * US_PER_S
