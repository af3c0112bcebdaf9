"""What a run measures: the programme that everybody gets, or the grid that somebody asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from solewriter.bench.load.agent import Loop
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.rows import Case
from solewriter.bench.load.work import WORKLOADS, Creates, HotKey
from solewriter.bench.workload import WINDOW
from solewriter.engine_proc.process import Durability

TASKS = 10_000
AGENTS = 2
MAIN = (OURS, "do-it-yourself", "SQLite", "Redis")  # who is shown where everybody would be too many
ONE_BY_ONE: Loop = "one by one"
PIPELINED: Loop = "pipelined"
LOOPS: tuple[Loop, ...] = (ONE_BY_ONE, PIPELINED)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, how often, and for how long."""

    runs: int
    warmup_s: float
    seconds: float  # of each run of each case
    peers: tuple[str, ...]
    durabilities: tuple[Durability, ...]
    placements: tuple[bool, ...] = (False,)  # whether pinned
    # the programme
    sections: tuple[str, ...] = ()
    agents: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    rates_per_s: tuple[int, ...] = ()
    # the grid, if there is one
    workloads: tuple[str, ...] = ()
    windows: tuple[int, ...] = (WINDOW,)
    loops: tuple[Loop, ...] = LOOPS


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
    durabilities: Iterable[Durability],
    workload: str = "update-one",
    entities: int = TASKS,
    agents: int = AGENTS,
    loops: Iterable[Loop] = LOOPS,
    window: int = WINDOW,
    rate_per_s: float = 0.0,
) -> Iterator[Case]:
    """All that fit: a system that does not make this promise, or has no such loop, is left out."""
    wanted = tuple(durabilities)
    for name in peers:
        entry = CATALOG[name]
        if name not in plan.peers or (entry.workloads and workload not in entry.workloads):
            continue
        for durability in (level for level in entry.how if level in wanted):
            for loop in loops:
                if loop == PIPELINED and not WORKLOADS[workload].pipelined:
                    continue
                wide = loop == PIPELINED or (loop == "open" and window > 1)
                for pinned in plan.placements:
                    yield Case(
                        section=section,
                        peer=name,
                        durability=durability,
                        workload=workload,
                        entities=entities,
                        agents=agents,
                        loop=loop,
                        window=window_for(workload, entities, agents, window) if wide else 1,
                        pinned=pinned,
                        rate_per_s=rate_per_s,
                    )


def contests(plan: Plan) -> Iterator[list[Case]]:
    """Cases of one section, workload and size, which are measured in turn."""
    for _, cases in groupby(_grid(plan) if plan.workloads else _programme(plan), _together):
        yield list(cases)


def _together(case: Case) -> Any:
    return case.section, case.workload, case.entities


def _grid(plan: Plan) -> Iterator[Case]:
    loops: Sequence[Loop] = ("open",) if plan.rates_per_s else plan.loops
    for workload in plan.workloads:
        for entities in plan.sizes or (TASKS,):
            for agents in plan.agents or (AGENTS,):
                for rate in plan.rates_per_s or (0,):
                    for window in plan.windows:
                        yield from cases_of(
                            "grid", plan, peers=plan.peers, durabilities=plan.durabilities, workload=workload,
                            entities=entities, agents=agents, loops=loops, window=window, rate_per_s=rate,
                        )  # fmt: skip


def _programme(plan: Plan) -> Iterator[Case]:
    if "peers" in plan.sections:
        yield from cases_of("peers", plan, peers=CATALOG, durabilities=plan.durabilities)


SECTIONS = ("peers",)
ALL_DURABILITIES: tuple[Durability, ...] = ("power", "process", "memory")
