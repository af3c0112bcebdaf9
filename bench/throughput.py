"""How many mutations a second: compare-and-set over 10,000 tasks, one by one and pipelined, at each durability.

    python -m solewriter.bench.throughput [--quick] [--json] [--agents 1,2,4] [--durability power,process,memory]

Workload `update-one`: each agent is a process of its own and owns a disjoint slice of the tasks, keeps their versions,
and in shuffled rounds sets the one field `budget_limit` to the version that comes next, comparing the version each
time. A task is about 350 bytes of stored payload (measured and printed): a title, 120 characters of description, a
project, a reviewer, an acceptance criterion, `source`, a metadata map of one number, `budget_limit`, `created_by` and
`created_at`, each with its name; key, version and `updated_at` are in the record's header, beside the payload.

One by one: `client.update(task, ...)`, whose result, decoded from memory, is the next call's target; its latency is
that of the whole call. Pipelined: `client.submit_many` with a window of 256 and versions taken from the replies; its
latency runs from the moment the client takes a mutation from the caller's iterator to the moment it hands out the
reply. That is the queueing of a saturated pipeline, not the time that a lonely request needs.

Mutations are counted when their reply is in the agent's hands, in one interval common to all agents, after a warm-up.
Nothing is tuned for the measurement: garbage collection and limits are as every user has them. `verified` says of each
row that nothing was refused, and that final versions, revision and every field add up to what was acknowledged.

Reads, without and beside a writer: `get, warm` is from a snapshot that is held all the time, every entity decoded
before, so what the writer changed since is looked for and not decoded; `get, cold` is a reader with an empty cache and
a fresh mapping; `get, raw` finds the record and checks its sum, without decoding; `pin, get newest` takes a snapshot
for each get. The floor is a bare pipe echo (88 bytes there, 42 back) at the same CPUs.

Nobody is compared but that floor: `solewriter bench` asks rivals for the same workload, and our engine by `submit`,
whose replies tell versions as theirs do.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.placement import pinned
from solewriter.bench.kit.running import Say, answered
from solewriter.bench.kit.workload import WINDOW, loaded_engine, payload_bytes
from solewriter.bench.updating.parts import Plan, combinations, pipe_echo, reading, updates, writer_cpus
from solewriter.bench.updating.report import Results, UpdateRow, floor_of, printed
from solewriter.shared.config import DURABILITIES

ECHO_MAX_S = 2.0


def run(plan: Plan, folder: Path, say: Say) -> Results:
    """The whole plan. A new engine and a new state for each durability; its rows one after the other."""
    begun = time.monotonic()
    rows: list[UpdateRow] = []
    say("echo")
    echoes, echo_latency = pipe_echo(folder, min(plan.seconds, ECHO_MAX_S))
    for durability in plan.durabilities:
        with loaded_engine(folder, durability, plan.tasks) as (engine, client):
            for mode, agents, where in combinations(plan):
                say(f"{durability}, {mode}, {agents} agents, {where}")
                rows.append(updates(engine, client, folder, plan, mode, agents, where))
            size = payload_bytes(client)
            if durability == plan.durabilities[-1]:
                say(f"reads, {durability}")
                reads, writing = reading(engine, client, folder, plan)
    return Results(
        machine=machine(folder),
        placement=placement_facts(),
        workload={
            "name": "update-one",
            "tasks": plan.tasks,
            "payload_bytes_mean": size,
            "window": WINDOW,
            "warmup_s": plan.warmup_s,
            "seconds": plan.seconds,
            "reads_at": plan.durabilities[-1],
        },
        updates=rows,
        reads=reads,
        writing_while_reading=writing,
        floor=floor_of(echoes, echo_latency, rows),
        verified=all(row.verified for row in rows) and writing.verified,
        elapsed_s=round(time.monotonic() - begun, 1),
    )


def placement_facts() -> dict[str, Any]:
    """Where pinned processes run; free ones run anywhere."""
    where = pinned()
    return {
        "engine_cpus": where.engine,
        "agents_cpus_in_turn": where.agents,
        "reader_cpus": where.agent(0),
        "writer_beside_reader_cpus": writer_cpus(where),
        "echo_cpus": where.engine,
        "asking_cpus": where.agent(0),
    }


def options() -> argparse.ArgumentParser:
    parser = arguments.parser(
        "throughput",
        __doc__,
        takes="some four minutes on two processors",
        quick="fewer combinations, less time for each: under 40 s",
    )
    parser.add_argument("--agents", type=arguments.numbers, help="numbers of agents, separated by commas")
    parser.add_argument(
        "--durability", type=arguments.durabilities, default=DURABILITIES, help="levels, separated by commas"
    )
    parser.add_argument("--tasks", type=arguments.number, default=10_000, help="how many tasks")
    parser.add_argument("--seconds", type=arguments.seconds, help="of each row")
    return parser


def planned(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Plan:
    agents = given.agents or ((1, 2) if given.quick else (1, 2, 4))
    seconds = given.seconds or (1.0 if given.quick else 5.0)
    if given.tasks // max(agents) <= WINDOW:
        parser.error(f"each agent needs more tasks of its own than its window of {WINDOW}: give more --tasks")
    return Plan(
        agents=agents,
        durabilities=given.durability,
        tasks=given.tasks,
        warmup_s=min(1.0, seconds / 4),
        seconds=seconds,
        read_seconds=seconds,
        whole=not given.quick,
    )


def main() -> int:
    parser = options()
    given = parser.parse_args()
    results = answered(parser.prog, given.folder, partial(run, planned(parser, given)), printed, as_json=given.json)
    return 0 if results.verified else 1


if __name__ == "__main__":
    sys.exit(main())
