"""The child processes of the overload benchmark: agents that offer, that want all they can get, or that trickle.

    offer     open loop: requests come when they are due, whatever the engine does. One for which there is no room is
              turned away (Busy), and so is what is due until it was told to come again
    greedy    closed loop: a pipeline that is always full
    quiet     one request after the other, each when it is due
    reckless  a lane without credits: writes whatever the pipe takes

Each changes a job of its own. Latency runs from the moment when a request was due, so that no stall hides what stood
behind it.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import time
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import uvloop

from solewriter import Busy, Expired, Reply, Update, aio, connect
from solewriter.agents.greeting import greet
from solewriter.agents.pending import Pending
from solewriter.agents.session import AgentSession
from solewriter.bench.flood.throttle import Job
from solewriter.bench.kit.child import Order, say, told, told_to_go
from solewriter.bench.kit.measure import NS_PER_S, Interval, sleep_until
from solewriter.shared import wireform
from solewriter.shared.config import DEFAULT_LIMITS, FRAME_BATCH, READ_BYTES
from solewriter.shared.folder import StateFolder
from solewriter.shared.lane import Lane
from solewriter.shared.registry import Registry
from solewriter.shared.wire import Status

PROGRAM = "solewriter.bench.flood.pressing"
Role = Literal["offer", "greedy", "quiet", "reckless"]
UNANSWERED_MAX = 100_000  # requests that a reckless lane remembers: it ends before that
ANSWER_PATIENCE_S = 20.0  # for what was on its way when the interval ended


class Phase(msgspec.Struct, frozen=True):
    """So many requests a second, for so long."""

    seconds: float
    per_s: float


class Orders(Order, frozen=True):
    """What a child is to do, from the start of the interval to its end."""

    role: Role
    cpus: tuple[int, ...]
    state: str
    job: str
    samples: str  # the file that takes due moments and latencies, as pairs of native u64 nanoseconds
    phases: tuple[Phase, ...] = ()  # of who offers or trickles
    window: int = 0  # of who is greedy
    deadline_s: float | None = None


class Report(msgspec.Struct):
    """What became of all requests, of those too that were answered behind the end."""

    offered: int = 0
    turned_away: int = 0
    expired: int = 0
    applied: int = 0
    in_time: int = 0  # of these, before the interval ended


def main() -> None:
    orders = told(Orders)
    os.sched_setaffinity(0, orders.cpus)
    child = Child(orders)
    if orders.role == "offer":
        uvloop.run(child.offer())
    else:
        {"greedy": child.greedy, "quiet": child.quiet, "reckless": child.reckless}[orders.role]()
    Path(orders.samples).write_bytes(child.samples.tobytes())
    say(child.report)


def due_moments(interval: Interval, phases: tuple[Phase, ...], seed: str) -> Iterator[int]:
    """When requests come, at random, phase by phase."""
    dice, begins_ns = random.Random(seed), float(interval.start_ns)
    for phase in phases:
        ends_ns = begins_ns + phase.seconds * NS_PER_S
        due_ns = begins_ns + dice.expovariate(phase.per_s) * NS_PER_S
        while due_ns < ends_ns:
            yield int(due_ns)
            due_ns += dice.expovariate(phase.per_s) * NS_PER_S
        begins_ns = ends_ns


class Child:
    """One agent."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.report = Report()
        self.samples = array("Q")
        self._number = 0
        self._ends_ns = 0

    def begun(self) -> Interval:
        interval = told_to_go()
        self._ends_ns = interval.end_ns
        return interval

    def update(self) -> Update:
        """The next change."""
        self._number += 1
        return Update(Job.ref(self.orders.job), {"number": self._number})

    def ended(self, due_ns: int, reply: Reply) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(reply.error, Expired):
            self.report.expired += 1
            return
        reply.check()
        self.report.applied += 1
        self.report.in_time += now_ns < self._ends_ns
        self.samples.extend((due_ns, now_ns - due_ns))

    # --- roles -------------------------------------------------------------------------------------------------------

    async def offer(self) -> None:
        orders, report = self.orders, self.report
        back_ns = 0  # when who was turned away may come again
        async with aio.connect(orders.state, name=orders.job) as client, asyncio.TaskGroup() as calls:

            async def call(due_ns: int) -> None:
                nonlocal back_ns
                try:
                    reply = await client.submit(self.update(), deadline_s=orders.deadline_s, wait_for_room=False)
                except Busy as busy:
                    report.turned_away += 1
                    back_ns = time.monotonic_ns() + int(busy.retry_after_s * NS_PER_S)
                else:
                    self.ended(due_ns, reply)

            interval = self.begun()
            for due_ns in due_moments(interval, orders.phases, orders.job):
                while (wait_ns := due_ns - time.monotonic_ns()) > 0:
                    await asyncio.sleep(wait_ns / NS_PER_S)
                report.offered += 1
                if due_ns < back_ns:
                    report.turned_away += 1
                else:
                    calls.create_task(call(due_ns))
                    if report.offered % FRAME_BATCH == 0:
                        await asyncio.sleep(0)  # what is due has to leave, too, when more of it is due all the time

    def quiet(self) -> None:
        orders = self.orders
        with connect(orders.state, name=orders.job) as client:
            interval = self.begun()
            for due_ns in due_moments(interval, orders.phases, orders.job):
                sleep_until(due_ns)
                self.report.offered += 1
                self.ended(due_ns, client.submit(self.update(), deadline_s=orders.deadline_s))

    def greedy(self) -> None:
        orders, taken = self.orders, array("Q")
        with connect(orders.state, name=orders.job) as client:
            interval = self.begun()
            sleep_until(interval.start_ns)

            def updates() -> Iterator[Update]:
                while (now_ns := time.monotonic_ns()) < interval.end_ns:
                    taken.append(now_ns)
                    yield self.update()

            for place, reply in enumerate(client.submit_many(updates(), window=orders.window)):
                self.ended(taken[place], reply)
            self.report.offered = len(taken)

    def reckless(self) -> None:
        session, lane = AgentSession(DEFAULT_LIMITS, self.orders.job, None), Lane()
        session.accept(greet(StateFolder(self.orders.state), session.hello(os.getpid()), lane, ANSWER_PATIENCE_S))
        registry, interval = Registry([Job]), self.begun()
        sleep_until(interval.start_ns)
        pendings: list[Pending] = []
        patience_ns, in_time = interval.end_ns + int(ANSWER_PATIENCE_S * NS_PER_S), 0
        while (now_ns := time.monotonic_ns()) < patience_ns and (now_ns < interval.end_ns or session.in_flight):
            if session.unsent is None and now_ns < interval.end_ns and session.in_flight < UNANSWERED_MAX:
                made = [wireform.plain_mutation(self.update(), registry) for _ in range(FRAME_BATCH)]
                pendings += session.send([([one], [], None, None) for one in made])
            if now_ns < interval.end_ns:
                in_time = len(pendings) - session.in_flight
            _exchange(session, lane)
        lane.close()
        applied = [one for one in pendings if one.reply is not None and one.reply.status == Status.APPLIED]
        self.report = Report(offered=len(pendings), applied=len(applied), in_time=in_time)


def _exchange(session: AgentSession, lane: Lane) -> None:
    """Write what the pipe takes, read what is there, or wait a moment for either."""
    poll = select.poll()
    poll.register(lane.replies, select.POLLIN)
    if session.unsent is not None:
        poll.register(lane.requests, select.POLLOUT)
    for fd, event in poll.poll(100):
        if fd == lane.requests and event & select.POLLOUT and session.unsent is not None:
            session.write(partial(os.write, fd))
        elif fd == lane.replies:
            session.receive(os.read(fd, READ_BYTES))


if __name__ == "__main__":
    main()
