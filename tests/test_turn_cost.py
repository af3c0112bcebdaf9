"""What each step of a turn costs: `pytest tests/test_turn_cost.py --benchmark-enable`, before and after a change.

Times are of one turn of 64 requests, each a compare-and-set of one field of one of 500 tasks; `validate` is 64 times
what pydantic takes for such a task, to compare with on any machine. Without the option everything runs once, as a test:
every request is applied, whichever step is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from solewriter.bench.kit.workload import sample_task
from solewriter.bench.steps import Steps, steps
from solewriter.shared import wire
from solewriter.shared.models import Task
from solewriter.shared.wire import Status

REQUESTS, TASKS, ROUNDS = 64, 500, 300
ORDER = ("decoded", "decided", "committed", "merged", "replied")


@pytest.fixture
def engine(tmp_path, request) -> Iterator[Steps]:
    with steps(tmp_path / "state", getattr(request, "param", "process"), TASKS) as made:
        yield made


class Rounds:
    """Turn after turn; of each, one step is measured, those before it and behind it are not."""

    def __init__(self, engine: Steps, measured: str) -> None:
        self._engine = engine
        place = ORDER.index(measured)
        self._before, self._step, self._behind = ORDER[:place], measured, ORDER[place + 1 :]
        self._made: Any = None  # by the step
        self._unfinished = False
        self.turns = 0

    def begun(self) -> tuple[tuple[Any], dict[str, Any]]:
        """Finish the last turn, and bring the next one to the step."""
        self.finished()
        made: Any = self._engine.frame(REQUESTS)
        for step in self._before:
            made = getattr(self._engine, step)(made)
        return (made,), {}

    def step(self, made: Any) -> None:
        self._made, self._unfinished = getattr(self._engine, self._step)(made), True
        self.turns += 1

    def finished(self) -> None:
        if self._unfinished:
            made, self._made, self._unfinished = self._made, None, False
            for step in self._behind:
                made = getattr(self._engine, step)(made)
            assert_applied(self._engine)


def assert_applied(engine: Steps) -> None:
    replies = wire.unpack_replies(bytearray(engine.sent))
    assert [reply.status for reply in replies] == [Status.APPLIED] * REQUESTS


def measure(benchmark: Any, engine: Steps, step: str) -> None:
    rounds, before = Rounds(engine, step), engine.writer.state.revision
    benchmark.pedantic(rounds.step, setup=rounds.begun, rounds=ROUNDS)
    rounds.finished()
    assert engine.writer.state.revision == before + rounds.turns * REQUESTS


@pytest.mark.parametrize("step", ["decoded", "decided", "merged", "replied"])
def test_a_step(benchmark, engine, step):
    measure(benchmark, engine, step)


@pytest.mark.parametrize("engine", ["memory", "process", "power"], indirect=True)
def test_a_commit(benchmark, engine):
    measure(benchmark, engine, "committed")


def test_a_whole_turn(benchmark, engine):
    def begun() -> tuple[tuple[bytes], dict[str, Any]]:
        return (engine.frame(REQUESTS),), {}

    benchmark.pedantic(engine.turn, setup=begun, rounds=ROUNDS)
    assert_applied(engine)


def test_validate_to_compare_with(benchmark):
    values = [sample_task(number).model_dump() for number in range(REQUESTS)]
    validate: Callable[[Any], Any] = Task.__pydantic_validator__.validate_python
    made = benchmark(lambda: [validate(one) for one in values])
    assert made == [sample_task(number) for number in range(REQUESTS)]
