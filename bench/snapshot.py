"""What reading through shared memory costs, beside rivals that hold the same entities, in one run and one table.

    python -m solewriter.bench.snapshot [--quick] [--json] [--tasks 100000] [--sizes 1000,10000,100000,1000000]

Two populations. Tasks are the full ones of `bench/kit/workload.py`, about 350 bytes of payload each. Runs are small:
five fields, three of them columns, about 60 bytes; there are engines with ever more of them, up to a million. All
engines are "memory" durable, their segments and the rivals' files lie in one folder in memory, which goes with this
process, however it ends. The engine has the first CPU, this process another one; servers of rivals run wherever the
scheduler puts them. Nothing is tuned for the measurement, except where it says so below; garbage is collected as ever,
but what was prepared before the rounds is left out of it (`gc.freeze`): it belongs to all contestants.

Gets are by id, over ids in no order, in batches of a thousand or more; rounds are interleaved, and a row is the median,
the least and the most of them, by the clock. `CPU` is this process's own processor time, without any server's, and
without what other programs on the machine take; by it we are compared with a rival, unless that has a server.
  - raw: the record found, its checksum verified, its payload as bytes.
  - cold: the entity decoded and validated anew; the memory is mapped, the id was never asked for before.
  - warm: the same entity was decoded before; the snapshot is held all the time.
  - pin + unpin: `snapshot()` and `close()`; of LMDB: `begin()` and `abort()`.
Cold is compared with cold, warm with warm. "our decoder" is the reader's own function from a record to an entity, given
the rival's bytes. `agrees`: the rival returned the very entities or numbers that we did. A rival that is not installed
says so in its rows.

Scans and counts ask the largest population for two conditions, while nobody writes. "few": a status and a range of
scores that a quarter of a thousandth of all runs meet; "many": a status and a priority that one in sixteen has. Every
question is another one, so that what a cold scan finds was never decoded before.

Watch: `reader.watch(since=0)` over all creates, for each change; with `new`: each new entity decoded, too.

Attach: `open_reader` and its first snapshot, the package imported, at the largest size; of rivals: open, and begin to
read.

Engine CPU per update: the engine's processor time by /proc, from the first request to the last reply, for each of many
pipelined updates of one field of runs at random: the whole turn, not only the publishing. These engines never look for
the next request before they sleep (`spin_s=0`), since that would count as work. Sizes take turns.

Submit until visible: from the call of `client.submit` in this process until `wait_for` returned in another one that
slept in it, both by CLOCK_MONOTONIC. So it holds the way of the request, the turn with its commit, the publishing and
the waking: more than commit to visible, which nobody can see from outside. Until reply: from the same moment until
`submit` returned. One update at a time, after a pause in which all three processes sleep; all run on any CPU.

Shared memory: what the segments take (`solewriter.status_of`), those included that only older snapshots keep; `after
loading` for each entity, `updated at random` as a multiple of the bytes of the live records alone, after ten updates
for each task in the mean, and the most of twenty looks on the way. What rivals take is as they were filled.

The marks below the table are goals, judged by the figures of this run. With --quick they are those of a small state.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

import msgspec

from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import machine, versions
from solewriter.bench.kit.placement import free, pin, pinned
from solewriter.bench.kit.running import Say, answered
from solewriter.bench.reading.phases import CHECKED, Plan, Setting, of_runs, of_tasks
from solewriter.bench.reading.standing import Results, marks_of, printed
from solewriter.shared.config import DEFAULT_LIMITS

VERSIONED = ("numpy", "lmdb", "redis", "hiredis")  # besides those of every benchmark
MEMORY = Path(DEFAULT_LIMITS.memory_dir)


def run(plan: Plan, folder: Path, say: Say) -> Results:
    begun, setting = time.monotonic(), Setting(plan, folder, pinned(), free(), say)
    facts = machine(folder)
    facts["memory_on"] = facts.pop("journal_on")
    pin(os.getpid(), setting.pinned.agent(0))
    rows = [*of_tasks(setting), *of_runs(setting)]
    return Results(
        machine={**facts, **versions(VERSIONED)},
        plan=msgspec.to_builtins(plan),
        rows=rows,
        marks=marks_of(rows),
        agree=all(row.agrees is not False for row in rows),
        elapsed_s=round(time.monotonic() - begun, 1),
    )


def options() -> argparse.ArgumentParser:
    parser = arguments.parser(
        "snapshot",
        __doc__,
        takes="a few minutes on two processors",
        quick="smaller sizes and fewer rounds: under 25 s",
        folder=MEMORY,
    )
    parser.add_argument("--tasks", type=arguments.number, help="how many full tasks")
    parser.add_argument("--sizes", type=arguments.numbers, help="populations of runs, separated by commas")
    parser.add_argument("--seconds", type=arguments.seconds, help="of each round of updates")
    return parser


def planned(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Plan:
    full = Plan(100_000, (1_000, 10_000, 100_000, 1_000_000), 9, 2_000, 0.5, 10, 2_000, 3, 101)
    quick = Plan(6_000, (1_000, 10_000, 100_000), 5, 1_000, 0.2, 10, 300, 3, 51)
    asked = {name: getattr(given, name) for name in ("tasks", "sizes", "seconds") if getattr(given, name) is not None}
    plan = msgspec.structs.replace(quick if given.quick else full, **asked)
    if len(plan.sizes) < 2 or min(plan.tasks, *plan.sizes) < 10 * CHECKED:
        parser.error(f"there must be two sizes or more, {10 * CHECKED} entities or more in each")
    return plan


def main() -> int:
    parser = options()
    given = parser.parse_args()
    results = answered(parser.prog, given.folder, partial(run, planned(parser, given)), printed, as_json=given.json)
    return 0 if results.agree else 1


if __name__ == "__main__":
    sys.exit(main())
