"""What every benchmark here shares: the interval, the meter, percentiles, where processes run, the table, the machine.

Every figure carries its unit in its name. Latencies are kept one by one while something is measured; `latency` sorts
them at the end, `load/histogram.py` counts them by narrow buckets. All processes of a run measure the same interval of
the monotonic clock, so that their counts may be added up.
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shutil
import sqlite3
import subprocess
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from solewriter.shared.build import BUILD

T = TypeVar("T")
NS_PER_S = 1_000_000_000
NS_PER_US = 1_000
US_PER_S = 1_000_000
VERSIONED = ("pydantic", "uvloop", "msgspec")  # the distributions whose version moves the figures


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
    """Memory of a process, shared memory included, and what the processes that it started have for themselves: a fork
    shares the rest with it.
    """
    process = psutil.Process(pid)
    own = (one.uss for one in _each_living(process, psutil.Process.memory_full_info))
    return int(process.memory_info().rss + sum(own))


def _each_living(process: psutil.Process, told: Callable[[psutil.Process], T]) -> Iterator[T]:
    """What each process that it started tells, those that these started too."""
    for one in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ends just now
            yield told(one)


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
    def cpu_ns(self) -> int:
        """CPU time of this process in the interval."""
        return self.used.cpu_ns

    @property
    def used(self) -> Usage:
        """What this process used in the interval."""
        if self._before is None:
            return Usage(0, 0)
        return (self._after or Usage.own()).since(self._before)


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
    last = len(ranked) - 1
    return Latency(*[round(ranked[round(share * last)] / NS_PER_US, 1) for share in (0.5, 0.9, 0.99, 0.999, 1.0)])


# --- where processes run ----------------------------------------------------------------------------------------------


class Placement(msgspec.Struct, frozen=True):
    """Which CPUs the processes of a run may use. Siblings of one core are not told apart."""

    engine: tuple[int, ...]
    agents: tuple[tuple[int, ...], ...]  # taken in turn
    pinned: bool

    def agent(self, number: int) -> tuple[int, ...]:
        return self.agents[number % len(self.agents)]

    def __str__(self) -> str:
        return "pinned" if self.pinned else "free"


def pinned() -> Placement:
    """The engine alone on the first CPU, agents in turn on the others; all on one where there is only one."""
    first, *others = sorted(os.sched_getaffinity(0))
    return Placement((first,), tuple((cpu,) for cpu in others or [first]), pinned=True)


def free() -> Placement:
    """Everything wherever the scheduler puts it."""
    everywhere = tuple(sorted(os.sched_getaffinity(0)))
    return Placement(everywhere, (everywhere,), pinned=False)


def pin(pid: int, cpus: Iterable[int]) -> None:
    """Bind every thread of a process; threads that it starts later inherit it."""
    allowed = tuple(cpus)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(task.name), allowed)
        except ProcessLookupError:
            pass  # a thread that just ended


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, all of its threads, those that ended included; in steps of a clock tick."""
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def running_ns(pid: int) -> int | None:
    """The same of the threads that live, in nanoseconds; None where the kernel does not tell."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            return None
    return total


# --- the machine and the table ----------------------------------------------------------------------------------------


def machine(folder: Path) -> dict[str, str | int]:
    """What the figures depend on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "build": BUILD,
        **{name: metadata.version(name) for name in VERSIONED},
        "journal_on": file_system(folder),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of rivals' distributions, of SQLite and of the Redis server, or that they are not here."""
    found = {"sqlite": sqlite3.sqlite_version, "redis-server": "not here"}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not here"
    if program := shutil.which("redis-server"):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        found["redis-server"] = next((word[2:] for word in said.split() if word.startswith("v=")), "of some version")
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """Its type: `power` costs nothing on one that lives in memory, and the reader of a table must see that."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def described(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned plain text: words to the left, figures to the right."""
    cells = [[*head], *([_shown(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    figures = [all(_is_figure(cell) for cell in column[1:]) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, figures, strict=True)
        ).rstrip()
        for row in cells
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _is_figure(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "").isdigit()
