"""How long a restart takes, and what the disk has to write: engines that are killed at work, and engines that work on.

    python -m solewriter.bench.recovery [--quick] [--json] [--sizes 10000,1000000] [--durability process,power]

Restarts: an engine is filled with full tasks whose descriptions do not compress, each of them a create, and then killed
with SIGKILL again and again, at random moments. `first ack` runs from the kill to the reply of a request that this
process sends right then; so it holds the detection of the death, the back-off of the supervisor (50 ms, as behind a
first death), the start of a Python process, recovery, and the way of the client to the next engine. Beside busy agents:
two processes send pipelined updates of random tasks all the time, and a kill every second lets few checkpoints be done.
`sustained`: the same agents, but for long before each kill: until the journal behind the newest checkpoint is as long,
within a tenth, as it becomes at all between two checkpoints. `quiet`: nobody else. `grown`: killed right behind the
last create. Every task is counted after every restart. `journal` is what had to be replayed, at the longest.

Writing: two agents update random tasks of 20,000, pipelined, as fast as they may. `journal` is what the turns' entries
take, headers and outcomes included; `written` is what reached the device of the folder, when everything that was dirty
had been waited for: journal files and their making, checkpoints, what the file system writes for itself, and what the
rest of the machine writes meanwhile, so an upper bound. History is kept to 16 MiB, so files are trimmed and used again.
The first of them are made new, for `power` of written zeros, so the first seconds, creates included, are told apart:
`from an empty folder`, until files were trimmed and the next of the trims that follow is done; from then on `used
again`. The goal is about the latter, which is what an engine that works on does.

The marks below the table are goals, judged by the figures of this run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.running import Say, answered
from solewriter.bench.kit.table import described, table
from solewriter.bench.restarting.restarts import Restart, restarts
from solewriter.bench.restarting.written import STEADY, Writing, writing
from solewriter.engine_proc.process import Durability

TASKS, QUICK_TASKS = (10_000, 1_000_000), (2_000,)
AMPLIFICATION_MOST = 2
QUIET_MS_MOST = {10_000: 500, 1_000_000: 5_000}  # to the first ack, by how many tasks there are
BESIDE_MS_MOST = {10_000: 1_000, 1_000_000: 5_000}  # the same where agents are busy
RESTART_HEAD = ("tasks", "durability", "beside", "kills", "p50 ms", "max ms", "journal MiB")
WRITING_HEAD = ("durability", "files", "seconds", "journal MiB", "written MiB", "checkpoints", "amplification")


class Plan(NamedTuple):
    sizes: tuple[int, ...]
    durabilities: tuple[Durability, ...]
    kills: int  # of each engine in each surrounding
    seconds: float  # of writing


class Results(msgspec.Struct, frozen=True):
    """Everything that a run found out."""

    machine: dict[str, str | int]
    restarts: list[Restart]
    writing: list[Writing]
    marks: dict[str, bool]


def run(plan: Plan, folder: Path, say: Say) -> Results:
    rows, written = list[Restart](), list[Writing]()
    say(f"restarts, {len(plan.durabilities) * len(plan.sizes)} engines")
    for row in restarts(folder, plan.durabilities, plan.sizes, plan.kills):
        say(str(row))
        rows.append(row)
    for durability in plan.durabilities:
        say(f"writing, {durability}")
        written += writing(folder, durability, plan.seconds)
    return Results(machine(folder), rows, written, marks(rows, written))


def marks(rows: Sequence[Restart], written: Sequence[Writing]) -> dict[str, bool]:
    """Each goal, and whether it was reached."""
    found = {
        f"write amplification, {row.durability} <= {AMPLIFICATION_MOST}": row.amplification <= AMPLIFICATION_MOST
        for row in written
        if row.files == STEADY and row.amplification is not None and row.checkpoints  # the largest that is written
    }
    for row in rows:
        bound = (QUIET_MS_MOST if row.beside == "quiet" else BESIDE_MS_MOST).get(row.tasks)
        if bound is not None:
            name = f"first ack, {row.tasks:,} tasks, {row.durability}, {row.beside} <= {bound} ms"
            found[name] = row.max_ms <= bound
    return found


def printed(results: Results) -> str:
    reached = [f"{'reached' if ok else 'MISSED '}  {name}" for name, ok in results.marks.items()]
    parts = [
        f"machine: {described(results.machine)}",
        "",
        "Restart: from the kill to the first ack",
        table(RESTART_HEAD, map(msgspec.structs.astuple, results.restarts)),
        "",
        "Writing",
        table(WRITING_HEAD, [(*msgspec.structs.astuple(row), row.amplification) for row in results.writing]),
        "",
        *reached,
    ]
    return "\n".join(parts)


def options() -> argparse.ArgumentParser:
    parser = arguments.parser(
        "recovery",
        __doc__,
        takes="about half an hour on two processors",
        quick="2,000 tasks, fewer kills: some two minutes",
    )
    parser.add_argument("--sizes", type=arguments.numbers, help="how many tasks, separated by commas")
    parser.add_argument(
        "--durability", type=arguments.durabilities, default="process,power", help="levels, separated by commas"
    )
    parser.add_argument("--kills", type=arguments.number, help="of each engine in each surrounding")
    parser.add_argument("--seconds", type=arguments.seconds, help="of writing")
    return parser


def planned(given: argparse.Namespace) -> Plan:
    return Plan(
        given.sizes or (QUICK_TASKS if given.quick else TASKS),
        given.durability,
        given.kills or (3 if given.quick else 20),
        given.seconds or (3.0 if given.quick else 30.0),
    )


def main() -> int:
    parser = options()
    given = parser.parse_args()
    answered(parser.prog, given.folder, partial(run, planned(given)), printed, as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
