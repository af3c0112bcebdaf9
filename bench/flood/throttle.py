"""An engine that is slow on purpose, so that it can be overloaded on two processors: by its models, not by a switch.

Each change of a `Job` costs the processor time that the job says, in its validator, where models of users cost theirs.
So the throttle is honest: what the engine does besides is on top of it, and nothing in the engine knows that it is
measured. A `Probe` makes the engine's own event loop say how late it is. Both are kinds like any other.
"""

from __future__ import annotations

import asyncio
import os
import time
from array import array
from typing import Self

from pydantic import field_validator, model_validator

from solewriter import Entity, concerns

TICK_NS = 2_000_000  # between two looks of a probe: often enough to meet every long turn, rarely enough to cost nothing
NOTED = 64  # looks written at once


class Job(Entity):
    """Takes `work_us` of processor time whenever its rules are looked at: in the engine at each change, and where it is
    made or read.
    """

    work_us: int = 0
    number: int = 0

    @model_validator(mode="after")
    @concerns("work_us", "number")  # and only looks: so once for each change
    def _work(self) -> Self:
        ends_ns = time.thread_time_ns() + 1_000 * self.work_us
        while time.thread_time_ns() < ends_ns:
            pass
        return self


class Probe(Entity):
    """Once created, the engine notes how late its event loop is: pairs of `time.monotonic_ns` and the delay, both u64,
    appended to the file at `path`; a stall as often as there would have been looks in it, each with what was left of it
    then. Elsewhere, where no event loop runs, it is a name.
    """

    path: str

    @field_validator("path")
    @classmethod
    def _begin(cls, path: str) -> str:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return path
        if path not in _running:  # and not at every look at it
            _running[path] = loop.create_task(_note_delays(path))
        return path


_running: dict[str, asyncio.Task[None]] = {}  # a loop holds its tasks weakly


async def _note_delays(path: str) -> None:
    """Until the loop ends."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    noted = array("Q")
    while True:
        due_ns = time.monotonic_ns() + TICK_NS
        await asyncio.sleep(TICK_NS / 1e9)
        now_ns = time.monotonic_ns()
        late_ns = max(0, now_ns - due_ns)
        for behind_ns in range(late_ns % TICK_NS, late_ns + 1, TICK_NS):  # a stall is more than one look that was late
            noted.extend((now_ns, behind_ns))
        if len(noted) >= 2 * NOTED:
            os.write(fd, noted.tobytes())
            del noted[:]
