"""The program: options, the plan that they make, and the run."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from solewriter import Engine, Task, Update, connect
from solewriter.bench.load.marks import marks_of
from solewriter.bench.load.peers.catalog import CATALOG, OURS
from solewriter.bench.load.plan import ALL_DURABILITIES, SECTIONS, Plan, contests
from solewriter.bench.load.report import printed
from solewriter.bench.load.rows import Results, Row, Spread, compared
from solewriter.bench.load.run import Say, Timing, contest
from solewriter.bench.load.work import fields_of
from solewriter.bench.measure import US_PER_S, machine, versions
from solewriter.bench.recovery import Journal
from solewriter.bench.scratch import scratch_folder, tidy_when_told_to_end
from solewriter.bench.workload import sample_task

VERSIONED = ("lmdb", "redis", "hiredis", "numpy", "matplotlib", "ray")  # besides those of every benchmark
VALIDATIONS = 20_000  # of one task, timed together


def run(plan: Plan, folder: Path, say: Say) -> Results:
    begun = time.monotonic()
    entry_bytes = journaled_bytes(folder)
    timing = Timing(plan.runs, plan.warmup_s, plan.seconds)
    rows: list[Row] = []
    validated: list[float] = []
    for number, cases in enumerate(contests(plan)):
        own = folder / f"contest-{number}"
        own.mkdir()
        validated.append(validate_us())
        rows += contest(cases, own, timing, entry_bytes, say)
    rows = compared(rows, OURS)
    validate = Spread.of(validated)
    return Results(
        machine={**machine(folder), **versions(VERSIONED)},
        plan=msgspec.to_builtins(plan),
        model_validate_us=validate,
        entry_bytes=entry_bytes,
        idle_cpu_percent=None,
        rows=rows,
        timeline=None,
        marks=marks_of(rows, validate, None),
        verified=all(row.verified is not False for row in rows),
        elapsed_s=round(time.monotonic() - begun, 1),
    )


def journaled_bytes(folder: Path) -> int:
    """What our journal takes for the update of one task, alone in its turn."""
    with Engine(folder / "probe", durability="process") as engine, connect(engine.state, name="bench-0") as client:
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="solewriter bench")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--peers")
    parser.add_argument("--workloads")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args(arguments)
    seconds = given.seconds or 1.0
    plan = Plan(
        runs=given.runs or 5,
        warmup_s=min(0.4, seconds / 3),
        seconds=seconds,
        peers=tuple(given.peers.split(",")) if given.peers else tuple(CATALOG),
        durabilities=ALL_DURABILITIES,
        sections=SECTIONS,
        workloads=tuple(given.workloads.split(",")) if given.workloads else (),
    )
    tidy_when_told_to_end()

    def say(what: str) -> None:
        print(f"... {what}", file=sys.stderr)

    with scratch_folder(given.folder) as folder:
        results = run(plan, folder, say)
    print(msgspec.json.encode(results).decode() if given.json else printed(results))
    return 0 if results.verified else 1
