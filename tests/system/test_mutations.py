"""The verbs, end to end: a real engine, a real lane, and what a reader sees afterwards."""

from __future__ import annotations

import asyncio
import datetime
import enum
import os
import time
from decimal import Decimal
from typing import Annotated

import pytest
from pydantic import (
    AfterValidator,
    Base64Bytes,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from solewriter import (
    AlreadyExists,
    Append,
    Applied,
    Create,
    Delete,
    Entity,
    FrozenMap,
    GuardFailed,
    Increment,
    InvalidMutation,
    InvalidTransition,
    Lifecycle,
    Limits,
    NotFound,
    OutcomeUnknown,
    Part,
    Project,
    ProjectStatus,
    RequestTooLarge,
    SolewriterError,
    Task,
    TaskPriority,
    TaskStatus,
    UnknownKind,
    Update,
    VersionConflict,
    connect,
    open_reader,
)
from solewriter.agents.transaction import Transaction
from solewriter.shared.config import KIB


@pytest.mark.usefixtures("shared_engine")
def test_a_created_task_is_read_back_with_what_the_engine_filled_in(client, reader):
    before = datetime.datetime.now(datetime.UTC)
    made = client.create(
        Task(title="index", project="p", metadata={"a": [1, {"b": 2}]}, deadline="2030-01-01T00:00:00Z")
    )
    assert made.version == 1
    assert made.created_by == "tester"
    assert before <= made.created_at == made.updated_at <= datetime.datetime.now(datetime.UTC)
    assert made.metadata == FrozenMap(a=(1, FrozenMap(b=2)))
    with reader.snapshot() as snap:
        assert snap[Task, made.id] == made
        assert snap.get("Task", made.id)["title"] == "index"
        assert list(snap.entities(Task)) == [made]
        assert snap.get(Task, "nobody") is None
        with pytest.raises(NotFound):
            snap[Task, "nobody"]


@pytest.mark.usefixtures("shared_engine")
def test_an_update_compares_the_version_of_its_target_and_a_ref_compares_nothing(client):
    first = client.create(Task(title="x"))
    second = client.update(first, priority="high", reason="it is urgent")
    assert (second.version, second.priority) == (2, TaskPriority.HIGH)
    with pytest.raises(VersionConflict) as caught:
        client.update(first, priority="low")
    assert caught.value.expected == 1
    assert caught.value.version == 2
    assert caught.value.current == second
    assert client.update(Task.ref(first.id), priority="low").version == 3
    assert client.update(first, title="y", expect=3).version == 4
    assert client.update(first, title="z", expect=None).version == 5
    assert client.update(Task.ref(first.id), {"title": "w"}, expect=5).title == "w"


@pytest.mark.usefixtures("shared_engine")
def test_a_mutation_that_changes_nothing_makes_no_version_and_no_revision(client, reader):
    task = client.create(Task(title="x", priority="high"))
    revision = reader.revision
    assert client.update(task, priority="high").version == 1
    assert client.put(task) == task
    assert reader.revision == revision
    cancelled = client.cancel(task)
    assert client.cancel(task) == cancelled
    assert reader.revision == revision + 1


@pytest.mark.usefixtures("shared_engine")
def test_the_lifecycle_is_followed_and_a_refused_step_says_what_is_allowed(client):
    task = client.create(Task(title="x"))
    with pytest.raises(InvalidTransition) as caught:
        client.transition(task, TaskStatus.COMPLETED)
    assert caught.value.allowed == ("assigned", "rejected", "cancelled")
    assert caught.value.current == task
    with pytest.raises(InvalidMutation) as refused:
        client.transition(task, TaskStatus.ASSIGNED)
    assert "assigned_to" in refused.value.fields
    task = client.transition(task, TaskStatus.ASSIGNED, assigned_to="tester", reason="mine")
    for status in (TaskStatus.IN_PROGRESS, TaskStatus.IN_REVIEW):
        task = client.transition(task, status)
    task = client.transition(task, TaskStatus.COMPLETED, result={"lines": 3})
    assert (task.status, task.version, task.result) == (TaskStatus.COMPLETED, 5, FrozenMap(lines=3))
    with pytest.raises(InvalidTransition) as final:
        client.cancel(task)
    assert final.value.allowed == ()


@pytest.mark.usefixtures("shared_engine")
def test_cancel_wins_whatever_the_version_unless_expect_is_given(client):
    old = client.create(Task(title="x"))
    client.update(old, title="y")
    with pytest.raises(VersionConflict):
        client.cancel(old, expect=old.version)
    assert client.cancel(old, reason="no longer wanted").status is TaskStatus.CANCELLED


@pytest.mark.usefixtures("shared_engine")
def test_a_deleted_id_continues_its_versions(client):
    task = client.create(Task(title="x", id="again"))
    task = client.update(task, title="y")
    with pytest.raises(VersionConflict):
        client.delete(task, expect=1)
    client.delete(task)
    assert client.get(Task, "again") is None
    with pytest.raises(NotFound):
        client.update(Task.ref("again"), title="z")
    assert client.create(Task(title="z", id="again")).version == 4
    with pytest.raises(AlreadyExists) as caught:
        client.create(Task(title="z", id="again"))
    assert caught.value.current.version == 4


@pytest.mark.usefixtures("shared_engine")
def test_put_can_be_run_again_and_compares_what_was_read(client):
    done = Task(id="import-1", title="x", status="completed", assigned_to="someone", created_by="elsewhere")
    first = client.put(done)
    assert (first.version, first.created_by, first.status) == (1, "elsewhere", TaskStatus.COMPLETED)
    assert client.put(done) == first
    second = client.put(first.model_copy(update={"description": "more"}))
    assert (second.version, second.created_at) == (2, first.created_at)
    with pytest.raises(VersionConflict):
        client.put(first.model_copy(update={"description": "other"}))
    with pytest.raises(InvalidTransition):
        client.put(second.model_copy(update={"status": TaskStatus.CREATED, "assigned_to": None}))
    client.delete(second)
    with pytest.raises(VersionConflict, match="is not there, in version 2 or any: with expect=None, a put") as gone:
        client.put(second)
    assert (gone.value.version, gone.value.current) == (0, None)
    assert client.put(second, expect=None).version == 4


@pytest.mark.usefixtures("shared_engine")
def test_the_traceback_of_a_refusal_that_is_asked_for_again_does_not_grow(client):
    """Nor does what it holds: a frame for each time, with all that is in it."""
    task = client.create(Task(title="x"))
    reply = client.submit(Create(Task(title="x", id=task.id)))
    lengths = set()
    for _ in range(3):
        with pytest.raises(AlreadyExists) as refused:
            reply.check()
        lengths.add(len(refused.traceback))
    assert len(lengths) == 1


@pytest.mark.usefixtures("shared_engine")
def test_bad_input_raises_at_the_call_and_names_the_field(client):
    task = client.create(Task(title="x"))
    sent = client._session.next_frame
    for changes, field in (
        ({"priority": "hig"}, "priority"),
        ({"nonsense": 1}, "nonsense"),
        ({"status": "completed"}, "status"),
        ({"id": "other"}, "id"),
        ({"version": 9}, "version"),
        ({"created_by": "me"}, "created_by"),
        ({"budget_limit": -1}, "budget_limit"),
        ({"metadata": {"x": object()}}, "metadata"),
        ({"artifacts_expected": [{"path": 3}]}, "artifacts_expected.0.path"),
    ):
        with pytest.raises(InvalidMutation) as caught:
            client.update(task, changes)
        assert list(caught.value.fields) == [field]
    with pytest.raises(InvalidMutation):
        client.transition(task, "nowhere")
    with pytest.raises(TypeError):
        client.update("task-1", title="x")
    with pytest.raises(TypeError):
        client.submit("create")
    assert client._session.next_frame == sent


@pytest.mark.usefixtures("shared_engine")
def test_the_engine_validates_whatever_a_client_lets_through(client):
    """A model built without validation is refused by the engine, with the field named."""
    wrong = Task.model_construct(
        id="w", version=0, **{**Task(title="x").model_dump(exclude={"id", "version"}), "priority": "hig"}
    )
    with pytest.raises(InvalidMutation) as caught:
        client.create(wrong)
    assert "priority" in caught.value.fields
    with pytest.raises(InvalidMutation) as begun:
        client.create(Task(title="x", status="assigned", assigned_to="me"))
    assert "status" in begun.value.fields
    task = client.create(Task(title="x"))
    with pytest.raises(InvalidMutation) as own:
        client.update(task, dependencies=[task.id])
    assert "dependencies" in own.value.fields


@pytest.mark.usefixtures("shared_engine")
def test_a_name_that_is_no_field_is_told_of_a_copy_too(client):
    """`model_copy` takes any name: an entity with it would be stored without what was to be changed."""
    task = client.create(Task(title="x"))
    wrong = task.model_copy(update={"titel": "y"})
    for asked in (
        lambda: client.put(wrong),
        lambda: client.create(wrong.model_copy(update={"id": "other"})),
        lambda: client.apply(task, lambda _: wrong),
    ):
        with pytest.raises(InvalidMutation, match="Task has no field 'titel'"):
            asked()
    assert client.put(task.model_copy(update={"title": "y"})).title == "y"


@pytest.mark.usefixtures("shared_engine")
def test_a_project_is_paused_by_a_transition(client):
    project = client.create(Project(name="farm", owner="me"))
    assert client.transition(project, ProjectStatus.PAUSED).status is ProjectStatus.PAUSED
    with pytest.raises(InvalidMutation):
        client.cancel(project)


@pytest.mark.usefixtures("shared_engine")
def test_a_transaction_over_kinds_happens_at_one_revision_or_not_at_all(client, reader):
    task = client.create(Task(title="x"))
    project = client.create(Project(name="p"))
    revision = reader.revision
    with client.transaction() as tx:
        tx.update(task, budget_limit=2.0)
        new = tx.create(Task(title="next"))
        tx.update(project, owner="me")
        tx.require_absent(Task, "never")
    assert tx.revision == reader.revision == revision + 1
    assert tx.result(task).budget_limit == 2.0
    assert tx.result(new).version == 1
    assert tx.result(project).owner == "me"
    with pytest.raises(VersionConflict), client.transaction() as failing:
        failing.create(Task(title="never", id="never"))
        failing.update(task, title="lost")
    assert client.get(Task, "never") is None
    assert reader.revision == revision + 1


class Compared(str):
    """Counts what it is compared with: time would prove nothing."""

    count = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.count += 1
        return str.__eq__(self, other)


@pytest.mark.usefixtures("shared_engine")
def test_the_results_of_a_large_transaction_are_found_without_looking_at_all_of_them(client):
    with client.transaction() as tx:
        tasks = [tx.create(Task(title="x")) for _ in range(200)]
        tx.delete(tasks[7])
    Compared.count = 0
    for number, task in enumerate(tasks):
        if number != 7:
            assert tx.result(Task.ref(Compared(task.id))).id == task.id
    assert Compared.count < 3 * len(tasks)
    with pytest.raises(KeyError, match="left no Task"):
        tx.result(tasks[7])


@pytest.mark.usefixtures("shared_engine")
def test_mutations_of_a_request_see_the_earlier_ones_and_make_one_version(client):
    task = client.create(Task(title="x"))
    with client.transaction() as tx:
        tx.update(task, title="y")
        tx.transition(task, TaskStatus.ASSIGNED, assigned_to="me")
        tx.transition(task, TaskStatus.IN_PROGRESS)
    after = tx.result(task)
    assert (after.version, after.title, after.status) == (2, "y", TaskStatus.IN_PROGRESS)
    with client.transaction() as gone:
        gone.create(Task(title="short", id="short"))
        gone.delete(Task.ref("short"))
    assert client.get(Task, "short") is None
    assert client.create(Task(title="short", id="short")).version == 1


@pytest.mark.usefixtures("shared_engine")
def test_an_entity_that_a_request_changes_twice_is_found_by_both_changes(client):
    task = client.create(Task(title="x", project="before"))
    with client.transaction() as tx:
        tx.update(task, project="twice")
        tx.update(task, type="research")
    with client.reader.snapshot() as snap:
        assert snap.ids(Task, where={"project": "twice", "type": "research"}) == [task.id]
        assert snap.count(Task, where={"project": "before"}) == 0
    assert client.claim(Task, where={"project": "twice"}).id == task.id


@pytest.mark.usefixtures("shared_engine")
def test_the_reason_of_a_transaction_is_that_of_each_of_its_changes_which_has_none_of_its_own(client, reader):
    task, gone = client.create(Task(title="x")), client.create(Task(title="y"))
    watch = reader.watch(timeout_s=0)
    with client.transaction(reason="spring cleaning") as tx:
        tx.create(Task(title="z"))
        tx.update(task, title="w", reason="it was wrong")
        tx.delete(gone)
    assert [change.reason for change in watch] == ["spring cleaning", "it was wrong", "spring cleaning"]
    for wrong, refusal in ((None, InvalidMutation), ("x" * 5 * KIB, RequestTooLarge)):
        with client.transaction(reason=wrong) as tx, pytest.raises(refusal, match="reason"):
            tx.create(Task(title="never"))


@pytest.mark.usefixtures("shared_engine")
def test_an_exception_inside_a_transaction_sends_nothing(client, reader):
    revision = reader.revision
    with pytest.raises(ZeroDivisionError), client.transaction() as tx:
        tx.create(Task(title="x"))
        raise ZeroDivisionError
    assert reader.revision == revision


@pytest.mark.usefixtures("shared_engine")
def test_a_transaction_is_sent_once_whatever_with_it_stands_in(client):
    task = client.create(Task(title="x"))

    def also(tx: Transaction) -> None:
        with tx:
            tx.alter(task, cost=Increment(1.0))

    with pytest.raises(SolewriterError, match="already"), client.transaction() as tx:
        tx.alter(task, cost=Increment(1.0))
        also(tx)
    assert client.get(Task, task.id).cost == 0.0
    with client.transaction() as tx:
        tx.alter(task, cost=Increment(1.0))
    with pytest.raises(SolewriterError, match="already"):
        also(tx)
    assert client.get(Task, task.id).cost == tx.result(task).cost == 1.0


@pytest.mark.usefixtures("shared_engine")
def test_a_transaction_gathers_inside_its_with_only(client):
    """Before it, nothing would ever be sent, and nobody told."""
    tx = client.transaction()
    for gather in (
        lambda: tx.create(Task(title="x")),
        lambda: tx.update(Task.ref("t"), title="x"),
        lambda: tx.require_absent(Task, "t"),
    ):
        with pytest.raises(SolewriterError, match=r"`with client\.transaction\(\) as tx:`"):
            gather()
    with tx:
        created = tx.create(Task(title="x"))
        with pytest.raises(SolewriterError, match="after the `with`"):
            tx.result(created)
    assert tx.result(created).version == 1


@pytest.mark.usefixtures("shared_engine")
def test_what_a_transaction_left_that_was_never_sent_is_told_as_that(client):
    with client.transaction() as empty:
        pass
    with pytest.raises(ZeroDivisionError), client.transaction() as failed:
        failed.create(Task(title="x"))
        raise ZeroDivisionError
    for tx in (empty, failed):
        with pytest.raises(SolewriterError, match="empty and not sent, or ended in an error"):
            print(tx.revision)


@pytest.mark.usefixtures("shared_engine")
def test_of_a_transaction_whose_reply_did_not_come_nobody_is_told_that_it_was_not_applied(client):
    with pytest.raises(OutcomeUnknown) as unknown, client.transaction(timeout_s=0) as late:
        late.create(Task(title="x", id="late"))
    with pytest.raises(SolewriterError) as told:
        print(late.revision)
    assert "not applied" not in str(told.value)
    assert isinstance(client.outcome(unknown.value.request_id), Applied)


@pytest.mark.usefixtures("shared_engine")
def test_guards_hold_the_request_back(client):
    task = client.create(Task(title="x"))
    newer = client.update(task, title="y")
    with pytest.raises(GuardFailed) as caught, client.transaction() as tx:
        tx.require(task)
        tx.create(Task(title="never", id="never"))
    assert caught.value.current == newer
    with pytest.raises(GuardFailed), client.transaction() as tx:
        tx.require_absent(Task, task.id)
        tx.create(Task(title="never", id="never"))
    with client.transaction() as tx:
        tx.require(newer)
        tx.create(Task(title="now", id="now"))
    assert client.get(Task, "now") is not None
    assert client.get(Task, "never") is None


def test_submit_many_takes_several_mutations_that_happen_together_or_not_at_all(client, reader):
    a, b = (client.create(Task(title=name, id=f"pair-{name}")) for name in "ab")
    asked = [
        (Update(a, {"title": "x"}), Update(b, {"title": "y"})),
        [Update(Task.ref(a.id), {"title": "z"}), Create(Task(title="again", id=b.id))],
        Update(Task.ref(b.id), {"title": "alone"}),
        (),
    ]
    first, refused, alone, none = client.submit_many(asked)
    assert [(one.id, one.version) for one in first.check().results] == [(a.id, 2), (b.id, 2)]
    assert isinstance(refused.error, AlreadyExists)
    assert alone.check().results[0].version == 3
    assert isinstance(none.error, InvalidMutation), "a request asks for something"
    with reader.snapshot() as snap:
        assert (snap[Task, a.id].title, snap[Task, b.id].title) == ("x", "alone")


def test_submit_many_pipelines_in_order_and_refusals_are_values(client, reader):
    tasks = [Task(title=f"t{number}", id=f"t{number}") for number in range(1_000)]
    replies = list(client.submit_many((Create(task) for task in tasks), window=256))
    assert [reply.entity.id for reply in replies] == [task.id for task in tasks]
    assert [reply.revision for reply in replies] == list(range(1, 1_001))
    mixed = [
        Update(tasks[0], {"title": "new"}, expect=1),
        Create(tasks[1]),
        Update(tasks[2], {"title": 3}),
        Delete(Task.ref("t3")),
    ]
    answers = list(client.submit_many(mixed))
    assert [type(answer.error) for answer in answers] == [type(None), AlreadyExists, InvalidMutation, type(None)]
    assert answers[0].entity.title == "new"
    assert answers[3].entity is None
    assert reader.snapshot().counts["Task"] == 999


def test_submit_many_sends_while_its_replies_are_taken_and_may_be_left_in_the_middle(client, reader):
    taken = []

    def source():
        for number in range(1_000):
            taken.append(f"t{number}")
            yield Create(Task(title="x", id=taken[-1]))

    replies = client.submit_many(source(), window=8)
    assert not taken
    next(replies).check()
    del replies
    client.create(Task(title="x", id="behind"))  # those on their way were first
    assert 1 <= len(taken) <= 16
    with reader.snapshot() as snap:
        assert snap.ids(Task) == [*taken, "behind"]
    assert client._session.in_flight == 0


def test_texts_as_long_as_their_bound_find_room(state, start_engine):
    """Wherever in its segment a record begins."""
    limits = Limits(text_bytes_max=64 * KIB, heap_segment_bytes_first=64 * KIB, heap_segment_bytes_max=64 * KIB)
    engine = start_engine(state, limits=limits)
    with connect(state, limits=limits) as client, open_reader(state) as reader:
        client.create(Task(title="x", id="t"))
        for number in range(12):
            reason = "\u00e9" * 13_000 + str(number)
            revision = client.submit(Update(Task.ref("t"), {"title": f"{number}"}, reason=reason)).check().revision
            assert [change.reason for change in reader.watch(since=revision - 1, timeout_s=0)] == [reason]
    assert engine.restarts == 0


@pytest.mark.usefixtures("shared_engine")
def test_frames_entities_and_texts_over_their_bounds_are_refused_and_nothing_is_lost(client, limits):
    task = client.create(Task(title="x"))
    with pytest.raises(RequestTooLarge):
        client.update(task, description="x" * (limits.entity_bytes_max + 1))
    with pytest.raises(RequestTooLarge):
        client.update(task, description="x" * (limits.frame_bytes_max + 1))
    with pytest.raises(RequestTooLarge):
        client.update(task, title="y", reason="r" * (limits.text_bytes_max + 1))
    many = [Create(Task(title="x", description="y" * 60_000)) for _ in range(40)]
    assert all(reply.applied for reply in client.submit_many(many))
    huge = Create(Task(title="x", description="z" * (limits.frame_bytes_max + 1)))
    answers = list(client.submit_many([Create(Task(title="a")), huge, Create(Task(title="b"))]))
    assert [answer.applied for answer in answers] == [True, False, True]
    assert isinstance(answers[1].error, RequestTooLarge)
    assert client.update(task, title="y").version == 2


class Unregistered(Entity):
    """A kind that the engine was not started with."""

    size: int = 0


@pytest.mark.usefixtures("shared_engine")
def test_a_kind_that_the_engine_does_not_know_is_refused(client):
    with pytest.raises(UnknownKind):
        client.create(Unregistered(size=1))


class Doc(Entity, columns=("owner", "size")):
    """A user's own model."""

    owner: str
    size: int = 0


def test_a_users_own_model_is_stored_versioned_and_read(state, start_engine):
    engine = start_engine(state, models=[Doc])
    with connect(engine.state) as client:
        doc = client.create(Doc(owner="me"))
        assert client.update(doc, size=7).size == 7
        with pytest.raises(InvalidMutation) as caught:
            client.update(doc, size="many")
        assert list(caught.value.fields) == ["size"]
        assert client.get("Doc", doc.id) == {"id": doc.id, "owner": "me", "size": 7, "version": 2}
        with pytest.raises(InvalidMutation):
            client.transition(doc, "anywhere")


class Stage(enum.Enum):
    """No text itself, unlike a StrEnum."""

    NEW = "new"
    DONE = "done"


class Job(Entity, lifecycle=Lifecycle("stage", "new", {"new": ("done",), "done": ()})):
    stage: Stage = Stage.NEW


def test_a_users_own_lifecycle_goes_by_the_members_of_any_enum_and_by_their_values(state, start_engine):
    start_engine(state, models=[Job])
    with connect(state) as client:
        assert client.transition(client.create(Job(id="a")), Stage.DONE).stage is Stage.DONE
        assert client.transition(client.create(Job(id="b")), "done").stage is Stage.DONE
        with pytest.raises(InvalidTransition):
            client.transition(Job.ref("a"), Stage.NEW)


class Late(Entity, lifecycle=Lifecycle("stage", "new", {"new": ("done",), "done": ()})):
    stage: Stage = Stage.DONE  # where it does not begin
    text: str = ""


def test_a_state_that_is_not_said_is_the_classs_default_wherever_a_lifecycle_begins(state, start_engine):
    start_engine(state, models=[Late])
    with connect(state) as client:
        with pytest.raises(InvalidMutation) as refused:
            client.create(Late())
        assert "stage" in refused.value.fields
        new = client.create(Late(id="a", stage=Stage.NEW))
        assert client.put(Late(id="a", text="imported")).stage is Stage.DONE
        with pytest.raises(InvalidTransition):
            client.put(Late(id="a", stage=Stage.NEW, text=new.text))
        assert client.put(Late(id="a", text="again")).text == "again"


@pytest.mark.usefixtures("shared_engine")
def test_wait_for_returns_when_the_revision_is_there_and_not_before(client, reader):
    revision = reader.revision
    assert reader.wait_for(revision) == revision
    with pytest.raises(TimeoutError):
        reader.wait_for(revision + 1, timeout_s=0.05)
    child = os.fork()
    if child == 0:
        try:
            with connect(client.folder.path) as other:
                other.create(Task(title="from a child"))
            os._exit(0)
        finally:
            os._exit(1)
    assert reader.wait_for(revision + 1, timeout_s=10) == revision + 1
    assert os.waitpid(child, 0)[1] == 0


def test_a_held_snapshot_stays_as_it_was(client, reader):
    tasks = [client.create(Task(title=f"t{number}", id=f"t{number}")) for number in range(50)]
    with reader.snapshot() as held:
        for task in tasks:
            client.update(task, title="changed")
        client.delete(Task.ref("t0"))
        client.create(Task(title="later", id="later"))
        assert [task.title for task in held.entities(Task)] == [f"t{number}" for number in range(50)]
        assert held.get(Task, "later") is None
        assert held.counts["Task"] == 50
        with reader.snapshot() as now:
            assert {task.title for task in now.entities(Task)} == {"changed", "later"}
            assert now.get(Task, "t0") is None
            assert now.counts["Task"] == 50


@pytest.mark.usefixtures("shared_engine")
def test_an_unchanged_entity_is_the_same_object_in_the_next_snapshot(client, reader):
    task = client.create(Task(title="x"))
    first = reader.snapshot()[Task, task.id]
    client.create(Task(title="y"))
    assert reader.snapshot()[Task, task.id] is first


@pytest.mark.usefixtures("shared_engine")
def test_an_idle_engine_uses_no_measurable_cpu(client, engine, wait_until):
    """Once it is idle: what others asked of it may have left something to do beside."""
    client.create(Task(title="x"))

    def idle() -> bool:
        spent_s, started = _cpu_s(engine.pid), time.monotonic()
        with pytest.raises(TimeoutError):
            client.reader.wait_for(10**9, timeout_s=1.2)  # longer than the time between two heartbeats
        return (_cpu_s(engine.pid) - spent_s) / (time.monotonic() - started) < 0.01

    wait_until(idle, 30, "an engine that rests")


def _cpu_s(pid: int) -> float:
    """Of all its threads. The clock's number is how clock_getcpuclockid(3) makes it."""
    return time.clock_gettime((~pid << 3) | 2)


def test_a_no_op_stays_one_after_a_restart_and_the_stored_bytes_do_not_grow(state, start_engine):
    """The defaults that the journal gives back are those of the class, so they stay out of the payload."""
    start_engine(state).stop()
    engine = start_engine(state)
    with connect(engine.state) as client:
        made = client.create(Task(title="x", id="a"))
        assert client.update(Task.ref("a"), title="x") == made
        changed = client.update(Task.ref("a"), title="y")
        assert changed.version == 2
        pin = client.reader.snapshot().pin
        sizes = [len(pin.content(address).payload) for address in (pin.find(0, "a"), pin.previous(pin.find(0, "a")))]
        assert sizes[0] == sizes[1]


def test_refusals_in_a_pipeline_keep_their_places(client):
    bad = Update(Task.ref("none"), {"nonsense": 1})
    good = [Create(Task(title=f"t{number}", id=f"t{number}")) for number in range(3)]
    replies = list(client.submit_many([good[0], bad, good[1], bad, bad, good[2], bad]))
    assert [reply.applied for reply in replies] == [True, False, True, False, False, True, False]
    assert [reply.entity.id for reply in replies if reply.applied] == ["t0", "t1", "t2"]


class Panic(BaseException):
    """As a library in another language raises it."""


STUMBLES = {
    13: TypeError("thirteen"),
    14: SystemExit("fourteen"),
    15: Panic("fifteen"),
    16: KeyboardInterrupt("sixteen"),
    17: asyncio.CancelledError("seventeen"),
}


class Stumbling(Entity):
    """A model whose validator has a bug."""

    size: int = 0

    @field_validator("size")
    @classmethod
    def _stumble(cls, size: int) -> int:
        if size in STUMBLES:
            raise STUMBLES[size]
        return size


@pytest.mark.parametrize("size", STUMBLES)
def test_a_validator_that_raises_anything_is_a_refusal_and_the_engine_goes_on(state, start_engine, size):
    engine = start_engine(state, models=[Stumbling])
    pid = engine.pid
    with connect(state) as client:
        one = client.create(Stumbling(size=1))
        with pytest.raises(InvalidMutation, match=str(STUMBLES[size])):
            client.update(one, size=size)
        assert client.update(one, size=2).version == 2
    assert engine.pid == pid


class Cents(Part):
    amount: Annotated[int, AfterValidator(lambda amount: amount * 100)] = 0


class Restless(Entity):
    """What its validators make of a value is not what they make of the result."""

    price: int = 0
    name: Annotated[str, AfterValidator(str.title)] = ""
    total: Annotated[int, AfterValidator(lambda total: total + 1)] = 0
    raw: Base64Bytes = b""
    cents: tuple[Cents, ...] = ()

    @field_validator("price", mode="before")
    @classmethod
    def _in_cents(cls, price: float) -> int:
        return int(price * 100)


class Counting(Entity):
    """Nothing but a rule of all of it, that counts how often it is validated."""

    text: str = ""
    seen: int = 0

    @model_validator(mode="before")
    @classmethod
    def _see(cls, values: dict[str, object]) -> dict[str, object]:
        return {**values, "seen": values.get("seen", 0) + 1}


@pytest.mark.parametrize(
    ("field", "value"), [("price", 1.5), ("total", 1), ("raw", b"YUdWc2JHOD0="), ("cents", (Cents(amount=1),))]
)
def test_a_value_that_would_be_read_back_as_another_one_is_refused(state, start_engine, field, value):
    """Readers validate what is stored: nobody would ever see what the engine accepted."""
    start_engine(state, models=[Restless])
    with connect(state) as client:
        one = client.create(Restless(name="ann of the hill"))
        for change in (lambda: client.update(one, {field: value}), lambda: client.create(Restless(**{field: value}))):
            with pytest.raises(InvalidMutation, match="read back") as refused:
                change()
            assert next(iter(refused.value.fields)).startswith(field)
        assert client.update(one, name="bob").name == "Bob", "what its validator leaves as it is, is read back as it is"


def test_a_rule_that_never_comes_to_an_end_of_its_changes_is_refused(state, start_engine):
    start_engine(state, models=[Counting])
    with connect(state) as client:
        with pytest.raises(InvalidMutation, match="read back") as refused:
            client.create(Counting(text="a"))
        assert set(refused.value.fields) == {"seen"}


class Upper(Entity):
    model_config = ConfigDict(str_to_upper=True)


class Prefixed(Entity):
    @field_validator("id")
    @classmethod
    def _with_prefix(cls, value: str) -> str:
        return value if value.startswith("p-") else f"p-{value}"


@pytest.mark.parametrize("model", [Upper, Prefixed])
def test_an_id_that_would_be_read_back_as_another_one_is_refused(state, start_engine, model):
    """One that was given was validated; pydantic does not do that with one that is made."""
    start_engine(state, models=[model])
    with connect(state) as client:
        for store in (client.create, client.put):
            with pytest.raises(InvalidMutation, match="could not be found") as refused:
                store(model())
            assert set(refused.value.fields) == {"id"}
            one = store(model(id=store.__name__))
            assert client.get(model, one.id) == one


class Measured(Entity):
    """Whoever does not say how long it is, is told."""

    text: str = ""
    size: int = 0

    @model_validator(mode="before")
    @classmethod
    def _measure(cls, values: dict[str, object]) -> dict[str, object]:
        return {"size": len(str(values.get("text", ""))), **values}


@pytest.mark.parametrize("verb", ["create", "put"])
def test_a_default_that_was_given_and_would_be_read_back_as_what_is_left_out_is_refused(state, start_engine, verb):
    """What is a default is not stored, so its validator takes it for what was not given."""
    start_engine(state, models=[Measured])
    with connect(state) as client:
        store = getattr(client, verb)
        with pytest.raises(InvalidMutation, match="read back") as refused:
            store(Measured(text="abc", size=0))
        assert set(refused.value.fields) == {"size"}
        assert store(Measured(id="m", text="abc")).size == 3
        assert store(Measured(text="", size=0)).size == 0
        assert store(Measured(text="abc", size=2)).size == 2
        with pytest.raises(InvalidMutation, match="read back"):
            client.update(Measured.ref("m"), size=0)


class Slugged(Task, kind="Slugged", columns=("slug",)):
    """One of its fields is made of another one."""

    slug: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_title(cls, values: dict[str, object]) -> dict[str, object]:
        return {**values, "slug": str(values.get("title", "")).lower()}


def counted(client, slug):
    with client.reader.snapshot() as snap:
        return snap.count(Slugged, {"slug": slug})


def guarded(client, slug):
    try:
        with client.transaction() as tx:
            tx.require_none(Slugged, {"slug": slug})
    except GuardFailed:
        return 1
    return 0


def claimed(client, slug):
    found = client.claim_many(Slugged, 1, where={"slug": slug})
    for one in found:
        client.release(one)
    return len(found)


@pytest.mark.parametrize("ask", [counted, guarded, claimed])
def test_what_a_rule_changes_besides_what_was_asked_for_counts_as_changed(state, start_engine, ask):
    start_engine(state, models=[Slugged])
    with connect(state) as client:
        one = client.create(Slugged(title="One"))
        assert (ask(client, "one"), ask(client, "two")) == (1, 0)
        assert client.update(one, expect=None, title="Two").slug == "two"
        assert (ask(client, "one"), ask(client, "two")) == (0, 1)


def test_an_entity_whose_default_is_no_number_is_read_and_changed_like_any_other(state, start_engine):
    class Scored(Entity, columns=("score",)):
        score: float = float("nan")
        n: int = 0

    start_engine(state, models=[Scored])
    with connect(state) as client:
        made = client.create(Scored(id="s"))
        assert (made.version, made.score == made.score) == (1, False)
        assert client.update(made, n=1).n == 1
        assert client.update(Scored.ref("s"), score=2).score == 2.0
        assert client.reader.snapshot().ids(Scored, {"score": 2.0}) == ["s"]


def test_a_set_that_has_no_order_is_refused_in_its_place_by_its_field(state, start_engine):
    """Of Decimals one of which is NaN. The others of a pipeline take effect."""

    class Priced(Entity):
        prices: frozenset[Annotated[Decimal, Field(allow_inf_nan=True)]] = frozenset()

    start_engine(state, models=[Priced])
    unordered = frozenset({Decimal(1), Decimal("NaN")})
    with connect(state) as client:
        made = client.create(Priced(id="p", prices={Decimal("NaN")}))
        asked = Create(Priced(prices=unordered)), Update(made, {"prices": unordered}), Create(Priced(id="q"))
        told = [reply.error for reply in client.submit_many(asked)]
        for error in told[:2]:
            assert isinstance(error, InvalidMutation)
            assert error.fields == {"prices": "a set of NaN and other numbers has no order"}
        assert told[2] is None
        assert client.get(Priced, "q") is not None


class Point(Part):
    x: float = 0
    y: float = 0
    span: tuple[float, ...] = (0, 0)


class Drawn(Entity):
    name: str = ""
    at: Point = Point()
    path: tuple[Point, ...] = ()

    @field_validator("name")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()


def test_a_part_whose_defaults_are_written_as_other_numbers_is_taken_beside_validators(state, start_engine):
    start_engine(state, models=[Drawn])
    with connect(state) as client:
        client.create(Drawn(id="d"))
        assert client.update(Drawn.ref("d"), at={"x": 1}, path=[{"y": 2}]).at == Point(x=1)
        assert client.get("Drawn", "d")["at"] == {"x": 1.0, "y": 0.0, "span": [0.0, 0.0]}
        assert {type(client.get("Drawn", "d")["at"][name]) for name in "xy"} == {float}
        assert client.update(Drawn.ref("d"), at={"x": 1}).version == 2, "the same again"
        assert client.update(Drawn.ref("d"), name="").version == 2
        assert client.alter(Drawn.ref("d"), path=Append({"x": 3})).path == (Point(y=2), Point(x=3))


class Outdated(Entity, columns=("owner",)):
    old: int = Field(default=0, deprecated="use new")
    new: int = 0
    owner: Annotated[str, Field(deprecated="nobody owns any more"), StringConstraints(to_lower=True)] = ""

    @field_validator("new")
    @classmethod
    def _any(cls, value: int) -> int:
        return value


@pytest.mark.filterwarnings("error::DeprecationWarning")
def test_a_deprecated_field_warns_nobody_who_does_not_touch_it(state, start_engine):
    start_engine(state, models=[Outdated])
    with connect(state) as client:
        made = client.create(Outdated(id="o", old=1, owner="ANN"))
        assert client.apply(made, lambda one: one.model_copy(update={"new": 7})).new == 7
        with pytest.raises(VersionConflict):
            client.put(made)
        assert client.update(made, old=5, merge=True).version == 3
        with client.reader.snapshot() as snap:
            assert snap.count_by(Outdated, "owner") == {"ann": 1}
