"""What a run of the overload benchmark found out: rows, the marks that were set, and the tables that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from solewriter.bench.kit.mark import Mark, judged, least, most, summed
from solewriter.bench.kit.table import described, table

GOODPUT_LEAST = 0.9  # at ten times the nominal rate, of the highest that was seen
QUIET_MOST = 1.5  # p99 beside a flood, of p99 alone
JAIN_LEAST = 0.95
RSS_GROWTH_MIB_MOST = 64.0
LAG_MS_MOST = 5.0
BACK_S = 1.0  # after a surge, when p99 has to be what it was before
BACK_MOST = 1.5  # what counts as the same p99, as beside a flood


class LoadRow(msgspec.Struct, frozen=True, kw_only=True):
    """So many times the nominal rate, offered by all agents together."""

    load: float
    deadline_ms: float | None
    offered_per_s: float
    applied_per_s: float
    turned_away_per_s: float
    expired_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    lag_p99_ms: float
    lag_max_ms: float


class QuietRow(msgspec.Struct, frozen=True, kw_only=True):
    """Agents that trickle, alone or beside somebody; medians of rounds that take turns."""

    beside: str
    requests: int
    p50_ms: float
    p99_ms: float
    p99_to_alone: float | None  # the median of what it was in each round
    flood_per_s: float
    lag_p99_ms: float


class GreedyRow(msgspec.Struct, frozen=True, kw_only=True):
    """Agents that want all they can get."""

    windows: tuple[int, ...]
    work_us: tuple[int, ...]
    applied: tuple[int, ...]
    jain: float  # of the engine's time that their requests took, where these cost different
    lag_p99_ms: float


class Surge(msgspec.Struct, frozen=True, kw_only=True):
    """A trickle, ten times too much, the trickle again; latencies by when requests were due."""

    before_p99_ms: float
    surge_p99_ms: float
    after_p99_ms: tuple[float, ...]  # of each quarter of a second behind its end
    later_p99_ms: float  # of all from `BACK_S` behind its end
    later_to_before: float
    lag_p99_ms: float  # from the beginning to the end


class Soak(msgspec.Struct, frozen=True, kw_only=True):
    """Ten times too much for long, one agent of it without credits."""

    seconds: float
    rss_mib: float  # at the beginning
    rss_growth_mib: float  # the most that was seen above that
    lag_p99_ms: float
    applied_per_s: float


class Results(msgspec.Struct, frozen=True):
    """Everything that a run found out."""

    machine: dict[str, str | int]
    plan: dict[str, Any]
    loads: list[LoadRow]
    quiet: list[QuietRow]
    greedy: list[GreedyRow]
    surge: Surge
    soak: Soak
    marks: list[Mark]
    verified: bool  # every change that was acknowledged is in the state, and none besides
    elapsed_s: float


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 where all shares are equal, 1 / n where one has everything."""
    squares = len(shares) * sum(share * share for share in shares)
    return round(sum(shares) ** 2 / squares, 4) if squares else 0.0


# --- marks -----------------------------------------------------------------------------------------------------------


def marks_of(
    loads: Sequence[LoadRow], quiet: Sequence[QuietRow], greedy: Sequence[GreedyRow], surge: Surge, soak: Soak
) -> list[Mark]:
    plain = [row for row in loads if row.deadline_ms is None]
    peak = max(row.applied_per_s for row in plain)
    heaviest = max(plain, key=lambda row: row.load)
    rows: list[LoadRow | QuietRow | GreedyRow | Surge | Soak] = [*loads, *quiet, *greedy, surge, soak]
    return [
        least(f"goodput at {heaviest.load:g}x, of the peak", GOODPUT_LEAST, heaviest.applied_per_s / peak, "x"),
        *[
            most(f"p99 of quiet agents beside {row.beside}, of alone", QUIET_MOST, "x", row.p99_to_alone)
            for row in quiet
            if row.p99_to_alone is not None
        ],
        least("Jain index of greedy agents, the lowest", JAIN_LEAST, min(row.jain for row in greedy)),
        most(f"RSS growth of the engine in {soak.seconds:g} s", RSS_GROWTH_MIB_MOST, "MiB", soak.rss_growth_mib),
        most("event loop lag, p99, the highest", LAG_MS_MOST, "ms", max(row.lag_p99_ms for row in rows)),
        most(f"p99 from {BACK_S:g} s after a surge on, of before", BACK_MOST, "x", surge.later_to_before),
    ]


# --- text ------------------------------------------------------------------------------------------------------------


def printed(results: Results) -> str:
    surge, soak = results.surge, results.soak
    after = ", ".join(f"{p99_ms:.1f}" for p99_ms in surge.after_p99_ms)
    parts = [
        f"machine: {described(results.machine)}",
        f"plan: {described(results.plan)}",
        "",
        table(LoadRow.__struct_fields__, map(msgspec.structs.astuple, results.loads)),
        "",
        table(QuietRow.__struct_fields__, map(msgspec.structs.astuple, results.quiet)),
        "",
        table(GreedyRow.__struct_fields__, [_joined(row) for row in results.greedy]),
        "",
        f"surge: p99 {surge.before_p99_ms:.2f} ms before, {surge.surge_p99_ms:.1f} in it; behind it, by quarters of a "
        f"second: {after}; {surge.later_p99_ms:.2f} from {BACK_S:g} s on",
        f"soak: {soak.seconds:g} s, {soak.applied_per_s:,.0f} applied/s, RSS {soak.rss_mib:.1f} MiB, "
        f"at most {soak.rss_growth_mib:.1f} more",
        "",
        judged(results.marks),
        "",
        f"{summed(results.marks)}; "
        f"verified: {'yes, no change lost or doubled' if results.verified else 'NO'}; took {results.elapsed_s} s",
    ]
    return "\n".join(parts)


def _joined(row: GreedyRow) -> tuple[object, ...]:
    """Of eight agents each cell would be a list."""
    joined = [" ".join(f"{one:,}" for one in cell) for cell in (row.windows, row.work_us, row.applied)]
    return *joined, row.jain, row.lag_p99_ms
