"""Calm when overloaded: what a flood costs those who do not take part in it, and the engine itself.

    python -m solewriter.bench.overload [--quick] [--json] [--seconds 5] [--soak 60]

The engine is slow on purpose, so that two processors are enough to overload it: each change of a `Job` costs 170
microseconds in its validator, which makes about 5,000 changes a second together with all that the engine does besides
(`bench/flood/throttle.py`). It has the first CPU, all agents, each a process of its own, share the others. Durability
is `process`. How late the engine's event loop is it notes itself, for every two milliseconds, those in a stall too.

Load: eight agents offer so many times 5,000 requests a second, at random moments, whatever the engine does. One that
finds no room, or no reply in time, is turned away at once (`wait_for_room=False`), and so is what is due until its
agent was told to come again. Applied are replies in the agents' hands; latency runs from the moment when a request was
due, to a millisecond, which is what the agents' timers tell apart. The last row is the heaviest load with a deadline on
every request.

Quiet: seven agents that send 40 requests a second each, one at a time: alone; beside one that floods, with a pipeline
that is always full; and beside a lane that keeps no credits and writes whatever the pipe takes. The three take turns;
a ratio is of neighbours in time, the row has medians.

Greedy: eight pipelines that are always full: of equal windows; of different ones; and half of them with requests that
cost four times as much, where shares are of the engine's time.

Surge: half of what the engine can do, then ten times what it can, then half again, from the same agents.

Soak: ten times too much for long, one agent of it without credits. RSS counts shared memory that the engine has mapped.

The marks below the tables are goals, judged by the figures of this run. `verified` says that the state holds every
change that any agent was told of, and none besides.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import msgspec

from solewriter.bench.flood.calm import Results, marks_of, printed
from solewriter.bench.flood.parts import (
    AGENTS,
    GREEDY,
    NOMINAL_PER_S,
    SETTLE_S,
    Plan,
    greedy,
    loaded,
    quiet_rounds,
    soak,
    surge,
)
from solewriter.bench.flood.stage import WORK_US, staged
from solewriter.bench.kit import arguments
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.running import Say, answered


def run(plan: Plan, folder: Path, say: Say) -> Results:
    begun = time.monotonic()
    with staged(folder) as stage:
        loads = []
        for load, deadline_s in [*((load, None) for load in plan.loads), (max(plan.loads), plan.deadline_s)]:
            say(f"load {load:g}x, deadline {deadline_s}")
            loads.append(loaded(stage, load, plan.seconds, deadline_s))
        say("quiet agents")
        quiet = quiet_rounds(stage, plan)
        say("greedy agents")
        wanting = [greedy(stage, windows, work_us, plan.seconds) for windows, work_us in GREEDY]
        say("surge")
        surged = surge(stage, plan)
        say(f"soak, {plan.soak_s:g} s")
        soaked = soak(stage, plan.soak_s)
        verified = stage.verified
    return Results(
        machine=machine(folder),
        plan={**msgspec.to_builtins(plan), "work_us": WORK_US, "agents": AGENTS, "nominal_per_s": NOMINAL_PER_S},
        loads=loads,
        quiet=quiet,
        greedy=wanting,
        surge=surged,
        soak=soaked,
        marks=marks_of(loads, quiet, wanting, surged, soaked),
        verified=verified,
        elapsed_s=round(time.monotonic() - begun, 1),
    )


def options() -> argparse.ArgumentParser:
    parser = arguments.parser(
        "overload",
        __doc__,
        takes="some five minutes on two processors",
        quick="fewer loads, less time for each: some ninety seconds",
    )
    parser.add_argument("--seconds", type=arguments.seconds, help="of each load and each round")
    parser.add_argument("--soak", type=arguments.seconds, help="seconds of the long one")
    return parser


def planned(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Plan:
    full = Plan((0.5, 0.8, 1.0, 2.0, 5.0, 10.0), 5.0, 5, (3.0, 3.0, 4.0), 60.0, 0.1)
    quick = Plan((0.5, 1.0, 10.0), 2.0, 3, (2.0, 1.0, 2.0), 6.0, 0.1)
    plan = quick if given.quick else full
    plan = msgspec.structs.replace(plan, seconds=given.seconds or plan.seconds, soak_s=given.soak or plan.soak_s)
    if plan.seconds <= 2 * SETTLE_S:
        parser.error(f"a load takes more than {2 * SETTLE_S:g} s")
    return plan


def main() -> int:
    parser = options()
    given = parser.parse_args()
    results = answered(parser.prog, given.folder, partial(run, planned(parser, given)), printed, as_json=given.json)
    return 0 if results.verified else 1


if __name__ == "__main__":
    sys.exit(main())
