"""One contest: systems that hold the same tasks, asked the same things in turn, round after round.

All systems of a contest are started and filled before the first round, and stay until the last; one that is not asked
does nothing. In every round each case is run once, and each round begins with another case, so that whatever else the
machine does meanwhile meets all alike. After every run the whole state is compared with what the agents know.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from solewriter.bench.kit.disk import device_written_bytes
from solewriter.bench.kit.measure import NS_PER_S, NS_PER_US, Interval, Usage, in_turn, resident_bytes_of_all, used_by
from solewriter.bench.kit.optional import NotHere
from solewriter.bench.kit.placement import pin_server
from solewriter.bench.kit.running import Say
from solewriter.bench.load.agent import Orders, Report
from solewriter.bench.load.crew import Failed, crew
from solewriter.bench.load.evidence import Evidence
from solewriter.bench.load.histogram import NOTHING, merged
from solewriter.bench.load.peers.catalog import CATALOG
from solewriter.bench.load.peers.peer import Peer, SelfDriven, Setting
from solewriter.bench.load.rows import Case, Row, Sample, row_of
from solewriter.bench.load.work import WORKLOADS
from solewriter.shared.config import MIB
from solewriter.shared.errors import in_words

FAULTS_MAX = 3  # told of one run
LOOKED_THROUGH_MAX = 200_000  # entities that are all looked at after every run; of more, after the last one
FREE = "free"
PROMISES = {"power": "power cut", "process": "process death", "memory": "nothing"}  # what an acked request survives


class Timing(NamedTuple):
    """For how long, and how often."""

    runs: int
    warmup_s: float
    seconds: float


class Standing(NamedTuple):
    """A system that is there and filled, and what agents know of it."""

    peer: Peer
    evidence: Evidence


# --- where processes run ----------------------------------------------------------------------------------------------


class Places(NamedTuple):
    """CPUs of the server, and of each agent by its number."""

    server: tuple[int, ...]
    agents: list[tuple[int, ...]]
    text: str


def places(case: Case, *, served: bool) -> Places:
    """Free: any CPU for everybody. Pinned: the server alone on the first CPU, agents in turn on the others; where
    nobody serves, agents in turn on all of them.
    """
    everywhere = tuple(sorted(os.sched_getaffinity(0)))
    count = case.agents + case.writers
    if not case.pinned:
        return Places(everywhere, [everywhere] * count, FREE)
    others = everywhere[1:] if served and len(everywhere) > 1 else everywhere
    agents = f"agents {','.join(map(str, others))}"
    text = f"server {everywhere[0]}, {agents}" if served else agents
    return Places(everywhere[:1], [(others[number % len(others)],) for number in range(count)], text)


# --- one run ----------------------------------------------------------------------------------------------------------


def measured(case: Case, standing: Standing, timing: Timing, folder: Path) -> Sample:
    """One run of one case, of systems below this folder. Raises Failed."""
    peer = standing.peer
    where = places(case, served=bool(peer.pids))
    for pid in peer.pids:
        pin_server(pid, where.server)
    if isinstance(peer, SelfDriven):
        driven = peer.drive(case.agents, case.window, timing.seconds, sorted({*chain(*where.agents)}))
        return Sample(per_s=driven.per_s, histogram=NOTHING, p50_us=driven.p50_us, faults=driven.faults)
    count = case.agents + case.writers
    shares = standing.evidence.shares(count)
    loops = [case.loop] * case.agents + ["pipelined"] * case.writers
    orders = [
        Orders(loops[number], case.workload, shares[number], case.window, where.agents[number], case.rate_per_s)
        for number in range(count)
    ]
    with crew(orders, [peer.link(number) for number in range(count)]) as group:
        before = device_written_bytes(folder)  # of all that is asked, warm-up included: a look in between would be felt
        interval = Interval.soon(timing.warmup_s, timing.seconds)
        group.go(interval)
        used = used_by(peer.pids, interval)
        resident = sum(map(resident_bytes_of_all, peer.pids))
        reports = group.reports(interval)
        after = device_written_bytes(folder)
    for share, report in zip(shares, reports, strict=True):
        standing.evidence.note(share, report.applied, report.versions)
    sample = sample_of(reports[: case.agents], interval, used, resident, bool(peer.pids))
    if before is None or after is None:
        return sample
    written = (after - before) / max(1, sum(report.total for report in reports))
    return msgspec.structs.replace(sample, written_bytes=written)


def sample_of(reports: Sequence[Report], interval: Interval, used: Usage, resident: int, served: bool) -> Sample:
    answered = sum(report.answered for report in reports)
    cpu_ns = sum(report.used.cpu_ns for report in reports)
    histogram = merged(report.histogram for report in reports)
    found = histogram.latency()

    def each(used: float) -> float | None:
        return used / answered if answered else None  # of no request there is nothing to say

    return Sample(
        per_s=answered / interval.seconds,
        histogram=histogram,
        p50_us=found.p50_us if found else None,
        server_cpu_us=each(used.cpu_ns / NS_PER_US) if served else None,
        client_cpu_us=each(cpu_ns / NS_PER_US),
        server_switches=each(used.switches) if served else None,
        client_switches=each(sum(report.used.switches for report in reports)),
        server_mib=resident / MIB if served else None,
        client_mib=sum(report.resident_bytes for report in reports) / MIB / len(reports),
        per_client_cpu_s=answered / (cpu_ns / NS_PER_S) if cpu_ns else None,
    )


# --- a contest --------------------------------------------------------------------------------------------------------


def contest(cases: Sequence[Case], folder: Path, timing: Timing, entry_bytes: int, say: Say) -> list[Row]:
    """The rows of these cases, all of one workload, in their order."""
    with ExitStack() as ending:
        standing, absent, failed = _started(cases, folder, entry_bytes, ending, say)
        here = [case for case in cases if _whose(case) in standing]
        samples: dict[Case, list[Sample]] = {case: [] for case in here}
        for number, case in in_turn(here, timing.runs):
            if _whose(case) in failed:
                continue
            say(f"round {number + 1} of {timing.runs}: {said(case)}")
            one = standing[_whose(case)]
            last = number + 1 == timing.runs
            try:
                sample = measured(case, one, timing, folder)
                if last or case.entities <= LOOKED_THROUGH_MAX:
                    sample = _verified(sample, one, case)
            except Exception as error:  # whatever a system dies of, and whoever finds out: the others are not its fault
                failed[_whose(case)] = _failure(error)
                continue
            samples[case].append(sample)
        rows = []
        for case in cases:
            whose = _whose(case)
            note = failed.get(whose) or absent.get(whose, "")
            empty = empty_row(case, note, standing.get(whose))
            if whose in failed:
                rows.append(msgspec.structs.replace(empty, verified=False))
            else:
                rows.append(row_of(empty, samples.get(case, [])))
        return rows


def _verified(sample: Sample, one: Standing, case: Case) -> Sample:
    if CATALOG[case.peer].floor or isinstance(one.peer, SelfDriven):
        return sample
    return msgspec.structs.replace(sample, faults=list(islice(one.evidence.faults(one.peer.stored()), FAULTS_MAX)))


def _failure(error: Exception) -> str:
    """What an agent said of it, or what was found out here."""
    return f"failed: {error}" if isinstance(error, Failed) else f"failed: {in_words(error)}"


def _whose(case: Case) -> tuple[str, str, int]:
    return case.peer, case.durability, case.entities


def _started(
    cases: Sequence[Case], folder: Path, entry_bytes: int, ending: ExitStack, say: Say
) -> tuple[dict[Any, Standing], dict[Any, str], dict[Any, str]]:
    """The systems of these cases, filled; why others are not here; and what went wrong with those that should be, of
    which nobody can say what they must hold.
    """
    standing: dict[Any, Standing] = {}
    absent: dict[Any, str] = {}
    failed: dict[Any, str] = {}
    agents_max = max(case.agents + case.writers for case in cases)
    for case in cases:
        whose = _whose(case)
        if whose in standing or whose in absent or whose in failed:
            continue
        say(f"starting {case.peer}, {case.durability}: {case.entities:,} entities for {case.workload}")
        own = folder / f"{len(standing) + len(absent) + len(failed)}-{case.peer}-{case.durability}".replace(" ", "-")
        setting = Setting(own, case.durability, agents_max, entry_bytes)
        workload = WORKLOADS[case.workload]
        try:
            peer = ending.enter_context(CATALOG[case.peer].start(setting))
            peer.load(workload.population(case.entities))
        except NotHere as why:
            absent[whose] = f"not here: {why}"
        except Exception as error:  # as above
            failed[whose] = _failure(error)
        else:
            standing[whose] = Standing(peer, Evidence(workload, case.entities))
    return standing, absent, failed


def empty_row(case: Case, note: str, standing: Standing | None) -> Row:
    entry = CATALOG[case.peer]
    return Row(
        case=case,
        how=entry.how[case.durability],
        promise="-" if entry.floor else PROMISES[case.durability],
        validated=entry.validated,
        floor=entry.floor,
        batch=entry.batch if case.loop == "pipelined" else "",
        placement=places(case, served=standing is not None and bool(standing.peer.pids)).text,
        note=note or entry.note,
    )


def said(case: Case) -> str:
    rate = f", {case.rate_per_s:,.0f}/s offered" if case.rate_per_s else ""
    return f"{case.peer}, {case.durability}, {case.workload}, {case.loop}, {case.agents} agents{rate}"
