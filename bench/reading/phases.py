"""The snapshot benchmark, phase by phase: what is made, who is measured over it, and the rows that come of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from solewriter import Task
from solewriter.bench.kit.measure import NS_PER_US, US_PER_S, latency
from solewriter.bench.kit.optional import NotHere
from solewriter.bench.kit.placement import Placement, pin
from solewriter.bench.kit.running import Say
from solewriter.bench.reading import ours, rival_dict, rival_lmdb, rival_redis, rival_sqlite
from solewriter.bench.reading.passes import ATTACH, OURS, WATCH, Contestant, agreeing, interleaved, opened
from solewriter.bench.reading.population import PRIORITIES, STATUSES, Population, Run, populated, shared_bytes, windows
from solewriter.bench.reading.standing import PUBLISH, REPLIED, UPDATED, VISIBLE, Row, memory_rows, rows_of
from solewriter.bench.reading.writing import latencies_ns, memory_after, publish_costs
from solewriter.shared.config import DEFAULT_LIMITS

CHECKED = 20  # ids that no round asks for: by them rivals are compared with us, and everything is warmed up
ASKED = 21  # rounds of scans and counts


class Plan(msgspec.Struct, frozen=True):
    """What to run, and how often."""

    tasks: int
    sizes: tuple[int, ...]  # of the populations of runs, ascending
    rounds: int
    batch: int  # gets in a round
    seconds: float  # of each round of updates
    updates_per_task: int
    samples: int  # of latency
    replays: int  # rounds of watching
    attaches: int


class Setting(NamedTuple):
    """What every phase is given."""

    plan: Plan
    folder: Path
    pinned: Placement
    free: Placement
    say: Say  # what comes next, to whoever waits at a terminal

    def population(self, model: type[Task | Run], count: int, spin_s: float) -> AbstractContextManager[Population]:
        self.say(f"{count:,} of {model.kind_name}")
        return populated(self.folder, model, count, spin_s=spin_s, cpus=self.pinned.engine)

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """This process, and what it starts meanwhile, on any CPU."""
        pin(os.getpid(), self.free.agent(0))
        try:
            yield
        finally:
            pin(os.getpid(), self.pinned.agent(0))


# --- tasks -----------------------------------------------------------------------------------------------------------


def of_tasks(setting: Setting) -> Iterator[Row]:
    """Everything that is measured over full tasks."""
    plan, say = setting.plan, setting.say
    with setting.population(Task, plan.tasks, DEFAULT_LIMITS.spin_s) as population:
        taken = shared_bytes(population.state)
        say("watch")
        yield from watching(population, plan)
        say("gets of tasks")
        rivals: dict[str, int] = {}
        yield from getting(setting, population, rivals, served=True)
        names = (rival_lmdb.WHO, rival_sqlite.WHO, rival_redis.WHO)
        yield from memory_rows(str(population), plan.tasks, taken, {name: rivals.get(name) for name in names})
        say("latency")
        yield from seeing(setting, population)
        say("updates at random")
        yield updating(population, plan)


def getting(setting: Setting, population: Population, memory_bytes: dict[str, int], *, served: bool) -> Iterator[Row]:
    """All gets and pins; those from servers, too, if `served`."""
    plan, folder, shuffled = setting.plan, rivals_folder(setting, population), population.shuffled()
    batch = min(plan.batch, len(shuffled) // (plan.rounds + 1))
    works = [shuffled[batch * number : batch * (number + 1)] for number in range(plan.rounds)]
    checked = shuffled[-CHECKED:]
    every = [*shuffled[: batch * plan.rounds], *checked]
    folder.mkdir()
    rival_sqlite.fill(folder / "sqlite", population, memory_bytes, indexed=population.model is Run)
    with ExitStack() as ending:
        contestants = [
            *ours.getting(population, ending, every),
            *rival_lmdb.contestants(folder / "lmdb", population, ending, every, memory_bytes),
            *rival_sqlite.getting(folder / "sqlite", population, ending, every),
        ]
        if served:
            with setting.anywhere():  # where the servers may run is inherited
                contestants += rival_redis.contestants(folder / "redis", population, ending, memory_bytes)
                contestants += rival_dict.contestants(population, ending)
        yield from measured(str(population), contestants, works, checked)


def rivals_folder(setting: Setting, population: Population) -> Path:
    return setting.folder / f"rivals-{population.model.kind_name}".lower()


def measured(
    over: str, contestants: Sequence[Contestant], works: Sequence[Sequence[object]], checked: Sequence[object]
) -> list[Row]:
    agree = agreeing(contestants, checked)
    return rows_of(over, contestants, interleaved(contestants, works), agree)


def watching(population: Population, plan: Plan) -> Iterator[Row]:
    ways = "changes", "changes, each `new` decoded"
    for how, figure in zip(ways, ours.replays(population, plan.replays), strict=True):
        yield Row(
            measure=WATCH, over=str(population), who=OURS, how=how, unit="changes/s",
            median=round(US_PER_S / figure.median), min=round(US_PER_S / figure.max), max=round(US_PER_S / figure.min),
        )  # fmt: skip


def seeing(setting: Setting, population: Population) -> Iterator[Row]:
    with setting.anywhere():
        pin(population.engine.pid, setting.free.engine)
        seen_ns, replied_ns = latencies_ns(population, setting.plan.samples, setting.free.agent(0))
    pin(population.engine.pid, setting.pinned.engine)
    yield _latency_row(VISIBLE, "wait_for in a process that slept", seen_ns)
    yield _latency_row(REPLIED, "submit", replied_ns)


def _latency_row(measure: str, how: str, all_ns: Sequence[int]) -> Row:
    found = latency(all_ns)
    assert found is not None
    return Row(
        measure=measure, over="one update", who=OURS, how=how, unit="us",
        median=found.p50_us, min=round(min(all_ns) / NS_PER_US, 1), max=found.max_us, p99=found.p99_us,
    )  # fmt: skip


def updating(population: Population, plan: Plan) -> Row:
    found = memory_after(population, plan.updates_per_task)
    return Row(
        measure=UPDATED, over=str(population), who=OURS, how=f"{found.updates:,} updates", unit="x live bytes",
        median=round(found.bytes / found.live_bytes, 3), max=round(found.bytes_max / found.live_bytes, 3),
        note=f"{found.bytes:,} bytes for {found.live_bytes:,} of live records",
    )  # fmt: skip


# --- runs ------------------------------------------------------------------------------------------------------------


def of_runs(setting: Setting) -> Iterator[Row]:
    """Everything that is measured at several sizes, and at the largest one."""
    plan, say = setting.plan, setting.say
    with ExitStack() as ending:
        populations = [ending.enter_context(setting.population(Run, size, 0.0)) for size in plan.sizes]
        for population in populations:
            yield from memory_rows(str(population), len(population.ids), shared_bytes(population.state), {})
        say("publish cost")
        for population, cost in zip(populations, publish_costs(populations, plan.rounds, plan.seconds), strict=True):
            figures = msgspec.structs.asdict(cost) if cost is not None else {}
            yield Row(measure=PUBLISH, over=str(population), who=OURS, how="update of one field", unit="us", **figures)
        say(f"gets of {population}")
        yield from getting(setting, population, {}, served=False)
        say("scans and counts")
        yield from asking(population, rivals_folder(setting, population) / "sqlite")
        say("attach")
        yield from attaching(population, plan.attaches, rivals_folder(setting, population))


def asking(population: Population, filled: Path) -> Iterator[Row]:
    with ExitStack() as ending:
        *asked, checked = windows(ASKED + 1)
        contestants = ours.asking(population, ending, [*asked, checked])
        contestants += rival_sqlite.asking(filled, population, ending, [*asked, checked])
        yield from measured(str(population), contestants, [[one] for one in asked], [checked])
    with ExitStack() as ending:
        pairs = [(status, priority) for status in STATUSES for priority in PRIORITIES]
        contestants = ours.counting_many(population, ending)
        contestants += rival_sqlite.counting_many(filled, ending)
        yield from measured(str(population), contestants, [[one] for one in pairs], pairs[:1])


def attaching(population: Population, times: int, folder: Path) -> list[Row]:
    lmdb, why = None, ""
    try:
        lmdb = rival_lmdb.opening(folder / "lmdb")
    except NotHere as absent:
        why = str(absent)
    openings = {
        Contestant(ATTACH, OURS, "open_reader, snapshot", None): ours.opening(population.state),
        Contestant(ATTACH, rival_lmdb.WHO, "open, begin", None, why): lmdb,
        Contestant(ATTACH, rival_sqlite.WHO, "connect, begin, look", None): rival_sqlite.opening(folder / "sqlite"),
    }
    figures = opened(list(openings.values()), times)
    return rows_of(str(population), list(openings), figures, [None] * len(openings))
