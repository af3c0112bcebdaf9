"""How an agent asks: closed loops, in which a reply makes room for the next request, and the open loop, in which
requests come when they come. None of it knows whom it asks.

Open loop: request n of an agent is due at a moment that is known beforehand, whatever became of those before it. The
agent asks for what is due as soon as it has the answers to what it asked before, all that is due at once, up to its
window. A latency runs from the moment when the request was due, so a system that stalls for a second delays every
request of that second, and each of them says so. What was due and was not answered at the end is counted with the time
that it had waited until then, which is the least that it can be.

Nobody spins until a moment is due, since that would take the processor from the system that is measured: what a wake-up
takes is a part of every latency, of the floor's as well.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from solewriter.bench.kit.measure import NS_PER_S, Interval, Meter, Usage, sleep_until
from solewriter.bench.load.requests import Connection, Request
from solewriter.bench.load.work import Work


class Schedule(msgspec.Struct, frozen=True):
    """When the requests of one agent are due: at a fixed rate, agents one after the other."""

    rate_per_s: float  # of all agents together
    number: int
    agents: int

    def due(self, interval: Interval, begin_ns: int) -> Iterator[int]:
        """Each moment from the given one on until the interval ends, in nanoseconds; also those of the interval that
        were there before, for whom begins late.
        """
        gap_ns = NS_PER_S * self.agents / self.rate_per_s
        first_ns = interval.start_ns + gap_ns * self.number / self.agents
        count = math.ceil(min(0.0, begin_ns - first_ns) / gap_ns)  # below 0: warm-up
        while (due_ns := int(first_ns + count * gap_ns)) < interval.end_ns:
            yield due_ns
            count += 1


class Done(msgspec.Struct, frozen=True):
    """What one loop came to."""

    latencies_ns: array[int]  # of requests in the interval: by their ends in a closed loop, by when due in the open one
    ended_ns: array[int]  # when each of these was answered, where that was asked for
    answered: int  # in the interval, whenever they were due
    total: int  # answered ever
    used: Usage  # of this process, in the interval


# --- closed loops -----------------------------------------------------------------------------------------------------


def one_by_one(connection: Connection, work: Work, interval: Interval) -> Done:
    """The next one when the last was answered."""
    meter = Meter(interval)
    going = True
    while going:
        request = work.next()
        begun_ns = time.monotonic_ns()
        if type(request) is str:
            connection.read(request)
        else:
            work.told(connection.one(request))  # type: ignore[arg-type]  # a test of the type would cost more
        going = meter.done(begun_ns)
    return Done(meter.latencies_ns, array("Q"), len(meter.latencies_ns), meter.total, meter.used)


def pipelined(connection: Connection, work: Work, window: int, interval: Interval, *, ends: bool = False) -> Done:
    """Up to `window` on their way. A latency is that of a request in a queue which is kept as long."""
    meter = Meter(interval)
    begun_ns: deque[int] = deque()
    ended_ns = array("Q")

    def requests() -> Iterator[Request]:
        while (now_ns := time.monotonic_ns()) < meter.end_ns:
            begun_ns.append(now_ns)
            yield work.next()  # type: ignore[misc]  # no workload that reads is pipelined

    for answer in connection.many(requests(), window):
        work.told(answer)
        meter.done(begun_ns.popleft())
        if ends:
            ended_ns.append(time.monotonic_ns())
    return Done(meter.latencies_ns, ended_ns, len(meter.latencies_ns), meter.total, meter.used)


READS_IN_A_PASS = 1_000  # between two looks at the clock, all of one moment


def reading(renewed: Callable[[], Callable[[str], object]], keys: Iterator[str], interval: Interval) -> Done:
    """Nothing but reads, in passes of a thousand, each from a moment of its own. A latency is the mean of a pass. The
    last pass ends behind the interval, so what was read and used is scaled to that.
    """
    renewed()(next(keys))  # opens and maps what it needs
    sleep_until(interval.start_ns)
    before, latencies_ns = Usage.own(), array("Q")
    while (begun_ns := time.monotonic_ns()) < interval.end_ns:
        read = renewed()
        for _ in range(READS_IN_A_PASS):
            read(next(keys))
        latencies_ns.append((time.monotonic_ns() - begun_ns) // READS_IN_A_PASS)
    used, read_in_all = Usage.own().since(before), len(latencies_ns) * READS_IN_A_PASS
    share = (interval.end_ns - interval.start_ns) / (begun_ns - interval.start_ns)
    used = Usage(int(used.cpu_ns * share), int(used.switches * share))
    return Done(latencies_ns, array("Q"), int(read_in_all * share), read_in_all, used)


# --- the open loop ----------------------------------------------------------------------------------------------------


def open_loop(
    connection: Connection, work: Work, schedule: Schedule, window: int, interval: Interval, *, batched: bool
) -> Done:
    """Requests when they are due. Not `batched`, each of them is asked for alone, however many are due."""
    latencies_ns = array("Q")
    answered = total = 0
    before: Usage | None = None
    waiting: deque[int] = deque()
    moments = schedule.due(interval, time.monotonic_ns())
    next_ns = next(moments, None)
    while next_ns is not None or waiting:
        now_ns = time.monotonic_ns()
        if before is None and now_ns >= interval.start_ns:
            before = Usage.own()
        while next_ns is not None and next_ns <= now_ns:
            waiting.append(next_ns)
            next_ns = next(moments, None)
        if now_ns >= interval.end_ns:
            break
        if not waiting:
            sleep_until(min(next_ns or interval.end_ns, interval.end_ns))
            continue
        count = min(len(waiting), window) if batched else 1
        for _ in _asked(connection, work, count, batched):
            due_ns, now_ns = waiting.popleft(), time.monotonic_ns()
            total += 1
            answered += interval.start_ns <= now_ns < interval.end_ns
            if due_ns >= interval.start_ns:
                latencies_ns.append(now_ns - due_ns)
    used = Usage.own().since(before) if before is not None else Usage(0, 0)
    left_ns = [due_ns for due_ns in (*waiting, *_rest(next_ns, moments)) if due_ns >= interval.start_ns]
    latencies_ns.extend(interval.end_ns - due_ns for due_ns in left_ns)
    return Done(latencies_ns, array("Q"), answered, total, used)


def _asked(connection: Connection, work: Work, count: int, batched: bool) -> Iterator[None]:
    """So many requests, and a word for each that was answered."""
    if not batched or count == 1:
        for _ in range(count):
            _ask(connection, work, work.next())
            yield
        return
    requests = [work.next() for _ in range(count)]
    for answer in connection.many(requests, count):  # type: ignore[arg-type]  # no workload that reads is batched
        work.told(answer)
        yield


def _ask(connection: Connection, work: Work, request: Request | str) -> None:
    if type(request) is str:
        connection.read(request)
    else:
        work.told(connection.one(request))  # type: ignore[arg-type]  # as above


def _rest(next_ns: int | None, moments: Iterator[int]) -> Iterator[int]:
    """What was not even looked at any more."""
    if next_ns is not None:
        yield next_ns
        yield from moments
