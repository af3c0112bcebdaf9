"""The program: the run of a plan, and what it leaves behind."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from solewriter.bench.kit.machine import file_system, machine, versions
from solewriter.bench.kit.measure import Spread
from solewriter.bench.kit.optional import NotHere, required
from solewriter.bench.kit.running import Say, answered
from solewriter.bench.load.alone import across_kill, idle_percent, journaled_bytes, validate_us
from solewriter.bench.load.asked import options, planned
from solewriter.bench.load.marks import marks_of
from solewriter.bench.load.peers.catalog import OURS
from solewriter.bench.load.plan import TASKS, Plan, contests
from solewriter.bench.load.plot import draw
from solewriter.bench.load.report import IN_MEMORY, NO_DISK, printed
from solewriter.bench.load.rows import Results, Row, compared
from solewriter.bench.load.run import Timing, contest
from solewriter.shared.errors import in_words

VERSIONED = ("numpy", "lmdb", "redis", "hiredis", "ray", "matplotlib")  # besides those of every benchmark
EXTRA = ("lmdb", "redis", "hiredis", "matplotlib")  # what `pip install 'solewriter[bench]'` brings


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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options()
    given = parser.parse_args(arguments)
    plan = planned(parser, given)
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

    results = answered(parser.prog, given.folder, partial(run, plan), printed, as_json=given.json)
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
