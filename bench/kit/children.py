"""A group of child processes as their parent sees it: start them, let them go at one moment, hear what they did.

Each is a program by exec, as strangers come; `load/crew.py` forks its agents instead, of which there may be 64. Nothing
here waits without a bound, and no child outlives the `with` that started it. `child` is the other side.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import msgspec

from solewriter.bench.kit.child import READY, Order
from solewriter.bench.kit.measure import NS_PER_S, Interval

R = TypeVar("R")
PATIENCE_S = 30.0  # with a child that connects, or that finishes what it had in flight


class Children:
    """Child processes that are ready to go."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def await_ready(self) -> None:
        """Raises RuntimeError if a child has nothing to say."""
        deadline = time.monotonic() + PATIENCE_S
        for process in self._processes:
            assert process.stdout is not None
            left_s = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([process.stdout], [], [], left_s)
            if not readable or process.stdout.readline() != READY:
                raise RuntimeError(f"child {process.pid} did not become ready")

    def go(self, interval: Interval) -> None:
        words = msgspec.json.encode(interval) + b"\n"
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(words)
            process.stdin.flush()

    def reports(self, kind: type[R], interval: Interval) -> list[R]:
        """What each child did, when it is done. Raises RuntimeError if one failed; its own words are on stderr."""
        deadline = interval.end_ns / NS_PER_S + PATIENCE_S
        reports = []
        for process in self._processes:
            said, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            if process.returncode:
                raise RuntimeError(f"child {process.pid} ended with status {process.returncode}")
            reports.append(msgspec.json.decode(said, type=kind))
        return reports


@contextmanager
def children(program: str, all_orders: Iterable[Order]) -> Iterator[Children]:
    """Start a child for each order, of a program that understands it, and wait until all are ready. Those that still
    live at the end are killed.
    """
    with ExitStack() as ending:
        processes = []
        for orders in all_orders:
            process = ending.enter_context(_launched(program, orders))  # its exit closes the pipes and waits
            ending.callback(process.kill)
            processes.append(process)
        group = Children(processes)
        group.await_ready()
        yield group


def _launched(program: str, orders: Order) -> subprocess.Popen[bytes]:
    """-P, so that nothing is imported from wherever the benchmark was started."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", program, msgspec.json.encode(orders).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=orders.inherited,
    )
