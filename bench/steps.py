"""One engine inside this process, whose turns are taken step by step: for what measures a step by itself.

Everything is as in an engine of its own but for the agent: requests come as the bytes of a frame, not through the
lane's pipe, and replies are read from the other one as soon as they are written. The workload is `update-one`: each
request compares the version of one of the tasks and sets `budget_limit`.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

from solewriter.bench.kit.workload import key_of, sample_task
from solewriter.engine_proc.bridge import Bridge, LaneEnd
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.owner.orders import Orders
from solewriter.engine_proc.process import Durability
from solewriter.engine_proc.start import Epoch, Start
from solewriter.engine_proc.turn import Turn
from solewriter.shared import wire, wirecheck, wireform
from solewriter.shared.config import FRAME_REQUESTS_MAX, READ_BYTES, Limits
from solewriter.shared.journal.entry import SessionChange
from solewriter.shared.models import Task
from solewriter.shared.mutations import Create, Update

NO_MODELS = b"]."  # an empty list, pickled
SESSION = 7
LIMITS = Limits(  # a turn takes all that it is given
    turn_slice_s=60.0, turn_max_s=60.0, making_slice_s=60.0, batch_max=FRAME_REQUESTS_MAX
)
TIME_US = 1_700_000_000_000_000


class Steps:
    """A turn's steps, in their order: `frame`, `decoded`, `decided`, `committed`, `merged`, `replied`."""

    def __init__(self, epoch: Epoch, loop: asyncio.AbstractEventLoop, tasks: int) -> None:
        self.limits = epoch.limits
        self._loop = loop
        self._epoch = epoch
        bridge = Bridge(loop, self.limits, epoch.life.epoch, print)
        self.writer = SingleWriter(
            epoch.state, epoch.sessions, epoch.journal, epoch.publisher, bridge, self.limits, epoch.lock.check,
            None,
        )  # fmt: skip
        session = epoch.sessions.take(SessionChange(SESSION, "bench", "bench", 1, -1))
        requests, replies = os.pipe(), os.pipe()
        self.lane = LaneEnd(bridge, session, 0, (requests[0], replies[1]), -1)
        self._ours = requests[1], replies[0]
        self.sent = b""  # to the agent, by the last turn
        self._frame = 0
        self._registry = epoch.state.registry
        self._dice = random.Random(7)
        self._versions = [0] * tasks
        for first in range(0, tasks, FRAME_REQUESTS_MAX):
            numbers = range(first, min(first + FRAME_REQUESTS_MAX, tasks))
            self.turn(self._packed([Create(sample_task(number)) for number in numbers]))
        self._versions = [1] * tasks

    def frame(self, requests: int) -> bytes:
        """The bytes of so many updates of different tasks, without the frame's length."""
        mutations = []
        for place in self._dice.sample(range(len(self._versions)), requests):
            version = self._versions[place]
            self._versions[place] += 1
            reference = Task.ref(key_of(place))
            mutations.append(Update(reference, {"budget_limit": version + 1.0}, expect=version))
        return self._packed(mutations)

    def _packed(self, mutations: list[Any]) -> bytes:
        return wire.pack_frame(
            [wireform.plain_or_refused(one, self._registry, self.limits) for one in mutations], self.limits
        )[4:]

    def decoded(self, frame: bytes) -> list[Any]:
        """What the bridge makes of a frame."""
        requests: list[Any] = []
        first, budget = self._frame * FRAME_REQUESTS_MAX, self.limits.frame_nodes_max
        self._frame += 1
        for place, request in enumerate(wire.unpack_frame(frame)):
            budget = wirecheck.check_request(request, budget, self.limits)
            requests.append((self.lane, first + place, request))
        return requests

    def decided(self, requests: list[Any]) -> Turn:
        tail, uptime_us = self._epoch.publisher.heap.tail, time.monotonic_ns() // 1000
        turn = Turn(self.writer.state, tail, TIME_US + self._frame, uptime_us)
        self.writer.state.coordination.begin(turn)
        self.writer.intake.put(requests)
        deciding = self.writer.decide(turn)
        with suppress(StopIteration):
            while True:  # between two slices it lets the loop do something, which has nothing to do here
                deciding.send(None)
        return turn

    def committed(self, turn: Turn) -> Turn:
        """The entry packed and written, at the engine's durability; nothing is visible yet."""
        journal, publisher = self._epoch.journal, self._epoch.publisher
        publisher.reserve(turn.slots(), turn.new_keys)
        journal.append(turn.revision, turn.now_us, turn.bodies, turn.private())
        self._loop.run_until_complete(journal.commit(durable=True))
        return turn

    def merged(self, turn: Turn) -> Turn:
        """The turn is the state, and visible."""
        self.writer.merge(turn)
        return turn

    def replied(self, turn: Turn) -> None:
        self.writer.reply()
        self.writer.reclaim(turn.bytes)
        self.sent = os.read(self._ours[1], READ_BYTES)

    def turn(self, frame: bytes) -> bytes:
        """All of it; the bytes of the replies."""
        self.replied(self.merged(self.committed(self.decided(self.decoded(frame)))))
        return self.sent

    def close(self) -> None:
        self.lane.close()
        self._loop.run_until_complete(asyncio.sleep(0))  # which closes its descriptors
        for fd in self._ours:
            os.close(fd)


@contextmanager
def steps(folder: Path, durability: Durability = "process", tasks: int = 10_000) -> Iterator[Steps]:
    """An engine in this process with so many tasks."""
    folder.mkdir(exist_ok=True)
    loop = uvloop.new_event_loop()
    epoch = Start(Orders(str(folder), durability, LIMITS, 0, [], NO_MODELS)).recover()
    try:
        made = Steps(epoch, loop, tasks)
        try:
            yield made
        finally:
            made.close()
    finally:
        epoch.close()
        loop.close()
