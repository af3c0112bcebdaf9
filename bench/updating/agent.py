"""The child processes of the throughput benchmark: agents that update, a reader, the two ends of a bare pipe echo."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from solewriter import Client, Reader, Task, Update, connect
from solewriter.bench.kit.child import Order, say, told, told_to_go
from solewriter.bench.kit.measure import Interval, Meter
from solewriter.bench.kit.workload import REPLY_BYTES, REQUEST_BYTES
from solewriter.bench.updating.reads import Reads

Role = Literal["one by one", "pipelined", "read", "echo", "ask"]
PROGRAM = "solewriter.bench.updating.agent"


class Orders(Order, frozen=True):
    """What a child is to do."""

    role: Role
    cpus: tuple[int, ...]
    state: str = ""
    number: int = 0  # of this agent, among so many
    agents: int = 1
    window: int = 0
    latencies: str = ""  # the file that takes each latency, as native u64 nanoseconds
    read_fd: int = -1  # of the echo, as the next
    write_fd: int = -1

    @property
    def inherited(self) -> list[int]:
        return [fd for fd in (self.read_fd, self.write_fd) if fd >= 0]


class Report(msgspec.Struct, frozen=True):
    """What became of it."""

    measured: int = 0  # in the interval
    total: int = 0  # ever
    cpu_ns: int = 0  # in the interval
    reads_us: dict[str, float] = {}


def main() -> None:
    orders = told(Orders)
    os.sched_setaffinity(0, orders.cpus)
    work = _prepared(orders)
    say(work(told_to_go()))


def _prepared(orders: Orders) -> Callable[[Interval], Report]:
    """Everything that takes time and is not measured."""
    if orders.role == "read":
        reads = Reads(orders.state)
        return lambda interval: Report(reads_us=reads.measured_us(interval))
    if orders.role == "echo":
        return lambda _: echo(orders.read_fd, orders.write_fd)
    if orders.role == "ask":
        return lambda interval: _metered(orders, interval, lambda meter: ask(orders.read_fd, orders.write_fd, meter))
    client = connect(orders.state, name=f"bench-{orders.number}")
    mine = own_tasks(client.reader, orders.number, orders.agents)
    if orders.role == "one by one":
        return lambda interval: _metered(orders, interval, lambda meter: one_by_one(client, mine, meter))
    return lambda interval: _metered(orders, interval, lambda meter: pipelined(client, mine, orders.window, meter))


def _metered(orders: Orders, interval: Interval, work: Callable[[Meter], None]) -> Report:
    meter = Meter(interval)
    work(meter)
    Path(orders.latencies).write_bytes(meter.latencies_ns.tobytes())
    return Report(measured=len(meter.latencies_ns), total=meter.total, cpu_ns=meter.used.cpu_ns)


# --- updates ----------------------------------------------------------------------------------------------------------


def own_tasks(reader: Reader, number: int, agents: int) -> list[Task]:
    """This agent's slice, shuffled: neighbours in memory are not neighbours in time."""
    with reader.snapshot() as snapshot:
        mine = sorted(task["id"] for task in snapshot.entities("Task"))[number::agents]
        random.Random(number).shuffle(mine)
        return [snapshot[Task, key] for key in mine]


def one_by_one(client: Client, mine: list[Task], meter: Meter) -> None:
    """Compare-and-set, round after round; the next one when the last was answered and its entity decoded."""
    for place in itertools.cycle(range(len(mine))):
        task = mine[place]
        begun_ns = time.monotonic_ns()
        mine[place] = client.update(task, budget_limit=task.version + 1.0)
        if not meter.done(begun_ns):
            return


def pipelined(client: Client, mine: list[Task], window: int, meter: Meter) -> None:
    """The same with up to `window` in flight. A task's turn comes again only when its last reply told its version."""
    assert len(mine) > window
    places = range(len(mine))
    refs = [Task.ref(task.id) for task in mine]
    versions = [task.version for task in mine]
    begun_ns: deque[int] = deque()

    def updates() -> Iterator[Update]:
        for place in itertools.cycle(places):
            now_ns = time.monotonic_ns()
            if now_ns >= meter.end_ns:
                return
            begun_ns.append(now_ns)
            yield Update(refs[place], {"budget_limit": versions[place] + 1.0}, expect=versions[place])

    for place, reply in zip(itertools.cycle(places), client.submit_many(updates(), window=window), strict=False):
        versions[place] = reply.check().results[0].version
        meter.done(begun_ns.popleft())


# --- the floor --------------------------------------------------------------------------------------------------------


def echo(read_fd: int, write_fd: int) -> Report:
    """Answer until nobody asks any more."""
    reply = bytes(REPLY_BYTES)
    total = 0
    while os.read(read_fd, REQUEST_BYTES):
        os.write(write_fd, reply)
        total += 1
    return Report(total=total)


def ask(read_fd: int, write_fd: int, meter: Meter) -> None:
    request = bytes(REQUEST_BYTES)
    going = True
    while going:
        begun_ns = time.monotonic_ns()
        os.write(write_fd, request)
        os.read(read_fd, REPLY_BYTES)
        going = meter.done(begun_ns)


if __name__ == "__main__":
    main()
