"""What claiming costs, by how many tasks are ready: it should be flat.

    python -m solewriter.bench.claims [--quick] [--json] [--sizes 1000,10000,100000] [--claims 400] [--deaths 20]

One engine of durability "process" for each size, filled with that many tasks: half of them ready, the others each
depending on up to three earlier ones, chosen at random; four priorities, 100 projects. There is nothing to compare it
with but other sizes.
  - first: the first claim after a start, in ms, which waits until the board of all tasks is made; once for each start.
    Beside: the longest round trip of another agent meanwhile, in ms, which updates one entity all the time.
  - claim, by project: round trips of `claim`, and of `claim` by project, one after the other, by the caller's clock.
  - complete: round trips of `complete`, which may make others ready, by the caller's clock.
  - cycle: round trips of updates that would make one of the first tasks wait for the last one, which waits for it, with
    many between them: all of them refused.
  - engine CPU: the engine's processor time (by /proc) for each of many claims in flight.
Death to claim: an agent that holds a task is killed while another one waits in `claim`: from just before the kill to
the return of that claim, by CLOCK_MONOTONIC; the waiting agent, the killer and the engine share the processors.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter.bench.claiming.measured import Row, deaths, measured
from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.measure import US_PER_MS, Latency
from solewriter.bench.kit.running import Say, answered
from solewriter.bench.kit.table import described, table

CLAIMS_LEAST = 4  # a half of them in flight, a quarter by project
HEAD = (
    "tasks", "first ms", "beside ms", "claim p50 us", "claim p99 us", "by project p50 us", "complete p50 us",
    "cycle p50 us", "cycle max us", "engine CPU us/claim",
)  # fmt: skip


class Plan(NamedTuple):
    sizes: tuple[int, ...]
    claims: int  # of each size
    deaths: int


class Results(msgspec.Struct, frozen=True):
    """Everything that a run found out."""

    machine: dict[str, str | int]
    rows: list[Row]
    death_to_claim: Latency | None  # None if nobody was killed


def run(plan: Plan, folder: Path, say: Say) -> Results:
    rows = []
    for size in plan.sizes:
        say(f"{size:,} tasks")
        rows.append(measured(folder, size, plan.claims))
    say(f"{plan.deaths} deaths")
    return Results(machine(folder), rows, deaths(folder, plan.deaths))


def printed(results: Results) -> str:
    lines = [
        (
            row.tasks, row.first_ms, row.beside_ms, row.claim.p50_us, row.claim.p99_us, row.claim_by_project.p50_us,
            row.handed_in.p50_us, row.cycle.p50_us, row.cycle.max_us, row.engine_us_per_claim,
        )
        for row in results.rows
    ]  # fmt: skip
    parts = [f"machine: {described(results.machine)}", "", table(HEAD, lines)]
    if death := results.death_to_claim:
        p50, p99, most = (us / US_PER_MS for us in (death.p50_us, death.p99_us, death.max_us))
        parts += ["", f"death to claim: p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {most:.1f} ms"]
    return "\n".join(parts)


def options() -> argparse.ArgumentParser:
    parser = arguments.parser(
        "claims",
        __doc__,
        takes="under a minute on two processors",
        quick="up to 10,000 tasks, five deaths: some ten seconds",
    )
    parser.add_argument("--sizes", type=arguments.numbers, help="how many tasks, separated by commas")
    parser.add_argument("--claims", type=arguments.number, help="of each size: 4 or more, less than half of the least")
    parser.add_argument("--deaths", type=arguments.count, help="agents killed, 0 or more")
    return parser


def planned(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Plan:
    full, quick = Plan((1_000, 10_000, 100_000), 400, 20), Plan((1_000, 10_000), 200, 5)
    plan = quick if given.quick else full
    plan = plan._replace(**{name: asked for name in Plan._fields if (asked := getattr(given, name)) is not None})
    if not CLAIMS_LEAST <= plan.claims < min(plan.sizes) // 2:
        parser.error(f"--claims are {CLAIMS_LEAST} or more, and less than half of the tasks, which are ready")
    return plan


def main() -> int:
    parser = options()
    given = parser.parse_args()
    answered(parser.prog, given.folder, partial(run, planned(parser, given)), printed, as_json=given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
