"""Contestants and how they are timed: each does the same piece of work in every round, one right after the other.

A pass is a loop over a piece of work (ids, or queries) with nothing in it but the operation itself; only the clocks are
read outside of it. Rounds are interleaved, and each begins with another contestant, so that whatever else the machine
does meanwhile meets all alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

from solewriter.bench.kit.measure import NS_PER_US, in_turn

Pass = Callable[[Sequence[Any]], Any]  # a piece of work -> what its last operation returned
Opening = Callable[[], Callable[[], object]]  # opens for reading; what it returns closes again
OURS = "solewriter"

GET_RAW = "get, raw"
GET_COLD = "get, typed, cold"
GET_WARM = "get, typed, warm"
PIN = "pin + unpin"
COUNT_MANY = "count, 2 conditions, many meet them"
COUNT_FEW = "count, 2 conditions, few meet them"
SCAN_COLD = "scan, 2 conditions, few, cold"
SCAN_WARM = "scan, 2 conditions, few, warm"
ATTACH = "attach"
WATCH = "watch, replay"


class Contestant(NamedTuple):
    """One way of doing what a measure measures. Without a pass it is not here, and `why_not` says why. If `served`, a
    part of the work is done by another process, so that only the clock sees all of it.
    """

    measure: str
    who: str
    how: str
    one_pass: Pass | None
    why_not: str = ""
    served: bool = False


class Taken(NamedTuple):
    """Nanoseconds of one operation, the mean of a pass: by the clock, and of this process's processor time."""

    wall_ns: float
    cpu_ns: float


class Figure(NamedTuple):
    """What all rounds of a contestant come to, in microseconds of one operation."""

    median: float
    min: float
    max: float
    cpu: float  # median, too

    @classmethod
    def of(cls, taken: Sequence[Taken]) -> Figure:
        walls = [one.wall_ns / NS_PER_US for one in taken]
        return cls(median(walls), min(walls), max(walls), median(one.cpu_ns for one in taken) / NS_PER_US)


def timed(one_pass: Pass, work: Sequence[Any]) -> Taken:
    begun_cpu_ns, begun_ns = time.process_time_ns(), time.perf_counter_ns()
    one_pass(work)
    wall_ns, cpu_ns = time.perf_counter_ns() - begun_ns, time.process_time_ns() - begun_cpu_ns
    return Taken(wall_ns / len(work), cpu_ns / len(work))


def interleaved(contestants: Sequence[Contestant], works: Sequence[Sequence[Any]]) -> list[Figure | None]:
    """The figure of each contestant over all pieces of work, a round for each piece; None of those not here."""
    taken: list[list[Taken]] = [[] for _ in contestants]
    with what_is_here_left_alone():
        for number, place in in_turn(range(len(contestants)), len(works)):
            one_pass = contestants[place].one_pass
            if one_pass is not None:
                taken[place].append(timed(one_pass, works[number]))
    return [Figure.of(one) if one else None for one in taken]


@contextmanager
def what_is_here_left_alone() -> Iterator[None]:
    """Garbage is collected as ever, but only among what is made from now on: who keeps what it made has to pay for
    that, not for all that was prepared for the others.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def opened(openings: Sequence[Opening | None], times: int) -> list[Figure | None]:
    """The same of opening for reading; closing again is not counted."""
    taken: list[list[Taken]] = [[] for _ in openings]
    for _ in range(times):
        for place, opening in enumerate(openings):
            if opening is not None:
                begun_cpu_ns, begun_ns = time.process_time_ns(), time.perf_counter_ns()
                close = opening()
                wall_ns, cpu_ns = time.perf_counter_ns() - begun_ns, time.process_time_ns() - begun_cpu_ns
                close()
                taken[place].append(Taken(wall_ns, cpu_ns))
    return [Figure.of(one) if one else None for one in taken]


def agreeing(contestants: Sequence[Contestant], work: Sequence[Any]) -> list[bool | None]:
    """Whether each of them returns what the first of its measure returns, for every single operation of this work.

    None of the first one itself, of those not here, and where nothing comparable is returned.
    """
    expected: dict[str, list[Any]] = {}
    told: list[bool | None] = []
    for contestant in contestants:
        if contestant.one_pass is None:
            told.append(None)
            continue
        found = [_comparable(contestant.one_pass([one])) for one in work]
        first = expected.setdefault(contestant.measure, found)
        comparable = first is not found and first[0] is not None and contestant.measure != GET_RAW
        told.append(first == found if comparable else None)
    return told


def _comparable(found: Any) -> Any:
    """Nobody promises an order that was not asked for."""
    return sorted(found, key=lambda entity: str(entity.id)) if isinstance(found, list) else found
