"""Claims end to end: who gets what, under which token, how it ends, and how it is lost. Real engines, real deaths."""

from __future__ import annotations

import asyncio
import datetime
import enum
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
from pydantic import AwareDatetime, ConfigDict, Field, StringConstraints, field_validator, model_validator

from solewriter import (
    Applied,
    Cancel,
    Claim,
    Client,
    Complete,
    Create,
    Delete,
    DependencyPolicy,
    Engine,
    EngineUnavailable,
    Entity,
    Fenced,
    GuardFailed,
    Increment,
    InvalidMutation,
    InvalidQuery,
    InvalidTransition,
    Limits,
    Obstacle,
    OutcomeUnknown,
    Project,
    ProjectStatus,
    Put,
    Range,
    Refused,
    Release,
    Renew,
    RequestTooLarge,
    RequireFields,
    RequireNone,
    ResultUnavailable,
    SolewriterError,
    Task,
    TaskPriority,
    TaskStatus,
    Update,
    aio,
    budget_of,
    connect,
    dead_letters,
    open_reader,
    why_not_ready,
)
from solewriter.agents import answers, anyclient, exchange, requesting, tokens, verbs
from solewriter.agents import session as sessions
from solewriter.agents.reading import readiness
from solewriter.agents.reading.decoding import Decoder
from solewriter.agents.reading.readiness import is_anything_left
from solewriter.agents.verbs import claim_mutation
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS, KIB
from solewriter.shared.request_ids import default_id
from solewriter.shared.wire import Status

fork = multiprocessing.get_context("fork")
OLD = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
SOME_DAY = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)
OPEN = ["created", "in_progress"]


@pytest.fixture
def limits(limits: Limits) -> Limits:
    """Short rests and a short grace."""
    return Limits(
        heap_segment_bytes_first=limits.heap_segment_bytes_first,
        heap_segment_bytes_max=limits.heap_segment_bytes_max,
        journal_file_bytes=limits.journal_file_bytes,
        restart_backoff_s=0.005,
        restart_backoff_max_s=0.05,
        retry_backoff_s=0.01,
        session_grace_s=0.4,
    )


@pytest.fixture
def other(engine: Engine, limits: Limits) -> Iterator[Client]:
    with connect(engine.state, name="other", limits=limits) as other:
        yield other


def task(id: str, **fields: Any) -> Task:
    return Task(**{"id": id, "title": id, **fields})


async def gave_up(agent: Any) -> None:
    """Until all that it gives back was given back."""
    while agent._giving_up:
        await asyncio.sleep(0)


def make(client: Client, *tasks: Task) -> None:
    for reply in client.submit_many(Create(one) for one in tasks):
        reply.check()


def status(client: Client, id: str) -> TaskStatus:
    found = client.get(Task, id)
    assert found is not None
    return found.status


# --- who gets what ----------------------------------------------------------------------------------------------------


def test_the_best_ready_task_is_claimed_by_priority_then_age(client):
    make(client, task("a"), task("b", priority="low"), task("c", priority="critical"), task("d"))
    revision = client.reader.revision
    claimed = client.claim(Task, reason="my turn")
    assert (claimed.id, claimed.status, claimed.assigned_to) == ("c", TaskStatus.IN_PROGRESS, "tester")
    assert (claimed.version, claimed.claim, claimed.attempts) == (2, 2, 1)
    assert client.reader.revision == revision + 1
    assert [client.claim(Task).id for _ in range(3)] == ["a", "d", "b"]
    revision = client.reader.revision
    assert client.claim(Task) is None
    assert client.reader.revision == revision, "nothing was changed"
    assert [change.mutation for change in client.reader.history(Task, "c")] == ["claim", "create"]


def test_a_claim_asks_for_columns(client):
    make(client, *(task(str(n), project=f"p{n % 3}", type=("design", "review")[n % 2]) for n in range(12)))
    assert client.claim(Task, where={"project": "p1", "type": "review"}).id == "1"
    assert client.claim(Task, where={"project": ["p0", "p2"]}).id == "0"
    assert client.claim(Task, where={"project": "nobody's"}) is None
    late = client.create(task("late"))
    assert client.claim(Task, where={"created_at": Range(ge=late.created_at)}).id == "late"
    assert [one.id for one in client.claim_many(Task, 3, where={"type": "review"})] == ["3", "5", "7"]
    assert [one.id for one in client.claim_many(Task, 100)] == ["2", "4", "6", "8", "9", "10", "11"]
    assert client.claim_many(Task, 5) == []
    make(client, *(task(priority, priority=priority) for priority in TaskPriority))
    assert [one.id for one in client.claim_many(Task, 5, where={"priority": Range(ge="medium")})] == ["medium", "low"]
    for where in ({"title": "x"}, {"nothing": 1}, {"version": 1}, {"priority": "urgent"}):
        with pytest.raises(InvalidMutation):
            client.claim(Task, where=where)
    with pytest.raises(InvalidMutation, match=r"Task.title .*; these can be asked for: status, .*created_at$"):
        client.claim(Task, where={"title": "x"})
    with pytest.raises(InvalidMutation):
        client.claim_many(Task, 0)
    with pytest.raises(InvalidMutation):
        client.claim(Project)


class Chore(Task, columns=("role",)):
    """A kind of its own, whose defaults are not those of all tasks."""

    role: str = "anybody"
    project: str = "house"
    max_retries: int = 2
    on_dependency_failure: DependencyPolicy = DependencyPolicy.IGNORE


def test_a_class_of_its_own_has_defaults_of_its_own(start_engine, state, limits):
    engine = start_engine(state, models=[Chore], limits=limits)
    with connect(engine.state, name="me", limits=limits) as client:
        client.create(Chore(id="a", title="a"))
        client.create(Chore(id="b", title="b", dependencies=("a",), not_before=OLD))
        client.create(Project(id="house", name="house"))
        client.transition(Project.ref("house"), ProjectStatus.PAUSED)
        assert client.claim(Chore, where={"role": "anybody"}) is None, "its project by default is paused"
        client.transition(Project.ref("house"), ProjectStatus.ACTIVE)
        assert client.claim(Chore, where={"project": "house"}).id == "a"
        client.fail(Chore.ref("a"), final=True)
        assert client.claim(Chore).id == "b", "by default it goes on"
        client.complete(Chore.ref("b"), cost=2.0)
        client.update(Project.ref("house"), budget_limit=2.0)
        client.create(Chore(id="c", title="c"))
        assert client.claim(Chore) is None, "what it costs counts for its project by default"
        assert client.claim(Task) is None


def test_a_task_that_a_claim_would_make_too_large_keeps_nobody_from_others(start_engine, state, limits, wait_until):
    engine = start_engine(state, limits=msgspec.structs.replace(limits, entity_bytes_max=4_000))
    with connect(state, name="me", limits=limits) as client, connect(state, name="other", limits=limits) as other:
        large = partial(task, priority="critical", dependencies=("first",))
        make(client, task("first"), *(large(id, description="x" * 3_890) for id in ("large", "larger")))
        make(client, task("other", dependencies=("first",)))
        first = client.claim(Task)
        result = in_thread(lambda: other.claim(Task, timeout_s=20))
        wait_until(lambda: other._session.in_flight, 20, "the claim to be sent")
        client.create(task("behind it", project="p", not_before=SOME_DAY))
        begun = time.monotonic()
        client.complete(first)
        assert result().id == "other"
        assert time.monotonic() - begun < 5, "not only when it would have waited for long enough"
        assert client.claim_many(Task, 9) == []
        with pytest.raises(RequestTooLarge, match="large"):
            client.transition(Task.ref("large"), TaskStatus.ASSIGNED, assigned_to="x" * 100)
        client.update(Task.ref("large"), description="")
        assert client.claim(Task).id == "large"
    assert engine.restarts == 0


def test_a_task_that_is_too_large_for_a_long_name_is_there_for_a_shorter_one(start_engine, state, limits):
    start_engine(state, limits=msgspec.structs.replace(limits, entity_bytes_max=4_000))
    with connect(state, name="me", limits=limits) as client:
        make(client, task("large", description="x" * 3_800), task("huge", description="x" * 3_925), task("small"))
        names = [f"{number}" * 200 for number in range(9)]
        assert client.claim(Task, assignee=names[0]).id == "small"
        assert client.claim(Task).id == "large"
        client.release(Task.ref("large"))
        assert client.submit(*(Claim(Task, assignee=name) for name in names)).entities == ()
        assert client.claim_many(Task, 9) == [], "too large for so many that it is kept from everybody until it changes"
        client.update(Task.ref("large"), title="another")
        assert client.claim(Task).id == "large"


def test_a_task_that_is_larger_than_a_lowered_bound_can_be_lost_and_cancelled(start_engine, state, limits, wait_until):
    """What makes it no larger is done: else whoever had it would keep it for good, dead or alive."""
    lower = msgspec.structs.replace(limits, entity_bytes_max=4_000)
    engine = start_engine(state, limits=limits)
    with connect(state, name="me", limits=limits) as client, connect(state, name="other", limits=limits) as other:
        make(client, *(task(id, description="x" * 5_000, max_retries=3) for id in ("first", "second")))
        assert [one.id for one in client.claim_many(Task, 2, lease_s=0.2)] == ["first", "second"]
        engine.stop()
        start_engine(state, limits=lower)
        for id in ("first", "second"):
            wait_until(lambda id=id: status(client, id) is TaskStatus.INTERRUPTED, 20, "its time to be up")
        assert other.claim(Task) is None, "that would make it larger"
        for changes in ({"description": "x" * 5_001}, {"title": "a longer one"}):
            with pytest.raises(RequestTooLarge, match="entity_bytes_max"):
                other.update(Task.ref("first"), changes)
        other.update(Task.ref("first"), description="x" * 4_999)
        other.cancel(Task.ref("first"))
        other.update(Task.ref("second"), description="x" * 3_000)
        assert other.claim(Task).id == "second"


class Wordy(Task):
    """Says more of itself while nobody has it."""

    told: str = ""

    @model_validator(mode="before")
    @classmethod
    def tell(cls, values: Any) -> Any:
        return {**values, "told": "" if values.get("assigned_to") else "nobody has it, for whatever reason"}


def test_what_is_as_large_as_may_be_is_cancelled_and_fails_and_is_lost(start_engine, state, limits, wait_until):
    """The name of the state that it comes to may be a longer one, and a failed task says when it is tried again."""
    engine = start_engine(state, models=[Wordy], limits=limits)
    with connect(state, name="me", limits=limits) as client:
        large = partial(task, description="x" * 5_000)
        with_it = partial(large, on_dependency_failure=DependencyPolicy.CANCEL)
        make(client, task("a"), large("b", max_retries=3))
        make(client, with_it("with a", dependencies=("a",)), large("below", parent_task_id="a", dependencies=("a",)))
        assert [one.id for one in client.claim_many(Task, 4)] == ["a", "b"]
        client.create(large("created"))
        client.create(Wordy(id="lost", title="lost", description="x" * 5_000))
        assert client.claim(Wordy).id == "lost"
        engine.stop()
        start_engine(state, models=[Wordy], limits=msgspec.structs.replace(limits, entity_bytes_max=4_000))
        with pytest.raises(RequestTooLarge, match="entity_bytes_max"):
            client.fail(Task.ref("b"), description="x" * 5_100)
        with pytest.raises(RequestTooLarge, match="entity_bytes_max"), client.transaction() as tx:
            tx.update(Task.ref("created"), description="x" * 5_100)
            tx.cancel(Task.ref("created"))
        client.fail(Task.ref("b"), reason="tried again later")
        client.cancel(Task.ref("created"))
        client.fail(Task.ref("a"), final=True)
        assert status(client, "with a") is TaskStatus.CANCELLED
        client.cancel(Task.ref("a"), tree=True)
        assert status(client, "below") is TaskStatus.CANCELLED
        client.renew(Wordy.ref("lost"), 0.01)
        wait_until(lambda: client.get(Wordy, "lost").status is TaskStatus.INTERRUPTED, 20, "its time to be up")


class Urgency(enum.StrEnum):
    URGENT = "urgent"
    LOW = "low"


class Job(Task):
    """Its priorities are not those of all tasks."""

    priority: Urgency = Urgency.URGENT  # type: ignore[assignment]  # which is what it is about


class Visit(Task):
    pass


class VisitTo(Task, kind="Visit"):
    """Of a later version of the program."""

    shop: str


def test_what_was_claimed_and_cannot_be_read_is_told_as_claimed(start_engine, state):
    """The error is none of those that say that nothing was changed: it is this client's, and can be given back."""
    engine = start_engine(state, models=[Visit])
    with connect(engine.state) as client, connect(engine.state) as other:
        other.create(Visit(id="a", title="a"))
        with pytest.raises(ResultUnavailable, match="revision 2") as unread:
            client.claim(VisitTo)
        outcome = client.outcome(unread.value.request_id)
        assert isinstance(outcome, Applied)
        assert [result.id for result in outcome.reply.results] == ["a"]
        client.submit(Release(Visit.ref("a"))).check()

        async def story() -> None:
            async with aio.connect(engine.state) as agent:
                with pytest.raises(ResultUnavailable, match="revision 4"):
                    await agent.claim(VisitTo)
                (await agent.submit(Release(Visit.ref("a")))).check()

        asyncio.run(story())
        assert other.claim(Visit).id == "a"


def test_priorities_of_somebodys_own_come_last(start_engine, state):
    engine = start_engine(state, models=[Job])
    with connect(engine.state) as client:
        client.create(Job(id="a", title="a"))
        client.create(Job(id="b", title="b", priority="low"))
        client.create(Job(id="c", title="c"))
        assert [one.id for one in client.claim_many(Job, 3)] == ["b", "a", "c"]
        assert client.claim(Job, where={"priority": "urgent"}) is None
    assert engine.restarts == 0


def test_two_claims_in_one_turn_never_get_the_same(client):
    make(client, *(task(f"{n:03}") for n in range(40)))
    replies = list(client.submit_many([Claim(Task, count=2) for _ in range(25)]))
    taken = [result.id for reply in replies for result in reply.results]
    assert taken == [f"{n:03}" for n in range(40)]
    with client.transaction() as tx:
        for result in replies[0].results:
            tx.complete(Task.ref(result.id), result="done")
    assert status(client, "001") is TaskStatus.COMPLETED


def test_what_one_turn_makes_the_same_turn_claims(client):
    first = client.submit(Create(task("a")), Create(task("b")))
    assert first.applied
    replies = list(
        client.submit_many([Create(task("c", priority="high")), Claim(Task), Create(task("d")), Claim(Task)])
    )
    assert [reply.results[0].id for reply in replies] == ["c", "c", "d", "a"]


def test_a_claim_beside_other_mutations_of_its_request(client):
    make(client, task("a"))
    with client.transaction() as tx:
        new = tx.create(task("b", priority="high"))
    reply = client.submit(Create(task("c")), Claim(Task, count=5))
    assert reply.revision == client.reader.revision
    assert [result.id for result in reply.results] == ["c", "b", "a"], "its own new one is no candidate yet"
    assert tx.result(new).version == 1
    assert client.update(Task.ref("a"), title="mine").title == "mine", "and the token of each is known"


def test_what_a_request_claims_and_changes_is_held_and_what_it_hands_in_is_not(client, other):
    make(client, task("a", priority="high"), task("b"))
    reply = client.submit(Claim(Task), Update(Task.ref("a"), {"title": "mine"}))
    assert [result.id for result in reply.results] == ["a", "a"]
    with pytest.raises(Fenced):
        other.update(Task.ref("a"), title="theirs")
    assert client.complete(Task.ref("a")).status is TaskStatus.COMPLETED
    assert client.submit(Claim(Task), Complete(Task.ref("b"))).applied
    assert client.update(Task.ref("b"), title="over").title == "over"
    make(client, task("d"))
    assert client.submit(Claim(Task), Release(Task.ref("d"))).applied
    other.complete(other.claim(Task))
    assert client.update(Task.ref("d"), title="anybody's").title == "anybody's", "it held nothing that it could lose"
    make(client, task("c"))
    assert client.submit(Claim(Task, where={"project": "nobody's"}), Update(Task.ref("c"), {"title": "x"})).applied
    assert other.claim(Task).id == "c"
    with pytest.raises(Fenced):
        client.update(Task.ref("c"), title="not mine")


def test_whom_its_own_rules_refuse_a_task_it_is_no_obstacle_for_others(client, other):
    make(client, task("a", delegation_chain=("tester",)), task("b"))
    assert client.claim(Task).id == "b"
    assert other.claim(Task).id == "a"


def test_priority_project_and_deletion_are_followed(client):
    make(client, task("a"), task("b"), task("c"))
    client.update(Task.ref("c"), priority="high")
    client.update(Task.ref("a"), project="p")
    client.delete(Task.ref("b"))
    assert client.claim(Task, where={"project": "p"}).id == "a"
    assert [one.id for one in client.claim_many(Task, 5)] == ["c"]


# --- working ----------------------------------------------------------------------------------------------------------


def test_complete_is_one_request_whatever_others_did_to_the_version(client):
    make(client, task("a"))
    mine = client.claim(Task)
    client.alter(mine, cost=Increment(0.5))
    mine = client.update(mine, description="half way", merge=True)
    done = client.complete(mine, result={"lines": 3}, reason="all of it")
    assert (done.status, done.result["lines"], done.cost, done.version) == (TaskStatus.COMPLETED, 3, 0.5, 5)
    assert client.update(done, description="told").description == "told", "nobody holds it any more"
    with pytest.raises(InvalidTransition):
        client.complete(done)


def test_a_claimed_task_can_be_reviewed_and_reworked(client):
    make(client, task("a"))
    mine = client.claim(Task)
    mine = client.transition(mine, "in_review")
    mine = client.transition(mine, "in_progress", reason="rework")
    assert client.complete(mine).status is TaskStatus.COMPLETED


def test_release_gives_a_task_back_untried(client, other):
    make(client, task("a"))
    mine = client.claim(Task)
    back = client.release(mine, reason="not my kind of task")
    assert (back.status, back.assigned_to, back.attempts) == (TaskStatus.INTERRUPTED, None, 0)
    theirs = other.claim(Task)
    assert (theirs.id, theirs.attempts) == ("a", 1)
    assert theirs.claim > mine.claim
    with pytest.raises(Fenced):
        client.complete(mine)


def test_a_claimed_task_is_changed_by_its_claimer_only(client, other):
    make(client, task("a"))
    mine = client.claim(Task)
    deeds: list[Callable[[], object]] = [
        lambda: other.update(mine, title="x"),
        lambda: other.update(Task.ref("a"), title="x"),
        lambda: other.alter(Task.ref("a"), max_retries=Increment()),
        lambda: other.complete(mine),
        lambda: other.fail(mine),
        lambda: other.release(mine),
        lambda: other.transition(mine, "blocked"),
        lambda: other.put(mine.model_copy(update={"title": "x"})),
        lambda: other.delete(mine),
    ]
    for deed in deeds:
        with pytest.raises(Fenced) as refused:
            deed()
        assert refused.value.current == mine
        assert (refused.value.actor, refused.value.revision) == ("tester", client.reader.revision)
    with pytest.raises(InvalidMutation):
        other.renew(mine, 5)
    assert client.get(Task, "a") == mine


def test_who_puts_a_task_anew_changes_neither_who_made_it_nor_what_the_engine_counts(client, other):
    client.create(task("a", max_retries=2, retry_delay_s=0))
    failed = client.fail(client.claim(Task))
    put = other.put(task("a", status="failed", max_retries=2, description="anew"))
    assert (put.version, put.description) == (failed.version + 1, "anew")
    for name in ("created_by", "created_at", "attempts", "claim"):
        assert getattr(put, name) == getattr(failed, name)
    assert (put.created_by, put.attempts, put.claim > 0) == (client.name, 1, True)


def test_what_comes_to_depend_on_the_ended_goes_with_it_at_once(client):
    make(client, task("gone"), task("late"), task("flaky", max_retries=3))
    client.cancel(Task.ref("gone"))
    born = client.create(task("born", dependencies=("gone",), on_dependency_failure="cancel"), reason="why not")
    assert (born.status, born.version) == (TaskStatus.CANCELLED, 1)
    told = [(change.mutation, change.reason) for change in client.reader.history(Task, "born")]
    assert told == [("create", "why not")], "what was asked for"
    client.create(task("below", dependencies=("late",), on_dependency_failure="cancel"))
    revision = client.reader.revision
    late = client.update(Task.ref("late"), dependencies=("gone",), on_dependency_failure="cancel")
    assert (late.status, status(client, "below")) == (TaskStatus.CANCELLED, TaskStatus.CANCELLED)
    assert client.reader.revision == revision + 1
    assert client.put(task("put", dependencies=("gone",), on_dependency_failure="cancel")).status == "cancelled"
    assert client.create(task("patient", dependencies=("gone",))).status is TaskStatus.CREATED
    client.create(task("hopeful", dependencies=("flaky",), on_dependency_failure="cancel"))
    client.fail(client.claim(Task))
    assert status(client, "hopeful") is TaskStatus.CREATED, "attempts are left"
    client.update(Task.ref("flaky"), max_retries=0)
    assert status(client, "hopeful") is TaskStatus.CANCELLED, "now there are none"


def test_what_is_finished_is_not_cancelled_with_what_it_depended_on(client):
    make(client, task("a"))
    with_it = {"dependencies": ("a",), "on_dependency_failure": "cancel"}
    client.put(task("done", status="completed", assigned_to="somebody", **with_it))
    client.create(task("open", **with_it))
    client.cancel(Task.ref("a"))
    assert (status(client, "done"), status(client, "open")) == (TaskStatus.COMPLETED, TaskStatus.CANCELLED)


def test_what_a_task_depends_on_already_need_not_be_there_any_more(client):
    make(client, task("a"), task("b"), task("c", dependencies=("a",)))
    client.delete(Task.ref("a"))
    assert client.update(Task.ref("c"), dependencies=("a", "b")).dependencies == ("a", "b")
    with pytest.raises(InvalidMutation, match="depends on gone: there is no such Task"):
        client.update(Task.ref("c"), dependencies=("a", "b", "gone"))
    assert client.update(Task.ref("c"), dependencies=("b",)).dependencies == ("b",)
    with pytest.raises(InvalidMutation, match="depends on a: there is no such Task"):
        client.update(Task.ref("c"), dependencies=("a",))


def test_what_comes_to_depend_on_what_the_same_request_ends_goes_with_it(client):
    make(client, task("first"), task("last"), task("second", dependencies=("first",), on_dependency_failure="cancel"))
    with client.transaction() as tx:
        tx.transition(Task.ref("first"), "rejected")
        tx.update(Task.ref("last"), dependencies=("second",), on_dependency_failure="cancel")
    assert {status(client, id).value for id in ("second", "last")} == {"cancelled"}


def test_a_way_through_what_the_same_request_deletes_is_no_circle(client):
    make(client, task("a"), task("b", dependencies=("a",)), task("c", dependencies=("b",)))
    with client.transaction() as tx:
        tx.delete(Task.ref("b"))
        tx.update(Task.ref("a"), dependencies=("c",))
    assert client.get(Task, "a").dependencies == ("c",)


class Linked(Task):
    """Its description says what it depends on, and how it ends."""

    @model_validator(mode="before")
    @classmethod
    def _says(cls, values: Any) -> Any:
        match str(values.get("description", "")).partition(" "):
            case "needs", _, names:
                return {**values, "dependencies": tuple(names.split())}
            case "goes", _, names:
                return {**values, "dependencies": tuple(names.split()), "on_dependency_failure": "cancel"}
            case "is", _, status:
                return {**values, "status": status}
        return values


@pytest.mark.parametrize("somebody_claims", [False, True])
def test_what_a_rule_makes_a_task_depend_on_exists_and_leads_not_back(engine, client, somebody_claims):
    engine.register(Linked)
    if somebody_claims:
        assert client.claim(Linked) is None
    make(client, *(Linked(id=id, title=id) for id in "ab"))
    with pytest.raises(InvalidMutation, match="there is no such Linked"):
        client.update(Linked.ref("a"), description="needs nothing-known")
    client.update(Linked.ref("b"), description="needs a")
    with pytest.raises(InvalidMutation, match="would wait for itself: a -> b -> a"):
        client.update(Linked.ref("a"), description="needs b")
    with pytest.raises(InvalidMutation, match="would wait for itself"), client.transaction() as tx:
        tx.create(Linked(id="c", title="c", description="needs a"))
        tx.update(Linked.ref("a"), description="needs c")


def test_what_a_rule_ends_takes_with_it_what_a_rule_made_depend_on_it(engine, client):
    engine.register(Linked)
    make(client, *(Linked(id=id, title=id) for id in "abc"))
    client.update(Linked.ref("b"), description="goes a")
    client.update(Linked.ref("a"), description="is cancelled")
    assert client.get(Linked, "b").status is TaskStatus.CANCELLED
    assert client.update(Linked.ref("c"), description="goes a").status is TaskStatus.CANCELLED


def test_a_default_is_a_dependency_like_another(engine, client):
    class Follower(Task):
        dependencies: tuple[str, ...] = ("root",)

    engine.register(Follower)
    with pytest.raises(InvalidMutation, match="depends on root"):
        client.create(Follower(id="a", title="a"))


def test_a_plain_enum_of_a_class_of_tasks_orders_and_costs_like_its_values(engine, client):
    """Its members are not equal to their values, or not written like them."""

    class Urgency(enum.Enum):
        HIGH = "high"
        LOW = "low"

    class Payer(str, enum.Enum):  # noqa: UP042 - its members write themselves in another way than a StrEnum's
        ONE = "one"
        TWO = "two"

    class Errand(Task):
        priority: Urgency = Urgency.LOW  # type: ignore[assignment]
        project: Payer = Payer.ONE

    engine.register(Errand)
    assert client.claim(Errand) is None
    client.create(Project(id="two", name="two", budget_limit=1.0))
    make(client, Errand(id="late", title="late"), Errand(id="first", title="first", priority=Urgency.HIGH))
    assert [found.id for found in client.claim_many(Errand, 2)] == ["first", "late"]
    make(client, *(Errand(id=id, title=id, project=Payer.TWO, cost=1.0) for id in "xy"))
    assert client.claim(Errand) is None


class Stage(enum.Enum):
    CREATED = "created"
    ASSIGNED = "assigned"
    IN_PROGRESS = "in_progress"
    IN_REVIEW = "in_review"
    AUTH_REQUIRED = "auth_required"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Policy(enum.Enum):
    BLOCK = "block"
    CANCEL = "cancel"
    IGNORE = "ignore"


class Staged(Task):
    """Members of its enums are not equal to their values."""

    status: Stage = Stage.CREATED  # type: ignore[assignment]
    on_dependency_failure: Policy = Policy.BLOCK  # type: ignore[assignment]


def test_the_states_of_a_class_of_tasks_may_be_a_plain_enum(engine, client, other):
    engine.register(Staged)
    client.create(Staged(id="a", title="a", max_retries=3, retry_delay_s=0))
    mine = client.claim(Staged)
    with pytest.raises(Fenced):
        other.update(Staged.ref("a"), title="b")
    client.fail(mine)
    assert client.claim(Staged).attempts == 2
    client.complete(Staged.ref("a"))
    client.create(Staged(id="b", title="b"))
    goes, stays = Staged(id="goes", title="g", on_dependency_failure=Policy.CANCEL), Staged(id="stays", title="s")
    make(client, *(one.model_copy(update={"dependencies": ("b",)}) for one in (goes, stays)))
    client.cancel(Staged.ref("b"))
    assert [client.get(Staged, id).status for id in ("goes", "stays")] == [Stage.CANCELLED, Stage.CREATED]


class Tagged(Task, columns=("tag",)):
    tag: str = ""


class Lowered(Task, kind="Tagged", columns=("tag",)):
    tag: Annotated[str, StringConstraints(to_lower=True)] = ""


def test_who_waits_is_found_by_what_a_newer_class_makes_of_its_wish(engine, client, other, wait_until):
    engine.register(Tagged)
    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(other.claim, Tagged, where={"tag": "GPU"}, timeout_s=60)
        wait_until(lambda: other._session.waiting == 1, 5, "the claim to be sent")
        other.create(Task(id="behind it", title="b"))
        engine.register(Lowered)
        client.create(Lowered(id="cpu", title="c", tag="cpu"))
        client.create(Lowered(id="gpu", title="g", tag="gpu"))
        assert waiting.result(20).id == "gpu"


def test_nothing_goes_through_with_a_cancel(client, other):
    make(client, task("a"))
    mine = client.claim(Task)
    with pytest.raises(Fenced), other.transaction() as tx:
        tx.update(mine, title="x", expect=None)
        tx.cancel(mine)
    assert client.get(Task, "a") == mine


def test_a_request_about_very_many_claimed_tasks_shows_as_many_tokens(client):
    make(client, *(task(f"{n:04}") for n in range(800)))
    held = client.claim_many(Task, 800)
    with client.transaction() as tx:
        for one in held:
            tx.complete(one)
    assert tx.result(held[799]).status is TaskStatus.COMPLETED
    with pytest.raises(RequestTooLarge):
        client.claim_many(Task, 1_001)
    with pytest.raises(RequestTooLarge, match="1,000 tasks"):
        client.submit(Claim(Task, count=600), Claim(Task, count=401)).check()
    assert len(client.submit(Claim(Task, count=600), Claim(Task, count=400)).check().entities) == 0


def test_a_cancel_takes_the_claim_away_and_the_displaced_is_told_once(client, other):
    make(client, task("a"))
    mine = client.claim(Task)
    cancelled = other.cancel(mine, reason="no longer wanted")
    assert cancelled.claim == cancelled.version
    with pytest.raises(Fenced) as told:
        client.complete(mine, result=1)
    assert told.value.current == cancelled
    with pytest.raises(InvalidTransition):
        client.complete(mine, result=1)


def test_who_lost_a_claim_is_told_that_before_its_own_conditions(client, other):
    make(client, task("a"))
    mine = client.claim(Task)
    other.cancel(mine)
    with pytest.raises(Fenced):
        client.update(mine, where={"title": "no longer so"}, source="here")


def test_the_claimer_may_cancel_and_delete(client):
    make(client, task("a"), task("b"))
    mine, also = client.claim_many(Task, 2)
    assert client.cancel(mine).claim == mine.claim
    client.delete(also)
    client.create(task("b"))
    again = client.claim(Task)
    assert (again.id, again.claim) == ("b", 5), "and tokens grow over its lives"


def test_a_task_can_be_handed_over_with_its_claim(client, other):
    make(client, task("a"))
    mine = client.claim(Task)
    other.hold(mine)
    assert other.complete(mine, result="by the other").status is TaskStatus.COMPLETED


def test_a_request_with_the_users_own_id_claims_once(client):
    make(client, task("a"), task("b"))
    first = client.claim(Task, request_id="night run 7")
    assert client.claim(Task, request_id="night run 7").id == first.id
    assert client.claim(Task, timeout_s=5, request_id="night run 7").id == first.id, "how long it waits is no content"
    waited = client.claim(Task, where={"project": "p"}, timeout_s=0.01, request_id="night run 8")
    assert client.claim(Task, where={"project": "p"}, timeout_s=0.01, request_id="night run 8") is waited is None
    done = client.complete(first, result=1, request_id="night run 7, a")
    assert client.complete(first, result=1, request_id="night run 7, a") == done


def test_transitions_by_hand_go_on_without_claims(client, other):
    make(client, task("a"))
    assigned = client.transition(Task.ref("a"), "assigned", assigned_to="tester")
    started = client.transition(assigned, "in_progress")
    assert other.update(started, title="x").title == "x"
    assert client.complete(Task.ref("a")).status is TaskStatus.COMPLETED
    assert client.get(Task, "a").claim == 0
    make(client, task("b"))
    back = client.release(client.transition(Task.ref("b"), "assigned", assigned_to="tester"))
    assert (back.status, back.attempts) == (TaskStatus.INTERRUPTED, 0)


# --- waiting ----------------------------------------------------------------------------------------------------------


def in_thread(deed: Callable[[], Any]) -> Callable[[], Any]:
    """Begins it; what it returns tells its result, or raises what it raised."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(deed())
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(60)
        assert came, "it still waits"
        if isinstance(came[0], Exception):
            raise came[0]
        return came[0]

    return result


def interrupt() -> None:
    raise KeyboardInterrupt


def waiting_claims(client: Client) -> bool:
    """Whether a claim of this client is on its way, and not answered."""
    return client._session.in_flight > 0


def test_a_claim_waits_for_what_comes(client, other, wait_until):
    assert client.claim(Task, timeout_s=0.05) is None
    result = in_thread(lambda: client.claim(Task, where={"project": "p"}, timeout_s=60))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    make(other, task("a"), task("b", project="p"))
    assert result().id == "b"
    assert other.claim(Task).id == "a"


def test_a_client_goes_on_while_a_claim_of_it_waits(client, other, wait_until):
    result = in_thread(lambda: client.claim(Task, timeout_s=60))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    note = client.create(Project(name="p"))
    for number in range(300):
        note = client.update(note, description=str(number))
    make(client, task("a"))
    assert result().id == "a"


def test_a_failure_goes_by_what_it_sets_itself(client):
    def failed(fields: dict[str, Any], *, final: bool = False, **said: Any) -> Task:
        client.put(task("a", **fields))
        left = client.fail(client.claim(Task), said, final=final)
        client.delete(left)
        return left

    hour = datetime.timedelta(hours=1)
    assert failed({"max_retries": 1}, not_before=SOME_DAY).not_before == SOME_DAY
    assert failed({"max_retries": 1, "retry_delay_s": 0}, not_before=SOME_DAY).not_before == SOME_DAY
    assert failed({"max_retries": 1, "retry_delay_s": 7200}, not_before=None).not_before is None
    late = failed({"max_retries": 1}, retry_delay_s=7200)
    assert late.not_before - late.updated_at >= hour
    assert failed({"max_retries": 1, "retry_delay_s": 7200}, retry_delay_s=0).not_before is None
    assert failed({}, max_retries=1, retry_delay_s=7200).not_before is not None, "an attempt is left"
    assert failed({"max_retries": 1}, final=True, max_retries=9).attempts == 10


def test_a_thread_that_gives_a_task_back_leaves_it_to_one_that_waits_in_the_same_client(client, wait_until):
    client.create(task("a", max_retries=5))
    mine = client.claim(Task)
    result = in_thread(lambda: client.claim(Task, timeout_s=60))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    client.release(mine)
    theirs = result()
    assert client.holds(Task, "a") == theirs.claim > mine.claim
    assert client.complete(theirs).status is TaskStatus.COMPLETED
    assert client.holds(Task, "a") is None


def test_who_waits_longest_is_served_first(engine, client, wait_until, limits):
    agents = [connect(engine.state, name=f"agent-{number}", limits=limits) for number in range(3)]
    results = []
    for agent in agents:
        results.append(in_thread(lambda agent=agent: agent.claim(Task, timeout_s=60)))
        wait_until(lambda agent=agent: waiting_claims(agent), 5, "the claim to be sent")
        client.submit(Update(client.put(Project(id="p", name="p")), {"description": agent.name})).check()
    for number in range(3):
        client.create(task(str(number)))
    assert [result().id for result in results] == ["0", "1", "2"]
    for agent in agents:
        agent.close()


def test_a_claim_waits_for_dependencies_projects_and_time(client, other, wait_until):
    client.create(Project(id="p", name="p"))
    make(client, task("a"), task("b", dependencies=("a",), project="p"))
    mine = client.claim(Task)
    client.transition(Project.ref("p"), ProjectStatus.PAUSED)
    result = in_thread(lambda: other.claim(Task, timeout_s=60))
    wait_until(lambda: waiting_claims(other), 5, "the claim to be sent")
    client.complete(mine)
    assert client.claim(Task) is None
    client.transition(Project.ref("p"), ProjectStatus.ACTIVE)
    assert result().id == "b"
    client.create(task("c", not_before=SOME_DAY))
    assert client.claim(Task) is None
    soon = client.get(Task, "c").updated_at + datetime.timedelta(seconds=0.3)
    client.update(Task.ref("c"), not_before=soon)
    claimed = client.claim(Task, timeout_s=60)
    assert claimed.id == "c"
    assert claimed.updated_at >= soon


@pytest.mark.parametrize("by", ["its number", "the user's own id"])
def test_a_waiting_claim_that_is_asked_about_waits_no_more(client, other, wait_until, by):
    result = in_thread(lambda: client.claim(Task, timeout_s=600, request_id="mine"))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    (pending,) = client._session._frames[0].pendings
    client.put(Project(id="p", name="so that it waits in the engine"))
    number = default_id(client._session.number, pending.sequence)
    assert type(other.outcome(number if by == "its number" else "mine")).__name__ == "NotApplied"
    with pytest.raises(Refused, match="never will be applied"):
        result()
    make(other, task("a"))
    if by == "the user's own id":
        with pytest.raises(Refused, match="never will be applied"):
            client.claim(Task, request_id="mine")
    assert other.claim(Task).id == "a"


def test_claims_that_wait_make_room_for_what_does_not(engine, client, limits, wait_until):
    """They fill a window, and more of them stand in line: whoever brings them something must not wait for that."""
    few = msgspec.structs.replace(limits, window_max=1)
    with connect(engine.state, name="me", limits=few) as agent:
        results = [in_thread(lambda: agent.claim(Task, timeout_s=60)) for _ in range(3)]
        wait_until(lambda: agent._session.waiting == 1, 5, "the claims to be sent")
        for number in range(20):
            agent.put(Project(id="p", name=str(number)), timeout_s=20)
        for reply in agent.submit_many([Create(task(id)) for id in "abc"], timeout_s=20):
            reply.check()
        assert sorted(result().id for result in results) == ["a", "b", "c"]
        assert agent._session.in_flight == agent._session.waiting == 0

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=few) as agent:
            claims = [asyncio.create_task(agent.claim(Task, timeout_s=60)) for _ in range(6)]
            while agent._session.waiting < 1:
                await asyncio.sleep(0)
            for number in range(20):
                await agent.put(Project(id="p", name=str(number)), timeout_s=20)
            async for reply in agent.submit_many([Create(task(id)) for id in "defghi"], timeout_s=20):
                reply.check()
            assert sorted([(await claim).id for claim in claims]) == [*"defghi"]
            assert agent._session.in_flight == agent._session.waiting == 0

    asyncio.run(story())


def test_claims_that_wait_leave_room_for_what_does_not(engine, client, limits, wait_until):
    """However many they are, here or in line: others need none of them to be called back, nor the patience to wait."""
    few = msgspec.structs.replace(limits, window_max=8)
    with connect(engine.state, name="me", limits=few) as agent:
        results = [in_thread(lambda: agent.claim(Task, timeout_s=60)) for _ in range(9)]
        wait_until(lambda: agent._session.waiting == 6, 5, "the claims to be sent")
        for number in range(20):
            agent.submit(Put(Project(id="p", name=str(number))), wait_for_room=False).check()
        frames = agent._session._frames
        assert not any(pending.called_back for frame in frames for pending in frame.pendings)
        for reply in agent.submit_many([Create(task(id)) for id in "abcdefghi"]):
            reply.check()
        assert sorted(result().id for result in results) == [*"abcdefghi"]

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=few) as agent:
            claims = [asyncio.create_task(agent.claim(Task, timeout_s=60)) for _ in range(500)]
            while agent._session.waiting < 6:
                await asyncio.sleep(0)
            before = agent._session.next_frame
            await asyncio.gather(*[
                agent.submit(Put(Project(id=f"p{number}", name="at once")), wait_for_room=False) for number in range(2)
            ])  # fmt: skip
            await asyncio.gather(*[agent.put(Project(id=f"p{number}", name="in line")) for number in range(50)])
            assert agent._session.next_frame == before + 52, "nothing else was sent"
            for claim in claims:
                claim.cancel()
            await asyncio.gather(*claims, return_exceptions=True)

    asyncio.run(story())


def test_claims_that_wait_in_a_pipeline_may_be_more_than_there_is_room_for(engine, client, limits):
    few = msgspec.structs.replace(limits, window_max=8)
    until_us = time.monotonic_ns() // 1000 + 60_000_000
    claims = [Claim(Task, until_us=until_us) for _ in range(20)]
    with connect(engine.state, name="me", limits=few) as agent:
        result = in_thread(lambda: [*agent.submit_many(claims, timeout_s=20)])
        for number in range(20):
            agent.create(task(f"{number:02d}"))
        assert sorted(reply.check().results[0].id for reply in result()) == [f"{number:02d}" for number in range(20)]

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=few) as agent:

            async def pipeline() -> list[str]:
                return [reply.check().results[0].id async for reply in agent.submit_many(claims, timeout_s=20)]

            claiming = asyncio.create_task(pipeline())
            for number in range(20, 40):
                await agent.create(task(f"{number:02d}"))
            assert sorted(await claiming) == [f"{number:02d}" for number in range(20, 40)]

    asyncio.run(story())


@pytest.mark.parametrize("places", [1, 8])
def test_a_claim_of_a_pipeline_that_is_called_back_goes_on_waiting(
    engine, client, limits, monkeypatch, wait_until, places
):
    """For others whose window it fills, or because too much was sent behind it: its reply is what it brings."""
    monkeypatch.setattr(sessions, "CALLED_BACK_BEHIND", 20)
    until_us = time.monotonic_ns() // 1000 + 60_000_000
    few = msgspec.structs.replace(limits, window_max=places)
    claims = [Claim(Task, until_us=until_us) for _ in range(3)]
    with connect(engine.state, name="me", limits=few) as agent:
        result = in_thread(lambda: [*agent.submit_many(claims, timeout_s=20)])
        wait_until(lambda: agent._session.waiting == min(places, 3), 5, "the claims to be sent")
        for number in range(30):
            agent.put(Project(id="p", name=str(number)), timeout_s=20)
        for id in "abc":
            agent.create(task(id), timeout_s=20)
        assert sorted(reply.check().results[0].id for reply in result()) == [*"abc"]
        assert agent.complete(Task.ref("a")).status is TaskStatus.COMPLETED

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=few) as agent:

            async def pipeline() -> list[str]:
                return [reply.check().results[0].id async for reply in agent.submit_many(claims, timeout_s=20)]

            claiming = asyncio.create_task(pipeline())
            while agent._session.waiting < min(places, 3):
                await asyncio.sleep(0)
            for number in range(30):
                await agent.put(Project(id="p", name=str(number)), timeout_s=20)
            for id in "def":
                await agent.create(task(id), timeout_s=20)
            assert sorted(await claiming) == [*"def"]
            assert (await agent.complete(Task.ref("d"))).status is TaskStatus.COMPLETED

    asyncio.run(story())


def test_claims_that_wait_for_room_in_vain_say_what_fills_it(engine, limits, wait_until):
    few = msgspec.structs.replace(limits, window_max=1)
    with connect(engine.state, name="me", limits=few) as agent:
        result = in_thread(lambda: agent.claim(Task, timeout_s=20))
        wait_until(lambda: agent._session.waiting == 1, 5, "the claim to be sent")
        with pytest.raises(EngineUnavailable, match=r"nothing was sent.*1 of them are claims that wait.*connect\(\)"):
            agent.submit(claim_mutation(Task, None, 1, 20, None, None, ""), timeout_s=0.05)
        agent.create(task("a"))
        assert result().id == "a"


def test_a_claim_may_wait_behind_whatever_its_client_does(engine, client, limits, monkeypatch):
    """However much that is: the numbers that the next lane would have to count stay few, and it goes on waiting."""
    monkeypatch.setattr(sessions, "CALLED_BACK_BEHIND", 20)

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            claims = [
                asyncio.create_task(agent.claim(Task, timeout_s=60, request_id=request_id))
                for request_id in (None, "mine")
            ]
            while agent._session.waiting < 2:
                await asyncio.sleep(0)
            for number in range(100):
                await agent.put(Project(id="p", name=str(number)), timeout_s=20)
                assert len(agent._session._frames) < 30
            assert not any(claim.done() for claim in claims)
            os.kill(engine.pid, signal.SIGKILL)
            for id in "ab":
                await agent.create(task(id))
            assert sorted([(await claim).id for claim in claims]) == ["a", "b"]
            for id in "ab":
                await agent.complete(Task.ref(id))
            assert agent._session.in_flight == len(agent._session._frames) == 0

    asyncio.run(story())


def test_a_waiting_claim_survives_the_engine(client, other, engine, wait_until):
    result = in_thread(lambda: client.claim(Task, timeout_s=60))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    for number in range(5):
        client.put(Project(id=str(number), name="later requests of the same session"))
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1, 20, "the engine to come back")
    make(other, task("a"))
    assert result().id == "a"
    assert client.complete(Task.ref("a")).status is TaskStatus.COMPLETED


# --- loss -------------------------------------------------------------------------------------------------------------


def hold_on(state: Path, limits: Limits, told: Any, lease_s: float | None, go_on: Any) -> None:
    """An agent that claims a task and then works at it for ever, or until it is told to complete it."""
    with connect(state, name="victim", limits=limits) as client:
        claimed = client.claim(Task, timeout_s=10, lease_s=lease_s)
        assert claimed is not None
        told.set()
        go_on.wait(60)
        try:
            client.complete(claimed)
        except Fenced:
            os._exit(7)


@pytest.fixture
def victim(engine: Engine, limits: Limits) -> Iterator[Callable[..., Any]]:
    """`victim(lease_s)`: a process that has claimed a task; `process.go_on` lets it complete that."""
    started: list[Any] = []

    def start(lease_s: float | None = None) -> Any:
        told, go_on = fork.Event(), fork.Event()
        process = fork.Process(target=hold_on, args=(engine.state, limits, told, lease_s, go_on))
        process.start()
        started.append(process)
        process.go_on = go_on
        assert told.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_dead_agents_task_is_claimed_by_who_waits(client, victim, wait_until):
    client.create(task("a", max_retries=1))
    process = victim()
    assert client.claim(Task) is None
    result = in_thread(lambda: client.claim(Task, timeout_s=60))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    process.kill()
    claimed = result()
    assert (claimed.id, claimed.attempts, claimed.version) == ("a", 2, 4)
    changes = [(change.mutation, change.actor) for change in client.reader.history(Task, "a")]
    assert changes == [("claim", "tester"), ("expire", "engine"), ("claim", "victim"), ("create", "tester")]


def test_work_ends_where_its_fields_are_asked_for_as_text(client):
    """Which claims take for what the field makes of it."""
    for id in ("a", "b"):
        client.create(task(id, project=id))
    asked = {"created_at": Range(ge="2020-01-01T00:00:00Z"), "project": ("a", "c")}
    assert [client.complete(one).id for one in client.work(Task, where=asked)] == ["a"]
    assert [client.complete(one).id for one in client.work(Task, priority="medium")] == ["b"]


def test_dead_letters_are_only_those_that_are_asked_for(client):
    for id, to, retries in (("f", "failed", 0), ("i", "interrupted", 0), ("again", "failed", 1)):
        client.create(task(id, project=id, max_retries=retries))
        client.transition(client.claim(Task, where={"project": id}), to)
    with client.reader.snapshot() as snap:
        for asked, expected in (
            ({}, "fi"), ({"status": "failed"}, "f"), ({"status": ["interrupted", "created"]}, "i"),
            ({"status": TaskStatus.CREATED}, ""), ({"status": "failed", "project": "i"}, ""),
        ):  # fmt: skip
            assert [one.id for one in dead_letters(snap, where=asked)] == list(expected), asked


def test_dead_letters_are_asked_for_by_class_or_by_name(state, start_engine):
    start_engine(state, models=[Errand, Door])
    with connect(state) as client:
        for id, retries in (("again", 1), ("done", 0)):
            client.create(Errand(id=id, title="e", project=id, max_retries=retries))
            client.fail(client.claim(Errand, where={"project": id}))
        client.create(Door(status="failed"))
        with client.reader.snapshot() as snap:
            assert [letter.id for letter in dead_letters(snap, Errand)] == ["done"]
            for kind in (Door, "Door"):
                with pytest.raises(InvalidQuery, match=r"^Door is no kind of task$"):
                    dead_letters(snap, kind)
    with open_reader(state) as reader, reader.snapshot() as snap:  # which does not know its class
        assert [letter["title"] for letter in dead_letters(snap, "Errand", {"status": "failed"})] == ["e"]
        assert dead_letters(snap, "Nothing") == []


Words = enum.StrEnum("Words", ["created", "assigned", "in_progress", "completed"])
Names = enum.Enum("Names", {state.name: state.value for state in TaskStatus})


class ByLiterals(Task):
    status: Literal["created", "assigned", "in_progress", "completed"] = "created"


class ByWords(Task):
    status: Words = Words.created


class ByNames(Task):
    status: Names = Names.CREATED


class ByValues(Task):
    model_config = ConfigDict(use_enum_values=True)


@pytest.mark.parametrize("cls", [ByLiterals, ByWords, ByNames, ByValues])
def test_tasks_that_have_their_states_in_another_form_are_worked_at_like_others(state, start_engine, cls):
    """Narrowed to fewer, too: nothing asks for those that there are not."""
    start_engine(state, models=[cls])
    with connect(state, name="ann") as client, connect(state) as other:
        client.create(cls(id="first", title="first"))
        client.create(cls(id="second", title="second", dependencies=("first",)))
        held = client.claim(cls)
        with client.reader.snapshot() as snap:
            [holds], [waits] = (why_not_ready(snap, snap[cls, id]) for id in ("first", "second"))
            assert (holds.obstacle, waits.obstacle) == (Obstacle.HELD, Obstacle.DEPENDENCY)
            assert waits.data == {"id": "first", "status": "in_progress"}
            assert dead_letters(snap, cls) == dead_letters(snap, cls.kind_name) == []
        client.complete(held)
        client.create(cls(id="third", title="third", not_before=SOME_DAY, project="p"))
        client.create(cls(id="fourth", title="fourth", dependencies=("third",), project="q"))
        assert list(other.work(cls, where={"project": "q"})) == []
        assert [other.complete(task).id for task in other.work(cls, where={"project": ""})] == ["second"]
        with client.reader.snapshot() as snap:
            assert [reason.obstacle for reason in why_not_ready(snap, snap[cls, "second"])] == [Obstacle.FINISHED]


@pytest.mark.parametrize("give_back", ["release", "fail", "blocked", "interrupted"])
def test_who_gives_a_task_back_can_hand_it_on_in_the_same_request(client, engine, give_back):
    """Nobody was its claimer then, and everybody fenced, until the process of the one before ended."""

    def hand_on(tx, task):
        if give_back in ("release", "fail"):
            getattr(tx, give_back)(task)
        else:
            tx.transition(task, give_back)
        tx.transition(task, "assigned", assigned_to="bob")

    with connect(engine.state, name="bob") as bob:
        client.create(task("a", max_retries=1))
        claimed = client.claim(Task)
        with pytest.raises(Fenced), bob.transaction() as tx:
            hand_on(tx, Task.ref("a"))
        with client.transaction() as tx:
            hand_on(tx, claimed)
        assert give_back in ("blocked", "interrupted") or client.holds(Task, "a") is None
        assert bob.transition(Task.ref("a"), "in_progress").assigned_to == "bob"
        client.close()
        assert bob.complete(Task.ref("a")).assigned_to == "bob"


class Skilled(Task, columns=("skill",)):
    skill: Annotated[str, StringConstraints(to_lower=True)] = "Any"  # which pydantic leaves as it is


def test_a_default_that_its_field_would_make_another_text_of_is_found_by_claims_and_guards(state, start_engine):
    start_engine(state, models=[Skilled])
    with connect(state, name="ann") as client, connect(state, name="bob") as other:
        wanted = {"skill": "Any"}
        client.create(Skilled(id="a", title="a"))
        assert client.submit(Create(task("b")), guards=[RequireNone(Skilled, wanted)]).error.count == 1
        held = other.claim(Skilled, where=wanted)
        assert held.skill == "Any"
        with client.reader.snapshot() as snap:
            assert readiness.is_anything_left(snap, Skilled, wanted), "for which an agent's loop waits"
        giving_back = threading.Timer(0, other.release, [held])
        giving_back.start()
        assert client.complete(client.claim(Skilled, where=wanted, timeout_s=20)).id == "a"
        giving_back.join()
        assert client.update(Skilled.ref("a"), where=wanted, skill="Any").skill == "any"
        assert client.submit(Create(task("b")), guards=[RequireNone(Skilled, wanted)]).error.count == 1


def test_a_claim_whose_patience_was_over_long_ago_takes_what_is_there(client):
    """What is left until a deadline may be any number below 0."""
    for id in ("a", "b"):
        client.create(task(id))
    assert client.claim(Task, timeout_s=-1000).id == "a"

    async def story() -> None:
        async with aio.connect(client.folder.path, name="other") as other:
            assert (await other.claim(Task, timeout_s=-1000)).id == "b"

    asyncio.run(story())


def test_a_task_whose_agents_die_too_often_is_a_dead_letter(client, victim, wait_until):
    client.create(task("a"))
    victim().kill()
    lost = wait_until(lambda: status(client, "a") is TaskStatus.INTERRUPTED and client.get(Task, "a"), 10, "its loss")
    assert lost.assigned_to is None
    assert lost.claim == lost.version == 3
    assert client.claim(Task) is None
    with client.reader.snapshot() as snap:
        assert dead_letters(snap) == [lost]
        (reason,) = why_not_ready(snap, lost)
    assert reason.obstacle is Obstacle.NO_ATTEMPT_LEFT
    assert str(reason) == "it was interrupted in attempt 1, and 0 retries are allowed: redrive it"
    client.redrive(lost)
    assert client.claim(Task).attempts == 1


def test_an_agent_that_was_stopped_past_its_lease_cannot_complete(client, victim, wait_until):
    client.create(task("a", max_retries=5))
    process = victim(0.2)
    os.kill(process.pid, signal.SIGSTOP)
    claimed = client.claim(Task, timeout_s=60)
    assert (claimed.id, claimed.attempts) == ("a", 2)
    os.kill(process.pid, signal.SIGCONT)
    process.go_on.set()
    process.join(60)
    assert process.exitcode == 7, "it was told that it is fenced"
    assert client.complete(claimed, result="mine").result == "mine"


def test_only_its_claimer_renews_a_lease(client, other):
    client.create(task("a"))
    mine = client.claim(Task, lease_s=60)
    with pytest.raises(InvalidMutation, match="is not claimed here"):
        other.renew(mine, 60)
    client.renew(mine, 60)


@pytest.mark.parametrize("parked", ["blocked", "suspended"])
def test_what_waits_for_people_is_claimed_by_nobody_until_it_is_given_back(client, other, parked):
    client.create(task("a"))
    mine = client.claim(Task)
    asked = client.transition(mine, parked)
    with pytest.raises(InvalidMutation, match=r"^Task 'a' is not claimed here, or not any more"):
        client.renew(asked, 5)
    with pytest.raises(ZeroDivisionError), client.attempt(asked):
        raise ZeroDivisionError
    assert client.get(Task, "a") == asked
    with other.transaction() as tx:
        tx.transition(asked, TaskStatus.ASSIGNED, assigned_to="tester")
        tx.release(asked)
    assert other.claim(Task).attempts == 1
    with pytest.raises(Fenced):
        client.update(mine, title="late", expect=None)


def test_what_waits_for_authorization_stays_with_its_agent(client, other):
    client.create(task("a"))
    mine = client.claim(Task)
    with pytest.raises(ZeroDivisionError), client.attempt(mine):
        asked = client.transition(mine, TaskStatus.AUTH_REQUIRED)
        raise ZeroDivisionError
    with pytest.raises(Fenced):
        other.transition(asked, TaskStatus.ASSIGNED)
    client.renew(asked, 5)
    going_on = client.transition(client.transition(asked, TaskStatus.ASSIGNED), TaskStatus.IN_PROGRESS)
    assert client.complete(going_on).attempts == 1


@pytest.mark.heavy
def test_a_lease_is_renewed_without_a_version(client, other, wait_until):
    client.create(task("a", max_retries=5))
    mine = client.claim(Task, lease_s=2)
    revision = client.reader.revision
    client.renew(mine, 60)
    assert other.claim(Task, timeout_s=2.5) is None, "by now the first lease is over"
    client.renew(mine, 60)
    assert client.reader.revision == revision
    assert client.get(Task, "a") == mine
    client.renew(mine, 0.1)
    assert other.claim(Task, timeout_s=60).claim > mine.claim
    with pytest.raises(Fenced):
        client.renew(mine, 0.4)
    for lease_s in (0, -1, float("nan"), float("inf"), "long"):
        with pytest.raises(InvalidMutation):
            other.claim(Task, lease_s=lease_s)


def test_a_client_that_was_closed_loses_its_tasks_after_a_grace(engine, client, limits):
    client.create(task("a", max_retries=5))
    with connect(engine.state, name="hasty", limits=limits) as hasty:
        assert hasty.claim(Task).id == "a"
        begun = time.monotonic()  # it is not closed before
    assert client.claim(Task, timeout_s=60).id == "a"
    assert time.monotonic() - begun > 0.3


async def claim_and_close(state: Path, limits: Limits, between: Callable[[], object]) -> None:
    async with aio.connect(state, name="hasty", limits=limits) as hasty:
        assert (await hasty.claim(Task)).id == "a"
        await asyncio.to_thread(between)


@pytest.mark.parametrize("ways", ["blocking", "asyncio"])
def test_a_client_that_is_closed_behind_a_restart_without_a_call_loses_its_tasks_too(
    engine, client, limits, wait_until, ways
):
    client.create(task("a", max_retries=5))

    def restart() -> None:
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "the engine to come back")
        assert client.claim(Task, timeout_s=1) is None, "its agent is at work"

    if ways == "blocking":
        with connect(engine.state, name="hasty", limits=limits) as hasty:
            assert hasty.claim(Task).id == "a"
            restart()
    else:
        asyncio.run(claim_and_close(engine.state, limits, restart))
    assert client.claim(Task, timeout_s=60).id == "a"


AT_EXIT = """
import asyncio, atexit, sys
from solewriter import Task, aio

async def begin():
    client = await aio.connect(sys.argv[1])
    assert (await client.claim(Task)).id == "a"
    return client

loop = asyncio.new_event_loop()
client = loop.run_until_complete(begin())
atexit.register(lambda: (loop.run_until_complete(client.close()), loop.close()))
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_client_is_closed_where_the_interpreter_ends_behind_a_restart(engine, client, wait_until):
    """No thread begins any more then, and none need: its process ends."""
    client.create(task("a", max_retries=5))
    with subprocess.Popen(
        [sys.executable, "-P", "-W", "error", "-c", AT_EXIT, engine.state],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as agent:  # fmt: skip
        assert agent.stdout.readline() == "claimed\n"
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "the engine to come back")
        assert client.claim(Task, timeout_s=1) is None, "its agent is at work"
        assert agent.communicate(timeout=20) == ("", "")
    assert client.claim(Task, timeout_s=60).id == "a"


def test_a_forked_childs_end_says_no_farewell_of_its_parents_client(engine, client, limits, wait_until):
    client.create(task("a", max_retries=5))
    with connect(engine.state, name="parent", limits=limits) as parent:
        mine = parent.claim(Task)
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "the engine to come back")
        child = fork.Process(target=parent.close)
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert client.claim(Task, timeout_s=1) is None
        assert parent.complete(mine).status is TaskStatus.COMPLETED


@pytest.mark.parametrize("by", ["the same engine", "the next one"])
def test_what_is_told_once_more_under_its_id_takes_no_newer_claim_away(engine, client, by):
    client.create(task("a"))
    client.claim(Task, request_id="mine")
    client.release(Task.ref("a"), request_id="given back")
    newer = client.claim(Task)
    if by == "the next one":
        os.kill(engine.pid, signal.SIGKILL)
    assert client.claim(Task, request_id="mine").claim < newer.claim, "it is what that request came to"
    assert client.holds(Task, "a") == newer.claim
    assert client.release(Task.ref("a"), request_id="given back").version < newer.version, "likewise"
    assert client.holds(Task, "a") == newer.claim
    assert client.complete(newer).status is TaskStatus.COMPLETED


def test_of_clients_that_are_closed_and_hold_nothing_an_engine_holds_nothing(start_engine, state, limits, wait_until):
    """It watches their process for those that have claims, of which it may hear that that ended."""
    lasting = msgspec.structs.replace(limits, session_grace_s=3600.0)
    engine = start_engine(state, limits=lasting)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{engine.pid}/fd"))

    with connect(state, limits=limits) as client:
        make(client, *(task(id, max_retries=5) for id in "ab"))
        mine = client.claim(Task)
        before = descriptors()
        for _ in range(8):
            with connect(state, limits=limits) as passing:
                passing.complete(passing.claim(Task))
                passing.claim(Task)
                make(passing, task(f"of {passing.client_id}", max_retries=5))
        wait_until(lambda: descriptors() <= before, 20, "those who are gone to be let go")
        with connect(state, limits=limits) as holder:
            kept = holder.claim(Task)
        wait_until(lambda: descriptors() == before + 1, 20, "the one that has a claim to be watched")
        assert {status(client, one.id) for one in (mine, kept)} == {TaskStatus.IN_PROGRESS}


def test_what_one_request_claims_or_renews_and_ends_is_nobodys_when_its_agent_ends(engine, client, limits, wait_until):
    with connect(engine.state, name="hasty", limits=limits) as hasty:
        hasty.create(task("a", max_retries=5))
        hasty.submit(Claim(Task), Complete(Task.ref("a"))).check()
        hasty.create(task("b", max_retries=5))
        hasty.submit(Claim(Task), Cancel(Task.ref("b"))).check()
        hasty.create(task("c", max_retries=5))
        mine = hasty.claim(Task)
        hasty.submit(Renew(mine, 60), Complete(mine)).check()
        hasty.create(task("d", max_retries=5))
        mine = hasty.claim(Task, lease_s=60)
        hasty.submit(Delete(mine), Create(task("d", not_before=SOME_DAY)), Renew(mine, 60)).check()
        left = [client.get(Task, id) for id in "abcd"]
        assert client.update(left[0], description="anybody may").description == "anybody may"
        make(hasty, task("e", max_retries=5))
        assert hasty.claim(Task).id == "e"
    wait_until(lambda: status(client, "e") is TaskStatus.INTERRUPTED, 20, "the last claim to be lost")
    assert [client.get(Task, id) for id in "bcd"] == left[1:]
    assert (status(client, "a"), left[3].status) == (TaskStatus.COMPLETED, TaskStatus.CREATED)


def test_a_session_that_is_resumed_within_its_grace_keeps_its_tasks(start_engine, state, limits):
    """By the time at which another one, which ended behind it, has lost what it had."""
    start_engine(state, limits=msgspec.structs.replace(limits, session_grace_s=2))
    with connect(state, name="tester") as client:
        make(client, task("a", max_retries=5), task("b", max_retries=5))
        with connect(state, name="first", client_id="resumed") as first:
            mine = first.claim(Task)
        with connect(state, name="second", client_id="resumed") as second:
            with connect(state, name="hasty") as hasty:
                assert hasty.claim(Task).id == "b"
            assert client.claim(Task, timeout_s=60).id == "b"
            assert client.claim(Task) is None
            second.hold(second.get(Task, "a"))
            assert second.complete(mine).status is TaskStatus.COMPLETED


def test_what_is_lost_while_its_class_is_not_known_is_ready_when_it_is(start_engine, state, limits):
    first = start_engine(state, models=[Chore], limits=limits)
    with connect(state, name="me", limits=limits) as client:
        client.create(Chore(id="a", title="a"))
        assert client.claim(Chore, lease_s=0.01).id == "a"
        first.stop()
        engine = start_engine(state, limits=limits)
        assert client.create(task("b")).version == 1, "by now it is over"
        engine.register(Chore)
        with connect(state, name="other", limits=limits) as other:
            assert other.claim(Chore, timeout_s=60).id == "a"


def test_whoever_is_not_cancelled_does_not_count(start_engine, state, limits):
    start_engine(state, limits=msgspec.structs.replace(limits, cascade_max=3))
    with connect(state, name="me", limits=limits) as client:
        make(client, task("a"), *(task(f"after a {n}", dependencies=("a",), parent_task_id="root") for n in range(5)))
        make(client, task("z", dependencies=("a",), on_dependency_failure="cancel", parent_task_id="root"))
        client.cancel(Task.ref("a"))
        assert status(client, "z") is TaskStatus.CANCELLED
        make(client, task("root"), task("zz", parent_task_id="root"))
        with pytest.raises(RequestTooLarge):
            client.cancel(Task.ref("root"), tree=True)
        for number in range(5):
            client.cancel(Task.ref(f"after a {number}"))
        client.cancel(Task.ref("root"), tree=True)
        assert status(client, "zz") is TaskStatus.CANCELLED


def test_what_a_request_changes_besides_does_not_count_as_cancelled(start_engine, state, limits):
    start_engine(state, limits=msgspec.structs.replace(limits, cascade_max=2))
    with connect(state, name="me", limits=limits) as client:
        make(client, task("a"), *(task(f"other {n}") for n in range(5)))
        make(client, *(task(id, dependencies=("a",), on_dependency_failure="cancel") for id in ("with it", "too")))
        make(client, task("below", parent_task_id="other 0"))
        with client.transaction() as tx:
            for number in range(5):
                tx.update(Task.ref(f"other {number}"), description="changed")
            tx.cancel(Task.ref("a"))
        assert [status(client, id) for id in ("with it", "too")] == [TaskStatus.CANCELLED] * 2
        with client.transaction() as tx:
            for number in range(1, 5):
                tx.update(Task.ref(f"other {number}"), description="again")
            tx.cancel(Task.ref("other 0"), tree=True)
        assert status(client, "below") is TaskStatus.CANCELLED


def test_of_a_tree_whose_root_is_completed_nothing_is_cancelled(client):
    make(client, task("root", priority="high"), task("part", parent_task_id="root"))
    make(client, task("detail", parent_task_id="part"))
    client.complete(client.claim(Task))
    with pytest.raises(InvalidTransition):
        client.cancel(Task.ref("root"), tree=True)
    assert [client.get(Task, id).status for id in ("part", "detail")] == ["created", "created"]
    client.complete(client.claim(Task, where={"parent_task_id": "root"}))
    client.cancel(client.create(task("above")), tree=True)
    client.update(Task.ref("root"), parent_task_id="above")
    client.cancel(Task.ref("above"), tree=True)  # is cancelled already
    assert [client.get(Task, id).status for id in ("root", "part", "detail")] == ["completed", "completed", "cancelled"]


def test_a_tree_is_as_the_earlier_mutations_of_its_request_left_it(start_engine, state, limits):
    start_engine(state, limits=limits)
    with connect(state, name="me", limits=limits) as client:
        make(client, task("root"), task("other"), task("leaves", parent_task_id="root"), task("comes"), task("is gone"))
        make(client, task("below it", parent_task_id="leaves"), task("below that", parent_task_id="comes"))
        with client.transaction() as tx:
            tx.update(Task.ref("leaves"), parent_task_id="other")
            tx.update(Task.ref("comes"), parent_task_id="root")
            tx.delete(Task.ref("is gone"))
            tx.create(task("new", parent_task_id="below that"))
            tx.cancel(Task.ref("root"), tree=True)
        with client.reader.snapshot() as snap:
            assert sorted(snap.ids(Task, {"status": "cancelled"})) == ["below that", "comes", "new", "root"]
            assert sorted(snap.ids(Task, {"status": "created"})) == ["below it", "leaves", "other"]


def test_what_would_cancel_too_many_when_it_is_lost_is_interrupted_alone(start_engine, state, limits, wait_until):
    start_engine(state, limits=msgspec.structs.replace(limits, cascade_max=3))
    with connect(state, name="me", limits=limits) as client:
        make(client, task("a"))
        make(client, *(task(str(n), dependencies=("a",), on_dependency_failure="cancel") for n in range(4)))
        mine = client.claim(Task, lease_s=0.01)
        wait_until(lambda: status(client, "a") is TaskStatus.INTERRUPTED, 10, "its time is up")
        with pytest.raises(Fenced):
            client.complete(mine)
        with client.reader.snapshot() as snap:
            assert [reason.data["id"] for reason in why_not_ready(snap, snap[Task, "0"])] == ["a"]
        client.redrive(Task.ref("a"))
        client.complete(client.claim(Task))
        assert len(client.claim_many(Task, 9)) == 4


TAKES_TIME = {"slow": partial(time.sleep, 0.03), "endless": partial(time.sleep, 3_600)}


class Slow(Task):
    """Its model takes its time to be interrupted, or never comes back, or does not let it be cancelled."""

    @model_validator(mode="after")
    def _take_time(self) -> Slow:
        if self.status is TaskStatus.INTERRUPTED and self.title in TAKES_TIME:
            TAKES_TIME[self.title]()
        if self.status is TaskStatus.CANCELLED and self.title == "stubborn":
            raise ValueError("not this one")
        return self


def test_claims_that_are_slow_to_take_away_keep_nobody_waiting_for_all_of_them(start_engine, state, limits):
    start_engine(state, models=[Slow], limits=limits)
    with connect(state, name="me", limits=limits) as client, connect(state, name="hasty", limits=limits) as hasty:
        for number in range(4):
            client.create(Slow(id=f"s{number}", title="slow"))
        client.create(task("t"))
        assert len(hasty.claim_many(Slow, 9, lease_s=0.05)) == 4

        def busy() -> Iterator[Update]:
            while client.get(Slow, "s3").status is TaskStatus.IN_PROGRESS:
                yield Update(Task.ref("t"), {"max_retries": client.reader.revision % 50})

        for reply in client.submit_many(busy(), window=4):
            reply.check()
        lost = [next(client.reader.history(Slow, f"s{number}")) for number in range(4)]
        assert [change.mutation for change in lost] == ["expire"] * 4
        assert lost[-1].revision - lost[0].revision > 3, "somebody was served in between"


def test_a_task_whose_model_never_lets_it_be_interrupted_is_nobodys(start_engine, state, limits, wait_until):
    engine = start_engine(state, models=[Slow], limits=msgspec.structs.replace(limits, decide_timeout_s=0.1))
    with connect(state, name="me", limits=limits) as client, connect(state, name="hasty", limits=limits) as hasty:
        make(client, *(Slow(id=f"e{number}", title="endless") for number in range(2)))
        assert len(hasty.claim_many(Slow, 9, lease_s=0.01)) == 2
        for id in ("e0", "e1"):
            wait_until(lambda id=id: not refused_as_held(client, id), 20, "nobody has it")
            assert client.get(Slow, id).status is TaskStatus.IN_PROGRESS
    assert engine.restarts == 0


def refused_as_held(client: Client, id: str) -> bool:
    try:
        client.update(Slow.ref(id), description="anybody may")
    except Fenced:
        return True
    return False


def test_what_cannot_be_cancelled_with_a_lost_task_does_not_keep_that_from_being_interrupted(
    start_engine, state, limits, wait_until
):
    start_engine(state, models=[Slow], limits=limits)
    with connect(state, name="me", limits=limits) as client:
        make(client, Slow(id="a", title="quick"))
        make(client, Slow(id="b", title="stubborn", dependencies=("a",), on_dependency_failure="cancel"))
        mine = client.claim(Slow, lease_s=0.01)
        wait_until(lambda: client.get(Slow, "a").status is TaskStatus.INTERRUPTED, 20, "its time is up")
        with client.reader.snapshot() as snap:
            assert [reason.data["id"] for reason in why_not_ready(snap, snap[Slow, "b"])] == ["a"]
        with pytest.raises(Fenced):
            client.complete(mine)
        client.redrive(Slow.ref("a"))
        client.complete(client.claim(Slow))
        assert client.claim(Slow).id == "b"


def test_an_engines_restart_is_nobodys_death(engine, client, other, victim, wait_until):
    client.create(task("a", max_retries=5))
    client.create(task("b", max_retries=5))
    mine = client.claim(Task)
    process = victim()
    for number in range(3):
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda number=number: engine.restarts == number + 1, 20, "the engine to come back")
        assert other.claim(Task) is None
        client.update(mine, description=f"still here {number}", expect=None)
    process.kill()
    process.join()
    assert other.claim(Task, timeout_s=60).id == "b"
    assert client.complete(mine).status is TaskStatus.COMPLETED


@pytest.mark.heavy
def test_claims_survive_a_checkpoint_and_what_the_dead_held_is_found_by_the_next_engine(
    start_engine, state, limits, wait_until
):
    small = {name: getattr(limits, name) for name in limits.__struct_fields__}
    limits = Limits(**{**small, "checkpoint_after_bytes": 64 * 1024, "session_grace_s": 3600.0})
    engine = start_engine(state, limits=limits)
    with connect(engine.state, name="a", limits=limits) as client:
        client.create(task("a", max_retries=5))
        client.create(task("b", max_retries=5))
        mine = client.claim(Task)
        told, go_on = fork.Event(), fork.Event()
        process = fork.Process(target=hold_on, args=(state, limits, told, None, go_on))
        process.start()
        assert told.wait(60)
        ballast = client.create(Project(name="ballast"))
        for number in range(400):
            ballast = client.update(ballast, description=str(number) * 100)
        wait_until(lambda: list(Path(state).glob("checkpoint-*[0-9]")), 20, "a checkpoint")
        os.kill(engine.pid, signal.SIGSTOP)
        process.kill()
        process.join()
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "the engine to come back")
        assert client.claim(Task, timeout_s=60).id == "b", "it is not waited for"
        assert client.complete(mine).status is TaskStatus.COMPLETED


# --- retries ----------------------------------------------------------------------------------------------------------


def test_a_failed_task_rests_longer_each_time_and_ends_as_a_dead_letter(client):
    client.create(task("a", max_retries=3, retry_delay_s=0.05))
    rests = []
    for attempt in range(1, 5):
        claimed = client.claim(Task, timeout_s=60)
        assert claimed.attempts == attempt
        assert claimed.not_before is None
        failed = client.fail(claimed, result={"why": "flaky"}, reason="flaky")
        assert (failed.status, failed.assigned_to, failed.result["why"]) == (TaskStatus.FAILED, None, "flaky")
        rests.append(failed.not_before and (failed.not_before - failed.updated_at).total_seconds())
    assert rests[3] is None
    for rest, whole in zip(rests, (0.05, 0.1, 0.2), strict=False):
        assert whole / 2 <= rest <= whole
    assert client.claim(Task, timeout_s=0.3) is None
    with client.reader.snapshot() as snap:
        assert [letter.id for letter in dead_letters(snap)] == ["a"]


def an_end_of_attempts(one, other):
    one.create(task("a", max_retries=1))
    for _ in range(2):
        one.fail(one.claim(Task, timeout_s=60))
    assert other.claim(Task, timeout_s=3) is None  # where that is wrong, it comes within this time


def an_old_token_that_is_fenced(one, other):
    one.create(task("a", max_retries=3))
    late = one.claim(Task, lease_s=0.05)
    assert other.claim(Task, timeout_s=60).claim > late.claim
    try:
        one.complete(late)
    except Fenced:
        return
    raise AssertionError("another agent's task was handed in")


def attempts_without_end():
    from solewriter.engine_proc.coordination import board

    board.has_attempts_left = lambda field: True


def old_tokens_are_good():
    from solewriter.engine_proc.decide import guards

    def show(draft, kind, key, token):
        step = draft.before(kind, key)
        draft.shown[step.state.code, key] = step.field("claim")

    guards.show = show


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("scene", "bug"), [(an_end_of_attempts, attempts_without_end), (an_old_token_that_is_fenced, old_tokens_are_good)]
)
def test_a_seeded_bug_of_claims_is_seen(tmp_path, start_engine, seeded, scene, bug):
    for number, models in enumerate(([], [seeded(bug)])):
        start_engine(tmp_path / str(number), models=models)
        with connect(tmp_path / str(number), name="one") as one, connect(tmp_path / str(number), name="other") as other:
            if not models:
                scene(one, other)
            else:
                with pytest.raises(AssertionError):
                    scene(one, other)


def test_a_final_failure_is_not_tried_again(client):
    client.create(task("a", max_retries=3))
    failed = client.fail(client.claim(Task), final=True)
    assert failed.attempts == 4
    assert client.claim(Task, timeout_s=0.1) is None
    assert client.redrive(failed).attempts == 0
    assert client.claim(Task).id == "a"
    with pytest.raises(InvalidTransition):
        client.redrive(Task.ref("a"))


def test_a_task_that_rests_is_ready_when_it_is_redriven(client):
    client.create(task("a", max_retries=1, retry_delay_s=7200))
    assert client.fail(client.claim(Task)).not_before is not None
    assert client.claim(Task) is None
    assert client.redrive(Task.ref("a")).not_before is None
    assert client.claim(Task).id == "a"


def test_a_final_failure_that_takes_the_retries_back_forgets_no_attempt(client):
    client.create(task("a", max_retries=3, retry_delay_s=0))
    for _ in range(2):
        client.fail(client.claim(Task))
    failed = client.fail(client.claim(Task), final=True, max_retries=0)
    assert (failed.attempts, failed.max_retries) == (3, 0)


def test_a_task_may_ask_for_any_rest(client):
    make(client, task("a", max_retries=3, retry_delay_s=1e300))
    rests_until = client.fail(client.claim(Task)).not_before
    assert rests_until > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365)


@pytest.mark.heavy
def test_a_rest_goes_on_over_a_restart(client, engine, wait_until):
    """One that is over soon, and one that is not."""
    make(client, task("a", max_retries=3, retry_delay_s=1), task("b", max_retries=3, retry_delay_s=600))
    failed, _ = [client.fail(one) for one in client.claim_many(Task, 2)]
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: engine.restarts == 1, 20, "the engine to come back")
    claimed = client.claim(Task, timeout_s=60)
    assert claimed.id == "a"
    assert claimed.updated_at >= failed.not_before
    assert client.claim(Task) is None


# --- projects and guards ----------------------------------------------------------------------------------------------


class Sweeping(Task, columns=("room",)):
    room: str = ""


class PickySweeping(Sweeping, kind="Sweeping"):
    @field_validator("room")
    @classmethod
    def _known(cls, room):
        if room == "attic":
            raise ValueError("there is no attic")
        return room


def test_a_task_that_its_class_cannot_read_is_told_in_words_and_is_nothing_that_is_left(state, start_engine):
    engine = start_engine(state, models=[Sweeping])
    with connect(state) as client:
        client.create(Sweeping(id="old", title="t"))
        seen = client.get(PickySweeping, "old")
        client.create(Sweeping(id="next", title="t", dependencies=("old",)))
        client.update(Sweeping.ref("old"), room="attic", project="house", cost=1.5)
    engine.stop()
    start_engine(state, models=[PickySweeping])
    with connect(state) as client:
        with client.reader.snapshot() as snap:
            reasons = why_not_ready(snap, seen)
            assert [reason.obstacle for reason in reasons] == [Obstacle.UNREADABLE]
            assert str(reasons[0]).startswith(
                "its class cannot read what is stored of it: Sweeping 'old' was stored under"
            )
            assert "room: Value error, there is no attic" in str(reasons[0])
            (reason,) = why_not_ready(snap, snap[PickySweeping, "next"])
            assert str(reason) == "it depends on old, which is created, and which its class cannot read"
            assert reason.data == {"id": "old", "status": "created"}
        assert list(client.work(PickySweeping)) == []
        client.create(Project(id="house", name="house", budget_limit=2.0))
        client.create(PickySweeping(id="last", title="t", project="house", cost=0.5))
        with client.reader.snapshot() as snap:
            assert budget_of(snap, "house").spent == 2.0
            assert [reason.obstacle for reason in why_not_ready(snap, snap[PickySweeping, "last"])] == [Obstacle.BUDGET]
        assert client.claim(PickySweeping) is None, "the engine counts the same"
        client.update(Project.ref("house"), budget_limit=None)
        client.update(PickySweeping.ref("old"), room="hall")
        for task in client.work(PickySweeping):
            client.complete(task)
        assert client.reader.snapshot().count(PickySweeping, {"status": TaskStatus.COMPLETED}) == 3


def test_a_project_that_spent_its_budget_has_nothing_to_claim(client, wait_until):
    client.create(Project(id="p", name="p", budget_limit=1.0))
    make(client, *(task(str(n), project="p") for n in range(4)), task("elsewhere", cost=5.0))
    first, second = client.claim_many(Task, 2)
    client.alter(first, cost=Increment(0.7))
    assert client.claim(Task, where={"project": "p"}).id == "2", "what is spent is below the limit"
    client.complete(second, cost=0.3)
    assert client.claim(Task).id == "elsewhere"
    assert client.claim(Task) is None
    with client.reader.snapshot() as snap:
        assert budget_of(snap, "p").over
        (reason,) = why_not_ready(snap, snap[Task, "3"])
        assert (reason.obstacle, reason.data["limit"]) == (Obstacle.BUDGET, 1.0)
    client.complete(first)
    result = in_thread(lambda: client.claim(Task, timeout_s=60))
    wait_until(lambda: waiting_claims(client), 5, "the claim to be sent")
    client.update(Project.ref("p"), budget_limit=1.5)
    assert result().id == "3"


def test_costs_of_less_than_a_millionth_add_up(client):
    client.create(Project(id="p", name="p", budget_limit=0.000_01))
    make(client, *(task(str(number), project="p", cost=0.000_000_4) for number in range(23)))
    assert client.claim(Task).id == "0"
    client.update(Task.ref("1"), cost=0.000_001_2)
    assert client.claim(Task) is None, "together they cost 0.000 01"
    with client.reader.snapshot() as snap:
        assert budget_of(snap, "p").over


def test_what_is_no_task_and_no_project_is_told_to_whoever_asks_about_one(client):
    with client.reader.snapshot() as snap:
        for wrong in (None, "a", Task.ref("a"), Project(id="p", name="p")):
            with pytest.raises(TypeError, match=r"why_not_ready takes a task, such as snap\[Task, id\], not "):
                why_not_ready(snap, wrong)
        for wrong in (None, Project.ref("p"), task("a")):
            with pytest.raises(TypeError, match="budget_of takes a project, or its id, not "):
                budget_of(snap, wrong)


def test_a_budget_that_only_warns_and_costs_that_are_taken_back(client):
    client.create(Project(id="p", name="p", budget_limit=0.0, on_budget="warn"))
    make(client, task("a", project="p"), task("b", project="p"), task("c", project="p"))
    assert client.claim(Task).id == "a"
    client.update(Project.ref("p"), on_budget="refuse", budget_limit=1.0)
    client.update(Task.ref("a"), cost=1.0)
    assert client.claim(Task) is None
    client.update(Task.ref("a"), project="q")
    assert client.claim(Task).id == "b"
    client.update(Task.ref("b"), cost=3.0)
    assert client.claim(Task) is None
    client.delete(Task.ref("b"))
    assert client.claim(Task).id == "c"
    with client.reader.snapshot() as snap:
        assert budget_of(snap, "p").spent == 0
        assert budget_of(snap, "q").limit is None


def test_a_budget_and_costs_may_be_any_finite_numbers(client, engine):
    client.create(Project(id="p", name="p", budget_limit=sys.float_info.max))
    make(client, *(task(id, project="p", cost=cost) for id, cost in {"a": 1e303, "b": 0.5, "c": 1.0}.items()))
    assert client.claim(Task).id == "a"
    client.update(Task.ref("a"), cost=sys.float_info.max)
    assert client.claim(Task) is None, "all of it is spent"
    with client.reader.snapshot() as snap:
        assert budget_of(snap, "p").over
    client.update(Task.ref("b"), cost=sys.float_info.max)
    client.update(Task.ref("a"), cost=1e303)
    client.update(Task.ref("b"), cost=0.25)
    assert client.claim(Task).id == "b", "to the last millionth"
    client.update(Project.ref("p"), budget_limit=1e303)
    client.alter(Task.ref("b"), cost=Increment(1e308))
    client.update(Task.ref("a"), cost=1e308)
    with client.reader.snapshot() as snap:
        assert budget_of(snap, "p").spent == math.inf
        assert [reason.obstacle for reason in why_not_ready(snap, snap[Task, "c"])] == [Obstacle.BUDGET]
    assert engine.restarts == 0


class Door(Entity, columns=("status", "created_at")):
    """No task, though it may fail."""

    status: str
    created_at: AwareDatetime | None = None


class Mend(Task):
    """Another kind of task, in whose columns projects are."""


class Errand(Task, columns=("status",)):
    """One that declares other columns, and must name its project."""

    project: str


def test_a_budget_is_of_all_kinds_of_tasks_and_who_asks_needs_few_classes(state, start_engine):
    start_engine(state, models=[Mend, Errand])
    with connect(state, name="tester") as client:
        client.create(Project(id="p", name="p", budget_limit=1.0))
        client.create(Task(id="t", title="t", project="p", cost=0.25))
        client.create(Mend(id="m", title="m", project="p", cost=0.5))
        errand = client.create(Errand(id="e", title="e", project="p"))
        client.create(Errand(id="elsewhere", title="e", project="q", cost=7.0))
        with client.reader.snapshot() as snap:
            assert why_not_ready(snap, snap[Task, "t"]) == []
        client.update(errand, cost=0.25)
        assert client.claim(Task) is None
        with client.reader.snapshot() as snap:
            assert [reason.obstacle for reason in why_not_ready(snap, snap[Task, "t"])] == [Obstacle.BUDGET]
            assert (budget_of(snap, "p").spent, budget_of(snap, "p", Task, Errand).spent) == (1.0, 0.5)
            assert budget_of(snap, "p", Task, "Errand", Errand, Task, "Task").spent == 0.5, "each kind once"
    with open_reader(state) as reader, reader.snapshot() as snap:
        assert budget_of(snap, "p").spent == 0.75, "without its class an errand is no task"
        assert budget_of(snap, "p", Errand).spent == 0.25
        assert budget_of(snap, "p").spent == 1.0


def test_a_guard_on_emptiness_sees_what_the_same_turn_did(client):
    def night_run(number):
        none = RequireNone(Task, {"project": "night", "status": OPEN})
        return client.submit(Create(task(f"run-{number}", project="night")), guards=[none])

    assert night_run(1).applied
    refused = night_run(2)
    assert isinstance(refused.error, GuardFailed)
    assert refused.error.count == 1
    client.complete(client.claim(Task, where={"project": "night"}))
    assert night_run(3).applied
    client.update(Task.ref("run-3"), project="day")
    assert night_run(4).applied
    client.delete(Task.ref("run-4"))
    with client.transaction() as tx:
        tx.require_none(Task, {"project": "night", "status": OPEN, "created_at": Range(ge=OLD)})
        tx.create(task("run-5", project="night"))
    with pytest.raises(GuardFailed), client.transaction() as tx:
        tx.require_none(Task, {"project": "night", "created_at": Range(ge=OLD)})
        tx.create(task("run-6", project="night"))
    with pytest.raises(InvalidMutation), client.transaction() as tx:
        tx.require_none(Task, {"title": "x"})
    client.create(Project(id="p", name="p", owner="ann"))
    with pytest.raises(GuardFailed), client.transaction() as tx:
        tx.require_none(Project, {"owner": "ann"})


def test_a_guard_that_there_is_nothing_of_a_kind_sees_what_came_since_it_was_asked_first(client):
    def project(id):
        return client.submit(Create(Project(id=id, name=id)), guards=[RequireNone(Project, {})])

    assert project("a").applied
    client.update(Project.ref("a"), description="the only one")
    assert project("b").error.count == 1
    client.delete(Project.ref("a"))
    assert project("b").applied


class Scored(Task, columns=("score",)):
    score: float | None = Field(default=None, allow_inf_nan=True)


def test_a_number_that_is_none_counts_as_none_to_whoever_asks(state, start_engine):
    start_engine(state, models=[Scored])
    with connect(state, name="tester") as client:
        make(client, Scored(id="a", title="a", score=math.nan), Scored(id="b", title="b"), Scored(id="c", title="c"))
        client.update(Scored.ref("c"), score=-math.nan)
        with client.reader.snapshot() as snap:
            assert snap.ids(Scored, {"score": None}) == ["a", "b", "c"]
        for where in ({"score": None}, {"score": [None, 1.0, 2.0, 3.0, 4.0]}):
            assert client.submit(guards=[RequireNone(Scored, where)]).error.count == 3
        assert client.submit(guards=[RequireNone(Scored, {"score": Range(ge=-math.inf)})]).applied
        assert client.update(Scored.ref("a"), where={"score": None}, title="asked for").title == "asked for"
        assert client.update(client.get(Scored, "a"), title="merged", score=math.nan, merge=True).title == "merged"
        assert [task.id for task in client.claim_many(Scored, 5, where={"score": None})] == ["a", "b", "c"]


class Risen(Task, columns=("rise",)):
    rise: float = 1.0
    floor: float = 0


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_is_zero_to_whoever_asks_whatever_its_sign(state, start_engine, zero):
    """Sums and roundings make either."""
    start_engine(state, models=[Risen])
    with connect(state, name="tester") as client:
        read = client.create(Risen(id="a", title="a", rise=-zero))
        for where in ({"rise": zero}, {"rise": [2.0, zero, 3.0]}):
            with client.reader.snapshot() as snap:
                assert snap.ids(Risen, where) == ["a"]
            assert client.submit(guards=[RequireNone(Risen, where)]).error.count == 1
            assert client.submit(guards=[RequireFields(Risen.ref("a"), where)]).applied
            client.release(client.claim(Risen, where=where))
        assert client.submit(guards=[RequireFields(Risen.ref("a"), {"floor": zero})]).applied
        client.update(Risen.ref("a"), rise=zero)
        assert client.update(read, rise=5.0, merge=True).rise == 5.0
        assert client.submit(guards=[RequireFields(Risen.ref("a"), {"rise": zero})]).error


class Team(Project):
    """What subclasses Project is no project of tasks."""


def test_a_reply_that_brings_no_entity_says_none(client):
    make(client, task("a"), task("b"))
    both = client.submit(Claim(Task, count=3))
    assert (both.entity.id, len(both.entities)) == ("a", 2)
    for none in (client.submit(Claim(Task)), client.submit(guards=[RequireNone(Task, {"project": "x"})])):
        assert none.check().entity is None
        assert none.entities == ()


def test_only_a_project_itself_keeps_its_tasks_back(state, start_engine):
    start_engine(state, models=[Team])
    with connect(state, name="tester") as client:
        for id in ("t", "p", "poor"):
            client.create(Team(id=id, name=id, budget_limit=0.0))
        client.transition(Team.ref("t"), ProjectStatus.PAUSED)
        client.create(Project(id="p", name="p"))
        client.transition(Project.ref("p"), ProjectStatus.PAUSED)
        make(client, task("a", project="t"), task("b", project="p"), task("c", project="poor"))
        for first in ("a", "c"):
            with client.reader.snapshot() as snap:
                assert why_not_ready(snap, snap[Task, first]) == []
            assert client.claim(Task).id == first
        assert client.claim(Task) is None
        client.update(Team.ref("p"), owner="somebody")
        client.delete(Team.ref("p"))
        assert client.claim(Task) is None, "the project is still paused"
        client.create(Project(id="poor", name="poor", budget_limit=0.0))
        client.release(Task.ref("c"))
        client.update(Team.ref("poor"), budget_limit=5.0)
        assert client.claim(Task) is None, "nor has it a budget"
        client.transition(Project.ref("p"), ProjectStatus.ACTIVE)
        assert client.claim(Task).id == "b"


class Page(Entity, columns=("id", "owner")):
    owner: str = ""


class Numbered(Task, columns=("id",)):
    """One that can be claimed by its id."""


def test_an_id_can_be_asked_for_where_it_is_a_column(state, start_engine):
    start_engine(state, models=[Page, Numbered])
    with connect(state, name="tester") as client:
        for id in ("a", "b"):
            client.create(Page(id=id, owner="ann"))
        make(client, Numbered(id="i", title="i"), Numbered(id="j", title="j"))
        where = {"id": ["a", "z"], "owner": "ann"}
        for _ in range(2):  # it is looked for, and then it is known
            refused = client.submit(Create(Page(id="c")), guards=[RequireNone(Page, where)])
            assert isinstance(refused.error, GuardFailed)
        client.delete(Page.ref("a"))
        assert client.submit(Create(Page(id="z", owner="ann")), guards=[RequireNone(Page, where)]).applied
        assert client.submit(Create(Page(id="c")), guards=[RequireNone(Page, where)]).error.count == 1
        assert client.claim(Numbered, where={"id": "none"}) is None
        assert client.claim(Numbered, where={"id": "j"}).id == "j"
        client.create(Numbered(id="k", title="k"))
        assert client.claim(Numbered, where={"id": Range(ge="j")}).id == "k"


# --- work -------------------------------------------------------------------------------------------------------------


def do_work(state: Path, limits: Limits, name: str) -> None:
    with connect(state, name=name, limits=limits) as client:
        for claimed in client.work(Task, project="p"):
            client.complete(claimed, result=name)


@pytest.mark.heavy
def test_work_goes_on_until_nothing_is_left(client, engine, limits):
    make(client, *(task(str(n), project="p", dependencies=(str(n - 1),) if n % 5 else ()) for n in range(60)))
    make(client, task("other", project="q"))
    client.fail(client.claim(Task, where={"project": "q"}), final=True)
    make(client, task("never", project="p", dependencies=("other",)))
    agents = [fork.Process(target=do_work, args=(engine.state, limits, f"agent-{n}")) for n in range(3)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(60)
        assert agent.exitcode == 0
    with client.reader.snapshot() as snap:
        counts = snap.count_by(Task, "status", where={"project": "p"})
        assert counts == {TaskStatus.CREATED: 1, TaskStatus.COMPLETED: 60}
        assert all(one.attempts == 1 for one in snap.scan(Task, where={"status": "completed"}))


def test_dependencies_and_trees_are_of_one_kind_and_work_ends_beside_what_waits_for_others(client, engine):
    engine.register(Chore)
    make(client, task("root", project="q"), Chore(id="part", title="part", parent_task_id="root"))
    with pytest.raises(InvalidMutation, match="there is no such Chore"):
        client.create(Chore(title="next", dependencies=("root",)))
    make(client, task("waits", project="p", dependencies=("root",)))
    held = client.claim(Task)
    assert held.id == "root"
    assert list(client.work(Task, project="p")) == [], "though somebody works at what it waits for"
    client.cancel(held, tree=True)
    assert client.get(Chore, "part").status is TaskStatus.CREATED


def test_an_idle_agent_looks_at_few_of_the_tasks_that_rest(client, monkeypatch):
    """Counted in tasks that are decoded or taken from what is kept: each idle agent does this once a second."""
    looked, decoded = 0, Decoder.decode

    def counted(decoder: Decoder, *what: Any) -> Any:
        nonlocal looked
        looked += 1
        return decoded(decoder, *what)

    monkeypatch.setattr(Decoder, "decode", counted)
    make(client, task("ended"), task("rests", project="p", max_retries=3))
    client.cancel(Task.ref("ended"))
    client.fail(client.claim(Task), not_before=SOME_DAY)
    make(client, *(task(f"blocked {n}", project="p", dependencies=("ended",)) for n in range(300)))
    make(client, *(task(f"rests {n}", project="q", not_before=SOME_DAY) for n in range(300)))
    for project in "pq":
        with client.reader.snapshot() as snap:
            looked = 0
            assert is_anything_left(snap, Task, {"project": project})
            assert looked < 100
    client.cancel(Task.ref("rests"))
    with client.reader.snapshot() as snap:
        looked = 0
        assert not is_anything_left(snap, Task, {"project": "p"})
        assert 300 <= looked < 700, "each of them, and what they depend on"


def test_an_idle_agent_asks_for_no_budget_of_what_is_kept_back_anyway(client, monkeypatch):
    """Summed over all tasks of a project, once a second."""
    asked: list[str] = []

    def counted(snap: Any, project: Project) -> Any:
        asked.append(project.id)
        return budget_of(snap, project)

    monkeypatch.setattr(readiness, "budget_of", counted)
    for id in "pq":
        client.create(Project(id=id, name=id, budget_limit=1.0))
    make(client, task("ended", project="q"), task("spent", project="q", not_before=SOME_DAY))
    client.cancel(Task.ref("ended"))
    make(client, *(task(f"blocked {n}", project="p", dependencies=("ended",)) for n in range(3)))
    with client.reader.snapshot() as snap:
        assert not is_anything_left(snap, Task, {"project": "p"})
        assert asked == []
        assert is_anything_left(snap, Task, {"project": "q"})
        assert asked == ["q"]


def test_a_claim_that_waits_takes_no_room_from_what_its_client_does_meanwhile(engine, client, limits, wait_until):
    """What was sent and answered behind it is not in flight any more; and after a death of the engine, it goes on."""
    few = msgspec.structs.replace(limits, window_bytes_max=8 * KIB)

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=few) as agent:
            waiting = asyncio.create_task(agent.claim(Task, timeout_s=60))
            while not agent._session.waiting:
                await asyncio.sleep(0)
            for number in range(50):
                await agent.put(Project(id="p", name=f"{number} " * 200), timeout_s=60)
            assert agent._session.bytes_in_flight < KIB
            assert sum(len(frame.data) for frame in agent._session._frames) < KIB
            for dead in range(2):
                os.kill(engine.pid, signal.SIGKILL)
                await asyncio.to_thread(wait_until, lambda dead=dead: engine.restarts == dead + 1, 20, "a restart")
                assert (await agent.put(Project(id="p", name=f"after {dead}"))).version == 51 + dead
            assert not waiting.done()
            await agent.create(task("a"))
            assert (await waiting).id == "a"
            assert (await agent.complete(Task.ref("a"))).status is TaskStatus.COMPLETED
            assert agent._session.in_flight == len(agent._session._frames) == agent._session.bytes_in_flight == 0

    asyncio.run(story())


def test_coroutines_do_the_same(engine, client, limits):
    make(client, *(task(str(n), max_retries=1) for n in range(6)))

    async def story() -> list[str]:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            first = await agent.claim(Task)
            assert (await agent.complete(first, result=1)).result == 1
            second, third = await agent.claim_many(Task, 2, lease_s=60)
            await agent.renew(second, 30)
            assert (await agent.fail(second)).status is TaskStatus.FAILED
            assert (await agent.release(third)).attempts == 0
            assert (await agent.redrive(second)).attempts == 0
            waiting = asyncio.create_task(agent.claim(Task, where={"project": "later"}, timeout_s=60))
            await asyncio.sleep(0)
            await agent.create(task("later", project="later"))
            await agent.complete(await waiting)
            return [(await agent.complete(one)).id async for one in agent.work(Task)]

    assert sorted(asyncio.run(story())) == ["1", "2", "3", "4", "5"]


class Noting(tuple):
    """Values to look for, which note in which threads that is done."""

    seen: ClassVar[set[int]] = set()

    def __iter__(self):
        self.seen.add(threading.get_ident())
        return super().__iter__()


def test_a_coroutine_looks_beside_its_loop_whether_any_work_is_left(engine, client, limits):
    """All that wait may be looked at for it, one by one."""
    make(client, task("other", project="o"))
    client.fail(client.claim(Task), final=True)
    make(client, task("never", project="p", dependencies=("other",)))

    async def story() -> list[str]:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            return [one.id async for one in agent.work(Task, where={"project": Noting(("p", "q"))})]

    assert asyncio.run(story()) == []
    assert Noting.seen - {threading.get_ident()}


def test_a_coroutine_that_is_cancelled_leaves_no_claim_behind(engine, client, limits):
    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            waiting = asyncio.create_task(agent.claim(Task, timeout_s=60))
            while not agent._session.in_flight:
                await asyncio.sleep(0)
            await agent.put(Project(id="p", name="so that it waits in the engine"))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.wait_for(gave_up(agent), 60)
            await agent.create(task("a"))
            assert (await agent.claim(Task)).id == "a"
            await agent.create(task("b"))
            await agent.create(task("c"))
            hasty = asyncio.create_task(agent.claim(Task))
            while not agent._session.in_flight:
                await asyncio.sleep(0)
            hasty.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hasty
            await asyncio.wait_for(gave_up(agent), 60)
            assert [one.id for one in await agent.claim_many(Task, 9)] == ["b", "c"]

    asyncio.run(story())


def test_a_claim_that_waits_is_its_clients_however_many_others_are_cancelled_meanwhile(
    engine, client, limits, monkeypatch
):
    """An agent that polls with a time-out of its own, beside one that waits for hours."""
    monkeypatch.setattr(tokens, "ASKED_MAX", 8)

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            waiting = asyncio.create_task(agent.claim(Task, timeout_s=60))
            await asyncio.sleep(0)
            for _ in range(2 * tokens.ASKED_MAX):
                hasty = asyncio.create_task(agent.claim(Task, where={"project": "none"}, timeout_s=60))
                await agent.put(Project(id="p", name="so that it waits in the engine"))
                hasty.cancel()
                await asyncio.wait({hasty})
            await asyncio.wait_for(gave_up(agent), 60)
            await agent.create(task("a"))
            assert (await agent.complete(await waiting)).status is TaskStatus.COMPLETED
            assert len(agent._tokens._asked) <= tokens.ASKED_MAX

    asyncio.run(story())


def test_claims_that_are_cancelled_while_no_engine_serves_are_not_given_back_again_and_again(engine, limits):
    """An agent that polls with a time-out of its own all through an outage: what never left needs no giving back."""
    limits = msgspec.structs.replace(limits, connect_timeout_s=0.2)

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            assert await agent.claim(Task) is None
            engine.stop()
            polls = 0
            while polls < 20:
                with suppress(TimeoutError, EngineUnavailable):
                    async with asyncio.timeout(0.02):
                        await agent.claim(Task)
                polls += agent._giving_up != set()
            await asyncio.wait_for(gave_up(agent), 60)
            assert len(agent._unwanted) <= 1, "what was on its way when the engine ended"

    asyncio.run(story())


def test_of_a_cancelled_claim_one_task_that_was_lost_keeps_no_other_from_being_given_back(engine, client, limits):
    make(client, *(task(id) for id in "abc"))

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            hasty = asyncio.create_task(agent.claim_many(Task, 3))
            while not agent._session.in_flight:
                await asyncio.sleep(0)
            client.reader.wait_until(Task, "c", lambda one: one.status is TaskStatus.IN_PROGRESS, 60)
            client.cancel(Task.ref("a"))  # which is the first to be given back
            hasty.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hasty
            await asyncio.wait_for(gave_up(agent), 60)
            assert agent.holds(Task, "b") is agent.holds(Task, "c") is None
        assert [one.id for one in client.claim_many(Task, 3)] == ["b", "c"]

    asyncio.run(story())


def test_what_is_claimed_anew_while_a_cancelled_claim_is_given_back_is_kept(engine, client, limits):
    """The cancelled one was lost already, its lease over say."""
    client.create(task("a"))

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as agent:
            lost = (await agent.submit(Claim(Task))).check()
            await agent.release(lost.entity)
            held = await agent.claim(Task)
            agent._give_up(Task, lost.request_id)
            await asyncio.wait_for(gave_up(agent), 60)
            assert agent.holds(Task, "a") == held.claim
            assert (await agent.complete(held)).status is TaskStatus.COMPLETED

    asyncio.run(story())


@pytest.mark.parametrize("cancelled", ["while it waits for its reply", "just when it was sent"])
def test_a_cancelled_claim_that_the_engine_has_forgotten_by_then_is_given_back(state, start_engine, limits, cancelled):
    """Many others stand in line: they go before the question how it ended."""
    limits = msgspec.structs.replace(limits, window_max=4)
    engine = start_engine(state, limits=limits)

    async def story() -> None:
        async with aio.connect(state, name="me", limits=limits) as agent:
            for id in ("a", "b"):
                await agent.create(task(id, project=id))
            os.kill(engine.pid, signal.SIGSTOP)

            def change(number: int) -> asyncio.Task[Task]:
                return asyncio.create_task(agent.update(Task.ref("b"), source=f"{number}"))

            first = [change(number) for number in range(4 if "sent" in cancelled else 0)]
            await asyncio.sleep(0)
            claiming = asyncio.create_task(agent.claim(Task, where={"project": "a"}))
            await asyncio.sleep(0)
            others = [*first, *[change(number) for number in range(20)]]
            await asyncio.sleep(0)
            if first:
                admit, line = agent._exchange._admit, agent._exchange._queue
                (turn, _) = line.first()

                def admitted() -> None:
                    admit()
                    if turn.done():
                        claiming.cancel()

                agent._exchange._admit = admitted
            else:
                claiming.cancel()
            os.kill(engine.pid, signal.SIGCONT)
            with pytest.raises(asyncio.CancelledError):
                await claiming
            await asyncio.gather(*others)
            await asyncio.wait_for(gave_up(agent), 60)
            assert agent.holds(Task, "a") is None
            assert (await agent.claim(Task, where={"project": "a"})).attempts == 1

    asyncio.run(story())


def test_what_could_not_be_given_back_when_it_was_cancelled_is_given_back_with_the_next_claim(engine, client, limits):
    """The engine was busy, or just being replaced, for longer than a reply is waited for."""
    make(client, task("a", project="one"), task("b", project="two"))
    brief = msgspec.structs.replace(limits, request_timeout_s=0.2)

    async def story() -> None:
        async with aio.connect(engine.state, name="me", limits=brief) as agent:
            await agent.put(Project(id="p", name="so that it is connected"))
            os.kill(engine.pid, signal.SIGSTOP)
            hasty = asyncio.create_task(agent.claim(Task, where={"project": "one"}))
            while not agent._session.in_flight:
                await asyncio.sleep(0)
            hasty.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hasty
            await asyncio.wait_for(gave_up(agent), 60)
            agent._limits = limits  # from now on there is time
            os.kill(engine.pid, signal.SIGCONT)
            client.reader.wait_until(Task, "a", lambda one: one.status is TaskStatus.IN_PROGRESS, 60)
            assert (await agent.claim(Task, where={"project": "two"}, timeout_s=60)).id == "b"
            await asyncio.wait_for(gave_up(agent), 60)
            assert agent.holds(Task, "a") is None
            assert client.claim(Task).id == "a"

    asyncio.run(story())


def test_a_cancelled_coroutine_that_closes_its_client_leaves_no_claim_behind(engine, client, limits, monkeypatch):
    monkeypatch.setattr("solewriter.agents.aio.requesting.GIVE_BACK_S", 20)  # on a busy machine, too
    make(client, task("a"))

    async def agent(connected: asyncio.Event) -> None:
        async with aio.connect(engine.state, name="me", limits=limits) as mine:
            connected.set()
            await mine.claim(Task, timeout_s=60)

    async def story() -> None:
        connected = asyncio.Event()
        hasty = asyncio.create_task(agent(connected))
        await connected.wait()
        client.reader.wait_until(Task, "a", lambda one: one.status is TaskStatus.IN_PROGRESS, 60)
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty

    asyncio.run(story())
    assert client.claim(Task).attempts == 1, "that it was granted does not count"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, TimeoutError, SolewriterError])
def test_an_interrupt_leaves_no_claim_behind(engine, client, limits, wait_until, interrupt):
    """While it waits in the engine, and when it was granted and its answer is on its way; by Ctrl-C, or by what the
    handler of another signal raises.
    """
    with connect(engine.state, name="me", limits=limits) as agent:
        for granted in (False, True):
            waiting = agent._exchange.wait

            def interrupted(sent: Any, deadline: float, granted: bool = granted, waiting: Any = waiting) -> None:
                agent._exchange.wait = waiting
                if granted:
                    client.create(task("a"))
                    wait_until(lambda: status(client, "a") is TaskStatus.IN_PROGRESS, 20, "it is granted")
                raise interrupt("of a signal")

            agent._exchange.wait = interrupted
            with pytest.raises(interrupt) as raised:
                agent.claim(Task, timeout_s=60)
            assert isinstance(raised.value.__cause__, OutcomeUnknown)
        assert agent.holds(Task, "a") is None
        found = client.claim(Task)
        assert (found.id, found.attempts) == ("a", 1), "that it was granted does not count"


def test_what_ctrl_c_could_not_give_back_at_once_is_given_back_by_the_next_claim(engine, client, limits, monkeypatch):
    """The engine was busy, or just being replaced, for longer than whoever pressed it waits."""
    monkeypatch.setattr("solewriter.agents.verbs.GIVE_BACK_S", 0.1)
    make(client, task("a", project="one"), task("b", project="two"))
    with connect(engine.state, name="me", limits=limits) as agent:
        waiting = agent._exchange.wait

        def interrupted(sent: Any, deadline: float) -> None:
            agent._exchange.wait = waiting
            raise KeyboardInterrupt

        os.kill(engine.pid, signal.SIGSTOP)
        agent._exchange.wait = interrupted
        with pytest.raises(KeyboardInterrupt):
            agent.claim(Task, where={"project": "one"})
        os.kill(engine.pid, signal.SIGCONT)
        client.reader.wait_until(Task, "a", lambda one: one.status is TaskStatus.IN_PROGRESS, 60)
        monkeypatch.undo()
        assert agent.claim(Task, where={"project": "two"}).id == "b"
        assert agent.holds(Task, "a") is None
        found = client.claim(Task)
        assert (found.id, found.attempts) == ("a", 1), "that it was granted does not count"


def test_giving_back_an_interrupted_claim_can_be_interrupted_at_any_step(engine, client, limits, at_step):
    """The next claim goes on with it."""
    client.create(task("a"))
    with connect(engine.state, name="me", limits=limits) as agent:
        steps, reached = 0, [""]
        while reached:
            steps += 1
            agent._unwanted[agent.submit(Claim(Task)).check().request_id] = Task
            with at_step(steps, interrupt, verbs, requesting, anyclient) as reached, suppress(KeyboardInterrupt):
                assert agent.claim(Task, where={"project": "nowhere"}) is None
            assert agent.claim(Task, where={"project": "nowhere"}) is None
            assert status(client, "a") is not TaskStatus.IN_PROGRESS, reached
    assert steps > 20


def test_what_is_claimed_anew_while_an_interrupted_claim_is_given_back_is_kept(engine, client, limits, at_step):
    """By another thread of the client, at any step: the interrupted claim was lost already, its lease over say."""
    client.create(task("a"))
    with connect(engine.state, name="me", limits=limits) as agent:
        steps, reached = 0, [""]
        while reached:
            steps += 1
            lost = agent.submit(Claim(Task)).check()
            agent.release(lost.entity)
            agent._unwanted[lost.request_id] = Task
            held: list[Task] = []
            with at_step(
                steps, lambda held=held: held.append(agent.claim(Task)), verbs, requesting, anyclient
            ) as reached:
                assert agent.claim(Task, where={"project": "nowhere"}) is None
            for mine in held:
                assert agent.holds(Task, "a") == mine.claim, reached
                agent.release(mine)
    assert steps > 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_claim_interrupted_at_any_step_leaves_no_claim_behind(engine, client, limits, at_step, error):
    """Behind its sending, in its wait, while its answer and its task are read."""

    def interrupt() -> None:
        raise error

    client.create(task("a", max_retries=1_000))
    with connect(engine.state, name="me", limits=limits) as agent:
        steps, reached, mine = 0, [""], None
        while reached:
            steps += 1
            with at_step(steps, interrupt, verbs, requesting, exchange, answers) as reached:
                try:
                    mine = agent.claim(Task)
                except error:
                    agent.put(Project(id="p", name="what was sent before is decided"))
                    assert status(client, "a") is not TaskStatus.IN_PROGRESS, reached
                    assert agent.holds(Task, "a") is None, reached
        assert mine.attempts == 1
    assert steps > 10  # fewer where answers are compiled


def test_what_a_claim_brought_whose_answer_did_not_come_in_time_is_known_by_its_outcome(engine, client, limits):
    client.create(task("a"))
    with connect(engine.state, name="me", limits=limits) as agent:
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(OutcomeUnknown) as unknown:
            agent.submit(Claim(Task), timeout_s=0.05)
        os.kill(engine.pid, signal.SIGCONT)
        outcome = agent.outcome(unknown.value.request_id)
        assert agent.holds(Task, "a") == outcome.reply.results[0].version
        assert agent.complete(outcome.reply.entity).status is TaskStatus.COMPLETED


def test_a_reply_that_tells_of_claims_in_a_pipeline_is_remembered(client, other):
    make(client, *(task(str(n)) for n in range(4)))
    claimed = [reply.entity for reply in client.submit_many([Claim(Task) for _ in range(4)])]
    with pytest.raises(Fenced):
        other.complete(claimed[0])
    assert all(reply.applied for reply in client.submit_many([Complete(one) for one in claimed]))


# --- what no client of ours sends -------------------------------------------------------------------------------------


MUTATIONS = [
    (8, "Task", "*", None, None, "", None),
    (8, "Task", "*", None, {"count": 0}, "", None),
    (8, "Task", "*", None, {"count": True}, "", None),
    (8, "Task", "*", None, {"count": 1, "lease_us": -1}, "", None),
    (8, "Task", "*", None, {"count": 1, "until_us": "late"}, "", None),
    (8, "Task", "*", None, {"count": 1, "assignee": 7}, "", None),
    (8, "Task", "*", None, {"where": []}, "", None),
    (8, "Task", "*", None, {"where": {"project": "p"}}, "", None),
    (8, "Task", "*", None, {"where": {"project": ("in", "p")}}, "", None),
    (8, "Task", "*", None, {"where": {"project": ("like", ["p"])}}, "", None),
    (8, "Task", "*", None, {"where": {"priority": ("range", [1])}}, "", None),
    (8, "Task", "*", None, {"where": {"title": ("in", ["x"])}}, "", None),
    (8, "Project", "*", None, {"count": 1}, "", None),
    (8, "Nothing", "*", None, {"count": 1}, "", None),
    (9, "Task", "a", None, {"status": "created"}, "", None),
    (9, "Task", "a", None, {"claim": 7}, "", None),
    (9, "Project", "p", None, {}, "", None),
    (12, "Task", "a", None, None, "", None),
    (12, "Task", "a", None, {"lease_us": 0}, "", None),
    (12, "Task", "a", None, {"lease_us": 2**64 - 1}, "", None),
    (8, "Task", "*", None, {"count": 1, "where": {}, "lease_us": 2**64 - 1}, "", None),
    (13, "Project", "p", None, None, "", None),
    (14, "Task", "a", None, None, "", None),
    (5, "Project", "p", None, None, "", "tree"),
    (7, "Task", "a", None, {"title": "x"}, "", None),
    (7, "Task", "a", None, {"title": ("no such", 1, None)}, "", None),
    (7, "Task", "a", None, {"reviewers": ("append", "x", None)}, "", None),
    (7, "Task", "a", None, {"reviewers": ("append", ["x"], -1)}, "", None),
    (7, "Task", "a", None, {"metadata": ("put", [], None)}, "", None),
    (7, "Task", "a", None, {"cost": ("increment", "x", None)}, "", None),
    (7, "Task", "a", None, {"claim": ("increment", 1, None)}, "", None),
    (15, "Task", "a", None, None, "", None),
]
GUARDS = [
    (4, "Task", "a", 1),
    (4, "Task", "nobody", 1),
    (4, "Project", "p", 1),
    (4, "Task", "a", (None, {})),
    (3, "Task", "a", 1),
    (3, "Task", "a", (None, [])),
    (3, "Task", "a", ("x", {})),
    (3, "Task", "a", (None, {"nothing": ("in", [1])})),
    (5, "Nothing", "*", (None, {})),
    (5, "Task", "*", (None, {"title": ("in", ["x"])})),
    (6, "Task", "a", 1),
]


def test_what_no_client_sends_is_refused_and_changes_nothing(client, client_of_a_raw_lane, engine):
    client.create(Project(id="p", name="p"))
    client.create(task("a"))
    claimed = client.claim(Task)
    client.create(task("ready"))
    raw = client_of_a_raw_lane(engine.state)
    delete = (6, "Task", "a", None, None, "", None)
    for request in [([one], [], None, None) for one in MUTATIONS] + [([delete], [one], None, None) for one in GUARDS]:
        raw.write(wire.pack_frame([request], DEFAULT_LIMITS))
        assert raw.reply()[1] == Status.REFUSED, request
    assert client.get(Task, "a") == claimed
    assert client.complete(claimed).status is TaskStatus.COMPLETED
