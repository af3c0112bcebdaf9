"""Agents that update random tasks, pipelined, as fast as they may, across deaths of the engine; and what all of this
benchmark begins with: tasks whose descriptions nothing repeats, and the patience for restarts of a large state.
"""

from __future__ import annotations

import os
import random
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from solewriter import Limits, Task, Unavailable, Update, connect
from solewriter.bench.kit.child import Order, told, told_to_go
from solewriter.bench.kit.children import children
from solewriter.bench.kit.measure import Interval
from solewriter.bench.kit.workload import WINDOW, key_of, sample_task

PROGRAM = "solewriter.bench.restarting.busy"
AGENTS = 2
SENT = 4 * WINDOW  # mutations between two looks whether the parent is gone
BACKOFF_S = 0.05  # a supervisor's first; here always, or it would take so many deaths for an engine that cannot live
PATIENT = Limits(
    start_timeout_s=600.0, connect_timeout_s=600.0, request_timeout_s=600.0, restart_backoff_max_s=BACKOFF_S,
    restarts_max=1_000,
)  # fmt: skip


def varied_task(number: int) -> Task:
    """A sample task with a description that nothing else repeats."""
    words = random.Random(number).randbytes(60).hex()
    return sample_task(number).model_copy(update={"description": words})


class Orders(Order, frozen=True):
    state: str
    tasks: int


@contextmanager
def busy_agents(state: Path, tasks: int) -> Iterator[None]:
    """Such agents, from now on to the end of the `with`."""
    with children(PROGRAM, [Orders(str(state), tasks)] * AGENTS) as group:
        group.go(Interval.soon(0.0, 0.0))  # their work has no end of its own
        yield


def main() -> None:
    """Of each of them: until it is killed, or its parent is."""
    orders, dice = told(Orders), random.Random(os.getpid())
    with connect(orders.state, name="busy", limits=PATIENT) as client:
        told_to_go()
        while not _left_alone():
            mutations = [
                Update(Task.ref(key_of(dice.randrange(orders.tasks))), {"budget_limit": dice.random()})
                for _ in range(SENT)
            ]
            with suppress(Unavailable):
                for reply in client.submit_many(mutations, window=WINDOW):
                    reply.check()


def _left_alone() -> bool:
    return bool(select.select([0], [], [], 0)[0])


if __name__ == "__main__":
    main()
