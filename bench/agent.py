"""The child processes of the benchmarks: agents that update, readers, and the two ends of a bare pipe echo.

A child is told its orders as its one argument, says `ready` when all that it needs is made, is told the interval, works
from then on, and says what it got done. It ends by itself after the interval, or when its parent is gone before it.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from solewriter import Client, Reader, Snapshot, Task, Update, connect, open_reader
from solewriter.bench.kit.measure import NS_PER_S, NS_PER_US, Interval, Meter

Role = Literal["one by one", "pipelined", "read", "see", "echo", "ask"]
READY = b"ready\n"
PASS_READS = 1_000  # between two looks at the clock
REQUEST_BYTES, REPLY_BYTES = 88, 42  # of the echo: what one update and its answer take on a lane, by themselves
SEEN = struct.Struct("<QQ")  # a revision, and when a waiting reader saw it: `time.monotonic_ns`


class Orders(msgspec.Struct, frozen=True):
    """What a child is to do."""

    role: Role
    cpus: tuple[int, ...]
    state: str = ""
    number: int = 0  # of this agent, among so many
    agents: int = 1
    window: int = 0
    latencies: str = ""  # the file that takes each latency, as native u64 nanoseconds
    read_fd: int = -1  # of the echo
    write_fd: int = -1  # of the echo, or of who sees


class Report(msgspec.Struct, frozen=True):
    """What became of it."""

    measured: int = 0  # in the interval
    total: int = 0  # ever
    cpu_ns: int = 0  # in the interval
    reads_us: dict[str, float] = {}


def main() -> None:
    orders = msgspec.json.decode(sys.argv[1], type=Orders)
    os.sched_setaffinity(0, orders.cpus)
    work = _prepared(orders)
    os.write(1, READY)
    heard = sys.stdin.buffer.readline()
    if heard:  # otherwise the parent is gone
        os.write(1, msgspec.json.encode(work(msgspec.json.decode(heard, type=Interval))))


def _prepared(orders: Orders) -> Callable[[Interval], Report]:
    """Everything that takes time and is not measured."""
    if orders.role == "read":
        reads = Reads(orders.state)
        return lambda interval: Report(reads_us=reads.measured_us(interval))
    if orders.role == "see":
        reader = open_reader(orders.state)
        known = reader.revision  # before anybody is told to go
        return lambda interval: see(reader, known, orders.write_fd, interval)
    if orders.role == "echo":
        return lambda _: echo(orders.read_fd, orders.write_fd)
    if orders.role == "ask":
        return lambda interval: _reported(orders, interval, lambda meter: ask(orders.read_fd, orders.write_fd, meter))
    client = connect(orders.state, name=f"bench-{orders.number}")
    mine = own_tasks(client.reader, orders.number, orders.agents)
    if orders.role == "one by one":
        return lambda interval: _reported(orders, interval, lambda meter: one_by_one(client, mine, meter))
    return lambda interval: _reported(orders, interval, lambda meter: pipelined(client, mine, orders.window, meter))


def _reported(orders: Orders, interval: Interval, work: Callable[[Meter], None]) -> Report:
    meter = Meter(interval)
    work(meter)
    Path(orders.latencies).write_bytes(meter.latencies_ns.tobytes())
    return Report(measured=len(meter.latencies_ns), total=meter.total, cpu_ns=meter.cpu_ns)


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


# --- reads ------------------------------------------------------------------------------------------------------------


class Reads:
    """One reader, its snapshot held all the time, and the kinds of read as passes over the next few tasks."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._reader = open_reader(state)
        self._held = self._reader.snapshot()
        ids = [task.id for task in self._held.entities(Task)]  # and every one is decoded now
        random.Random(0).shuffle(ids)
        self._batches = itertools.cycle([ids[start : start + PASS_READS] for start in range(0, len(ids), PASS_READS)])

    def measured_us(self, interval: Interval) -> dict[str, float]:
        """Microseconds of one read of each kind, one kind after the other, each with its share of the interval."""
        kinds = {
            "pin and close": self._pins,
            "get, warm": self._warm,
            "get, cold": self._cold,
            "get, raw": self._raw,
            "pin, get newest": self._newest,
        }
        found_us: dict[str, float] = {}
        for name, one_pass in kinds.items():
            now_ns = time.monotonic_ns()
            until_ns = now_ns + (interval.end_ns - now_ns) // (len(kinds) - len(found_us))
            found_us[name] = self._per_read_us(one_pass, until_ns)
        return found_us

    def _per_read_us(self, one_pass: Callable[[list[str]], int], until_ns: int) -> float:
        """Passes until then, at least one, after one that warms up. A pass returns its nanoseconds."""
        one_pass(next(self._batches))
        taken_ns = reads = 0
        while not reads or time.monotonic_ns() < until_ns:
            batch = next(self._batches)
            taken_ns += one_pass(batch)
            reads += len(batch)
        return round(taken_ns / reads / NS_PER_US, 3)

    def _pins(self, ids: list[str]) -> int:
        begun_ns = time.monotonic_ns()
        for _ in ids:
            self._reader.snapshot().close()
        return time.monotonic_ns() - begun_ns

    def _warm(self, ids: list[str]) -> int:
        """From the held snapshot: nothing is decoded, however much a writer changes meanwhile."""
        return _timed_gets(self._held, ids)

    def _cold(self, ids: list[str]) -> int:
        """A new reader for each pass, so that every get decodes; opening it is not counted."""
        with open_reader(self._state) as reader, reader.snapshot() as snapshot:
            snapshot.get(Task, "")  # maps what every get needs
            return _timed_gets(snapshot, ids)

    def _raw(self, ids: list[str]) -> int:
        """The record found and its checksum verified, its payload not decoded."""
        pin = self._reader.snapshot().pin
        kind = pin.catalog.kind_code(Task.kind_name)
        assert kind is not None
        begun_ns = time.monotonic_ns()
        for id in ids:
            pin.content(pin.find(kind, id))
        return time.monotonic_ns() - begun_ns

    def _newest(self, ids: list[str]) -> int:
        """A pin for each get; what a writer changed since the last one is decoded."""
        begun_ns = time.monotonic_ns()
        for id in ids:
            self._reader.get(Task, id)
        return time.monotonic_ns() - begun_ns


def _timed_gets(snapshot: Snapshot, ids: list[str]) -> int:
    begun_ns = time.monotonic_ns()
    for id in ids:
        snapshot.get(Task, id)
    return time.monotonic_ns() - begun_ns


def see(reader: Reader, known: int, write_fd: int, interval: Interval) -> Report:
    """Wait for one revision after the other behind the known one, and say when each was there."""
    total = 0
    while (left_s := (interval.end_ns - time.monotonic_ns()) / NS_PER_S) > 0:
        try:
            known = reader.wait_for(known + 1, left_s)
        except TimeoutError:
            break
        os.write(write_fd, SEEN.pack(known, time.monotonic_ns()))
        total += 1
    return Report(total=total)


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


def kept(path: Path) -> array[int]:
    """The latencies that a child left behind, in nanoseconds."""
    found = array("Q")
    found.frombytes(path.read_bytes())
    return found


if __name__ == "__main__":
    main()
