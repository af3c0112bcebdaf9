"""What a run of the throughput benchmark found out, as values that become JSON, and as the tables that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from solewriter.bench.kit.measure import Latency
from solewriter.bench.kit.table import described, table
from solewriter.bench.kit.workload import REPLY_BYTES, REQUEST_BYTES


class UpdateRow(msgspec.Struct, frozen=True):
    """One combination of the update workload."""

    durability: str
    mode: str
    agents: int
    placement: str
    acked: int  # in the interval
    mutations_per_s: float
    latency: Latency | None
    engine_cpu_us_per_mutation: float
    client_cpu_us_per_mutation: float
    verified: bool


class ReadRow(msgspec.Struct, frozen=True):
    """One kind of read by one reader."""

    read: str
    writer: bool  # whether an agent was updating meanwhile
    reads_per_s: float
    us_per_read: float


class Writing(msgspec.Struct, frozen=True):
    """The agent that wrote while the reader read."""

    mutations_per_s: float
    verified: bool


class Floor(msgspec.Struct, frozen=True):
    """The bare pipe echo, and how far one update by one agent is above it, by medians."""

    request_bytes: int
    reply_bytes: int
    echoes: int
    latency: Latency | None
    one_by_one_to_echo_p50: dict[str, float]  # by durability


class Results(msgspec.Struct, frozen=True):
    """Everything that a run found out."""

    machine: dict[str, str | int]
    placement: dict[str, Any]
    workload: dict[str, Any]
    updates: list[UpdateRow]
    reads: list[ReadRow]
    writing_while_reading: Writing
    floor: Floor
    verified: bool
    elapsed_s: float


def floor_of(echoes: int, measured: Latency | None, rows: Sequence[UpdateRow]) -> Floor:
    lonely = {
        row.durability: row.latency.p50_us
        for row in rows
        if row.mode == "one by one" and row.agents == 1 and row.latency
    }
    ratios = {name: round(p50_us / measured.p50_us, 2) for name, p50_us in lonely.items()} if measured else {}
    return Floor(REQUEST_BYTES, REPLY_BYTES, echoes, measured, ratios)


def printed(results: Results) -> str:
    """The tables and what has to be known to read them."""
    place, work, floor = results.placement, results.workload, results.floor
    ratios = {name: str(ratio) for name, ratio in floor.one_by_one_to_echo_p50.items()}
    parts = [
        f"machine: {described(results.machine)}",
        f"workload: {described(work)}",
        f"pinned: {described({name: str(cpus) for name, cpus in place.items()})}; free: any CPU",
        "",
        _update_table(results.updates, floor),
        f"latency: of the whole call; pipelined: of a mutation in a queue kept {work['window']} long for each agent",
        "",
        _read_table(results.reads),
        "",
        f"writer beside the reader: {results.writing_while_reading.mutations_per_s:,.0f} mutations/s",
        f"one by one / echo, p50, 1 agent: {described(ratios)}",
        f"verified: {'yes, no mutation lost or doubled' if results.verified else 'NO'}; took {results.elapsed_s} s",
    ]
    return "\n".join(parts)


def _update_table(rows: Sequence[UpdateRow], floor: Floor) -> str:
    head = (
        "durability", "mode", "agents", "CPUs", "mutations/s", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us",
        "engine CPU us/mutation", "client CPU us/mutation", "verified",
    )  # fmt: skip
    echo = ("-", "pipe echo", "-", "pinned", "-", *_percentiles(floor.latency), "-", "-", "-")
    return table(head, [echo, *[_update_line(row) for row in rows]])


def _update_line(row: UpdateRow) -> tuple[object, ...]:
    place = row.durability, row.mode, row.agents, row.placement
    cpu = row.engine_cpu_us_per_mutation, row.client_cpu_us_per_mutation
    return (*place, row.mutations_per_s, *_percentiles(row.latency), *cpu, row.verified)


def _percentiles(found: Latency | None) -> tuple[float | None, ...]:
    return msgspec.structs.astuple(found) if found is not None else (None,) * len(Latency.__struct_fields__)


def _read_table(rows: Sequence[ReadRow]) -> str:
    lines = [(row.read, "beside" if row.writer else "none", row.reads_per_s, row.us_per_read) for row in rows]
    return table(("read", "writer", "reads/s", "us/read"), lines)
