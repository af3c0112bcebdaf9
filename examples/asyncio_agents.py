"""asyncio agents: many coroutines of one process share tasks through `solewriter.aio`, and the loop never blocks.

The verbs are those of `connect`, as coroutines. Work that waits for others (a model, a web page) needs no process of
its own: twenty agents wait at the same time. The last part shows a call that is cancelled: its request may be on its
way already, and `outcome` tells for certain how that ended.

    python asyncio_agents.py [STATE]      STATE: a new folder, kept; a temporary one by default
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from solewriter import Applied, Create, Engine, Task, TaskStatus, VersionConflict, aio

AGENTS, TASKS = 20, 200
WAIT_S = 0.05  # what each task has to wait for
PATIENCE_S = 20  # when nothing happens for so long, something is wrong


async def agent(state: Path, name: str) -> int:
    """Task after task, until all are completed; how many were this agent's."""
    count = 0
    async with aio.connect(state, name=name) as client:
        while (task := await take(client)) is not None:
            answer = await ask(task.title)
            async with client.transaction() as tx:  # two steps at one revision
                tx.transition(task, TaskStatus.IN_REVIEW)
                tx.transition(task, TaskStatus.COMPLETED, result=answer)
            count += 1
    return count


async def take(client: aio.AioClient) -> Task | None:
    """A task that is this agent's from now on, or None when none is left to take."""
    while True:
        with await client.reader.snapshot() as snap:
            free = [task for task in snap.entities(Task) if task.status is TaskStatus.CREATED]
        if not free:
            return None
        task = random.choice(free)
        try:
            async with client.transaction() as tx:
                tx.transition(task, TaskStatus.ASSIGNED, assigned_to=client.name)
                tx.transition(task, TaskStatus.IN_PROGRESS)
            return tx.result(task)
        except VersionConflict:
            pass  # another coroutine, or another process, was faster


async def ask(question: str) -> str:
    """Somebody who is slow to answer."""
    await asyncio.sleep(WAIT_S)
    return question.upper()


async def watch(state: Path) -> int:
    """Woken by every revision, as any process can be, until all are completed; how often that was."""
    looks, revision = 0, 0
    async with aio.open_reader(state) as reader:
        while True:
            revision, looks = await reader.wait_for(revision + 1, timeout_s=PATIENCE_S), looks + 1
            with await reader.snapshot() as snap:
                if all(task.status is TaskStatus.COMPLETED for task in snap.entities(Task)):
                    return looks


async def cancelled(engine: Engine) -> bool:
    """A call that is cancelled while the engine does not answer, and what became of it."""
    async with aio.connect(engine.state, name="hasty") as client:
        os.kill(engine.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(4 * WAIT_S, os.kill, engine.pid, signal.SIGCONT)
        try:
            async with asyncio.timeout(WAIT_S):
                await client.create(Task(id="late", title="asked in haste"), request_id="hasty-1")
        except TimeoutError:
            pass  # it may be applied or not: nobody said
        outcome = await client.outcome("hasty-1")
        print(f"cancelled, and yet: {outcome}")
        return isinstance(outcome, Applied) and await client.get(Task, "late") == outcome.reply.entity


async def main(engine: Engine) -> bool:
    """Whether all tasks were done, far sooner than by one agent, and the cancelled call settled."""
    async with aio.connect(engine.state, name="planner") as client:
        questions = (Task(id=f"q-{number}", title=f"question {number}") for number in range(TASKS))
        async for reply in client.submit_many(Create(task) for task in questions):
            reply.check()
        started = time.perf_counter()
        *counts, looks = await asyncio.gather(
            *(agent(engine.state, f"agent-{number}") for number in range(AGENTS)), watch(engine.state)
        )
        seconds = time.perf_counter() - started
        with await client.reader.snapshot() as snap:
            right = all(task.result == task.title.upper() for task in snap.entities(Task))
    print(f"{sum(counts)} tasks by {AGENTS} agents in {seconds:.2f} s; by one it takes {TASKS * WAIT_S:.0f} s or more")
    print(f"the watcher was woken {looks} times")
    return sum(counts) == TASKS and right and seconds < TASKS * WAIT_S and await cancelled(engine)


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(sys.argv[1] if sys.argv[1:] else folder, durability="process") as engine,
    ):
        right = asyncio.run(main(engine))
    sys.exit(not right)
