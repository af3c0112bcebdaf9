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
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from solewriter import Client, Create, Engine, connect
from solewriter.bench.flood.calm import (
    BACK_S,
    GreedyRow,
    LoadRow,
    QuietRow,
    Results,
    Soak,
    Surge,
    jain,
    marks_of,
    printed,
)
from solewriter.bench.flood.pressing import Orders, Phase, Report, Role
from solewriter.bench.flood.throttle import Job, Probe
from solewriter.bench.kit import arguments
from solewriter.bench.kit.children import children
from solewriter.bench.kit.machine import machine
from solewriter.bench.kit.measure import NS_PER_MS, NS_PER_S, Interval, sleep_until
from solewriter.bench.kit.placement import pin_server, pinned
from solewriter.bench.kit.running import Say, answered
from solewriter.shared.config import MIB

NOMINAL_PER_S = 5_000.0
WORK_US = 170  # of each change; the rest of 200 microseconds is what the engine does besides
AGENTS = 8
QUIET, QUIET_PER_S = 7, 40.0
WINDOW = 256
SETTLE_S = 0.5  # of a load, before its latencies count: its queues fill meanwhile
SOON_S = 0.3  # from ready to the first request
RSS_LOOK_S = 0.25
QUARTER_S = 0.25
PROGRAM = "solewriter.bench.flood.pressing"


class Plan(msgspec.Struct, frozen=True):
    """What to run, and for how long."""

    loads: tuple[float, ...]
    seconds: float  # of each load, of each round of quiet agents, of greedy ones
    rounds: int  # of quiet agents
    surge_s: tuple[float, float, float]
    soak_s: float
    deadline_s: float


class Pressed(NamedTuple):
    """What happened in one interval."""

    interval: Interval
    reports: list[Report]
    samples: list[list[tuple[int, int]]]  # of each agent: when a request was due, its latency; in nanoseconds
    lags_ns: list[int]
    rss_bytes: list[int]  # the first one as it was before

    def latencies_ms(self, from_s: float = 0.0, to_s: float = 1e9, agents: slice = slice(None)) -> list[float]:
        """Of requests that were due then, counted from the start, sorted."""
        low, high = (self.interval.start_ns + int(one * NS_PER_S) for one in (from_s, to_s))
        chosen = [one for agent in self.samples[agents] for one in agent]
        return sorted(latency / NS_PER_MS for due, latency in chosen if low <= due < high)

    def applied(self, from_s: float, agents: slice = slice(None)) -> list[int]:
        """Replies in each agent's hands from then on, to the end."""
        low, high = self.interval.start_ns + int(from_s * NS_PER_S), self.interval.end_ns
        return [sum(low <= due + latency < high for due, latency in agent) for agent in self.samples[agents]]

    def lag_ms(self, share: float = 0.99) -> float:
        return round(percentile(sorted(self.lags_ns), share) / NS_PER_MS, 3)


def percentile(ranked: Sequence[float], share: float) -> float:
    """By nearest rank, so that it is one that really occurred."""
    assert ranked, "nothing was measured"
    return ranked[round(share * (len(ranked) - 1))]


class Stage:
    """The engine and its agents' CPUs, and how many changes it has acknowledged."""

    def __init__(self, engine: Engine, client: Client, folder: Path, delays: Path) -> None:
        self.engine = engine
        self.acked = 0
        self._client = client
        self._folder = folder
        self._delays = delays
        self._where = pinned()
        self._jobs = 0
        self._first = client.reader.revision
        pin_server(engine.pid, self._where.engine)

    def orders(
        self,
        role: Role,
        number: int,
        *phases: Phase,
        window: int = 0,
        work_us: int = WORK_US,
        deadline_s: float | None = None,
    ) -> Orders:
        """For the agent of this number, with a job of its own."""
        self._jobs += 1
        job = f"{role}-{self._jobs}"
        self._client.submit(Create(Job(id=job, work_us=work_us))).check()
        self._first += 1
        samples = str(self._folder / job)
        cpus = self._where.agent(number)
        return Orders(role, cpus, str(self.engine.state), job, samples, phases, window, deadline_s)

    def press(self, all_orders: Sequence[Orders], seconds: float) -> Pressed:
        """Let them go, all at one moment, and hear what they did."""
        with children(all_orders, PROGRAM) as group:
            rss = [self._rss_bytes()]
            interval = Interval.soon(SOON_S, seconds)
            group.go(interval)
            while time.monotonic_ns() < interval.end_ns:
                sleep_until(min(interval.end_ns, time.monotonic_ns() + int(RSS_LOOK_S * NS_PER_S)))
                rss.append(self._rss_bytes())
            reports = group.reports_of(Report, interval)
        self.acked += sum(report.applied for report in reports)
        samples = [pairs(Path(one.samples)) for one in all_orders]
        lags = [lag for at, lag in pairs(self._delays) if interval.start_ns <= at < interval.end_ns]
        return Pressed(interval, reports, samples, lags, rss)

    def _rss_bytes(self) -> int:
        with open(f"/proc/{self.engine.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def verified(self) -> bool:
        """Every change has one revision, so they add up; and this engine is still the first one."""
        return self._client.reader.revision - self._first == self.acked and self.engine.restarts == 0


def pairs(path: Path) -> list[tuple[int, int]]:
    found = array("Q")
    found.frombytes(path.read_bytes() if path.exists() else b"")
    return list(zip(found[::2], found[1::2], strict=True))


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """An engine that knows jobs and notes its delays."""
    delays = folder / "delays"
    with (
        Engine(folder / "state", durability="process", models=[Job, Probe]) as engine,
        connect(engine.state, name="bench") as client,
    ):
        client.submit(Create(Probe(path=str(delays)))).check()
        yield Stage(engine, client, folder, delays)


# --- what is measured ------------------------------------------------------------------------------------------------


def loaded(stage: Stage, load: float, seconds: float, deadline_s: float | None) -> LoadRow:
    phase = Phase(seconds, load * NOMINAL_PER_S / AGENTS)
    orders = [stage.orders("offer", number, phase, deadline_s=deadline_s) for number in range(AGENTS)]
    pressed = stage.press(orders, seconds)
    latencies = pressed.latencies_ms(SETTLE_S)
    offered, turned_away, expired = (
        round(sum(getattr(report, name) for report in pressed.reports) / seconds, 1)
        for name in ("offered", "turned_away", "expired")
    )
    return LoadRow(
        load=load,
        deadline_ms=None if deadline_s is None else deadline_s * 1_000,
        offered_per_s=offered,
        applied_per_s=round(sum(pressed.applied(SETTLE_S)) / (seconds - SETTLE_S), 1),
        turned_away_per_s=turned_away,
        expired_per_s=expired,
        p50_ms=round(percentile(latencies, 0.5), 3) if latencies else None,
        p99_ms=round(percentile(latencies, 0.99), 3) if latencies else None,
        lag_p99_ms=pressed.lag_ms(),
        lag_max_ms=pressed.lag_ms(1.0),
    )


BESIDE: dict[str, Role | None] = {"nobody": None, "a flood": "greedy", "a lane without credits": "reckless"}


def quiet_rounds(stage: Stage, plan: Plan) -> list[QuietRow]:
    """Alone and beside each kind of flood, in turns."""
    found: dict[str, list[Pressed]] = {beside: [] for beside in BESIDE}
    for _ in range(plan.rounds):
        for beside, role in BESIDE.items():
            trickle = Phase(plan.seconds, QUIET_PER_S)
            orders = [stage.orders("quiet", number, trickle) for number in range(QUIET)]
            if role is not None:
                orders.append(stage.orders(role, QUIET, window=WINDOW))
            found[beside].append(stage.press(orders, plan.seconds))
    alone = [p99_ms(pressed) for pressed in found["nobody"]]
    return [_quiet_row(beside, all_pressed, alone, plan.seconds) for beside, all_pressed in found.items()]


def p99_ms(pressed: Pressed) -> float:
    return percentile(pressed.latencies_ms(agents=slice(QUIET)), 0.99)


def _quiet_row(beside: str, all_pressed: Sequence[Pressed], alone: Sequence[float], seconds: float) -> QuietRow:
    p99s = [p99_ms(pressed) for pressed in all_pressed]
    floods = [sum(report.in_time for report in pressed.reports[QUIET:]) for pressed in all_pressed]
    return QuietRow(
        beside=beside,
        requests=sum(report.applied for pressed in all_pressed for report in pressed.reports[:QUIET]),
        p50_ms=round(median(percentile(one.latencies_ms(agents=slice(QUIET)), 0.5) for one in all_pressed), 3),
        p99_ms=round(median(p99s), 3),
        p99_to_alone=None if p99s == alone else round(median(map(float.__truediv__, p99s, alone)), 3),
        flood_per_s=round(median(floods) / seconds, 1),
        lag_p99_ms=max(pressed.lag_ms() for pressed in all_pressed),
    )


GREEDY: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((WINDOW,) * AGENTS, (WORK_US,) * AGENTS),
    ((32, 64, 128, 256) * 2, (WORK_US,) * AGENTS),
    ((WINDOW,) * AGENTS, (WORK_US, 4 * WORK_US) * 4),
)


def greedy(stage: Stage, windows: tuple[int, ...], work_us: tuple[int, ...], seconds: float) -> GreedyRow:
    orders = [
        stage.orders("greedy", number, window=window, work_us=work)
        for number, (window, work) in enumerate(zip(windows, work_us, strict=True))
    ]
    pressed = stage.press(orders, seconds)
    applied = pressed.applied(SETTLE_S)
    besides_us = 1e6 / NOMINAL_PER_S - WORK_US  # of each request, whatever its own work is
    shares = [count * (work + besides_us) for count, work in zip(applied, work_us, strict=True)]
    lag_ms = pressed.lag_ms()
    return GreedyRow(windows=windows, work_us=work_us, applied=tuple(applied), jain=jain(shares), lag_p99_ms=lag_ms)


def surge(stage: Stage, plan: Plan) -> Surge:
    before_s, surge_s, after_s = plan.surge_s
    half, ten = 0.5 * NOMINAL_PER_S / AGENTS, 10 * NOMINAL_PER_S / AGENTS
    phases = Phase(before_s, half), Phase(surge_s, ten), Phase(after_s, half)
    orders = [stage.orders("offer", number, *phases) for number in range(AGENTS)]
    pressed = stage.press(orders, sum(plan.surge_s))
    ends_s = before_s + surge_s
    quarters = [ends_s + number * QUARTER_S for number in range(int(after_s / QUARTER_S))]
    before = percentile(pressed.latencies_ms(SETTLE_S, before_s), 0.99)
    later = percentile(pressed.latencies_ms(ends_s + BACK_S), 0.99)
    return Surge(
        before_p99_ms=round(before, 3),
        surge_p99_ms=round(percentile(pressed.latencies_ms(before_s, ends_s), 0.99), 3),
        after_p99_ms=tuple(
            round(percentile(pressed.latencies_ms(at_s, at_s + QUARTER_S), 0.99), 3) for at_s in quarters
        ),
        later_p99_ms=round(later, 3),
        later_to_before=round(later / before, 3),
        lag_p99_ms=pressed.lag_ms(),
    )


def soak(stage: Stage, seconds: float) -> Soak:
    phase = Phase(seconds, 10 * NOMINAL_PER_S / (AGENTS - 1))
    orders = [stage.orders("offer", number, phase) for number in range(AGENTS - 1)]
    pressed = stage.press([*orders, stage.orders("reckless", AGENTS - 1)], seconds)
    first = pressed.rss_bytes[0]
    return Soak(
        seconds=seconds,
        rss_mib=round(first / MIB, 1),
        rss_growth_mib=round((max(pressed.rss_bytes) - first) / MIB, 2),
        lag_p99_ms=pressed.lag_ms(),
        applied_per_s=round(sum(report.in_time for report in pressed.reports) / seconds, 1),
    )


# --- the program -----------------------------------------------------------------------------------------------------


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
    parser = argparse.ArgumentParser(
        prog="python -m solewriter.bench.overload", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer loads, less time for each: some ninety seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--seconds", type=arguments.seconds, help="of each load and each round")
    parser.add_argument("--soak", type=arguments.seconds, help="seconds of the long one")
    parser.add_argument(
        "--folder",
        type=arguments.folder,
        default=Path(tempfile.gettempdir()),
        help="where the state folder is made, and removed again",
    )
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
    results = answered(given.folder, partial(run, planned(parser, given)), printed, as_json=given.json)
    return 0 if results.verified else 1


if __name__ == "__main__":
    sys.exit(main())
