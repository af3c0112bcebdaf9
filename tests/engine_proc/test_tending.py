"""Claims that wait, in an engine that dies or whose disk is full at the wrong moment: decided once, told once."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from solewriter import DependencyPolicy, Entity, Limits, Range, Task
from solewriter.engine_proc import express
from solewriter.engine_proc.betweenturns import Registration
from solewriter.engine_proc.coordination.leases import Leases, Lost, ended_lease, renewed
from solewriter.engine_proc.coordination.waiting import Lines, Parked, Wish
from solewriter.engine_proc.engine import SingleWriter
from solewriter.engine_proc.session import Session
from solewriter.engine_proc.tending import GONE, Occasion
from solewriter.shared import failpoint, wire
from solewriter.shared.config import DEFAULT_LIMITS, KIB, RECENT_MAX, STALE_MAX, TIMER_RETRY_S, VIEWS_MAX, WIRE_VERSION
from solewriter.shared.errors import MemoryFull
from solewriter.shared.handshake import Hello
from solewriter.shared.journal import life
from solewriter.shared.journal.checkpoint import checkpoint_files
from solewriter.shared.journal.entry import Lease
from solewriter.shared.kinds.columns import from_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.mutations import Guard, Op
from solewriter.shared.request_ids import default_id, session_number
from solewriter.shared.system.processes import pidfd_of
from solewriter.shared.where import demands, plain_where
from solewriter.shared.wire import Status
from solewriter.shared.wireform import NO_ID

FAR_US = 3_600_000_000
NEVER = "2100-01-01T00:00:00Z"


class Job(Task):
    """Tasks of another kind."""


class Link(Task):
    """Each is cancelled with what it depends on, without saying so."""

    on_dependency_failure: DependencyPolicy = DependencyPolicy.CANCEL


def create(id: str, *, kind: str = "Task", **fields: Any) -> Any:
    return Op.CREATE.value, kind, id, None, {"title": id, **fields}, "", None


def claim(
    *,
    until_us: int | None = None,
    lease_us: int | None = None,
    reason: str = "",
    project: str = "",
    kind: str = "Task",
    where: dict[str, Any] | None = None,
) -> Any:
    where = {name: ("in", [value]) for name, value in ({"project": project} if project else where or {}).items()}
    said = {"count": 1, "where": where, "until_us": until_us, "lease_us": lease_us}
    return Op.CLAIM.value, kind, "*", None, said, reason, None


def none(kind: str, **where: Any) -> Any:
    return Guard.REQUIRE_NONE.value, kind, NO_ID, (None, {name: ("in", [value]) for name, value in where.items()})


def later() -> int:
    return time.monotonic_ns() // 1000 + FAR_US


class Agent:
    """One session, whose frames are written by hand and can be written again."""

    def __init__(self, scene: Scene, name: str, pid: int | None = None) -> None:
        self.scene, self.name = scene, name
        self.pid = pid  # of the process that it claims to be, where it is not this one
        self.frames: list[bytes] = []
        self.first = self.connect(resends=False)

    def connect(self, *, resends: bool) -> int:
        hello = Hello(
            wire=WIRE_VERSION, client_id=self.name, name=self.name, pid=os.getpid(),
            first=self.first if resends else 0, instance="1", resends=resends,
        )  # fmt: skip
        self.call = self.scene.parts.Call(self.scene.state, hello)
        self.scene.calls.append(self.call)
        self.scene.engine.read()
        for items in self.scene.engine.bridge.inbox._queue if self.pid else ():
            items[0].pid = self.pid
        self.scene.engine.turn()
        welcome = self.call.welcome()
        assert welcome is not None
        assert welcome.ok, welcome.reason
        return welcome.first

    def asks(self, mutation: Any, *guards: Any, more: tuple[Any, ...] = ()) -> int:
        """Its sequence number."""
        self.frames.append(wire.pack_frame([([mutation, *more], [*guards], None, None)], DEFAULT_LIMITS))
        self.call.write(self.frames[-1])
        self.scene.engine.read()
        return (self.first + len(self.frames) - 1) * 256

    def sends_all_again(self) -> None:
        """On a new lane, as a client does that had no answer to its first frame."""
        assert self.connect(resends=True) == self.first
        for frame in self.frames:
            self.call.write(frame)
        self.scene.engine.read()

    def hears(self) -> dict[int, tuple[int, list[str]]]:
        """By sequence: the status, and the ids of the entities."""
        self.scene.engine.read()
        heard = [reply for reply in self.call.replies() if reply is not None]
        return {
            reply.sequence: (reply.status, [one[3] for one in reply.detail] if reply.status == Status.APPLIED else [])
            for reply in heard
        }


class Scene:
    """A state folder and whoever serves it now."""

    def __init__(self, folder: Path, parts: SimpleNamespace) -> None:
        self.state, self.parts, self.steps = folder / "state", parts, parts.steps
        (folder / "memory").mkdir()
        self.limits = Limits(
            memory_dir=str(folder / "memory"), spin_s=0, session_grace_s=0.0, journal_file_bytes=16 * KIB,
            making_slice_s=3_600.0,  # no clock says what is made, and so in which order claims are decided
        )  # fmt: skip
        self.calls: list[Any] = []
        self.start()

    def start(self) -> None:
        self.engine = self.parts.LocalEngine(self.state, self.limits, "process", self.fds)

    @property
    def fds(self) -> set[int]:
        return {fd for call in self.calls for fd in call.fds}

    def next_engine(self) -> None:
        """The engine is killed, and followed by another."""
        self.engine.kill(self.fds)
        self.start()

    def turn(self) -> None:
        self.engine.read()
        self.engine.turn()

    def end(self) -> None:
        self.engine.writer.tending.close()
        self.engine.stop(self.fds)
        for call in self.calls:
            call.close()


@pytest.fixture
def scene(tmp_path: Path, local: SimpleNamespace) -> Iterator[Scene]:
    made = Scene(tmp_path, local)
    yield made
    made.end()


def test_what_waits_is_answered_in_the_turn_that_makes_it_ready(scene):
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    asked = waiting.asks(claim(until_us=later()))
    scene.turn()
    assert waiting.hears() == {}
    made = other.asks(create("a"))
    scene.turn()
    assert other.hears() == {made: (Status.APPLIED, ["a"])}
    assert waiting.hears() == {asked: (Status.APPLIED, ["a"])}


@pytest.mark.parametrize("pipelined", [False, True], ids=["two clients", "one client"])
def test_who_comes_in_the_turn_that_makes_it_ready_comes_behind_those_who_wait(scene, pipelined):
    first, second, maker, late = [Agent(scene, name) for name in ("first", "second", "maker", "late")]
    asked = [first.asks(claim(until_us=later())), second.asks(claim(until_us=later(), project="p"))]
    scene.turn()
    for id in "abc":
        maker.asks(create(id, project="p"))
    last = (maker if pipelined else late).asks(claim())
    scene.turn()
    assert first.hears() == {asked[0]: (Status.APPLIED, ["a"])}
    assert second.hears() == {asked[1]: (Status.APPLIED, ["b"])}
    assert (maker if pipelined else late).hears()[last] == (Status.APPLIED, ["c"])


def test_what_waits_is_decided_once_whoever_dies(scene):
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    asked = waiting.asks(claim(until_us=later()))
    scene.turn()
    behind = waiting.asks(create("x", dependencies=[], not_before=NEVER))
    scene.turn()
    assert waiting.hears() == {behind: (Status.APPLIED, ["x"])}
    scene.next_engine()
    waiting.sends_all_again()
    scene.turn()
    assert waiting.hears() == {behind: (Status.APPLIED, ["x"])}, "the claim waits again, the other one is known"
    other.connect(resends=False)
    other.asks(create("a"))
    scene.turn()
    other.asks(create("b"))
    scene.turn()
    assert waiting.hears() == {asked: (Status.APPLIED, ["a"])}
    for _ in range(2):
        scene.next_engine()
        waiting.sends_all_again()
        scene.turn()
        assert waiting.hears() == {asked: (Status.APPLIED, ["a"]), behind: (Status.APPLIED, ["x"])}


def fill_disk(scene, agent):
    """No request finds room from now on."""
    scene.steps.disk_full = True
    for size in (3_000, 0):  # what is small may find room for longer
        full = False
        while not full:
            filler = agent.asks(create(f"{len(agent.frames)}", description="x" * size, not_before=NEVER))
            scene.turn()
            full = agent.hears()[filler][0] == Status.UNAVAILABLE


@pytest.mark.parametrize("resumes", [False, True])
def test_a_claim_that_a_full_disk_undoes_can_be_asked_again(scene, resumes):
    agent = Agent(scene, "agent")
    agent.asks(create("a"))
    scene.turn()
    agent.hears()
    fill_disk(scene, agent)
    asked = agent.asks(claim(reason="x" * 4_000))  # for which there is no more room than for the last one
    scene.turn()
    assert agent.hears()[asked][0] == Status.UNAVAILABLE
    assert not scene.engine.writer.state.coordination.leases
    assert not scene.engine.writer.state.coordination.boards, "they may hold what never happened"
    scene.steps.disk_full = False
    if resumes:
        again = agent.asks(claim())
        scene.turn()
        assert agent.hears()[again] == (Status.APPLIED, ["a"])


@pytest.mark.parametrize("gone", [False, True], ids=["it is there", "it is gone"])
def test_of_a_lane_whose_takeover_a_full_disk_undoes_no_request_is_passed_over(scene, monkeypatch, gone):
    """One was not listened to, because somebody else was to have the session; those behind it, in another turn, must
    not be either: its client sends all of them again.
    """
    scene.limits = msgspec.structs.replace(scene.limits, batch_max=3)
    scene.next_engine()
    other, agent = Agent(scene, "other"), Agent(scene, "agent")

    def free_again(step: str) -> None:
        scene.steps(step)
        scene.steps.disk_full &= step != "turn.done"

    monkeypatch.setattr(failpoint, "reach", free_again)
    scene.steps.disk_full = True
    filler = other.asks(create("large", description="x" * 8_000))
    hello = Hello(
        wire=WIRE_VERSION, client_id="agent", name="agent", pid=os.getpid(), first=0, instance="2", resends=False
    )
    rival = scene.parts.Call(scene.state, hello)
    scene.calls.append(rival)
    scene.engine.read()
    asked = [agent.asks(create(id)) for id in "ab"]
    if gone:
        agent.call.close()
        scene.engine.read()
    scene.turn()
    assert other.hears()[filler][0] == Status.UNAVAILABLE
    assert not rival.welcome().ok
    assert gone or agent.call.replies() == [None], "nobody listens there any more"
    agent.sends_all_again()
    scene.turn()
    assert agent.hears() == {asked[0]: (Status.APPLIED, ["a"]), asked[1]: (Status.APPLIED, ["b"])}


def test_a_claim_that_waits_goes_with_its_client_when_another_one_takes_over(scene):
    """Its task would be in the hands of somebody who does not hear of it."""
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    asked = waiting.asks(claim(until_us=later()))
    scene.turn()
    hello = Hello(
        wire=WIRE_VERSION, client_id="waiting", name="waiting", pid=os.getpid(), first=0, instance="2", resends=False
    )
    rival = scene.parts.Call(scene.state, hello)
    scene.calls.append(rival)
    scene.turn()
    assert rival.welcome().ok
    other.asks(create("a"))
    scene.turn()
    rival.write(wire.pack_frame([([claim()], [], None, None)], DEFAULT_LIMITS))
    scene.turn()
    (reply,) = rival.replies()
    assert [one[3] for one in reply.detail] == ["a"]
    question = wire.pack_frame([("outcome", default_id(session_number("waiting"), asked))], DEFAULT_LIMITS)
    for _ in range(2):
        other.call.write(question)
        scene.turn()
        assert other.call.replies()[-1].detail is None, "it never was applied, and never will be"
        scene.next_engine()
        other.connect(resends=False)


def test_what_waited_in_vain_is_told_once_however_often_it_was_looked_at(scene):
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    asked = waiting.asks(claim(until_us=time.monotonic_ns() // 1000 + 50_000, project="p"))
    for id in "abc":
        other.asks(create(id))
        scene.turn()
    heard: list[Any] = []
    poll(lambda: scene.turn() or heard.extend(waiting.call.replies()) or heard)
    assert [(reply.sequence, reply.status, reply.detail) for reply in heard] == [(asked, Status.APPLIED, [])]


def test_times_of_what_is_over_do_not_add_up():
    leases, lines = Leases(), Lines()
    for number in range(10_000):
        leases.take(Lease(0, "a", 1, 7, FAR_US, FAR_US + number))  # renewed
        wish = Wish(0, b"", (), FAR_US + number)
        lines.park(Parked(None, Session(7, "", ""), number, ([], [], None, None), wish), 0)
        lines.leave((7, number))
    assert len(leases._ends) <= STALE_MAX + 2
    assert len(lines._ends) <= STALE_MAX
    assert [lease.until_us for lease in leases.over(2 * FAR_US, 9)] == [FAR_US + 9_999]


def test_what_has_no_end_rings_no_alarm_however_often_others_are_renewed():
    leases = Leases()
    leases.take(Lease(0, "for good", 1, 7))
    for number in range(2 * STALE_MAX):
        leases.take(Lease(0, "a", 1, 7, FAR_US, FAR_US + number))
    assert leases.over(FAR_US, 9) == []
    assert leases.next_us == FAR_US + 2 * STALE_MAX - 1


def parked(number: int, wish: Wish) -> Parked:
    return Parked(None, Session(7, "", ""), number, ([], [], f"own {number}", None), wish)


def test_who_waited_long_enough_is_told_so_however_often_that_could_not_be_decided():
    lines = Lines()
    some = [parked(number, Wish(0, b"", (), FAR_US + number)) for number in range(3)]
    for one in some:
        lines.park(one, 0)
    for _ in range(2):
        assert lines.overdue(FAR_US - 1, 9) == []
        assert lines.overdue(FAR_US + 1, 9) == some[:2]
        assert lines.overdue(2 * FAR_US, 1) == some[:1]
        assert lines.next_us == FAR_US
    lines.leave((7, 0))
    assert lines.next_us == FAR_US + 1
    assert lines.overdue(2 * FAR_US, 9) == some[1:]


def test_of_who_waits_no_more_nothing_is_kept_while_others_wait():
    """Whatever they asked for: values that are listed, or any in an order."""
    lines, kind = Lines(), Kind(Task)
    lines.park(parked(0, Wish(0, b"", demands(kind, {}), FAR_US)), 0)
    (queue,) = lines.by_kind.values()
    for number in range(1, 100):
        for where in ({"project": f"p{number}"}, {"created_at": Range(ge=from_us(number))}):
            lines.park(
                parked(number, Wish(0, repr(where).encode(), demands(kind, plain_where(kind, where)), FAR_US)), 0
            )
            lines.leave((7, number))
    assert len(lines) == 1
    assert [*queue.lines] == [b""]
    assert (queue._others, [*queue._by_values]) == ({}, [()])
    assert [*lines._named] == ["own 0"]
    lines.leave((7, 0))
    assert not lines.by_kind


def test_a_lease_is_journaled_and_ends_by_an_engines_own_request(scene):
    agent, other = Agent(scene, "agent"), Agent(scene, "other")
    agent.asks(create("a", max_retries=1))
    agent.asks(claim(lease_us=1))
    scene.turn()
    scene.next_engine()
    other.connect(resends=False)
    (lease,) = scene.engine.writer.state.coordination.leases.all()
    assert (lease.key, lease.token, lease.lease_us) == ("a", 2, 1)
    asked = other.asks(claim(until_us=later()))
    heard: dict[int, Any] = {}
    poll(lambda: heard.update(other.hears()) or scene.turn() or heard)
    assert heard == {asked: (Status.APPLIED, ["a"])}
    (held,) = scene.engine.writer.state.coordination.leases.all()
    assert held.token == 4


def test_a_lease_that_was_left_on_a_finished_task_ends_without_touching_that(scene):
    """Journals of before may hold such a lease."""
    agent, state = Agent(scene, "agent"), scene.engine.writer.state
    agent.asks(create("a"))
    agent.asks(claim())
    scene.turn()
    (lease,) = state.coordination.leases.all()
    agent.asks((Op.CANCEL.value, "Task", "a", None, None, "", None))
    scene.turn()
    assert held(scene) == []
    state.coordination.leases.take(renewed(lease, 1, 0))
    agent.asks(create("b"))  # a turn, at whose end the alarm is set
    poll(lambda: scene.turn() or not held(scene))
    kind = state.named("Task")
    found = state.find(kind, "a")
    assert (found.version, kind.kind.fields_of(kind.schema, found.payload)["status"]) == (3, "cancelled")
    scene.next_engine()
    assert held(scene) == []


@pytest.fixture
def many(scene: Scene) -> Agent:
    """Who has made 200 tasks, in an engine that was started since, and takes its time to look at them."""
    scene.limits = msgspec.structs.replace(scene.limits, making_slice_s=0.0)
    agent = Agent(scene, "many")
    for number in range(200):
        agent.asks(create(f"t{number}", priority="low"))
    scene.turn()
    scene.next_engine()
    agent.sends_all_again()
    scene.turn()
    assert len(agent.hears()) == 200
    return agent


def test_who_asks_for_what_takes_long_to_make_waits_and_nobody_else_does(scene, many):
    other = Agent(scene, "other")
    claimed = many.asks(claim())
    behind = many.asks(create("behind"))
    made = [other.asks(create("first", priority="critical")), other.asks(create("second"))]
    waiting = other.asks(claim(until_us=later(), project="p"))
    scene.turn()
    assert [reply.sequence for reply in other.call.replies()] == made
    heard = many.call.replies()
    assert [reply.sequence for reply in heard] == [claimed, behind]
    assert [one[3] for one in heard[0].detail] == ["first"], "what came meanwhile counts"
    assert heard[0].revision == 203, "both were made before it was decided"
    other.asks(create("for whom it waits", project="p"))
    scene.turn()
    assert other.hears()[waiting] == (Status.APPLIED, ["for whom it waits"])


def test_a_claim_goes_on_waiting_however_often_a_class_is_registered(scene):
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    asked = waiting.asks(claim(until_us=later()))
    scene.turn()
    for model in (Job, Link):
        scene.engine.loop.run_until_complete(register(scene, model))
        poll(lambda: scene.turn() or scene.engine.writer.state.coordination.boards)
    other.asks(create("a"))
    scene.turn()
    assert waiting.hears() == {asked: (Status.APPLIED, ["a"])}


def test_what_was_being_made_when_a_commit_failed_is_made_anew(scene, many):
    other = Agent(scene, "other")
    scene.steps.disk_full = True
    full = False
    while not full:
        asked = other.asks(create(f"{len(other.frames)}", description="x" * 3_000))
        claimed = many.asks(claim(reason="x" * 4_000))
        scene.turn()
        full = other.hears()[asked][0] == Status.UNAVAILABLE
    many.hears()
    scene.steps.disk_full = False
    assert claimed
    again = many.asks(claim(project="p"))
    scene.turn()
    assert many.hears() == {again: (Status.APPLIED, [])}


def test_who_was_silent_for_too_long_loses_what_it_had_though_that_takes_a_look_at_all_tasks_first(scene, many):
    """What depends on them may have to be cancelled with them."""
    many.asks(create("dependent", dependencies=["t0"], on_dependency_failure="cancel"))
    gone = Agent(scene, "gone")
    for _ in range(2):
        gone.asks(claim(lease_us=FAR_US))
    scene.turn()
    assert len(held(scene)) == 2
    scene.engine.writer.state.coordination.discard()  # as where a newer class is registered
    gone.call.close()
    poll(lambda: scene.turn() or not held(scene))


def test_a_full_disk_does_not_keep_an_engine_busy_with_claims_of_which_one_waits_for_a_look_at_all_tasks(
    scene, many, interpreted
):
    """What it looked at is thrown away with what it did before, and that again and again."""
    scene.engine.loop.run_until_complete(register(scene, Job))
    many.asks(create("dependent", dependencies=["t0"], on_dependency_failure="cancel"))
    many.asks(create("j", kind="Job"))
    gone = Agent(scene, "gone")
    for kind in ("Task", "Job"):
        gone.asks(claim(kind=kind))
    scene.turn()
    assert len(held(scene)) == 2
    fill_disk(scene, many)
    interpreted(type(scene.engine.writer.tending))
    undone, undo = [], scene.engine.writer.tending.undo

    def counted() -> None:
        undone.append(1)
        assert len(undone) < 9, "it goes on for ever"
        undo()

    scene.engine.writer.tending.undo = counted
    gone.call.close()
    poll(lambda: scene.turn() or undone)
    assert len(held(scene)) == 2
    scene.steps.disk_full = False
    poll(lambda: scene.turn() or not held(scene))


def test_a_full_disk_does_not_keep_an_engine_busy_with_claims_that_are_due(scene, interpreted):
    """It tries again in a while, and not at once."""
    agent, gone = Agent(scene, "agent"), Agent(scene, "gone")
    agent.asks(create("a"))
    gone.asks(claim())
    scene.turn()
    fill_disk(scene, agent)
    interpreted(type(scene.engine.writer.tending))
    tried, undo = [], scene.engine.writer.tending.undo

    def counted() -> None:
        tried.append(time.monotonic())
        undo()

    scene.engine.writer.tending.undo = counted
    gone.call.close()
    poll(lambda: scene.turn() or len(tried) > 2)
    assert tried[2] - tried[0] > 1.5 * TIMER_RETRY_S
    scene.steps.disk_full = False
    poll(lambda: scene.turn() or not held(scene))


def test_the_first_of_those_that_end_with_others_keeps_nobody_waiting_for_a_look_at_all_of_them(scene, many):
    """In the turn that makes it, too."""
    scene.engine.loop.run_until_complete(register(scene, Link))
    first, other = Agent(scene, "first"), Agent(scene, "other")
    for number in range(200):
        first.asks(create(f"l{number}", kind="Link"))
    scene.turn()
    assert len(first.hears()) == 200
    assert not scene.engine.writer.state.coordination.cascades, "nobody coordinates"
    many.asks(claim())
    scene.turn()
    first.asks(create("another", kind="Link"))
    ended = first.asks((Op.CANCEL.value, "Link", "l0", None, None, "", None))
    behind = other.asks(create("behind"))
    scene.turn()
    revisions = {reply.sequence: reply.revision for agent in (first, other) for reply in agent.call.replies()}
    assert scene.engine.writer.state.coordination.cascades
    assert revisions[behind] < revisions[ended]


def fewer_slices(scene: Scene, most: int, interpreted: Callable[..., None]) -> None:
    """Fail where there are more."""
    interpreted(type(scene.engine.writer.parking))
    make, slices = scene.engine.writer.parking.make, count()

    def counted() -> None:
        assert next(slices) < most, "it goes on for ever"
        make()

    scene.engine.writer.parking.make = counted


def test_a_request_with_guards_on_more_sets_of_columns_than_are_counted_at_once_is_decided(scene, many, interpreted):
    """Each of them waits for a look at all tasks, and none of those may undo another one's for ever."""
    never = {"status": "rejected", "priority": "critical", "project": "p", "assigned_to": "x", "parent_task_id": "y"}
    sets = [names for size in range(1, 4) for names in combinations(never, size)][: VIEWS_MAX + 1]
    guards = [none("Task", **{name: never[name] for name in names}) for names in sets]
    assert len(guards) > VIEWS_MAX
    fewer_slices(scene, 9_000, interpreted)  # sixteen looks at 200 tasks, twice
    asked = many.asks(create("unique"), *guards)
    scene.turn()
    assert many.hears() == {asked: (Status.APPLIED, ["unique"])}
    refused = many.asks(create("another"), *guards[:-1], none("Task", status="created", type="development"))
    scene.turn()
    assert many.hears()[refused][0] == Status.REFUSED


def sets_of_columns(**values: Any) -> list[dict[str, Any]]:
    """More than are ordered or counted at once."""
    sets = [dict(some) for size in range(1, len(values)) for some in combinations(values.items(), size)]
    assert len(sets) > VIEWS_MAX + 1
    return sets


def test_a_request_with_claims_by_more_sets_of_columns_than_are_ordered_at_once_is_decided(scene, many, interpreted):
    sets = sets_of_columns(status="created", priority="low", project="", assigned_to=None, parent_task_id=None)
    claims = [claim(where=where) for where in sets]
    fewer_slices(scene, 3 * 7 * len(sets), interpreted)  # each a look at 200 tasks, by 32
    asked = many.asks(*claims[:1], more=tuple(claims[1:]))
    scene.turn()
    assert many.hears() == {asked: (Status.APPLIED, [f"t{number}" for number in range(len(sets))])}


def test_all_who_wait_by_more_sets_of_columns_than_are_ordered_at_once_have_what_comes(scene, many, interpreted):
    """The first one does not take from the next what that one waits for, and so on, for ever."""
    sets = sets_of_columns(status="created", priority="low", project="", assigned_to=None, parent_task_id=None)
    agents = [Agent(scene, f"agent-{number}") for number in range(len(sets))]
    for agent, where in zip(agents, sets, strict=True):
        agent.asks(claim(until_us=later(), where={"type": "admin", **where}))
    scene.turn()
    assert len(scene.engine.writer.parking.lines) == len(sets)
    fewer_slices(scene, 3 * 7 * len(sets), interpreted)
    for number in range(len(sets)):
        many.asks(create(f"new-{number}", type="admin", priority="low"))
    poll(lambda: scene.turn() or not scene.engine.writer.parking.lines)
    claimed = [ids for agent in agents for _, ids in agent.hears().values()]
    assert sorted(claimed) == sorted([f"new-{number}"] for number in range(len(sets)))


def count_decided(scene: Scene) -> list[Any]:
    """The turns of all that is decided for those who wait, one of each time."""
    decide, turns = scene.engine.writer.parking._decide_request, list[Any]()
    scene.engine.writer.parking._decide_request = lambda turn, *given: turns.append(turn) or decide(turn, *given)
    return turns


def test_whom_a_tasks_own_rules_keep_from_it_is_passed_over(scene):
    ann, bob, eve = (Agent(scene, name) for name in ("ann", "bob", "eve"))
    asked = {}
    for agent in (ann, bob):
        asked[agent.name] = agent.asks(claim(until_us=later()))
        scene.turn()
    eve.asks(create("a", delegation_chain=["ann"]))
    scene.turn()
    assert (ann.hears(), bob.hears()) == ({}, {asked["bob"]: (Status.APPLIED, ["a"])})
    eve.asks(create("b", delegation_chain=["bob", "eve"]))
    denied = [agent.asks(claim(until_us=later())) for agent in (bob, eve)]
    scene.turn()
    assert ann.hears() == {asked["ann"]: (Status.APPLIED, ["b"])}, "though two looked in vain behind its coming"
    eve.hears()
    eve.asks(create("c", delegation_chain=["bob", "eve"]))
    scene.turn()
    turns = count_decided(scene)
    eve.asks(create("elsewhere", project="p", delegation_chain=["bob"]))
    scene.turn()
    assert len(turns) == 2, "each looks once"
    assert (eve.hears()[denied[1]], bob.hears()) == ((Status.APPLIED, ["elsewhere"]), {})


def test_whom_a_tasks_own_rules_kept_from_it_gets_it_when_they_do_not_any_more(scene):
    ann, eve = Agent(scene, "ann"), Agent(scene, "eve")
    eve.asks(create("a", delegation_chain=["ann"]))
    asked = ann.asks(claim(until_us=later()))
    scene.turn()
    eve.asks(update("a", delegation_chain=["bob"]))  # no column, and nothing that decides when a task is ready
    scene.turn()
    assert ann.hears() == {asked: (Status.APPLIED, ["a"])}


def test_whom_rules_kept_from_all_that_there_was_looks_again_though_boards_were_dropped_meanwhile(scene):
    ann, eve = Agent(scene, "ann"), Agent(scene, "eve")
    eve.asks(create("a", delegation_chain=["ann"]))
    scene.turn()
    asked = ann.asks(claim(until_us=later()))
    scene.turn()
    assert ann.hears() == {}
    scene.engine.writer.state.coordination.discard()  # as behind a commit that failed
    eve.asks(update("a", title="still not for ann"))
    scene.turn()
    eve.asks(create("b"))
    heard: dict[int, Any] = {}
    poll(lambda: scene.turn() or heard.update(ann.hears()) or heard)
    assert heard == {asked: (Status.APPLIED, ["b"])}


def test_who_waits_is_served_though_boards_are_as_large_as_those_that_were_dropped(scene):
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    other.asks(create("a", project="p"))
    scene.turn()
    asked = waiting.asks(claim(until_us=later(), project="q"))
    scene.turn()
    scene.engine.writer.state.coordination.discard()  # as behind a commit that failed
    other.asks((Op.DELETE.value, "Task", "a", None, None, "", None))
    other.asks(create("b", project="q"))
    other.asks(claim(project="nobody's"))  # which has them made anew
    scene.turn()
    assert waiting.hears() == {asked: (Status.APPLIED, ["b"])}


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"not_before": NEVER}, {"not_before": None}),
        ({"dependencies": ["given up"]}, {"on_dependency_failure": "ignore"}),
        ({"dependencies": ["given up"]}, {"dependencies": []}),
        ({"max_retries": 0}, {"max_retries": 1}),
    ],
)
def test_what_an_update_makes_ready_goes_to_who_waits(scene, fields, change):
    agent, waiting = Agent(scene, "agent"), Agent(scene, "waiting")
    agent.asks(create("given up"))
    agent.asks((Op.CANCEL.value, "Task", "given up", None, None, "", None))
    agent.asks(create("a", **fields))
    if "max_retries" in fields:
        agent.asks(claim())
        agent.asks((Op.FAIL.value, "Task", "a", None, None, "", None), (Guard.CLAIM.value, "Task", "a", 2))
    asked = waiting.asks(claim(until_us=later()))
    scene.turn()
    assert {status for status, _ in agent.hears().values()} == {Status.APPLIED}
    assert waiting.hears() == {}
    agent.asks(update("a", **change))
    scene.turn()
    assert waiting.hears() == {asked: (Status.APPLIED, ["a"])}


def test_of_those_who_wait_for_the_same_nobody_is_passed_over_for_what_an_earlier_task_kept_from_it(scene):
    waiting = [Agent(scene, name) for name in ("ann", "bob", "eve")]
    other = Agent(scene, "other")
    asked = [agent.asks(claim(until_us=later())) for agent in waiting[:2]]
    other.asks(create("nobody's", delegation_chain=["ann", "bob"]))
    scene.turn()
    other.asks((Op.DELETE.value, "Task", "nobody's", None, None, "", None))
    scene.turn()
    asked.append(waiting[2].asks(claim(until_us=later())))
    scene.turn()
    scene.engine.writer.parking._serve_s = 0.0  # a turn serves one
    other.asks(create("a"))
    other.asks(create("b"))
    heard: list[dict[int, Any]] = [{}, {}, {}]

    def two_were_served() -> bool:
        scene.turn()
        for one, agent in zip(heard, waiting, strict=True):
            one.update(agent.hears())
        return sum(map(len, heard)) == 2

    poll(two_were_served)
    assert heard == [{asked[0]: (Status.APPLIED, ["a"])}, {asked[1]: (Status.APPLIED, ["b"])}, {}]


def test_of_those_who_ask_for_different_things_only_they_look_for_whom_something_came(scene):
    waiting = [Agent(scene, f"waiting {number}") for number in range(20)]
    asked = [agent.asks(claim(until_us=later(), project=f"p{number % 10}")) for number, agent in enumerate(waiting)]
    anything, other = Agent(scene, "anything"), Agent(scene, "other")
    scene.turn()
    turns = count_decided(scene)
    other.asks(create("a", project="p7"))
    scene.turn()
    assert waiting[7].hears() == {asked[7]: (Status.APPLIED, ["a"])}
    assert len(turns) == 2, "and who stands behind that one"
    asked.append(anything.asks(claim(until_us=later())))
    scene.turn()
    for number in range(10):
        other.asks(create(f"b{number}", project=f"p{number}"))
    del turns[:]
    scene.turn()
    assert len(turns) <= 22
    heard = {id for agent in waiting for _, ids in agent.hears().values() for id in ids}
    assert heard == {f"b{number}" for number in range(10)}
    for number in range(RECENT_MAX + 1):
        other.asks(create(f"c{number:04}", project="nobody's" if number else "p3"))
        if number % 256 == 255:
            scene.turn()
    scene.turn()
    assert anything.hears()[asked[20]] == (Status.APPLIED, ["c0001"])
    assert waiting[13].hears()[asked[13]] == (Status.APPLIED, ["c0000"])


def test_a_turn_serves_for_so_long_and_another_one_goes_on(scene):
    waiting = [Agent(scene, f"waiting {number}") for number in range(5)]
    for number, agent in enumerate(waiting):
        agent.asks(claim(until_us=later(), project=f"p{number}"))
    scene.turn()
    turns = count_decided(scene)
    scene.engine.writer.parking._serve_s = 0.0
    other = Agent(scene, "other")
    for number in range(5):
        other.asks(create(f"t{number}", project=f"p{number}"))
    heard: list[Any] = []
    poll(lambda: scene.turn() or heard.extend(one for agent in waiting for one in agent.hears()) or len(heard) == 5)
    assert max(Counter(map(id, turns)).values()) == 1


async def register(scene: Scene, model: type[Entity]) -> None:
    """As an owner does."""
    scene.engine.bridge.inbox.put_nowait([Registration([Kind(model)])])


@pytest.mark.parametrize("kinds", [("Task", "Task"), ("Task", "Job")])
def test_those_for_whom_something_comes_all_the_time_keep_nobody_waiting(scene, kinds):
    scene.engine.loop.run_until_complete(register(scene, Job))
    scene.turn()
    often, once = kinds
    busy = [Agent(scene, f"busy {number}") for number in range(6)]
    for agent in busy:
        agent.asks(claim(until_us=later(), project="busy", kind=often))
    quiet = Agent(scene, "quiet")
    asked = quiet.asks(claim(until_us=later(), project="quiet", kind=once))
    scene.turn()
    scene.engine.writer.parking._serve_s = 0.0  # a turn serves one
    other = Agent(scene, "other")
    other.asks(create("first", project="busy", kind=often))
    other.asks(create("quiet", project="quiet", kind=once))
    heard: dict[int, tuple[int, list[str]]] = {}
    for number in range(3):
        other.asks(create(f"t{number}", project="busy", kind=often))
        scene.turn()
        heard |= quiet.hears()
    assert heard == {asked: (Status.APPLIED, ["quiet"])}


def test_those_whom_rules_keep_from_all_that_comes_keep_nobody_waiting_behind_them(scene):
    """Of those who wait for the same each has a look before anybody has another one, and nobody misses anything."""
    denied = [Agent(scene, f"denied {number}") for number in range(6)]
    claims = {agent.name: agent.asks(claim(until_us=later())) for agent in denied}
    quiet, other = Agent(scene, "quiet"), Agent(scene, "other")
    asked = quiet.asks(claim(until_us=later()))
    scene.turn()
    scene.engine.writer.parking._serve_s = 0.0  # a turn serves one
    heard: dict[int, Any] = {}
    for number in range(7):
        other.asks(create(f"t{number}", delegation_chain=list(claims)))
        scene.turn()
        heard |= quiet.hears()
    assert heard == {asked: (Status.APPLIED, ["t0"])}
    other.asks(create("for the first", delegation_chain=list(claims)[1:]))
    first: dict[int, Any] = {}
    poll(lambda: scene.turn() or first.update(denied[0].hears()) or first)
    assert first == {claims["denied 0"]: (Status.APPLIED, ["for the first"])}
    turns = count_decided(scene)
    poll(lambda: scene.turn() or not scene.engine.writer.parking.lines.by_kind[0].due)
    del turns[:]
    scene.turn()
    assert turns == [], "it is over when all have looked"


def test_so_many_as_a_turn_takes_are_served_in_one(scene):
    scene.limits = msgspec.structs.replace(scene.limits, batch_max=2)
    scene.next_engine()
    waiting = [Agent(scene, f"waiting {number}") for number in range(5)]
    for agent in waiting:
        agent.asks(claim(until_us=later()))
        scene.turn()
    served = count_decided(scene)
    other = Agent(scene, "other")
    other.frames.append(wire.pack_frame([([create(f"t{n}") for n in range(5)], [], None, None)], DEFAULT_LIMITS))
    other.call.write(other.frames[-1])
    scene.turn()
    heard: list[Any] = []
    poll(lambda: scene.turn() or heard.extend(one for agent in waiting for one in agent.hears()) or len(heard) == 5)
    assert max(Counter(map(id, served)).values()) == 2


def test_a_lost_claim_that_memory_has_no_room_for_is_taken_away_when_there_is(scene, monkeypatch):
    agent, other = Agent(scene, "agent"), Agent(scene, "other")
    agent.asks(create("a", max_retries=1))
    agent.asks(claim(lease_us=1_000))
    scene.turn()
    heap = scene.engine.server.publisher.heap
    with monkeypatch.context() as full:
        full.setattr(heap, "_make", no_room)
        full.setattr(heap, "_size", heap._offset)
        full.setattr(heap, "_room", heap._offset)
        poll(lambda: scene.turn() or "claim.lost" in scene.steps.reached)
        tried = scene.steps.reached.count("claim.lost")
        for number in range(20):
            other.asks(update("a", title=str(number)))
            scene.turn()
        assert held(scene) == [("a", 2)]
        assert scene.steps.reached.count("claim.lost") == tried == 1, "not again at once"
        other.hears()
    asked = other.asks(claim(until_us=later()))
    heard: dict[int, Any] = {}
    poll(lambda: heard.update(other.hears()) or scene.turn() or heard)
    assert heard == {asked: (Status.APPLIED, ["a"])}


def no_room(number: int, size: int, spare: int) -> Any:
    raise MemoryFull("no room")


def test_a_lost_claim_that_stays_for_now_rings_no_alarm_by_itself_and_is_forgotten_with_its_lease():
    leases, one = Leases(), Lease(0, "a", 7, 1, 10, FAR_US)
    leases.take(one)
    leases.put_off(Lost(one, "why", 0))
    assert (leases.next_us, leases.over(2 * FAR_US, 9)) == (0, [])
    leases.try_again()
    assert (leases.next_us, leases.over(1, 9)) == (1, [one])
    leases.put_off(Lost(one, "why", 2 * FAR_US))
    for lease in [Lease(1, str(number), 1, 1, 10, FAR_US) for number in range(2 * STALE_MAX)]:
        leases.take(lease)
        leases.take(ended_lease((1, lease.key)))
    assert leases.next_us == 2 * FAR_US
    leases.take(renewed(one, 10, FAR_US))
    assert (leases.next_us, leases.lost) == (FAR_US + 10, {})
    leases.put_off(Lost(one, "why", 0))
    leases.try_again()
    assert leases.lost == {}, "that one is no more"


def test_the_first_claim_of_all_whose_agent_is_gone_by_then_does_not_wait(scene):
    gone, other = Agent(scene, "gone"), Agent(scene, "other")
    gone.asks(claim(until_us=later()))
    gone.call.close()
    scene.turn()
    assert not scene.engine.writer.parking.lines
    gone.sends_all_again()
    scene.turn()
    other.asks(create("a"))
    scene.turn()
    assert [ids for _, ids in gone.hears().values()] == [["a"]]


def test_the_first_claim_of_all_that_is_granted_to_whose_agent_is_gone_by_then_is_taken_away(scene):
    """That it went was nobody's loss: nothing was claimed."""
    other, gone = Agent(scene, "other"), Agent(scene, "gone")
    other.asks(create("a", max_retries=1))
    scene.turn()
    gone.asks(claim(lease_us=FAR_US))
    gone.call.close()
    scene.turn()
    asked = other.asks(claim(until_us=later()))
    heard: dict[int, Any] = {}
    poll(lambda: scene.turn() or heard.update(other.hears()) or asked in heard)
    assert heard[asked] == (Status.APPLIED, ["a"])
    assert held(scene) == [("a", 4)], "made, claimed, taken away and claimed"


def test_whose_agent_is_gone_does_not_wait_though_boards_were_dropped_meanwhile(scene):
    gone = Agent(scene, "gone")
    gone.asks(claim(until_us=later()))
    scene.turn()
    scene.engine.writer.state.coordination.discard()  # as behind a commit that failed
    gone.call.close()
    scene.engine.read()
    assert not scene.engine.writer.parking.lines


class Doc(Entity):
    """A kind that comes later."""


def test_who_waits_for_a_time_is_served_then_though_a_model_came_meanwhile(scene):
    waiting, other = Agent(scene, "waiting"), Agent(scene, "other")
    soon = time.time_ns() // 1000 + 300_000
    other.asks(create("a", not_before=from_us(soon).isoformat()))
    asked = waiting.asks(claim(until_us=later()))
    scene.turn()
    scene.engine.loop.run_until_complete(register(scene, Doc))
    scene.turn()
    heard: dict[int, Any] = {}
    poll(lambda: scene.turn() or heard.update(waiting.hears()) or heard)
    assert heard == {asked: (Status.APPLIED, ["a"])}


def test_who_asks_does_not_wait_for_all_that_a_dead_agent_held(scene):
    scene.limits = msgspec.structs.replace(scene.limits, batch_max=2)
    scene.next_engine()
    victim, other = Agent(scene, "victim"), Agent(scene, "other")
    for number in range(20):
        victim.asks(create(f"t{number:02}"))
        victim.asks(claim(lease_us=FAR_US))
        scene.turn()
    inbox, state = scene.engine.bridge.inbox, scene.engine.writer.state
    victim.call.close()
    scene.engine.read()
    inbox.put_nowait([Occasion(session_number("victim"), died=True)])
    asked = other.asks(create("asked meanwhile"))
    scene.turn()
    (reply,) = other.call.replies()
    assert (reply.sequence, reply.status) == (asked, Status.APPLIED)
    poll(lambda: scene.turn() or not held(scene))
    assert (reply.revision, state.revision) == (43, 61), "behind two of them"


def test_who_comes_back_while_its_claims_are_taken_away_keeps_those_that_are_left(scene):
    victim = Agent(scene, "victim")
    for number in range(3):
        victim.asks(create(f"t{number}"))
        victim.asks(claim())
        scene.turn()
    for why, left in ((GONE, 3), ("its agent died", 0)):
        occasion = Occasion()
        occasion.lost = [(lease, why) for lease in scene.engine.writer.state.coordination.leases.all()]
        scene.engine.bridge.inbox.put_nowait([occasion])
        scene.turn()
        assert len(held(scene)) == left


def update(id: str, kind: str = "Task", **fields: Any) -> Any:
    return Op.UPDATE.value, kind, id, None, fields, "", None


def test_what_nobody_heeds_goes_the_short_way_and_nothing_else_does(scene, monkeypatch, interpreted):
    interpreted(SingleWriter)
    agent, other = Agent(scene, "agent"), Agent(scene, "other")
    for id in "abc":
        agent.asks(create(id, project="p"))
    agent.asks((Op.CREATE.value, "Project", "p", None, {"name": "p"}, "", None))
    scene.turn()
    agent.asks(claim(project="p"))  # "a"
    scene.turn()
    short: list[Any] = []
    true = express.update
    monkeypatch.setattr(express, "update", lambda turn, plain, *rest: short.append(plain) or true(turn, plain, *rest))
    asked = {
        id: other.asks(mutation)
        for id, mutation in {
            "b": update("b", description="x"),
            "held": update("a", description="x"),
            "attended": update("b", priority="critical"),
            "cost": update("c", cost=3.0),
            "owner": update("p", "Project", owner="x"),
            "budget": update("p", "Project", budget_limit=3.0),
            "nothing left to spend": claim(project="p"),
        }.items()
    }
    scene.turn()
    heard = other.hears()
    assert {id: heard[sequence][0] for id, sequence in asked.items()} == {
        "b": Status.APPLIED, "held": Status.REFUSED, "attended": Status.APPLIED, "cost": Status.APPLIED,
        "owner": Status.APPLIED, "budget": Status.APPLIED, "nothing left to spend": Status.APPLIED,
    }  # fmt: skip
    assert heard[asked["nothing left to spend"]][1] == []
    assert [plain[0][0][4] for plain in short] == [{"description": "x"}, {"owner": "x"}]


def test_what_is_held_is_fenced_from_the_first_claim_on_and_behind_a_start(scene):
    """Also where nobody has claimed anything since."""
    agent, other = Agent(scene, "agent"), Agent(scene, "other")
    agent.asks(create("a"))
    scene.turn()
    agent.asks(claim())
    refused = other.asks(update("a", description="of one that has not claimed it"))
    scene.turn()
    assert agent.hears().popitem()[1] == (Status.APPLIED, ["a"])
    assert other.hears() == {refused: (Status.REFUSED, [])}
    scene.next_engine()
    third = Agent(scene, "third")
    refused = third.asks(update("a", description="of one that has not claimed it"))
    scene.turn()
    assert third.hears() == {refused: (Status.REFUSED, [])}


def test_what_nobody_heeded_is_heeded_from_the_first_claim_on(scene):
    agent = Agent(scene, "agent")
    for id in "abc":
        agent.asks(create(id))
    agent.asks(claim())
    scene.turn()
    scene.next_engine()
    assert held(scene) == [("a", 2)]
    other = Agent(scene, "other")
    other.asks(update("b", description="x"))
    scene.turn()
    other.asks(claim(project="nobody's"))
    scene.turn()
    other.asks(update("c", priority="critical"))
    scene.turn()
    other.hears()
    asked = other.asks(claim())
    scene.turn()
    assert other.hears() == {asked: (Status.APPLIED, ["c"])}


def test_what_nobody_counted_is_counted_from_the_first_question_on(scene):
    agent = Agent(scene, "agent")
    agent.asks(
        (Op.CREATE.value, "Project", "p", None, {"name": "p", "owner": "ann"}, "", None), none("Task", project="p")
    )
    scene.turn()
    agent.asks(update("p", "Project", owner="bob"))  # which nobody heeds
    scene.turn()
    agent.asks(create("a"), none("Project", owner="eve"))
    scene.turn()
    assert [status for status, _ in agent.hears().values()] == [Status.APPLIED] * 3
    agent.asks(update("p", "Project", owner="eve"))
    scene.turn()
    agent.hears()
    refused = agent.asks(create("b"), none("Project", owner="eve"))
    scene.turn()
    assert agent.hears() == {refused: (Status.REFUSED, [])}


def test_a_request_may_ask_about_more_than_is_remembered_how_often_it_occurs(scene):
    agent = Agent(scene, "agent")
    made = agent.asks(create("a"))
    columns = {"project": "", "type": "development", "status": "created", "parent_task_id": None, "assigned_to": None}
    others = [
        none(
            "Task", priority="low", **{name: columns[name] for place, name in enumerate(columns) if number >> place & 1}
        )
        for number in range(2 ** len(columns))
    ]
    assert len(others) > VIEWS_MAX
    refused = agent.asks(create("b"), none("Task", project=""), *others)
    applied = agent.asks(create("c"), none("Task", project="p"), *others)
    scene.turn()
    assert agent.hears() == {
        made: (Status.APPLIED, ["a"]), refused: (Status.REFUSED, []), applied: (Status.APPLIED, ["c"]),
    }  # fmt: skip


def test_a_commit_that_failed_counts_for_nobody_and_keeps_nothing_back(scene):
    agent, other = Agent(scene, "agent"), Agent(scene, "other")
    agent.asks((Op.CREATE.value, "Project", "p", None, {"name": "p", "owner": "ann"}, "", None))
    agent.asks(create("a", project="p"))
    scene.turn()
    fill_disk(scene, agent)
    looked = other.asks(claim(project="nobody's"), none("Project", owner="eve"))  # at projects, and their owners
    scene.turn()
    assert other.hears() == {looked: (Status.APPLIED, [])}
    for mutation in (update("p", "Project", budget_limit=0.0, owner="eve"), create("b", description="x" * 4_000)):
        agent.asks(mutation)
    scene.turn()
    assert [status for status, _ in agent.hears().values()] == [Status.UNAVAILABLE] * 2
    scene.steps.disk_full = False
    asked = other.asks(claim(project="p"), none("Project", owner="eve"))
    scene.turn()
    assert other.hears() == {asked: (Status.APPLIED, ["a"])}


def test_what_a_deleted_task_had_cost_is_there_to_spend_again(scene):
    agent = Agent(scene, "agent")
    agent.asks((Op.CREATE.value, "Project", "p", None, {"name": "p", "budget_limit": 3.0}, "", None))
    agent.asks(create("a", project="p", cost=3.0))
    agent.asks(create("b", project="p"))
    scene.turn()
    agent.hears()
    in_vain = agent.asks(claim())
    agent.asks((Op.DELETE.value, "Task", "a", None, None, "", None))
    asked = agent.asks(claim())
    scene.turn()
    heard = agent.hears()
    assert (heard[in_vain], heard[asked]) == ((Status.APPLIED, []), (Status.APPLIED, ["b"]))


@pytest.mark.parametrize("behind", ["a checkpoint", "entries"])
def test_what_is_to_end_with_another_does_so_behind_a_start_that_nobody_claimed_after(scene, behind):
    """By a change of one plain field: fewer retries, and what failed is given up."""
    agent = Agent(scene, "agent")
    agent.asks(create("a", max_retries=1))
    agent.asks(claim())
    agent.asks((Op.FAIL.value, "Task", "a", None, None, "", None), (Guard.CLAIM.value, "Task", "a", 2))
    agent.asks(create("b", dependencies=["a"], on_dependency_failure="cancel"))
    scene.turn()
    assert [status for status, _ in agent.hears().values()] == [Status.APPLIED] * 4
    if behind == "a checkpoint":
        scene.limits = msgspec.structs.replace(scene.limits, checkpoint_after_bytes=4 * KIB)
        scene.next_engine()
        agent = Agent(scene, "later")
        while not checkpoint_files(scene.state):
            agent.asks(create(f"{len(agent.frames)}", description="x" * 3_000))
            scene.turn()
            scene.engine.finish_checkpoint()
    scene.next_engine()
    assert not scene.engine.writer.state.coordination.boards
    other = Agent(scene, "other")
    given_up = other.asks(update("a", max_retries=0))
    scene.turn()
    assert other.hears()[given_up][0] == Status.APPLIED
    kind = scene.engine.writer.state.named("Task")
    stored = kind.kind.fields_of(kind.schema, scene.engine.writer.state.find(kind, "b").payload)
    assert stored["status"] == "cancelled"


def test_of_what_is_no_task_there_is_no_tree_whatever_is_asked(scene):
    agent = Agent(scene, "agent")
    agent.asks((Op.CREATE.value, "Project", "p", None, {"name": "p"}, "", None))
    tree = agent.asks((Op.CANCEL.value, "Project", "p", None, None, "", "tree"))
    made = agent.asks((Op.CREATE.value, "Project", "q", None, {"name": "q"}, "", None))
    scene.turn()
    heard = agent.hears()
    assert (heard[tree], heard[made]) == ((Status.REFUSED, []), (Status.APPLIED, ["q"]))
    assert not scene.engine.writer.state.coordination.boards


def held(scene: Scene) -> list[tuple[str, int]]:
    return [(lease.key, lease.token) for lease in scene.engine.writer.state.coordination.leases.all()]


@pytest.fixture
def holder(scene: Scene) -> Iterator[Callable[[], None]]:
    """A process has claimed "a", and the engine died. Call it to end that, too."""
    process = subprocess.Popen(["sleep", "1000"])
    agent = Agent(scene, "holder", process.pid)
    agent.asks(create("a", max_retries=5))
    agent.asks(claim())
    scene.turn()
    assert held(scene) == [("a", 2)]

    def end() -> None:
        process.kill()
        process.wait()

    yield end
    end()


def test_a_holder_that_died_while_there_was_no_engine_is_found_at_the_start(scene, holder):
    scene.engine.kill(scene.fds)
    holder()
    scene.start()
    scene.turn()
    assert held(scene) == []


def test_a_holder_that_lives_keeps_what_it_has_however_long_it_is_silent_after_a_start(scene, holder):
    scene.next_engine()
    assert scene.limits.session_grace_s == 0
    for _ in range(3):
        scene.turn()
        assert held(scene) == [("a", 2)]
    holder()
    poll(lambda: scene.turn() or not held(scene))


def test_a_holder_that_has_not_come_back_is_not_forgotten_for_those_who_come_and_go(scene, holder):
    """A start goes by the process that its session names."""
    scene.limits = msgspec.structs.replace(scene.limits, sessions_max=2)
    scene.next_engine()
    for number in range(3):
        Agent(scene, f"passer {number}").call.close()
        scene.turn()
    scene.next_engine()
    for _ in range(3):
        scene.turn()
        assert held(scene) == [("a", 2)]
    holder()
    poll(lambda: scene.turn() or not held(scene))


def test_a_full_disk_is_no_death_of_a_holder_that_lives_and_has_not_come_back_after_a_start(scene, holder):
    scene.next_engine()
    gone, other = Agent(scene, "gone"), Agent(scene, "other")
    gone.asks(create("b", max_retries=5))
    gone.asks(claim())
    scene.turn()
    assert [key for key, _ in held(scene)] == ["a", "b"]
    fill_disk(scene, other)
    gone.call.close()
    scene.turn()
    scene.steps.disk_full = False
    poll(lambda: scene.turn() or len(held(scene)) < 2)
    assert held(scene) == [("a", 2)], "only the other one is gone"


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_client_that_was_closed_before_a_start_has_its_grace_behind_it_however_long_its_process_lives(
    scene, comes_back
):
    scene.limits = msgspec.structs.replace(scene.limits, session_grace_s=3600)
    scene.next_engine()
    agent = Agent(scene, "agent")
    agent.asks(create("a", max_retries=5))
    agent.asks(claim())
    scene.turn()
    agent.call.close()
    poll(lambda: scene.turn() or not scene.engine.server.sessions.get(session_number("agent")).pid)
    if comes_back:
        agent.connect(resends=False)
    assert held(scene) == [("a", 2)]
    scene.limits = msgspec.structs.replace(scene.limits, session_grace_s=0)
    scene.next_engine()
    if comes_back:
        for _ in range(3):
            scene.turn()
        assert held(scene) == [("a", 2)]
    else:
        poll(lambda: scene.turn() or not held(scene))


def test_a_process_of_another_boot_is_dead_and_one_that_nobody_knows_has_its_grace(scene, holder, monkeypatch):
    session = scene.engine.server.sessions.get(session_number("holder"))
    assert session.pid > 0
    monkeypatch.setattr(life, "boot_id", lambda: "another one")
    scene.engine.kill(scene.fds)
    scene.limits = msgspec.structs.replace(scene.limits, session_grace_s=3600)
    scene.start()
    assert scene.engine.server.sessions.get(session_number("holder")).pid == -1
    scene.turn()
    assert held(scene) == []
    with pytest.MonkeyPatch.context() as full:
        full.setattr(os, "pidfd_open", no_descriptors)
        with pytest.raises(OSError, match="too many"):
            pidfd_of(os.getpid(), 1)
    assert pidfd_of(os.getpid(), 1) == -1, "another process has this number now"


def no_descriptors(pid: int) -> int:
    raise OSError(errno.EMFILE, "too many of them")


def poll(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


def test_leases_begin_anew_where_their_clock_is_gone(scene, monkeypatch):
    agent = Agent(scene, "agent")
    agent.asks(create("a"))
    agent.asks(claim(lease_us=FAR_US))
    scene.turn()
    (before,) = scene.engine.writer.state.coordination.leases.all()
    scene.next_engine()
    (same,) = scene.engine.writer.state.coordination.leases.all()
    assert same == before, "a kill is no new boot"
    monkeypatch.setattr(life, "boot_id", lambda: "another one")
    scene.next_engine()
    (anew,) = scene.engine.writer.state.coordination.leases.all()
    assert anew.until_us > before.until_us
    assert anew.token == before.token


def test_a_claim_whose_answer_is_forgotten_does_not_wait_any_more(scene):
    scene.limits = msgspec.structs.replace(scene.limits, window_max=2)
    scene.next_engine()
    agent = Agent(scene, "agent")
    asked = agent.asks(claim(until_us=later()))
    scene.turn()
    session = scene.engine.server.sessions.get(session_number("agent"))
    assert session.waiting == {asked}
    for number in range(3):
        agent.asks(create(f"t{number}"))
        scene.turn()
    assert session.waiting == set()
    assert session.outcomes.get(asked) is None
    scene.next_engine()
    session = scene.engine.server.sessions.get(session_number("agent"))
    assert session.waiting == set()
    assert session.last > asked


def test_what_a_forgotten_session_had_used_is_known_to_the_next_engine(scene):
    """Whoever comes begins behind them. They came with outcomes, which a start installs late."""
    scene.limits = msgspec.structs.replace(scene.limits, sessions_max=2)
    scene.next_engine()
    old, _ = Agent(scene, "old"), Agent(scene, "ann")
    for number in range(5):
        last = old.asks(create(f"t{number}"))
    scene.turn()
    old.call.close()
    scene.turn()
    Agent(scene, "bob")
    assert scene.engine.server.sessions.forgotten == (False, last)
    scene.next_engine()
    assert scene.engine.server.sessions.forgotten == (False, last)


def test_who_waits_is_remembered_behind_a_checkpoint_and_forgotten_with_another_client(scene):
    agent = Agent(scene, "agent")
    asked = agent.asks(claim(until_us=later()))
    scene.turn()
    state = scene.engine.server.sessions.get(session_number("agent")).state
    assert state.waiting == [asked]
    assert Session.of(state).waiting == {asked}
    scene.engine.server.sessions.take(msgspec.structs.replace(state.change, instance="another one"))
    assert scene.engine.server.sessions.get(session_number("agent")).waiting == set()
    scene.engine.server.sessions.wait(7, 7)  # of a session that is not remembered
    scene.engine.server.sessions.answered(7, 7)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_claim_that_is_asked_about_waits_no_more(scene, restarted):
    """Whether it waits in the engine, or its agent has not come back to the next one."""
    agent = Agent(scene, "agent")
    several = [agent.asks(claim(until_us=later())) for _ in range(2)]
    scene.turn()
    if restarted:
        scene.next_engine()
    other = Agent(scene, "other")
    for asked in (*several, *several):
        question = wire.pack_frame([("outcome", default_id(session_number("agent"), asked))], DEFAULT_LIMITS)
        other.frames.append(question)
        other.call.write(question)
        scene.turn()
        assert [reply.detail for reply in other.call.replies()] == [None], "it never will be applied"
    if restarted:
        agent.sends_all_again()
        scene.turn()
    assert agent.hears() == dict.fromkeys(several, (Status.REFUSED, []))
    other.asks(create("a"))
    scene.turn()
    assert scene.engine.writer.state.coordination.leases.all() == []
