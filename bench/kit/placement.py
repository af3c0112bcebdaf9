"""Where the processes of a run may run: the engine alone on a CPU of its own, or everybody everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil


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


def pin_server(pid: int, cpus: Iterable[int]) -> None:
    """Bind a process and all that it started, which may be older than this wish."""
    allowed = tuple(cpus)
    pin(pid, allowed)
    for one in psutil.Process(pid).children(recursive=True):
        with suppress(FileNotFoundError):  # it ended just now
            pin(one.pid, allowed)
