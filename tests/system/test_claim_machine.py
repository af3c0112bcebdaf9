"""Claims, leases, dependencies and retries against a dict, whoever dies: agents, engines and kills are real."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from solewriter import (
    Client,
    Engine,
    Fenced,
    InvalidMutation,
    InvalidTransition,
    Limits,
    NotFound,
    Task,
    TaskPriority,
    connect,
    dead_letters,
    why_not_ready,
)

fork = multiprocessing.get_context("fork")
RANK = {priority.value: rank for rank, priority in enumerate(TaskPriority)}
AGENTS = 3
ANSWERS = 500  # of an engine that does not see to the dead; one that does needs less than ten
IDS = st.sampled_from("abcdefgh")
WHO = st.integers(0, AGENTS - 1)
PICK = st.integers(0, 31)  # a task, see `some`
NEEDS = st.just([]) | st.lists(IDS, max_size=2, unique=True)
REFUSALS = (Fenced, InvalidMutation, InvalidTransition, NotFound)
FREE, FINISHED = ("created", "interrupted", "failed"), ("completed", "cancelled", "rejected")


# --- the model --------------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """By this name."""


class Model:
    """What an engine must do, by itself."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.holder: dict[str, int] = {}  # of a claimed task: whose it is
        self.thinks: dict[int, dict[str, bool]] = {}  # by agent: what it claimed, and whether it still has it

    def create(self, id: str, priority: str, retries: int, needs: list[str], policy: str, parent: str | None) -> None:
        if id in self.tasks:
            raise Refusal("AlreadyExists")
        if any(one not in self.tasks for one in needs):
            raise Refusal("InvalidMutation")
        self.tasks[id] = {
            "status": "created", "attempts": 0, "retries": retries, "needs": needs, "policy": policy,
            "order": (RANK[priority], len(self.tasks)), "parent": parent,
        }  # fmt: skip
        if policy == "cancel" and any(map(self.ended, needs)):
            self.tasks[id]["status"] = "cancelled"

    def left(self, task: dict[str, Any]) -> bool:
        return task["status"] == "created" or task["attempts"] <= task["retries"]

    def ended(self, id: str) -> bool:
        task = self.tasks[id]
        return task["status"] in ("cancelled", "rejected") or (task["status"] in FREE and not self.left(task))

    def met(self, task: dict[str, Any], id: str) -> bool:
        return self.tasks[id]["status"] == "completed" or (self.ended(id) and task["policy"] == "ignore")

    def ready(self) -> list[str]:
        free = [id for id, task in self.tasks.items() if task["status"] in FREE and self.left(task)]
        found = [id for id in free if all(self.met(self.tasks[id], one) for one in self.tasks[id]["needs"])]
        return sorted(found, key=lambda id: self.tasks[id]["order"])

    def claim(self, agent: int, count: int) -> list[str]:
        taken = self.ready()[:count]
        for id in taken:
            self.tasks[id]["status"] = "in_progress"
            self.tasks[id]["attempts"] += 1
            self.holder[id] = agent
            self.thinks.setdefault(agent, {})[id] = True
        return taken

    def check(self, agent: int, id: str, may: tuple[str, ...] = ("in_progress",)) -> dict[str, Any]:
        """Who may do what with a task: raises Refusal."""
        if id not in self.tasks:
            raise Refusal("NotFound")
        mine = self.thinks.get(agent, {})
        if mine.get(id) is False:
            del mine[id]  # it is told once
            raise Refusal("Fenced")
        task = self.tasks[id]
        if task["status"] not in may:
            raise Refusal("InvalidTransition")
        if self.holder.get(id, agent) != agent:
            raise Refusal("Fenced")
        return task

    def give_back(self, agent: int, id: str, status: str, attempts: int) -> None:
        task = self.check(agent, id)
        task["status"], task["attempts"] = status, max(0, attempts if attempts >= 0 else task["attempts"] + attempts)
        self.holder.pop(id, None)
        self.thinks.get(agent, {}).pop(id, None)
        self.cascade(id)

    def lose(self, agent: int) -> list[str]:
        """An agent's death; another one takes its place."""
        lost = [id for id, holder in self.holder.items() if holder == agent]
        for id in lost:
            self.take_away(id, "interrupted")
        self.thinks[agent] = {}
        return lost

    def take_away(self, id: str, status: str) -> None:
        self.tasks[id]["status"] = status
        holder = self.holder.pop(id, None)
        if holder is not None:
            self.thinks[holder][id] = False
        self.cascade(id)

    def cancel(self, agent: int, id: str, tree: bool) -> None:
        if id not in self.tasks:
            raise Refusal("NotFound")
        mine = self.thinks.get(agent, {})
        if mine.get(id) is False:
            del mine[id]
            raise Refusal("Fenced")
        task = self.tasks[id]
        if task["status"] == "completed":
            raise Refusal("InvalidTransition")
        self._cancel_one(agent, id)
        mine.pop(id, None)
        if tree:
            for child in [one for one in self.below(id) if self.tasks[one]["status"] not in FINISHED]:
                self._cancel_one(-1, child)

    def _cancel_one(self, agent: int, id: str) -> None:
        if self.holder.get(id) == agent:
            self.holder.pop(id)
            self.tasks[id]["status"] = "cancelled"
            self.cascade(id)
        else:
            self.take_away(id, "cancelled")

    def below(self, id: str) -> list[str]:
        found, waiting = [], [id]
        while waiting:
            children = [one for one, task in self.tasks.items() if task["parent"] == waiting[0]]
            waiting = waiting[1:] + children
            found += children
        return found

    def redrive(self, agent: int, id: str) -> None:
        self.check(agent, id, FREE)["attempts"] = 0

    def cascade(self, id: str) -> None:
        """What is to end with it ends."""
        if not self.ended(id):
            return
        for one, task in self.tasks.items():
            if id in task["needs"] and task["policy"] == "cancel" and task["status"] not in FINISHED:
                self.take_away(one, "cancelled")


# --- agents that can be killed ----------------------------------------------------------------------------------------


def obey(state: Path, limits: Limits, line: Any) -> None:
    """An agent's process: does what it is told, and tells what came of it."""
    with connect(state, name="agent", limits=limits) as client:
        while True:
            verb, given, options = line.recv()
            try:
                left = getattr(client, verb)(*given, **options)
                line.send([one.id for one in left] if isinstance(left, list) else left and left.id)
            except REFUSALS as error:
                line.send(Refusal(type(error).__name__))


class Agent:
    """One at a time, in a process of its own."""

    def __init__(self, state: Path, limits: Limits) -> None:
        self._line, theirs = fork.Pipe()
        self._process = fork.Process(target=obey, args=(state, limits, theirs))
        self._process.start()
        theirs.close()

    def does(self, verb: str, *given: Any, **options: Any) -> Any:
        self._line.send((verb, given, options))
        assert self._line.poll(30), f"{verb} is not answered"
        came = self._line.recv()
        if isinstance(came, Refusal):
            raise came
        return came

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._line.close()


# --- the machine ------------------------------------------------------------------------------------------------------


class ClaimMachine(RuleBasedStateMachine):
    """Deeds, and the same deeds in the model."""

    engine: Engine
    limits: Limits
    observer: Client
    wait_until: Callable[..., Any]
    engines_die = True

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.agents = [Agent(Path(self.engine.state), self.limits) for _ in range(AGENTS)]

    @initialize()
    def empty(self) -> None:
        self.before_long(lambda: all(one.status.value != "in_progress" for one in self.all()), "the last to be lost")
        for found in self.all():
            self.observer.delete(Task.ref(found.id))
        for id, needs, policy, parent in (
            ("a", [], "block", None), ("b", ["a"], "block", None), ("c", ["a"], "cancel", "a"), ("d", [], "block", None)
        ):  # fmt: skip
            self.create(id, "medium", 1, needs, policy, parent)

    def some(self, pick: int) -> str:
        """Every other one is a task that somebody works at, if there is any."""
        known = sorted(self.model.holder if pick % 2 and self.model.holder else self.model.tasks)
        return known[pick // 2 % len(known)]

    def teardown(self) -> None:
        for agent in self.agents:
            agent.kill()

    def before_long(self, condition: Callable[[], bool], what: str) -> None:
        """The engine sees to it while it answers so many others: no clock says when it is too late."""
        for _ in range(ANSWERS):
            if condition():
                return
            with pytest.raises(NotFound):
                self.observer.delete(Task.ref("nobody's"))
        raise AssertionError(f"{what}: not after {ANSWERS} requests")

    def all(self) -> list[Task]:
        with self.observer.reader.snapshot() as snap:
            return list(snap.entities(Task))

    def same(self, theirs: Callable[[], Any], ours: Callable[[], Any]) -> None:
        results = []
        for deed in (theirs, ours):
            try:
                results.append(deed())
            except Refusal as refusal:
                results.append(str(refusal))
            except Exception as error:
                results.append(type(error).__name__)
        assert results[0] == results[1]

    @rule(
        id=IDS, priority=st.sampled_from([*RANK]), retries=st.integers(0, 2), parent=st.none() | IDS,
        needs=NEEDS, policy=st.sampled_from(["block", "cancel", "ignore"]),
    )  # fmt: skip
    def create(self, id: str, priority: str, retries: int, needs: list[str], policy: str, parent: str | None) -> None:
        needs = [one for one in needs if one != id]
        parent = None if parent == id or parent not in self.model.tasks else parent
        task = Task(
            id=id, title=id, priority=priority, max_retries=retries, dependencies=needs, parent_task_id=parent,
            on_dependency_failure=policy, retry_delay_s=0,
        )  # fmt: skip
        self.same(
            lambda: self.observer.create(task) and None,
            lambda: self.model.create(id, priority, retries, needs, policy, parent),
        )

    @rule(who=WHO, count=st.sampled_from([1, 1, 1, 2, 3]))
    def claim(self, who: int, count: int) -> None:
        assert self.agents[who].does("claim_many", Task, count) == self.model.claim(who, count)

    @rule(who=WHO, pick=PICK)
    def complete(self, who: int, pick: int) -> None:
        id = self.some(pick)
        self.same(
            lambda: self.agents[who].does("complete", Task.ref(id)) and None,
            lambda: self._complete(who, id),
        )

    def _complete(self, who: int, id: str) -> None:
        task = self.model.check(who, id)
        self.model.give_back(who, id, "completed", task["attempts"])

    @rule(who=WHO, pick=PICK, final=st.booleans())
    def fail(self, who: int, pick: int, final: bool) -> None:
        id = self.some(pick)

        def ours() -> None:
            task = self.model.check(who, id)
            most = max(task["attempts"], task["retries"] + 1)
            self.model.give_back(who, id, "failed", most if final else task["attempts"])

        self.same(lambda: self.agents[who].does("fail", Task.ref(id), final=final) and None, ours)

    @rule(who=WHO, pick=PICK)
    def release(self, who: int, pick: int) -> None:
        id = self.some(pick)
        self.same(
            lambda: self.agents[who].does("release", Task.ref(id)) and None,
            lambda: self.model.give_back(who, id, "interrupted", -1),
        )

    @rule(who=WHO, pick=PICK, tree=st.booleans())
    def cancel(self, who: int, pick: int, tree: bool) -> None:
        id = self.some(pick)
        self.same(
            lambda: self.agents[who].does("cancel", Task.ref(id), tree=tree) and None,
            lambda: self.model.cancel(who, id, tree),
        )

    @rule(who=WHO, pick=PICK)
    def redrive(self, who: int, pick: int) -> None:
        id = self.some(pick)
        self.same(lambda: self.agents[who].does("redrive", Task.ref(id)) and None, lambda: self.model.redrive(who, id))

    @rule(who=WHO)
    def kill_an_agent(self, who: int) -> None:
        lost = self.model.lose(who)
        self.agents[who].kill()
        self.agents[who] = Agent(Path(self.engine.state), self.limits)
        if lost:
            self.before_long(lambda: all(self.model.tasks[id]["status"] == self.status(id) for id in lost), "the loss")

    def status(self, id: str) -> str:
        found = self.observer.get(Task, id)
        assert found is not None
        return found.status.value

    @rule()
    @precondition(lambda self: self.engines_die)
    def kill_the_engine(self) -> None:
        before = self.engine.restarts
        os.kill(self.engine.pid, signal.SIGKILL)
        self.wait_until(lambda: self.engine.restarts > before, 20, "the next engine")
        for agent in self.agents:
            agent.does("get", Task, "a")

    @rule(who=WHO)
    @precondition(lambda self: self.engines_die)
    def kill_the_engine_while_somebody_works(self, who: int) -> None:
        self.claim(who, 1)
        self.kill_the_engine()

    @invariant()
    def what_is_stored_is_what_the_model_has(self) -> None:
        found = {task.id: (task.status.value, task.attempts) for task in self.all()}
        assert found == {id: (task["status"], task["attempts"]) for id, task in self.model.tasks.items()}
        with self.observer.reader.snapshot() as snap:
            ready = {task.id for task in snap.entities(Task) if not why_not_ready(snap, task)}
            assert ready == set(self.model.ready())
            letters = {task.id for task in dead_letters(snap)}
        dead = {id for id, task in self.model.tasks.items() if task["status"] in FREE and not self.model.left(task)}
        assert letters == dead


@pytest.fixture
def bug() -> Callable[[], None] | None:
    """None, unless a test is about one."""
    return None


@pytest.fixture
def machine(start_engine, state, wait_until, seeded, bug):
    limits = Limits(restart_backoff_s=0.005, restart_backoff_max_s=0.02, restarts_max=1_000, session_grace_s=20)
    engine = start_engine(state, limits=limits, models=[seeded(bug)] if bug else [])
    with connect(state, name="observer", limits=limits) as observer:

        class Machine(ClaimMachine):
            pass

        Machine.engine, Machine.limits, Machine.observer, Machine.wait_until = (
            engine, limits, observer, staticmethod(wait_until),
        )  # fmt: skip
        if bug not in (None, leases_are_not_journaled):
            Machine.engines_die = False  # no start shows it, and starts take most of the time
        yield Machine


def budget(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=[*HealthCheck]
    )


def test_claims_are_as_the_model_says_whoever_dies(machine):
    """Few here: what is counted is in the long run."""
    run_state_machine_as_test(machine, settings=budget(2, 15))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_claims_are_as_the_model_says_whoever_dies(machine):
    run_state_machine_as_test(machine, settings=budget(25, 40))


# --- the machine can fail ---------------------------------------------------------------------------------------------


def no_token_needed() -> None:
    from solewriter.engine_proc.decide import fencing

    fencing.settle = lambda draft: None


def nobody_dies() -> None:
    from solewriter.engine_proc.tending import Tending

    Tending._all_of = lambda self, turn, session, why: []


def leases_are_not_journaled() -> None:
    import msgspec

    from solewriter.engine_proc.turn import Turn

    true = Turn.private
    Turn.private = lambda turn: msgspec.structs.replace(true(turn), leases=[])


def dependencies_do_not_count() -> None:
    from solewriter.engine_proc.coordination import board

    board.is_met = lambda state, policy: True


def nothing_is_cancelled_with_another() -> None:
    from solewriter.engine_proc.decide import dependencies

    dependencies.cascade = lambda draft: None


def the_youngest_first() -> None:
    from solewriter.engine_proc.coordination.ready import Candidate

    true = Candidate.__init__

    def init(self, key, order, *rest):
        true(self, key, (order[0], -order[1], order[2]), *rest)

    Candidate.__init__ = init


BUGS = [
    no_token_needed,
    nobody_dies,
    leases_are_not_journaled,
    dependencies_do_not_count,
    nothing_is_cancelled_with_another,
    the_youngest_first,
]


@pytest.mark.heavy
@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_seeded_bug_is_found(machine):
    with pytest.raises((AssertionError, Flaky)):  # where the bug still shows when it is run again from the beginning
        run_state_machine_as_test(machine, settings=settings(budget(15, 20), phases=[Phase.generate], print_blob=False))
