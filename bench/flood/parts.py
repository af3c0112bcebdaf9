"""The parts of the overload benchmark: how many agents of which kind press the engine, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from solewriter.bench.flood.calm import BACK_S, GreedyRow, LoadRow, QuietRow, Soak, Surge, jain
from solewriter.bench.flood.pressing import Phase, Role
from solewriter.bench.flood.stage import WORK_US, Pressed, Stage
from solewriter.bench.kit.measure import US_PER_S, percentile
from solewriter.bench.kit.workload import WINDOW
from solewriter.shared.config import MIB

NOMINAL_PER_S = 5_000.0
AGENTS = 8
QUIET, QUIET_PER_S = 7, 40.0
SETTLE_S = 0.5  # of a load, before its latencies count: its queues fill meanwhile
QUARTER_S = 0.25


class Plan(msgspec.Struct, frozen=True):
    """What to run, and for how long."""

    loads: tuple[float, ...]
    seconds: float  # of each load, of each round of quiet agents, of greedy ones
    rounds: int  # of quiet agents
    surge_s: tuple[float, float, float]
    soak_s: float
    deadline_s: float


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
    besides_us = US_PER_S / NOMINAL_PER_S - WORK_US  # of each request, whatever its own work is
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
