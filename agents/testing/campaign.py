"""Everything at once, and whether anything is lost: `python -m solewriter.agents.testing.campaign --minutes 5`.

Random agents, readers and watchers; kills and stops of them and of the engine, at random moments and at failpoints;
sessions resumed and taken over, requests sent again, clean restarts. In rounds, each with an empty state and judged by
the history checker when it is over, so that memory is bounded however long it takes. The same seed makes the same plan
(`--plan` prints it). It ends with the first round that goes wrong, whose folder stays; the status is 1 then. Otherwise
nothing is left behind.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from solewriter.agents.testing.checker import ACKS_MIN, SHOWN_MAX
from solewriter.agents.testing.crowd import Crowd
from solewriter.agents.testing.plan import ENGINES, plan
from solewriter.agents.testing.round import Bounds, Outcome, Round
from solewriter.shared.entity import Entity

ROUND_ACKS = 12_000  # an engine without a checkpoint reads all of them again at every start
ROUND_LEAST_S = 1.0  # no round is begun for less
LOST = ("lost", "refusal not journaled", "no outcome journaled")
DUPLICATED = ("applied twice", "version repeated")
PLANNED = 40  # lives and faults of each round that are printed
VIOLATION_MAX = 600  # characters
INTERRUPTED = 130  # the status after Ctrl-C, as a shell says it


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a campaign. It is over after so many minutes, or when it has so many acks and kills of each."""

    seed: int
    minutes: float
    acks: int | None = None
    kills: int | None = None
    round_acks: int = ROUND_ACKS
    crowd: Crowd = Crowd()
    failpoints: Sequence[str] = ENGINES
    folder: Path | None = None
    keep: bool = False
    models: Sequence[type[Entity]] = ()


class Percentiles(msgspec.Struct, frozen=True):
    """0 where there is nothing."""

    p50: float
    p99: float
    max: float
    count: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `lost` and `duplicated` are among the violations."""

    seed: int
    acked: int
    refused: int
    unknown: int
    kills: dict[str, int]
    failpoints_hit: dict[str, int]  # at which the engine really died or stopped
    lost: int
    duplicated: int
    violations: int
    restart_first_ack_ms: Percentiles
    restarts: int
    rounds: int
    minutes: float  # of load; the judgement not counted
    seconds_judging: float
    acks_per_s: float
    repeats: int
    looks: int
    watched: int
    revisions: int
    faults: int
    claimed: int
    fenced: int
    rss_mb: float  # of this process, at its highest
    first_violations: list[str]
    kept: list[str]  # folders of rounds that went wrong, or were to be kept

    @property
    def clean(self) -> bool:
        return not (self.violations or self.lost or self.duplicated)


def run(settings: Settings) -> Report:
    """Round after round, until one goes wrong or all that was asked for was done. Of the others nothing is left."""
    begun = time.monotonic()
    deadline = begun + settings.minutes * 60
    folder = Path(tempfile.mkdtemp(prefix="solewriter-campaign-", dir=settings.folder))
    outcomes: list[Outcome] = []
    kept: list[str] = []
    try:
        for number in count(1):
            bounds = _bounds(settings, outcomes, deadline)
            if outcomes and (deadline - time.monotonic() < ROUND_LEAST_S or not (bounds.acks or bounds.kills)):
                break
            kept.append(str(folder / f"round-{number}"))  # until it is known to be clean
            outcomes.append(_round(settings, number, Path(kept[-1]), bounds))
            if outcomes[-1].verdict.violations:
                break
            if not settings.keep:
                shutil.rmtree(kept.pop())
    except KeyboardInterrupt:
        unfinished = str(folder / f"round-{len(outcomes) + 1}")
        kept = [place for place in kept if place != unfinished]
        raise
    finally:
        _tidy(folder, kept)
    return added_up(settings, outcomes, kept, time.monotonic() - begun)


def _tidy(folder: Path, kept: Sequence[str]) -> None:
    """Remove what need not be looked at, and say where the rest is."""
    for place in folder.iterdir():
        if str(place) in kept:
            print(f"kept: {place}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(place)
    if not kept:
        folder.rmdir()


def _bounds(settings: Settings, outcomes: Sequence[Outcome], deadline: float) -> Bounds:
    """What is left to do."""
    endless = 1 << 62
    if settings.acks is None and settings.kills is None:
        return Bounds(settings.round_acks, endless, endless, deadline)
    acked = sum(outcome.verdict.acks for outcome in outcomes)
    kills = [sum(outcome.kills[role] for outcome in outcomes) for role in ("engine", "agent", "reader")]
    return Bounds(
        settings.round_acks,
        max(0, (settings.acks or 0) - acked),
        max(0, (settings.kills or 0) - min(kills)),
        deadline,
    )


def _round(settings: Settings, number: int, place: Path, bounds: Bounds) -> Outcome:
    with Round(plan(settings.seed, number, settings.failpoints), place, settings.crowd, settings.models) as played:
        outcome = played.run(bounds)
    print(f"round {number}: {said(outcome)}", file=sys.stderr, flush=True)
    return outcome


def said(outcome: Outcome) -> str:
    """A round in one line."""
    wrong = Counter(violation.name for violation in outcome.verdict.violations)
    kills = ", ".join(f"{role} {number}" for role, number in outcome.kills.items())
    return f"{outcome.seconds:.0f} s, {outcome.verdict.acks:,} acks, killed {kills}; {dict(wrong) or 'clean'}"


def added_up(settings: Settings, outcomes: Sequence[Outcome], kept: list[str], seconds: float) -> Report:
    """All rounds together, and whether the load was real."""
    verdicts = [outcome.verdict for outcome in outcomes]
    violations = [violation for verdict in verdicts for violation in verdict.violations]
    named = Counter(violation.name for violation in violations)
    totals = {
        name: sum(getattr(verdict, name) for verdict in verdicts)
        for name in ("refused", "unknown", "repeats", "looks", "watched", "revisions", "faults", "claimed", "fenced")
    }
    acked = sum(verdict.acks for verdict in verdicts)
    hit = sum((outcome.failpoints_hit for outcome in outcomes), Counter[str]())
    unreal = [f"(6) too few acks: {acked} of {ACKS_MIN}"] * (acked < ACKS_MIN)
    unreal += ["(6) no fault: nothing was done to anybody"] * (not totals["faults"])
    working = sum(outcome.seconds for outcome in outcomes)
    return Report(
        seed=settings.seed,
        acked=acked,
        kills={role: sum(outcome.kills[role] for outcome in outcomes) for role in outcomes[0].kills},
        failpoints_hit=dict(sorted(hit.items())),
        lost=sum(named[name] for name in LOST),
        duplicated=sum(named[name] for name in DUPLICATED),
        violations=len(violations) + len(unreal),
        restart_first_ack_ms=percentiles([ms for outcome in outcomes for ms in outcome.first_ack_ms]),
        restarts=sum(outcome.restarts for outcome in outcomes),
        rounds=len(outcomes),
        minutes=round(working / 60, 2),
        seconds_judging=round(seconds - working, 1),
        acks_per_s=round(acked / working, 1),
        rss_mb=round(peak_rss_mb(), 1),
        first_violations=[str(violation)[:VIOLATION_MAX] for violation in violations[:SHOWN_MAX]] + unreal,
        kept=kept,
        **totals,
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    if not values:
        return Percentiles(0.0, 0.0, 0.0, 0)
    cuts = statistics.quantiles([*values, *values], n=100, method="inclusive")  # of a single value, too
    return Percentiles(round(cuts[49], 1), round(cuts[98], 1), round(max(values), 1), len(values))


def peak_rss_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


# --- what is printed -------------------------------------------------------------------------------------------------


def print_plan(settings: Settings, rounds: int = 3) -> None:
    """The beginning of it, one JSON line for each thing."""
    for number in range(1, rounds + 1):
        made = plan(settings.seed, number, settings.failpoints)
        about = {"round": number, "seed": made.seed, "durability": made.durability, "limits": made.limits}
        for line in (about, *islice(made.lives, PLANNED), *islice(made.faults, PLANNED)):
            print(msgspec.json.encode(line).decode())


def print_table(report: Report) -> None:
    table = Table("what", "how many", title=f"campaign, seed {report.seed}")
    for name, value in msgspec.to_builtins(report).items():
        if name not in ("seed", "first_violations", "failpoints_hit"):
            table.add_row(name.replace("_", " "), shown(value))
    table.add_row("failpoints hit", f"{len(report.failpoints_hit)} of {len(ENGINES)}")
    console = Console()
    console.print(table)
    for violation in report.first_violations:
        console.print(violation, style="red", markup=False)


def shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one:,}" for key, one in value.items())
    return ", ".join(value) or "-" if isinstance(value, list) else f"{value:,}"


def settings_of(arguments: Sequence[str] | None) -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="campaign", description="Faults of all kinds, judged by the history checker.")
    parser.add_argument("--minutes", type=float, default=1.0, help="of load, at most")
    parser.add_argument("--seed", type=int, help="of the plan; random if not given")
    parser.add_argument("--acks", type=int, help="it may end when there are so many")
    parser.add_argument("--kills", type=int, help="and so many of the engine, of agents and of readers")
    parser.add_argument("--round-acks", type=int, default=ROUND_ACKS, help="acks after which a round is judged")
    for role, number in (("agents", Crowd().agents), ("readers", Crowd().readers), ("watchers", Crowd().watchers)):
        parser.add_argument(f"--{role}", type=int, default=number, help="at work at once")
    parser.add_argument("--pause-s", type=float, default=Crowd().pause_s, help="of an agent, on average")
    parser.add_argument("--failpoints", default=",".join(ENGINES), help="at which engines end, of all that there are")
    parser.add_argument("--folder", type=Path, help="where the rounds have their folders")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all rounds")
    parser.add_argument("--plan", action="store_true", help="print the beginning of the plan, and do nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    failpoints = [name for name in options.failpoints.split(",") if name]
    if unknown := {*failpoints} - {*ENGINES}:
        parser.error(f"no such failpoints: {', '.join(sorted(unknown))}")
    settings = Settings(
        seed=random.randrange(1_000_000) if options.seed is None else options.seed,
        minutes=options.minutes,
        acks=options.acks,
        kills=options.kills,
        round_acks=options.round_acks,
        crowd=Crowd(options.agents, options.readers, options.watchers, options.pause_s),
        failpoints=failpoints,
        folder=options.folder,
        keep=options.keep,
    )
    return settings, options


def main(arguments: Sequence[str] | None = None) -> int:
    settings, options = settings_of(arguments)
    if options.plan:
        print_plan(settings)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        report = run(settings)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return INTERRUPTED
    if options.json:
        print(msgspec.json.encode(report).decode())
    else:
        print_table(report)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
