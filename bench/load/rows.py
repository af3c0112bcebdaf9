"""What a run under load found out, as values that become JSON. `docs/benchmarks.md` says what each field means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from solewriter.bench.kit.mark import Mark
from solewriter.bench.kit.measure import Latency, Spread
from solewriter.bench.load.agent import Loop
from solewriter.bench.load.histogram import Histogram, merged
from solewriter.engine_proc.process import Durability


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of whom: one row of a table."""

    section: str
    peer: str
    durability: Durability
    workload: str = "update-one"
    entities: int
    agents: int
    loop: Loop
    window: int = 1  # requests of one agent that may be on their way
    pinned: bool = False
    rate_per_s: float = 0.0  # offered by all agents together; 0 in closed loops
    writers: int = 0  # agents besides, which update at full speed while the others read


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a case."""

    per_s: float
    histogram: Histogram
    p50_us: float | None = None  # of the histogram, or of a program that tells only that
    server_cpu_us: float | None = None  # for each request, as everything below but memory; None where nobody serves
    client_cpu_us: float | None = None
    server_switches: float | None = None
    client_switches: float | None = None
    written_bytes: float | None = None  # to the device of the folder, by the whole machine; None where there is none
    server_mib: float | None = None  # resident, shared memory included
    client_mib: float | None = None  # of one agent
    per_client_cpu_s: float | None = None  # requests for each second of the agents' own processor time
    faults: list[str] = []


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of a case. Without `per_s` nothing was measured, and `note` says why."""

    case: Case
    how: str  # the system's setting that makes the promise
    promise: str
    validated: bool
    floor: bool
    batch: str
    placement: str
    per_s: Spread | None = None
    p50_us: Spread | None = None
    latency: Latency | None = None  # of all runs together
    histogram: Histogram | None = None  # of all runs together
    server_cpu_us: Spread | None = None
    client_cpu_us: Spread | None = None
    server_switches: Spread | None = None
    client_switches: Spread | None = None
    written_bytes: Spread | None = None
    server_mib: Spread | None = None
    client_mib: Spread | None = None
    per_client_cpu_s: Spread | None = None
    ours_to_it: float | None = (
        None  # our requests a second to its, by medians, of the row of ours that it stands beside
    )
    lost: bool = False  # whether it is the better one
    verified: bool | None = None  # None of a floor: it stores nothing
    note: str = ""


def row_of(empty: Row, samples: Sequence[Sample]) -> Row:
    """The row of these runs."""
    if not samples:
        return empty
    histogram = merged(sample.histogram for sample in samples)
    figures = {
        name: Spread.of([getattr(sample, name) for sample in samples])
        for name in (
            "per_s", "p50_us", "server_cpu_us", "client_cpu_us", "server_switches", "client_switches", "written_bytes",
            "server_mib", "client_mib", "per_client_cpu_s",
        )
    }  # fmt: skip
    faults = [fault for sample in samples for fault in sample.faults]
    return msgspec.structs.replace(
        empty,
        **figures,
        latency=histogram.latency(),
        histogram=histogram if histogram.count else None,
        verified=None if empty.floor else not faults,
        note="; ".join(filter(None, (empty.note, *faults[:1]))),
    )


def compared(rows: Sequence[Row], ours: str) -> list[Row]:
    """Each row beside ours to the same question and with the same promise, where there is one."""
    standing = {_question(row.case): row.per_s.median for row in rows if row.case.peer == ours and row.per_s}
    found = []
    for row in rows:
        per_s = standing.get(_question(row.case))
        theirs = row.per_s.median if row.per_s else 0.0  # or nothing of it was answered in any interval
        if per_s is not None and theirs and row.case.peer != ours and not row.floor and not row.case.rate_per_s:
            ratio = round(per_s / theirs, 3)
            row = msgspec.structs.replace(row, ours_to_it=ratio, lost=ratio < 1)
        found.append(row)
    return found


def _question(case: Case) -> Any:
    return msgspec.structs.replace(case, peer="")


class Timeline(msgspec.Struct, frozen=True):
    """Replies that agents got, in equal steps of time, across the death of the engine."""

    step_ms: int
    acked: list[int]
    killed_ms: float
    first_ack_ms: float  # after the kill
    engine_restarts: int
    verified: bool


class Results(msgspec.Struct, frozen=True):
    """Everything that a run found out."""

    machine: dict[str, str | int]
    plan: dict[str, Any]
    model_validate_us: Spread | None  # of the same task, processor time
    entry_bytes: int  # what our journal takes for one update of one agent
    idle_cpu_percent: float | None  # of an engine that nobody asks anything
    rows: list[Row]
    timeline: Timeline | None
    marks: list[Mark]
    verified: bool
    elapsed_s: float
    note: str = ""  # what went wrong outside of the rows
