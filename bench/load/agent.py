"""One agent process: it connects, says that it is ready, is told the interval, works, and says what came of it.

Agents are forked from one clean process that has imported everything, so that 64 of them start in a second. What they
are told and say travels through a pipe; when its other end is gone, so are they.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import sys
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection as Pipe
from typing import Any, Literal

import msgspec

from solewriter.bench.kit.measure import Interval, Usage, resident_bytes
from solewriter.bench.kit.scratch import end_with_the_parent
from solewriter.bench.kit.workload import key_of
from solewriter.bench.load import drive
from solewriter.bench.load.drive import Done, Schedule
from solewriter.bench.load.evidence import noted
from solewriter.bench.load.histogram import Histogram
from solewriter.bench.load.requests import Connection, Forgetful
from solewriter.bench.load.work import WORKLOADS, Share
from solewriter.shared.errors import in_words

Loop = Literal["one by one", "pipelined", "open", "read", "read anew", "write and tell when"]
Link = tuple[Callable[..., Connection], tuple[Any, ...]]  # how an agent connects: a function of a module, its arguments
READY = "ready"
TIMER_SLACK_OPTION, TIMER_SLACK_NS = 29, 1  # prctl: wake up when it is due, not up to 50 us later with others


class Orders(msgspec.Struct, frozen=True):
    """What an agent is to do."""

    loop: Loop
    workload: str
    share: Share
    window: int
    cpus: tuple[int, ...]
    rate_per_s: float = 0.0  # of all agents together, in the open loop


class Report(msgspec.Struct, frozen=True):
    """What became of it."""

    applied: int  # steps, ever
    versions: array[int]  # of its own tasks now
    answered: int  # requests in the interval
    total: int  # requests ever
    histogram: Histogram
    used: Usage
    resident_bytes: int
    ended_ns: array[int]  # when each request was answered, where that was asked for


def run(orders: Orders, link: Link, pipe: Pipe) -> None:
    """The target of the process. What goes wrong ends it, and is said instead of a report."""
    try:
        _work(orders, link, pipe)
    except Exception as error:
        _tell(pipe, in_words(error))
        raise


def _work(orders: Orders, link: Link, pipe: Pipe) -> None:
    end_with_the_parent()  # whoever waits for an answer that will not come looks at no pipe
    os.sched_setaffinity(0, orders.cpus)
    ctypes.CDLL(None).prctl(TIMER_SLACK_OPTION, TIMER_SLACK_NS)
    connect, arguments = link
    connection = connect(*arguments)
    workload = WORKLOADS[orders.workload]
    work = workload.share(orders.share)
    if workload.reads or orders.loop in ("read", "read anew"):
        for key in islice(_any_key(orders.share), orders.share.tasks):
            connection.read(key)  # what an agent keeps of it, it has then
    _tell(pipe, READY)
    try:
        interval: Interval = pipe.recv()
    except EOFError:
        sys.exit(1)  # the parent is gone
    done = _driven(orders, connection, work, interval)
    resident = resident_bytes(os.getpid())
    connection.close()
    applied, versions = noted(work)
    histogram, answered, total = Histogram.of(done.latencies_ns), done.answered, done.total
    _tell(pipe, Report(applied, versions, answered, total, histogram, done.used, resident, done.ended_ns))


def _tell(pipe: Pipe, words: str | Report) -> None:
    try:
        pipe.send(words)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone


def _driven(orders: Orders, connection: Connection, work: Any, interval: Interval) -> Done:
    share = orders.share
    match orders.loop:
        case "one by one":
            return drive.one_by_one(connection, work, interval)
        case "pipelined":
            return drive.pipelined(connection, work, orders.window, interval)
        case "write and tell when":
            return drive.pipelined(connection, work, orders.window, interval, ends=True)
        case "read":
            return drive.reading(connection.renewed, _any_key(share), interval)
        case "read anew":
            assert isinstance(connection, Forgetful), "it keeps nothing of what it reads"
            return drive.reading(connection.renewed_anew, _any_key(share), interval)
        case "open":
            schedule = Schedule(orders.rate_per_s, share.number, share.agents)
            return drive.open_loop(
                connection, work, schedule, orders.window, interval, batched=orders.window > 1
            )  # fmt: skip


def _any_key(share: Share) -> Iterator[str]:
    """All tasks in an order of this agent's, again and again."""
    keys = [key_of(number) for number in range(share.tasks)]
    random.Random(share.number).shuffle(keys)
    return itertools.cycle(keys)
