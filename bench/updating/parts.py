"""The parts of the throughput benchmark: rows of updates, reads without and beside a writer, and the floor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from solewriter import Client, Engine
from solewriter.bench.kit.children import children
from solewriter.bench.kit.measure import NS_PER_US, US_PER_S, Interval, Latency, kept, latency, used_by
from solewriter.bench.kit.placement import Placement, free, pin_server, pinned
from solewriter.bench.kit.workload import WINDOW, Tally
from solewriter.bench.updating.agent import PROGRAM, Orders, Report, Role
from solewriter.bench.updating.report import ReadRow, UpdateRow, Writing
from solewriter.engine_proc.process import Durability

MODES: tuple[Role, ...] = ("one by one", "pipelined")
ECHO_WARMUP_S = 0.1


class Plan(msgspec.Struct, frozen=True):
    """What to run, and for how long."""

    agents: tuple[int, ...]
    durabilities: tuple[Durability, ...]
    tasks: int
    warmup_s: float
    seconds: float  # of each row of updates
    read_seconds: float  # of all reads together, with a writer and without one each
    whole: bool  # one by one with every number of agents; several pipelined agents also without pinning


# --- updates ----------------------------------------------------------------------------------------------------------


def updates(
    engine: Engine, client: Client, folder: Path, plan: Plan, mode: Role, agents: int, where: Placement
) -> UpdateRow:
    """One row: so many agents for the plan's time."""
    pin_server(engine.pid, where.engine)
    before = Tally.of(client)
    orders = [update_orders(engine, folder, mode, number, agents, where.agent(number)) for number in range(agents)]
    with children(PROGRAM, orders) as group:
        interval = Interval.soon(plan.warmup_s, plan.seconds)
        group.go(interval)
        engine_us = used_by([engine.pid], interval).cpu_ns / NS_PER_US
        reports = group.reports(Report, interval)
    acked = sum(report.measured for report in reports)
    return UpdateRow(
        durability=engine.durability,
        mode=mode,
        agents=agents,
        placement=str(where),
        acked=acked,
        mutations_per_s=round(acked / interval.seconds, 1),
        latency=latency(ns for order in orders for ns in kept(Path(order.latencies))),
        engine_cpu_us_per_mutation=round(engine_us / max(1, acked), 2),
        client_cpu_us_per_mutation=round(sum(report.cpu_ns for report in reports) / NS_PER_US / max(1, acked), 2),
        verified=Tally.of(client).grew_by(before, sum(report.total for report in reports)),
    )


def update_orders(engine: Engine, folder: Path, mode: Role, number: int, agents: int, cpus: tuple[int, ...]) -> Orders:
    latencies = str(folder / f"latencies-{number}")
    return Orders(mode, cpus, str(engine.state), number, agents, WINDOW, latencies)


def combinations(plan: Plan) -> Iterator[tuple[Role, int, Placement]]:
    """The rows of one durability."""
    for mode in MODES:
        for agents in plan.agents:
            if plan.whole or mode == "pipelined" or agents == plan.agents[0]:
                yield mode, agents, pinned()
            if plan.whole and mode == "pipelined" and agents > 1:
                yield mode, agents, free()


# --- reads ------------------------------------------------------------------------------------------------------------


def reading(engine: Engine, client: Client, folder: Path, plan: Plan) -> tuple[list[ReadRow], Writing]:
    """All reads without a writer, then with one."""
    where = pinned()
    pin_server(engine.pid, where.engine)
    quiet = [Orders("read", where.agent(0), str(engine.state))]
    writer = update_orders(engine, folder, "pipelined", 0, 1, writer_cpus(where))
    rows: list[ReadRow] = []
    before = Tally.of(client)
    for orders in (quiet, [*quiet, writer]):
        with children(PROGRAM, orders) as group:
            interval = Interval.soon(0.0, plan.read_seconds)
            group.go(interval)
            reports = group.reports(Report, interval)
        for name, us in reports[0].reads_us.items():
            rows.append(ReadRow(name, len(orders) > 1, round(US_PER_S / us, 1), us))
    wrote = reports[1]
    verified = Tally.of(client).grew_by(before, wrote.total)
    return rows, Writing(round(wrote.measured / interval.seconds, 1), verified)


def writer_cpus(where: Placement) -> tuple[int, ...]:
    """Beside the reader where there are CPUs enough, else with the engine: the reader shall have its own."""
    return where.agent(1) if len(where.agents) > 1 else where.engine


# --- the floor --------------------------------------------------------------------------------------------------------


def pipe_echo(folder: Path, seconds: float) -> tuple[int, Latency | None]:
    """Echoes in the interval and their latencies: no engine, no Python beyond two system calls on either side."""
    where = pinned()
    latencies = folder / "latencies-echo"
    asked, answered = os.pipe(), os.pipe()
    orders = [
        Orders("echo", where.engine, read_fd=asked[0], write_fd=answered[1]),
        Orders("ask", where.agent(0), latencies=str(latencies), read_fd=answered[0], write_fd=asked[1]),
    ]
    with children(PROGRAM, orders) as group:
        for fd in (*asked, *answered):
            os.close(fd)  # the children's now: the echo ends when the asking end closes
        interval = Interval.soon(ECHO_WARMUP_S, seconds)
        group.go(interval)
        echoes = group.reports(Report, interval)[1].measured
    return echoes, latency(kept(latencies))
