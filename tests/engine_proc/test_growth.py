"""What a request costs does not grow with what is there, nor that of a large one faster than it does.

Counted in calls, of Python and of C, in an engine inside this process: time would prove nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from solewriter.bench.steps import Steps, steps
from solewriter.engine_proc.betweenturns import Registration
from solewriter.engine_proc.coordination.board import Board
from solewriter.engine_proc.coordination.coordination import Coordination
from solewriter.engine_proc.engine import SingleWriter
from solewriter.shared import wire, wireform
from solewriter.shared.config import DENIALS_MAX, FRAME_REQUESTS_MAX, LINE_VALUES_MAX, VIEWS_MAX
from solewriter.shared.entity import Entity
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.models import Project, Task
from solewriter.shared.mutations import Cancel, Claim, Create, Guard, RequireNone, Update
from solewriter.shared.where import Range
from solewriter.shared.wire import Status


class Engine:
    """Takes requests, a turn after the other."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def turn(self, *requests: Any, shown: Sequence[Any] = ()) -> list[Any]:
        """The results of these requests, each of which is applied or waits; `shown`: claims that each of them shows."""
        limits, registry = self._steps.limits, self._steps._registry
        plain = [wireform.plain_or_refused(one, registry, limits) for one in requests]
        for request in plain:
            request[1].extend(shown)
        replies = wire.unpack_replies(bytearray(self._steps.turn(wire.pack_frame(plain, limits)[4:])))
        assert {reply.status for reply in replies} <= {Status.APPLIED}
        assert len(replies) == len(requests) or self._steps.writer.parking.lines
        return [reply.detail for reply in replies]

    def all(self, requests: Sequence[Any]) -> None:
        for first in range(0, len(requests), FRAME_REQUESTS_MAX):
            self.turn(*requests[first : first + FRAME_REQUESTS_MAX])

    def calls(self, *requests: Any, shown: Sequence[Any] = ()) -> int:
        """How many calls a turn of these requests makes."""
        return calls(lambda: self.turn(*requests, shown=shown))


def calls(what: Callable[[], Any]) -> int:
    count = 0

    def counting(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        what()
    finally:
        sys.setprofile(before)
    return count


@pytest.fixture
def engine(tmp_path, interpreted) -> Iterator[Engine]:
    interpreted(SingleWriter, Coordination, Board)  # machine code makes calls that nobody sees
    with steps(tmp_path / "state", "memory", 0) as made:
        yield Engine(made)


def test_a_request_of_many_tasks_that_depend_on_others_costs_each_the_same(engine):
    def graph(name: str, size: int) -> list[Create]:
        return [
            Create(Task(id=f"{name} {number}", title="t", dependencies=(f"{name} {number - 1}",) if number else ()))
            for number in range(size)
        ]

    small, large = engine.calls(graph("small", 100)), engine.calls(graph("large", 800))
    assert large < 12 * small


def test_trees_that_are_cancelled_together_cost_each_the_same(engine):
    def cancelled(name: str, trees: int) -> int:
        roots = [f"{name} {number}" for number in range(trees)]
        engine.all([Create(Task(id=root, title="t")) for root in roots])
        engine.all([Create(Task(title="t", parent_task_id=root)) for root in roots])
        return engine.calls([Cancel(Task.ref(root), tree=True) for root in roots])

    small, large = cancelled("small", 25), cancelled("large", 400)
    assert large < 20 * small


def test_what_is_cancelled_with_others_costs_each_the_same_whatever_depends_on_many_of_them(engine):
    def cancelled(name: str, size: int) -> int:
        with_it = {"title": "t", "dependencies": (name,), "on_dependency_failure": "cancel"}
        parts = [Task(id=f"{name} {number}", **with_it) for number in range(size)]
        engine.all([Create(Task(id=name, title="t")), *map(Create, parts)])
        engine.turn(Create(Task(title="join", dependencies=tuple(part.id for part in parts))))
        others = [Create(Task(title="t", dependencies=(parts[0].id,))) for _ in range(size)]
        return engine.calls([Cancel(Task.ref(name)), *others])

    small, large = cancelled("small", 30), cancelled("large", 600)
    assert large < 30 * small


def test_what_depends_on_a_task_that_ends_and_stays_is_not_read_for_that(engine):
    def cancelled(name: str) -> int:
        engine.turn(Create(Task(id=name, title="t")))
        engine.all([Create(Task(title="t", dependencies=(name,))) for _ in range(300)])
        return engine.calls(Cancel(Task.ref(name)))

    nothing_goes_with_others = cancelled("a")
    engine.turn(Create(Task(id="goes", title="t", dependencies=("a",), on_dependency_failure="cancel")))
    assert cancelled("b") < 1.5 * nothing_goes_with_others


def test_the_next_task_of_a_long_chain_costs_what_the_first_one_does(engine):
    chain = [Create(Task(id=f"{number}", title="t", dependencies=(f"{number - 1}",))) for number in range(1, 2_000)]
    engine.turn(Create(Task(id="0", title="t")))
    first = engine.calls(chain[0])
    engine.all(chain[1:-1])
    assert engine.calls(chain[-1]) < 2 * first


def test_a_cost_within_a_spent_budget_costs_the_same_however_many_tasks_that_keeps_back(engine):
    spent = Task(id="spent", title="t", project="p", priority="critical")
    engine.turn(Create(Project(id="p", name="p", budget_limit=1.0)), Create(spent))
    ((version, _, _, _),) = engine.turn(Claim(Task))[0]
    shown = [(Guard.CLAIM.value, "Task", "spent", version)]
    engine.turn(Update(Task.ref("spent"), {"cost": 2.0}), shown=shown)

    def costs(cost: float) -> int:
        """Of telling a cost, and of a claim behind it that finds nothing."""
        return engine.calls(Update(Task.ref("spent"), {"cost": cost}), shown=shown) + engine.calls(Claim(Task))

    engine.all([Create(Task(title="t", project="p")) for _ in range(10)])
    engine.turn(Claim(Task))
    few = costs(3.0)
    engine.all([Create(Task(title="t", project="p")) for _ in range(1_000)])
    engine.turn(Claim(Task))
    assert costs(4.0) < 1.5 * few
    engine.turn(Update(Project.ref("p"), {"budget_limit": 5.0}))
    assert len(engine.turn(Claim(Task, count=1_000))[0]) == 1_000, "they are there again"


def test_a_claim_of_many_looks_once_at_the_values_that_it_asks_for(engine):
    projects = [f"p{number}" for number in range(400)]
    engine.all([Create(Task(title="t", project=project)) for project in [*projects, *projects]])
    engine.turn(Claim(Task), Claim(Task, {"project": "p1"}))
    alone = engine.calls(Claim(Task, count=200))
    one = engine.calls(Claim(Task, {"project": projects}))
    assert engine.calls(Claim(Task, {"project": projects}, count=200)) < one + 1.5 * alone


def test_a_request_of_many_claims_costs_each_the_same(engine):
    tasks = [f"{number:04}" for number in range(1_000)]
    engine.all([Create(Task(id=id, title="t")) for id in tasks])
    engine.turn(Claim(Task))
    few = engine.calls([Claim(Task) for _ in range(25)])
    many = engine.calls([Claim(Task, {"project": ""} if number % 2 else {}) for number in range(400)])
    assert many < 20 * few
    assert [key for ((*_, key),) in zip(engine.turn([Claim(Task), Claim(Task)])[0], strict=True)] == tasks[426:428]
    with pytest.raises(AssertionError, match=r"assert \{1\}"):
        engine.turn([Claim(Task), Claim(Task), Claim(Task), Create(Task(id="0000", title="t"))])
    ((_, _, _, key),) = engine.turn(Claim(Task))[0]
    assert key == tasks[428], "a request that was refused has nothing"


def test_what_becomes_ready_has_nobody_decided_anew_who_waits_for_another_range(engine):
    def asks(number: int) -> Claim:
        until_us = time.monotonic_ns() // 1000 + 10**9
        return Claim(Task, {"project": Range(ge=f"p{number:03}", lt=f"p{number + 1:03}")}, until_us=until_us)

    engine.turn(Create(Task(title="t", project="n")), Claim(Task, {"project": Range(ge="p")}))
    alone = engine.calls(Create(Task(title="t", project="n")))
    engine.turn(*(asks(number) for number in range(200)))
    assert engine.calls(Create(Task(title="t", project="n"))) < alone + 200 * 15
    (_, found) = engine.turn(Create(Task(id="wanted", title="t", project="p123")))
    assert [key for _, _, _, key in found] == ["wanted"]


def test_what_becomes_ready_has_nobody_decided_anew_who_waits_for_many_other_values(engine):
    def asks(number: int) -> Claim:
        until_us = time.monotonic_ns() // 1000 + 10**9
        return Claim(Task, {"project": [f"p{number} {n}" for n in range(LINE_VALUES_MAX + 1)]}, until_us=until_us)

    engine.turn(Create(Task(title="t", project="n")), Claim(Task, {"project": "p"}))
    alone = engine.calls(Create(Task(title="t", project="n")))
    engine.turn(*(asks(number) for number in range(100)))
    assert engine.calls(Create(Task(title="t", project="n"))) < alone + 100 * 15
    (_, found) = engine.turn(Create(Task(id="wanted", title="t", project=f"p77 {LINE_VALUES_MAX}")))
    assert [key for _, _, _, key in found] == ["wanted"]


def test_guards_on_many_kinds_keep_what_each_counted(engine):
    """No kind has more sets of columns counted than it may have; all together have."""
    columns: dict[type[Entity], dict[str, Any]] = {
        Task: {"project": "none", "parent_task_id": "none", "assigned_to": "none", "type": "admin"},
        Project: {"status": "archived", "owner": "none", "created_at": from_us(1)},
    }
    guards = [
        wireform.plain_guard(
            RequireNone(kind, {name: asked[name] for place, name in enumerate(asked) if number >> place & 1}),
            engine._steps._registry,
        )
        for kind, asked in columns.items()
        for number in range(1, 2 ** len(asked))
    ]
    assert len(guards) > VIEWS_MAX
    engine.all([Create(Task(title="t")) for _ in range(500)])

    def each_asked() -> int:
        return sum(engine.calls(Create(Task(title="t")), shown=[guard]) for guard in guards)

    first = each_asked()
    assert each_asked() < first / 2


def test_who_delegated_many_tasks_is_kept_from_each_by_its_rules_once(engine):
    delegated = [Task(id=f"d{n}", title="t", priority="high", delegation_chain=("ann",)) for n in range(300)]
    engine.all([Create(task) for task in delegated])
    engine.all([Create(Task(title="t")) for _ in range(5)])
    first = engine.calls(Claim(Task, assignee="ann"))
    assert engine.calls(Claim(Task, assignee="ann")) < first / 4
    for number in range(2 * DENIALS_MAX):
        ((_, _, _, key),) = engine.turn(Claim(Task, assignee=f"another {number}"))[0]
        assert key == f"d{number}"
    engine.turn(Update(Task.ref("d99"), {"delegation_chain": ()}))
    ((_, _, _, key),) = engine.turn(Claim(Task, assignee="ann"))[0]
    assert key == "d99", "it is looked at anew as soon as it changed"


class Doc(Entity, columns=("pages",)):
    pages: int = 0


class NextDoc(Entity, kind="Doc", columns=("pages", "keeper")):
    pages: int = 0
    keeper: str = ""


def test_a_newer_class_of_many_entities_keeps_an_engine_silent_no_longer_than_one_of_few(engine):
    """Counted in what the loop does for others meanwhile, its heartbeat among it, where each look takes a slice."""
    writer = engine._steps.writer
    coordination = writer.state.coordination
    coordination.limits = msgspec.structs.replace(coordination.limits, making_slice_s=0)

    async def registered(model: type[Entity]) -> int:
        done, ticks = asyncio.ensure_future(writer.between.run(Registration([Kind(model)]))), 0
        while not done.done():
            await asyncio.sleep(0)
            ticks += 1
        await done
        return ticks

    run = engine._steps._loop.run_until_complete
    assert run(registered(Doc)) < 10
    engine.all([Create(Doc(id=f"{number}", pages=number)) for number in range(100)])
    assert run(registered(NextDoc)) > 2 * 100, "whether it fits, and its columns"
    engine.turn(Update(NextDoc.ref("7"), {"keeper": "ann"}))
