"""A farm whose agents are killed in the middle: every task is done once, under a valid token, and nothing is stuck."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from solewriter import Create, Limits, Task, TaskStatus, connect, open_reader

fork = multiprocessing.get_context("fork")


def farm_hand(state: Path, limits: Limits, name: str) -> None:
    with connect(state, name=name, limits=limits) as client:
        for task in client.work(Task):
            client.complete(task, result=[name, task.claim])


def graph(count: int, chance: random.Random) -> list[Task]:
    """Tasks with up to three dependencies each, among the earlier ones."""
    return [
        Task(
            id=f"t{number:06d}",
            title="x",
            dependencies=tuple(
                {f"t{chance.randrange(number):06d}" for _ in range(chance.randrange(4))} if number else ()
            ),
            max_retries=100,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("tasks", "agents", "kills"),
    [
        pytest.param(400, 6, 3, id="small"),
        pytest.param(10_000, 16, 8, id="large", marks=[pytest.mark.heavy, pytest.mark.timeout(600)]),
        pytest.param(100_000, 8, 4, id="vast", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_every_task_is_done_once_by_a_valid_token_whoever_is_killed(
    start_engine, state, limits, wait_until, tasks, agents, kills
):
    start_engine(state)
    chance = random.Random(20261126)
    wanted = graph(tasks, chance)
    with connect(state, limits=limits) as client:
        for reply in client.submit_many(Create(one) for one in wanted):
            reply.check()
    hands = [fork.Process(target=farm_hand, args=(state, limits, f"hand-{number}")) for number in range(agents)]
    for hand in hands:
        hand.start()
    with open_reader(state, limits=limits) as reader:

        def done() -> int:
            with reader.snapshot() as snap:
                return snap.count(Task, where={"status": TaskStatus.COMPLETED})

        for number in range(kills):
            wait_until(lambda number=number: done() > tasks * (number + 1) // (2 * kills), 300, "work to go on")
            os.kill(hands[number].pid, signal.SIGKILL)
        for number, hand in enumerate(hands):
            hand.join(300)
            assert hand.exitcode == (-signal.SIGKILL if number < kills else 0)
        assert done() == tasks
        check_history(reader, wanted)


def check_history(reader: Any, wanted: list[Task]) -> None:
    """By the feed, from the first change on."""
    needs = {task.id: task.dependencies for task in wanted}
    completed: dict[str, int] = {}
    claims = defaultdict[str, list[int]](list)
    lost = 0
    for change in reader.watch(Task, since=0, timeout_s=0):
        if change.mutation == "claim":
            assert all(one in completed for one in needs[change.id]), "an order that was not respected"
            assert change.id not in completed
            claims[change.id].append(change.version)
            assert change.new.claim == change.version
        elif change.mutation == "expire":
            lost += 1
            assert change.new.claim == change.version > claims[change.id][-1]
        elif change.mutation == "complete":
            assert change.id not in completed, "done twice"
            completed[change.id] = change.revision
            assert change.new.result[1] == claims[change.id][-1], "done under an old token"
            assert change.new.result[0] == change.actor
    assert completed.keys() == needs.keys()
    assert all(tokens == sorted(tokens) for tokens in claims.values())
    assert sum(map(len, claims.values())) == len(needs) + lost
