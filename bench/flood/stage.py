"""Where floods are let loose: an engine that is slow on purpose, agents that press it, what they met."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from solewriter import Client, Create, Engine, connect
from solewriter.bench.flood.pressing import PROGRAM, Orders, Phase, Report, Role
from solewriter.bench.flood.throttle import Job, Probe
from solewriter.bench.kit.children import children
from solewriter.bench.kit.measure import NS_PER_MS, NS_PER_S, Interval, kept, percentile, resident_bytes, sleep_until
from solewriter.bench.kit.placement import pin_server, pinned

WORK_US = 170  # of each change; the rest of 200 microseconds is what the engine does besides
SOON_S = 0.3  # from ready to the first request
RSS_LOOK_S = 0.25


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
        with children(PROGRAM, all_orders) as group:
            rss = [resident_bytes(self.engine.pid)]
            interval = Interval.soon(SOON_S, seconds)
            group.go(interval)
            while time.monotonic_ns() < interval.end_ns:
                sleep_until(min(interval.end_ns, time.monotonic_ns() + int(RSS_LOOK_S * NS_PER_S)))
                rss.append(resident_bytes(self.engine.pid))
            reports = group.reports(Report, interval)
        self.acked += sum(report.applied for report in reports)
        samples = [pairs(Path(one.samples)) for one in all_orders]
        lags = [lag for at, lag in pairs(self._delays) if interval.start_ns <= at < interval.end_ns]
        return Pressed(interval, reports, samples, lags, rss)

    @property
    def verified(self) -> bool:
        """Every change has one revision, so they add up; and this engine is still the first one."""
        return self._client.reader.revision - self._first == self.acked and self.engine.restarts == 0


def pairs(path: Path) -> list[tuple[int, int]]:
    """Moments, and how long something took then, in nanoseconds; of a file that nobody has written yet, none."""
    found = kept(path) if path.exists() else ()
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
