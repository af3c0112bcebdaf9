"""The goals of the engine under load, judged by the figures of one run; only those whose rows are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from solewriter.bench.kit.mark import Mark, least, most
from solewriter.bench.kit.measure import Spread
from solewriter.bench.kit.workload import WINDOW
from solewriter.bench.load.peers.catalog import OURS
from solewriter.bench.load.plan import AGENTS, AGENTS_MAX, TASKS, TASKS_LEAST, TASKS_MOST
from solewriter.bench.load.rows import Row


def marks_of(rows: Sequence[Row], validate_us: Spread | None, idle_percent: float | None) -> list[Mark]:
    """In the order of the goals."""
    return [*_pipelined(rows), *_one_by_one(rows), *_costs(rows, validate_us), *_many(rows), *_idle(idle_percent)]


def _pipelined(rows: Sequence[Row]) -> Iterator[Mark]:
    """Requests a second, ours to a rival's. One by one, a rival makes a transaction of each request."""
    aims = (
        ("process", "Redis", "pipelined", 1.2),
        ("process", "SQLite", "one by one", 2.5),
        ("process", "SQLite", "pipelined", 2.5),
        ("process", "do-it-yourself", "pipelined", 2.0),
        ("power", "Redis", "pipelined", 1.4),
    )
    for durability, rival, loop, bound in aims:
        for ours in _rows(rows, OURS, durability, "pipelined"):
            for theirs in _rows(rows, rival, durability, loop):
                if ours.case.pinned == theirs.case.pinned and ours.per_s and theirs.per_s:
                    how = "one transaction each" if (rival, loop) == ("SQLite", "one by one") else theirs.batch
                    name = f"pipelined, {durability}: to {rival} {theirs.how}, {how}{_place(ours)}"
                    yield least(name, bound, _ratio(ours, theirs), "x")


def _one_by_one(rows: Sequence[Row]) -> Iterator[Mark]:
    """Medians of latency, ours to a floor's or a rival's."""
    aims = (
        ("process", "pipe echo", "memory", 1.5, "the pipe echo"),
        ("process", "Redis", "process", 1.0, "Redis one by one"),
        ("power", "pipe echo", "power", 1.4, "the pipe echo with one fdatasync"),
    )
    for durability, other, other_durability, bound, words in aims:
        for ours in _rows(rows, OURS, durability, "one by one"):
            for theirs in _rows(rows, other, other_durability, "one by one"):
                if ours.case.pinned == theirs.case.pinned and ours.p50_us and theirs.p50_us:
                    name = f"one by one, {durability}: p50 to {words}{_place(ours)}"
                    yield most(name, bound, "x", ours.p50_us.median / theirs.p50_us.median)


def _costs(rows: Sequence[Row], validate_us: Spread | None) -> Iterator[Mark]:
    for row in _rows(rows, OURS, "process", "pipelined"):
        if validate_us and row.server_cpu_us:
            name = f"engine CPU of a pipelined mutation to one model_validate{_place(row)}"
            yield most(name, 3.0, "x", row.server_cpu_us.median / validate_us.median)


def _many(rows: Sequence[Row]) -> Iterator[Mark]:
    for pinned in (False, True):
        yield from _many_at([row for row in rows if row.case.pinned == pinned and row.per_s])


def _many_at(rows: Sequence[Row]) -> Iterator[Mark]:
    """Of one placement."""
    sizes = {row.case.entities: row for row in rows if row.case.section == "sizes"}
    if {TASKS_LEAST, TASKS_MOST} <= set(sizes):
        more, fewer = sizes[TASKS_MOST], sizes[TASKS_LEAST]
        name = f"{TASKS_MOST:,} entities to {TASKS_LEAST:,}, pipelined{_place(more)}"
        yield least(name, 0.75, _ratio(more, fewer), "x")
    agents = {row.case.agents: row for row in rows if row.case.section == "agents" and row.case.peer == OURS}
    if {AGENTS, AGENTS_MAX} <= set(agents):
        many, few = agents[AGENTS_MAX], agents[AGENTS]
        yield least(f"{AGENTS_MAX} agents to {AGENTS}, pipelined{_place(many)}", 0.8, _ratio(many, few), "x")
    for loop, how in (("read anew", "each decoded"), ("read", "decoded once for each change")):
        reads = {row.case.writers: row for row in rows if row.case.loop == loop and row.per_client_cpu_s}
        if {0, 1} <= set(reads):
            alone, beside = reads[0].per_client_cpu_s, reads[1].per_client_cpu_s
            assert alone is not None
            assert beside is not None
            name = f"typed reads, {how}: beside a writer to alone, per second of the reader's CPU{_place(reads[1])}"
            yield least(name, 0.8, beside.median / alone.median if alone.median else None, "x")


def _idle(percent: float | None) -> Iterator[Mark]:
    if percent is not None:
        yield most("engine CPU, idle", 0.1, "%", percent)


def _ratio(one: Row, other: Row) -> float | None:
    return one.per_s.median / other.per_s.median if one.per_s and other.per_s and other.per_s.median else None


def _rows(rows: Sequence[Row], peer: str, durability: str, loop: str) -> Iterator[Row]:
    for row in rows:
        case = row.case
        asked = case.peer, case.durability, case.loop, case.workload, case.agents, case.entities, case.window
        window = WINDOW if loop == "pipelined" else 1
        if asked == (peer, durability, loop, "update-one", AGENTS, TASKS, window) and case.section in ("peers", "grid"):
            yield row


def _place(row: Row) -> str:
    return f", {row.placement}" if row.case.pinned else ""
