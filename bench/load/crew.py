"""The agents of one run as their parent sees them: started, let go at one moment, heard. None outlives the `with`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from solewriter.bench.kit.measure import NS_PER_S, Interval
from solewriter.bench.load.agent import READY, Link, Orders, Report, run

PATIENCE_S = 60.0  # with agents that connect, 64 at once on two processors, or that finish what is on its way
ENDING_S = 1.0  # of all together: they have nothing more to do, or are about to see that their pipes are gone
PRELOADED = ("solewriter.bench.load.agent", "solewriter.bench.load.peers.catalog", "solewriter", "lmdb", "redis")


class Failed(RuntimeError):
    """An agent did not do its work; its own words are on stderr."""


def processes() -> ForkServerContext:
    """Where agents and servers written in Python are forked from: one clean process that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))  # what is not installed is left out by itself
    return context


class Crew:
    """Agents that are ready to go."""

    def __init__(self, members: list[tuple[ForkServerProcess, Pipe]]) -> None:
        self._members = members

    def await_ready(self) -> None:
        """Raises Failed."""
        deadline = time.monotonic() + PATIENCE_S
        for process, pipe in self._members:
            _heard(process, pipe, deadline)

    def go(self, interval: Interval) -> None:
        for _, pipe in self._members:
            pipe.send(interval)

    def reports(self, interval: Interval) -> list[Report]:
        """What each of them did, when it is done. Raises Failed."""
        deadline = interval.end_ns / NS_PER_S + PATIENCE_S
        return [_heard(process, pipe, deadline) for process, pipe in self._members]


def _heard(process: ForkServerProcess, pipe: Pipe, deadline: float) -> Any:
    try:
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            raise Failed(f"agent {process.pid} says nothing")
        said = pipe.recv()
    except EOFError:
        raise Failed(f"agent {process.pid} ended before its work was done") from None
    if isinstance(said, str) and said != READY:
        raise Failed(said)
    return said


@contextmanager
def crew(all_orders: Sequence[Orders], links: Sequence[Link]) -> Iterator[Crew]:
    """Start an agent for each order and wait until all are ready. Raises Failed."""
    context, members = processes(), list[tuple[ForkServerProcess, Pipe]]()
    try:
        for orders, link in zip(all_orders, links, strict=True):
            ours, theirs = context.Pipe()
            process = context.Process(target=run, args=(orders, link, theirs), daemon=True)
            process.start()
            theirs.close()
            members.append((process, ours))
        group = Crew(members)
        group.await_ready()
        yield group
    finally:
        for _, pipe in members:
            pipe.close()
        deadline = time.monotonic() + ENDING_S
        for process, _ in members:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
            process.join()
            process.close()
