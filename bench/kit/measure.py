"""How every benchmark here measures: the interval, the meter, turns, percentiles, what a process has used.

Every figure carries its unit in its name. Latencies are kept one by one while something is measured; `latency` sorts
them at the end, `load/histogram.py` counts them by narrow buckets. All processes of a run measure the same interval of
the monotonic clock, so that their counts may be added up.
"""

from __future__ import annotations

import resource
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec
import psutil

T = TypeVar("T")
NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000
US_PER_S = 1_000_000
US_PER_MS = 1_000


class Interval(msgspec.Struct, frozen=True):
    """What is measured, on `time.monotonic_ns`. What happens before is warm-up, what comes after is only counted."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / NS_PER_S

    @classmethod
    def soon(cls, warmup_s: float, seconds: float) -> Interval:
        start_ns = time.monotonic_ns() + int(warmup_s * NS_PER_S)
        return cls(start_ns, start_ns + int(seconds * NS_PER_S))


def sleep_until(moment_ns: int) -> None:
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / NS_PER_S)


def in_turn(all_of_them: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Each of them in every round, and each round begins with another one, so that whatever else the machine does meets
    all alike. With the number of the round.
    """
    for number in range(rounds):
        for place in range(len(all_of_them)):
            yield number, all_of_them[(place + number) % len(all_of_them)]


# --- what processes use -----------------------------------------------------------------------------------------------


class Usage(msgspec.Struct, frozen=True):
    """What a process has used so far, all of its threads."""

    cpu_ns: int
    switches: int  # of context, voluntary or not

    @classmethod
    def own(cls) -> Usage:
        """Of the calling process, exactly."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.process_time_ns(), used.ru_nvcsw + used.ru_nivcsw)

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of another one: processor time in steps of a clock tick, with that of all processes that it started, of those
        that live as well; switches of its own.
        """
        process = psutil.Process(pid)
        used = [process.cpu_times(), *_each_living(process, psutil.Process.cpu_times)]
        spent_s = sum(one.user + one.system + one.children_user + one.children_system for one in used)
        return cls(int(spent_s * NS_PER_S), _switches(pid))

    def since(self, before: Usage) -> Usage:
        return Usage(self.cpu_ns - before.cpu_ns, self.switches - before.switches)


def used_by(pids: Sequence[int], interval: Interval) -> Usage:
    """What these processes use in the interval, whose end is waited for; scaled by what was really seen of it: this
    process may wake up late.
    """
    sleep_until(interval.start_ns)
    before, begun_ns = [Usage.of(pid) for pid in pids], time.monotonic_ns()
    sleep_until(interval.end_ns)
    after, ended_ns = [Usage.of(pid) for pid in pids], time.monotonic_ns()
    share = (interval.end_ns - interval.start_ns) / (ended_ns - begun_ns)
    used = [later.since(earlier) for earlier, later in zip(before, after, strict=True)]
    return Usage(int(sum(one.cpu_ns for one in used) * share), int(sum(one.switches for one in used) * share))


def _switches(pid: int) -> int:
    """Of all threads that live: the kernel keeps them for each."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except OSError:
            continue  # a thread that just ended
        total += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return total


def resident_bytes(pid: int) -> int:
    """Memory of a process, shared memory included."""
    return int(psutil.Process(pid).memory_info().rss)


def resident_bytes_of_all(pid: int) -> int:
    """The same, and what the processes that it started have for themselves: a fork shares the rest with it."""
    own = (one.uss for one in _each_living(psutil.Process(pid), psutil.Process.memory_full_info))
    return resident_bytes(pid) + sum(own)


def _each_living(process: psutil.Process, told: Callable[[psutil.Process], T]) -> Iterator[T]:
    """What each process that it started tells, those that these started too."""
    for one in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends just now
            yield told(one)


def running_ns(pid: int) -> int | None:
    """Processor time of the threads of a process that live, in nanoseconds; None where the kernel does not tell."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            return None
    return total


# --- what is done -----------------------------------------------------------------------------------------------------


class Meter:
    """Counts what one process gets done, and keeps each latency and what the process used in the interval."""

    def __init__(self, interval: Interval) -> None:
        self.end_ns = interval.end_ns
        self.latencies_ns = array("Q")
        self.total = 0  # warm-up and aftermath included: what the final state is compared with
        self._start_ns = interval.start_ns
        self._before: Usage | None = None
        self._after: Usage | None = None

    def done(self, begun_ns: int) -> bool:
        """One more, begun then and done now; whether the interval still lasts."""
        now_ns = time.monotonic_ns()
        self.total += 1
        if now_ns < self._start_ns:
            return True
        if self._before is None:
            self._before = Usage.own()
        if now_ns < self.end_ns:
            self.latencies_ns.append(now_ns - begun_ns)
            return True
        if self._after is None:
            self._after = Usage.own()
        return False

    @property
    def used(self) -> Usage:
        """What this process used in the interval."""
        if self._before is None:
            return Usage(0, 0)
        return (self._after or Usage.own()).since(self._before)


def kept(path: Path) -> array[int]:
    """What a child left in a file, as native u64: nanoseconds."""
    found = array("Q")
    found.frombytes(path.read_bytes())
    return found


# --- what it comes to -------------------------------------------------------------------------------------------------


class Latency(msgspec.Struct, frozen=True):
    """Percentiles by nearest rank: each is a latency that really occurred."""

    p50_us: float
    p90_us: float
    p99_us: float
    p99_9_us: float
    max_us: float


def latency(all_ns: Iterable[int]) -> Latency | None:
    """The percentiles of these latencies; None of none."""
    ranked = sorted(all_ns)
    if not ranked:
        return None
    return Latency(*[round(percentile(ranked, share) / NS_PER_US, 1) for share in (0.5, 0.9, 0.99, 0.999, 1.0)])


def percentile(ranked: Sequence[float], share: float) -> float:
    """By nearest rank of what is sorted, so that it is one that really occurred."""
    assert ranked, "nothing was measured"
    return ranked[round(share * (len(ranked) - 1))]


class Spread(msgspec.Struct, frozen=True):
    """One figure over all runs."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, found: Sequence[float | None], digits: int = 2) -> Spread | None:
        """Of those that are known; None of none."""
        known = [one for one in found if one is not None]
        if not known:
            return None
        return cls(*[round(one, digits) for one in (median(known), min(known), max(known))])
