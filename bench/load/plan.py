"""What a run measures: the programme that everybody gets, or the grid that somebody asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product

import msgspec

from solewriter.bench.kit.workload import WINDOW
from solewriter.bench.load.agent import Loop
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.rows import Case
from solewriter.bench.load.work import WORKLOADS, Creates, HotKey
from solewriter.engine_proc.process import Durability

# Where nothing else is asked for, and the least and the most that goals compare.
TASKS, TASKS_LEAST, TASKS_MOST = 10_000, 1_000, 1_000_000
AGENTS, AGENTS_MAX = 2, 64
MAIN = (OURS, "do-it-yourself", "SQLite", "Redis")  # who is shown where everybody would be too many
FEW = (OURS, "do-it-yourself", "Redis")  # who serves, and so might mind how many there are
ONE_BY_ONE: Loop = "one by one"
PIPELINED: Loop = "pipelined"
OPEN: Loop = "open"
READ: Loop = "read"
READ_ANEW: Loop = "read anew"
LOOPS: tuple[Loop, ...] = (ONE_BY_ONE, PIPELINED)
LEVELS: tuple[Durability, ...] = ("power", "process", "memory")
PROCESS: tuple[Durability, ...] = ("process",)
SECTIONS = ("peers", "workloads", "agents", "sizes", "reads", "open", "kill", "idle")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, how often, and for how long. With `workloads` it is a grid, else the programme of these sections."""

    runs: int
    warmup_s: float
    seconds: float  # of each run of each case
    peers: tuple[str, ...]
    durabilities: tuple[Durability, ...]
    pinned: tuple[bool, ...]
    agents: tuple[int, ...]
    sizes: tuple[int, ...]
    rates_per_s: tuple[int, ...]
    sections: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    windows: tuple[int, ...] = (WINDOW,)
    loops: tuple[Loop, ...] = LOOPS
    alone_s: float  # of an engine that is killed, and of one that is idle


def window_for(workload: str, entities: int, agents: int, window: int) -> int:
    """So many in flight that no task of an agent's own is asked for twice at once: at most half of its tasks are."""
    known = WORKLOADS[workload]
    if known.share in (Creates, HotKey):
        return window
    return max(1, min(window, entities // agents // 2 // known.steps))


def cases_of(
    section: str,
    plan: Plan,
    *,
    peers: Iterable[str],
    durabilities: Iterable[Durability] = PROCESS,
    workload: str = "update-one",
    entities: int = TASKS,
    agents: int = AGENTS,
    loops: Iterable[Loop] = LOOPS,
    window: int = WINDOW,
    rate_per_s: float = 0.0,
    writers: int = 0,
) -> Iterator[Case]:
    """All that fit: a system that does not make this promise, or is not asked for this, is left out."""
    found = [(name, CATALOG[name]) for name in peers if name in plan.peers]
    for name, entry in found:
        if entry.workloads and workload not in entry.workloads:
            continue
        for level in (level for level in durabilities if level in entry.how and level in plan.durabilities):
            for loop in loops:
                if entry.loops and loop not in entry.loops:
                    continue
                if loop == PIPELINED and not WORKLOADS[workload].pipelined:
                    continue
                alone = loop == ONE_BY_ONE or not WORKLOADS[workload].pipelined
                for pinned in plan.pinned:
                    yield Case(
                        section=section,
                        peer=name,
                        durability=level,
                        workload=workload,
                        entities=entities,
                        agents=agents,
                        loop=loop,
                        window=1 if alone else window_for(workload, entities, agents + writers, window),
                        pinned=pinned,
                        rate_per_s=rate_per_s,
                        writers=writers,
                    )


def contests(plan: Plan) -> Iterator[list[Case]]:
    """Cases of one section and workload, which are measured in turn. Two windows may come to the same: one case."""
    for _, cases in groupby(_grid(plan) if plan.workloads else _programme(plan), _together):
        yield list(dict.fromkeys(cases))


def _together(case: Case) -> tuple[str, str]:
    return case.section, case.workload


def _grid(plan: Plan) -> Iterator[Case]:
    """Everything with everything. Rates make it an open loop."""
    loops: Sequence[Loop] = (OPEN,) if plan.rates_per_s else plan.loops
    questions = product(plan.workloads, plan.sizes or (TASKS,), plan.agents or (AGENTS,), plan.rates_per_s or (0,))
    for workload, entities, agents, rate in questions:
        for window in plan.windows:
            yield from cases_of(
                "grid", plan, peers=plan.peers, durabilities=plan.durabilities, workload=workload, entities=entities,
                agents=agents, loops=loops, window=window, rate_per_s=rate,
            )  # fmt: skip


def _programme(plan: Plan) -> Iterator[Case]:
    """What everybody is shown, and every mark needs."""
    sections = plan.sections
    if "peers" in sections:
        yield from cases_of("peers", plan, peers=plan.peers, durabilities=plan.durabilities)
    if "workloads" in sections:
        for name, workload in WORKLOADS.items():
            if name != "update-one":
                loop = PIPELINED if workload.pipelined else ONE_BY_ONE
                yield from cases_of("workloads", plan, peers=MAIN, workload=name, loops=(loop,))
    if "agents" in sections:
        for agents in plan.agents:
            yield from cases_of("agents", plan, peers=FEW, agents=agents, loops=(PIPELINED,))
    if "sizes" in sections:
        for size in plan.sizes:
            yield from cases_of("sizes", plan, peers=(OURS,), entities=size, loops=(PIPELINED,))
    if "reads" in sections:
        for writers in (0, 1):
            yield from cases_of("reads", plan, peers=(OURS,), agents=1, loops=(READ, READ_ANEW), writers=writers)
    if "open" in sections:
        for rate in plan.rates_per_s:
            yield from cases_of("open", plan, peers=MAIN, loops=(OPEN,), rate_per_s=rate)
