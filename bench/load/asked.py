"""What `solewriter bench` is asked for: options, and the plan that they make. One that measures nothing is refused."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from solewriter.bench.kit import arguments
from solewriter.bench.kit.workload import WINDOW
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.plan import (
    AGENTS,
    AGENTS_MAX,
    LEVELS,
    LOOPS,
    SECTIONS,
    TASKS,
    TASKS_LEAST,
    TASKS_MOST,
    Plan,
    contests,
)
from solewriter.bench.load.work import WORKLOADS
from solewriter.shared.config import DEFAULT_LIMITS

WARMUP_SHARE, WARMUP_MAX_S = 0.4, 0.5  # of the seconds of a run: everybody stays filled between two of them
QUICK_PEERS = (OURS, "do-it-yourself", "SQLite", "Redis", "LMDB", "Manager class", "pipe echo")
ALONE = ("kill", "idle")  # sections without rows
PLACEMENTS = ("free", "pinned")
DESCRIPTION = """\
The engine and its rivals under load: the same requests, the same agents, the same windows, in one run.

Measured: requests answered in a second, latencies and processor time for each in microseconds, memory in MiB, bytes
that reached the disk. Beside: SQLite, Redis, LMDB, multiprocessing.Manager, Ray, a do-it-yourself of sixty lines, and
two floors that store nothing. Every state is compared with what its agents were told: if anything is lost or doubled,
the exit code is 1.

Without --workloads: the programme, some fourteen minutes on two processors. With it: a grid of everything that is
named, and nothing else.
docs/benchmarks.md says what is measured, how, and how to read it."""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="solewriter bench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a short look: few rivals, few runs, under a minute")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    add("--plot", type=Path, metavar="DIR", help="draw pictures there, as SVG and PNG")
    lists: dict[str, tuple[Callable[[str], Any], str]] = {
        "--sections": (_of(SECTIONS), f"of the programme: {', '.join(SECTIONS)}"),
        "--peers": (_of(CATALOG), f"whom to ask: {', '.join(CATALOG)}"),
        "--durability": (_of(LEVELS), f"which promises: {', '.join(LEVELS)}"),
        "--workloads": (_of(WORKLOADS), f"a grid of them: {', '.join(WORKLOADS)}"),
        "--loops": (_of(LOOPS), f"of a grid: {', '.join(LOOPS)}"),
        "--agents": (
            arguments.numbers,
            f"of a grid or the section agents: numbers of agent processes, 1 to {AGENTS_MAX}",
        ),
        "--sizes": (arguments.numbers, "of a grid or the section sizes: numbers of entities"),
        "--windows": (arguments.numbers, "of a grid: requests on their way, of one agent"),
        "--rates": (arguments.numbers, "of a grid or the section open: offered requests a second, an open loop"),
        "--placement": (_of(PLACEMENTS), "where processes may run; both, if both are named"),
    }
    for name, (kind, words) in lists.items():
        add(name, type=kind, metavar="A,B,...", help=words)
    add("--runs", type=arguments.number, help="of each case, in turn with the others")
    add("--seconds", type=arguments.seconds, help="of each run, without its warm-up")
    add(
        "--folder",
        type=arguments.existing_folder,
        default=Path(tempfile.gettempdir()),
        help="where everything is put, and removed again",
    )
    return parser


def _of(known: Any) -> Callable[[str], tuple[str, ...]]:
    def parsed(text: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        for part in found:
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part!r}: each is one of {', '.join(known)}")
        return found

    return parsed


def planned(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Plan:
    quick = given.quick
    seconds = given.seconds or (0.3 if quick else 0.8)
    runs = given.runs or (2 if quick else 5)
    grid = given.workloads or ()
    sections = given.sections or (() if grid else ("peers", "open", "kill", "idle") if quick else SECTIONS)
    if unused := _unused(given, sections):
        parser.error(unused)
    agents = given.agents or (() if grid else (1, AGENTS) if quick else (1, AGENTS, 8, AGENTS_MAX))
    every_size = (TASKS_LEAST, TASKS, 100_000, TASKS_MOST)
    sizes = given.sizes or (() if grid else every_size[:2] if quick else every_size)
    rates = given.rates or (() if grid else (2_000, 20_000) if quick else (1_000, 5_000, 20_000, 50_000, 100_000))
    plan = Plan(
        runs=runs,
        warmup_s=min(WARMUP_MAX_S, seconds * WARMUP_SHARE),
        seconds=seconds,
        peers=given.peers or (QUICK_PEERS if quick and not grid else tuple(CATALOG)),
        durabilities=given.durability or (("process", "memory") if quick else LEVELS),
        pinned=tuple(name == "pinned" for name in given.placement or PLACEMENTS[:1]),
        agents=agents,
        sizes=sizes,
        rates_per_s=rates,
        sections=sections,
        workloads=grid,
        windows=given.windows or (WINDOW,),
        loops=given.loops or LOOPS,
        alone_s=2.0 if quick else 4.0,
    )
    if max(agents or (1,)) > AGENTS_MAX:
        parser.error(f"there are no more than {AGENTS_MAX} agents")
    cases = [case for group in contests(plan) for case in group]
    if any(case.entities < (case.agents + case.writers) * WORKLOADS[case.workload].steps for case in cases):
        parser.error("each agent needs an entity of its own for each step of a request")
    if max(plan.windows) > DEFAULT_LIMITS.window_max:
        parser.error(
            f"a window of ours holds {DEFAULT_LIMITS.window_max} requests: a larger one would be the rivals' alone"
        )
    if not cases and not (OURS in plan.peers and {*ALONE} & {*plan.sections}):
        parser.error("nothing to measure: nobody of these makes such a promise or can be asked for this")
    return plan


def _unused(given: argparse.Namespace, sections: Sequence[str]) -> str:
    """What is named, and nothing that is measured would ask for."""
    if given.workloads:
        if not {*sections} <= {*ALONE}:
            return f"--sections are of the programme: beside --workloads only {' and '.join(ALONE)}"
        return "--rates make it an open loop: there are no other --loops" if given.rates and given.loops else ""
    if given.loops or given.windows:
        return "--loops and --windows are of a grid: name its --workloads, too"
    takers = {"agents": "agents", "sizes": "sizes", "rates": "open"}
    for option, section in takers.items():
        if getattr(given, option) and section not in sections:
            return f"--{option} are of a grid or of the section {section}: name --workloads or --sections {section}"
    return ""
