"""The program: options, the plan that they make, the run, and what it leaves behind."""

from __future__ import annotations

import argparse
import io
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import file_system, machine, versions
from solewriter.bench.kit.measure import Spread
from solewriter.bench.kit.optional import NotHere, required
from solewriter.bench.kit.running import Say, say
from solewriter.bench.kit.scratch import scratch_folder, tidy_when_told_to_end
from solewriter.bench.kit.workload import WINDOW
from solewriter.bench.load.alone import across_kill, idle_percent, journaled_bytes, validate_us
from solewriter.bench.load.marks import marks_of
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.plan import LEVELS, LOOPS, SECTIONS, TASKS, Plan, contests
from solewriter.bench.load.plot import draw
from solewriter.bench.load.report import IN_MEMORY, NO_DISK, printed
from solewriter.bench.load.rows import Results, Row, compared
from solewriter.bench.load.run import Timing, contest
from solewriter.bench.load.work import WORKLOADS
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.errors import in_words

VERSIONED = ("numpy", "lmdb", "redis", "hiredis", "ray", "matplotlib")  # besides those of every benchmark
EXTRA = ("lmdb", "redis", "hiredis", "matplotlib")  # what `pip install 'solewriter[bench]'` brings
WARMUP_SHARE, WARMUP_MAX_S = 0.4, 0.5  # of the seconds of a run: everybody stays filled between two of them
QUICK_PEERS = (OURS, "do-it-yourself", "SQLite", "Redis", "LMDB", "Manager class", "pipe echo")
AGENTS_MAX = 64
ALONE = ("kill", "idle")  # sections without rows
PLACEMENTS = ("free", "pinned")
DESCRIPTION = """\
The engine and its rivals under load: the same requests, the same agents, the same windows, in one run.

Without --workloads: the programme, some fourteen minutes on two processors. With it: a grid of everything that is
named, and nothing else.
docs/benchmarks.md says what is measured, how, and how to read it."""


def run(plan: Plan, folder: Path, say: Say) -> Results:
    begun = time.monotonic()
    entry_bytes = journaled_bytes(folder / "probe")
    timing = Timing(plan.runs, plan.warmup_s, plan.seconds)
    rows: list[Row] = []
    validated = []
    for number, cases in enumerate(contests(plan)):
        own = folder / f"contest-{number}"
        own.mkdir()
        validated.append(validate_us())
        rows += contest(cases, own, timing, entry_bytes, say)
    timeline, idle, notes = None, None, list[str]()
    if "kill" in plan.sections and OURS in plan.peers:
        say("an engine that is killed")
        try:
            timeline = across_kill(folder / "killed", TASKS, plan.alone_s)
        except Exception as error:  # what was measured before is worth as much as ever
            notes.append(f"an engine that is killed: failed: {in_words(error)}")
    if "idle" in plan.sections and OURS in plan.peers:
        say("an engine that is idle")
        try:
            idle = idle_percent(folder / "idle", plan.alone_s)
        except Exception as error:  # as above
            notes.append(f"an engine that is idle: failed: {in_words(error)}")
    rows, validate = compared(rows, OURS), Spread.of(validated)
    return Results(
        machine={**machine(folder), **versions(VERSIONED)},
        plan=msgspec.to_builtins(plan),
        model_validate_us=validate,
        entry_bytes=entry_bytes,
        idle_cpu_percent=idle,
        rows=rows,
        timeline=timeline,
        marks=marks_of(rows, validate, idle),
        verified=not notes
        and all(row.verified is not False for row in rows)
        and (timeline is None or timeline.verified),
        note="; ".join(notes),
        elapsed_s=round(time.monotonic() - begun, 1),
    )


# --- options ----------------------------------------------------------------------------------------------------------


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
    agents = given.agents or (() if grid else (1, 2) if quick else (1, 2, 8, 64))
    sizes = given.sizes or (() if grid else (1_000, TASKS) if quick else (1_000, TASKS, 100_000, 1_000_000))
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options()
    given = parser.parse_args(arguments)
    plan = planned(parser, given)
    tidy_when_told_to_end()
    missing = [name for name in EXTRA if not _is_here(name)]
    if missing:
        _warn(f"not installed: {', '.join(missing)}. To have them: pip install 'solewriter[bench]'")
    if given.plot and "matplotlib" in missing:
        return 2  # now, not after a run
    try:
        if given.plot:
            given.plot.mkdir(parents=True, exist_ok=True)
        for folder in filter(None, (given.folder, given.plot)):
            tempfile.TemporaryDirectory(dir=folder).cleanup()  # one that takes nothing is found out now, too
    except OSError as error:
        _warn(f"nothing can be put there: {error}")
        return 2

    if file_system(given.folder) in IN_MEMORY:
        _warn(NO_DISK)

    try:
        with scratch_folder(given.folder) as folder:
            results = run(plan, folder, say)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    try:
        print(msgspec.json.encode(results).decode() if given.json else printed(results), flush=True)
    except OSError as error:  # stdout is a full disk, say
        sys.stdout = io.StringIO()  # at the exit nobody tries once more
        _warn(f"solewriter bench: this cannot be printed: {error}")
        return 1
    if given.plot:
        try:
            drawn = draw(results, given.plot)
        except OSError as error:
            _warn(f"solewriter bench: this cannot be drawn: {error}")
            return 1
        for path in drawn:
            _warn(f"drew {path}")
        if not drawn:
            _warn("drew nothing: a picture needs several --agents, --sizes or --rates, or the section kill")
    return 0 if results.verified else 1


def _is_here(name: str) -> bool:
    try:
        required(name)
    except NotHere:
        return False
    return True


def _warn(text: str) -> None:
    print(text, file=sys.stderr)
