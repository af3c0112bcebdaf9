"""`outcome` has definite answers, `apply` retries, and bad input is refused where it is given."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import field_validator

from solewriter import (
    AlreadyExists,
    Create,
    EngineUnavailable,
    Entity,
    Fenced,
    Increment,
    InvalidMutation,
    Limits,
    NotFound,
    OutcomeUnknown,
    Refused,
    RequestTooLarge,
    Task,
    TaskStatus,
    Update,
    VersionConflict,
    aio,
    connect,
)
from solewriter.agents import answers
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.errors import Forgotten
from solewriter.shared.failpoint import VARIABLE
from solewriter.shared.journal import entry as entries
from solewriter.shared.journal.chain import journal_files
from solewriter.shared.mutations import Applied, NotApplied
from solewriter.shared.request_ids import SEQUENCES_MAX, default_id
from solewriter.shared.wire import Status


def query(request_id: str) -> bytes:
    return wire.pack_frame([("outcome", request_id)], DEFAULT_LIMITS)


# --- what was told ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_engine")
def test_an_applied_request_is_told_with_its_reply(client):
    reply = client.submit(Create(Task(title="x", id="t")), Create(Task(title="y", id="u")))
    told = client.outcome(reply.request_id)
    assert isinstance(told, Applied)
    assert told.reply.revision == reply.revision
    assert [(one.kind, one.id, one.version) for one in told.reply.results] == [("Task", "t", 1), ("Task", "u", 1)]
    assert told.reply.entities == reply.entities


@pytest.mark.usefixtures("shared_engine")
def test_a_refused_request_is_told_with_its_error(client):
    client.create(Task(title="x", id="refused"))
    with pytest.raises(AlreadyExists) as refusal:
        client.create(Task(title="x", id="refused"), request_id="again")
    told = client.outcome("again")
    assert isinstance(told, AlreadyExists)
    assert str(told) == str(refusal.value)
    assert told.current == client.get(Task, "refused")


@pytest.mark.usefixtures("shared_engine")
def test_another_process_can_ask_and_a_later_version_does_not_change_the_answer(engine, client):
    client.create(Task(title="x", id="later"), request_id="later")
    client.update(Task.ref("later"), title="y")
    with connect(engine.state) as other:
        told = other.outcome("later")
    assert isinstance(told, Applied)
    assert told.reply.results[0].version == 1


def test_outcomes_survive_the_engine(engine, wait_until):
    with connect(engine.state) as client:
        own = client.submit(Create(Task(title="x", id="t")))
        client.create(Task(title="x", id="u"), request_id="mine")
        assert client.outcome("never") == NotApplied()
        os.kill(engine.pid, signal.SIGKILL)
        wait_until(lambda: engine.restarts == 1, 20, "a restart")
        told = client.outcome(own.request_id)
        assert isinstance(told, Applied)
        assert told.reply.entity == client.get(Task, "t")
        assert isinstance(client.outcome("mine"), Applied)
        with pytest.raises(Fenced):
            client.create(Task(title="x", id="v"), request_id="never")
        assert client.get(Task, "v") is None


# --- what never arrived -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_engine")
def test_a_user_given_id_that_was_not_applied_never_will_be(engine, client):
    assert client.outcome("never") == NotApplied()
    with connect(engine.state) as other, pytest.raises(Fenced, match="under another id"):
        other.create(Task(title="x", id="never"), request_id="never")
    assert client.get(Task, "never") is None
    assert client.outcome("never") == NotApplied(), "the same answer for ever"


@pytest.fixture
def after_a_power_cut(state: Path, tmp_path: Path) -> Callable[[], Path]:
    """`after_a_power_cut()`: a folder as the disk has `state` now, if it has nothing that was not synced."""

    def cut() -> Path:
        folder = tmp_path / "after"
        folder.mkdir(mode=0o700)
        noted = entries.last_committed((state / "committed").read_bytes())
        assert noted is not None
        shutil.copy(state / "committed", folder)
        for path in journal_files(state):
            content, at = path.read_bytes(), entries.FILE_HEADER_BYTES
            while (found := entries.unpack(content, at)) is not None and found[0].number <= noted[0]:
                at = found[2]
            (folder / path.name).write_bytes(content[:at] + bytes(len(content) - at))
        return folder

    return cut


def test_for_power_what_was_told_as_not_applied_never_will_be_whatever_is_lost(state, start_engine, after_a_power_cut):
    start_engine(state, durability="power")
    with connect(state) as client:
        assert client.outcome("order-7") == NotApplied()
        after = after_a_power_cut()
    start_engine(after, durability="power")
    with connect(after) as client:
        with pytest.raises(Fenced):
            client.create(Task(title="x", id="t"), request_id="order-7")
        assert client.outcome("order-7") == NotApplied()


def test_for_power_what_a_request_under_an_id_of_ones_own_was_told_is_not_lost(state, start_engine, after_a_power_cut):
    """A refusal, or that nothing had to be changed: whoever repeats it gets that answer, whatever is stored by then."""
    start_engine(state, durability="power")
    task = Task(title="x", id="t")
    with connect(state) as client:
        client.create(task)
        with pytest.raises(AlreadyExists):
            client.create(task, request_id="again")
        after = after_a_power_cut()
    start_engine(after, durability="power")
    with connect(after) as client:
        client.delete(Task.ref("t"))
        with pytest.raises(AlreadyExists):
            client.create(task, request_id="again")


@pytest.mark.usefixtures("shared_engine")
def test_a_number_that_was_not_applied_never_will_be(engine, client, client_of_a_raw_lane):
    raw = client_of_a_raw_lane(engine.state, client_id="ab" * 8)
    coming = default_id(raw.session.number, 1 << 8)  # of its second frame
    assert client.outcome(coming) == NotApplied()
    raw.write(raw.frame([Create(Task(title="first", id="a"))]) + raw.frame([Create(Task(title="second", id="b"))]))
    assert raw.reply().status == Status.APPLIED
    assert raw.reply().detail[0] == "Fenced"
    assert client.get(Task, "a") is not None
    assert client.get(Task, "b") is None


@pytest.mark.usefixtures("shared_engine")
def test_a_question_and_its_request_in_one_turn(engine, client_of_a_raw_lane):
    """Both orders in one frame, so that nothing can come between."""
    raw = client_of_a_raw_lane(engine.state, client_id="cd" * 8)
    create = ([("x",)], [], None, None)
    plain = wire.unpack_frame(raw.frame([Create(Task(title="x", id="asked"))])[4:])[0]
    own = default_id(raw.session.number, 1)
    named = (plain[0], plain[1], "asked", None)
    assert create is not plain
    raw.write(wire.pack_frame([("outcome", own), plain, ("outcome", own)], DEFAULT_LIMITS))
    before, request, after = raw.reply(), raw.reply(), raw.reply()
    assert (before.status, before.detail) == (Status.ANSWER, None)
    assert request.detail[0] == "Fenced"
    assert after.detail is None, "refused as Fenced, and so not applied, now or ever"
    raw.write(wire.pack_frame([("outcome", "asked"), named, ("outcome", "asked")], DEFAULT_LIMITS))
    assert [raw.reply().detail for _ in range(3)] == [None, ["Fenced", request.detail[1], {}], None]


@pytest.mark.usefixtures("shared_engine")
def test_a_question_that_is_asked_again_is_answered_again(engine, client_of_a_raw_lane):
    """A resent query is no request: it gets what is known now, not what was remembered under its number."""
    raw = client_of_a_raw_lane(engine.state, client_id="ef" * 8)
    raw.write(query("unknown") + raw.frame([Create(Task(title="x", id="repeated"))], "repeated"))
    assert [raw.reply().status for _ in range(2)] == [Status.ANSWER, Status.APPLIED]
    again = client_of_a_raw_lane(engine.state, client_id="ef" * 8, resends=True)
    again.write(query("repeated") + raw.frame([Create(Task(title="x", id="repeated"))], "repeated"))
    answer, resent = again.reply(), again.reply()
    assert answer.detail[0] == Status.APPLIED
    assert resent.status == Status.APPLIED


def test_a_query_answered_in_a_turn_that_failed_is_no_answer(state, start_engine, monkeypatch, client_of_a_raw_lane):
    monkeypatch.setenv(VARIABLE, "memory.grow:full:hit=7")  # the first table chunk
    engine = start_engine(state)
    raw = client_of_a_raw_lane(engine.state, client_id="ad" * 8)
    raw.write(raw.frame([Create(Task(title="x", id="t"))], "mine") + query("mine"))
    request, answer = raw.reply(), raw.reply()
    assert (request.status, answer.status) == (Status.UNAVAILABLE, Status.UNAVAILABLE)
    raw.write(raw.frame([Create(Task(title="x", id="t"))], "mine") + query("mine"))
    request, answer = raw.reply(), raw.reply()
    assert (request.status, answer.status) == (Status.APPLIED, Status.ANSWER)


# --- what is too old --------------------------------------------------------------------------------------------------


def test_an_outcome_older_than_the_window_is_forgotten_not_denied(state, start_engine):
    limits = Limits(window_max=8, request_ids_max=4)
    engine = start_engine(state, limits=limits)
    with connect(state, limits=limits) as client:
        first = client.submit(Create(Task(title="x")))
        for number in range(12):
            client.create(Task(title="x"), request_id=f"id-{number}")
        assert isinstance(client.outcome(first.request_id), Forgotten)
        assert isinstance(client.outcome("id-0"), Forgotten)
        assert isinstance(client.outcome("unheard of"), Forgotten), "it may have been one of those forgotten"
        assert isinstance(client.outcome("id-11"), Applied)
        assert isinstance(client.outcome(default_id(0x1234, 0)), Forgotten), "a session that nobody remembers"
    assert engine.restarts == 0


def test_the_numbers_that_one_session_has_fenced_are_bounded(state, start_engine, client_of_a_raw_lane):
    limits = Limits(window_max=8)
    start_engine(state, limits=limits)
    raw = client_of_a_raw_lane(state, client_id="ba" * 8)
    with connect(state, limits=limits) as client:
        told = [client.outcome(default_id(raw.session.number, number)) for number in range(1, 20)]
    assert told[:8] == [NotApplied()] * 8
    assert {type(one) for one in told[8:]} == {Forgotten}, "nothing is promised that is not kept"


@pytest.mark.usefixtures("shared_engine")
def test_what_cannot_be_an_id_is_refused_at_the_call(client):
    for wrong in ("", "x" * 61, 5, None, "\ud800"):
        with pytest.raises(InvalidMutation, match="request id"):
            client.outcome(wrong)


def test_a_number_that_no_request_can_have_is_asked_for_without_harm(state, start_engine, wait_until):
    limits = Limits(checkpoint_after_bytes=4096)
    engine = start_engine(state, limits=limits)
    with connect(state, limits=limits) as client:
        assert client.outcome(f"{client.client_id}-{'9' * 40}") == NotApplied()
        task = client.create(Task(title="x"))

        def is_checkpointed() -> bool:
            for reply in client.submit_many(Update(task.ref(task.id), {"description": f"{n}" * 99}) for n in range(99)):
                reply.check()
            return any(one.name.startswith("checkpoint-") for one in Path(state).iterdir() if not one.suffix)

        wait_until(is_checkpointed, 60, "a checkpoint was made")
    assert engine.restarts == 0


def test_a_number_that_somebody_made_up_keeps_nobody_from_coming_back(state, start_engine):
    """Also when its session is forgotten, and others begin behind all that it may have sent."""
    limits = Limits(sessions_max=1)
    start_engine(state, limits=limits)
    with connect(state, limits=limits) as client:
        assert isinstance(client.outcome(default_id(client._session.number, SEQUENCES_MAX - 1)), Forgotten)
    for _ in range(2):
        with connect(state, limits=limits) as client:
            task = client.create(Task(title="x"))
            client._exchange._broken = True
            assert client.update(task, title="y").version == 2


# --- after a time-out -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_engine")
def test_a_timed_out_call_is_settled_by_asking(engine, client):
    client.create(Task(title="x", id="timed out"))
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        with pytest.raises(OutcomeUnknown) as unknown:
            client.update(Task.ref("timed out"), title="late", timeout_s=0.05)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    assert f"client.outcome({unknown.value.request_id!r})" in str(unknown.value), "what to do next"
    told = client.outcome(unknown.value.request_id)
    assert isinstance(told, Applied), "it was on its lane before the question"
    assert client.get(Task, "timed out").title == "late"


@pytest.mark.usefixtures("shared_engine")
def test_a_question_that_is_not_answered_in_time_names_the_request_that_it_asks_about(engine, client):
    """Asked about the question, the engine would say NotApplied."""

    async def story(asked: str) -> str:
        with pytest.raises(OutcomeUnknown) as unknown:
            await agent.outcome(asked, timeout_s=0.01)
        return unknown.value.request_id

    with asyncio.Runner() as runner:
        agent = runner.run(opened(engine.state))
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            with pytest.raises(OutcomeUnknown) as unknown:
                client.create(Task(title="x", id="asked about"), timeout_s=0.01)
            asked = unknown.value.request_id
            with pytest.raises(OutcomeUnknown) as unknown:
                client.outcome(asked, timeout_s=0.01)
            assert unknown.value.request_id == asked
            assert runner.run(story(asked)) == asked
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        assert isinstance(client.outcome(asked), Applied)
        runner.run(agent.close())


async def opened(state: Path) -> aio.AioClient:
    return await aio.connect(state)


class Slow(Entity):
    """Of which the reading takes long, here and when it is told to: long enough for a Ctrl-C."""

    name: str
    is_slow: ClassVar[bool] = False

    @field_validator("name")
    @classmethod
    def read(cls, name: str) -> str:
        if cls.is_slow:
            raise KeyboardInterrupt
        return name


def test_ctrl_c_when_the_reply_has_come_names_the_request_too(state, start_engine, monkeypatch):
    start_engine(state, models=[Slow])
    with connect(state) as client:
        asked = Slow(id="s", name="s")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupted:
            patch.setattr(Slow, "is_slow", True)
            client.create(asked)
        unknown = interrupted.value.__cause__
        assert isinstance(unknown, OutcomeUnknown)
        assert isinstance(client.outcome(unknown.request_id), Applied)
        assert client.get(Slow, "s").version == 1


# --- apply ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_engine")
def test_apply_submits_the_difference_under_its_version_and_goes_on_after_a_conflict(engine, client):
    client.create(Task(title="x", id="difference", max_retries=0))
    seen: list[int] = []

    def raise_it(task: Task) -> Task:
        seen.append(task.version)
        if len(seen) <= 2:
            with connect(engine.state) as other:  # somebody is faster, twice
                other.update(Task.ref("difference"), max_retries=task.max_retries + 10)
        return task.model_copy(update={"max_retries": task.max_retries + 1})

    assert client.apply(Task.ref("difference"), raise_it).max_retries == 21
    assert seen == [1, 2, 3]
    assert client.get(Task, "difference").version == 4


@pytest.mark.usefixtures("shared_engine")
def test_apply_takes_changed_fields_a_lifecycle_step_or_nothing(client):
    task = client.create(Task(title="x", id="step"))
    assert client.apply(task, lambda task: {"title": task.title * 2}).title == "xx"
    assert client.apply(Task.ref("step"), lambda task: None).version == 2
    assert client.apply(Task.ref("step"), lambda task: task).version == 2
    taken = client.apply(
        Task.ref("step"), lambda task: {"status": TaskStatus.ASSIGNED, "assigned_to": "me"}, reason="r"
    )
    assert (taken.status, taken.assigned_to, taken.version) == (TaskStatus.ASSIGNED, "me", 3)


@pytest.mark.usefixtures("shared_engine")
def test_apply_sees_a_change_that_is_none_to_python(client):
    client.create(Task(title="x", id="none", result=1, metadata={"flag": 1}))
    assert client.apply(Task.ref("none"), lambda task: {"result": True}).result is True
    assert client.apply(Task.ref("none"), lambda task: {"metadata": {"flag": True}}).metadata["flag"] is True
    changed = client.apply(Task.ref("none"), lambda task: task.model_copy(update={"result": 1.0}))
    assert (type(changed.result), changed.version) == (float, 4)
    again = client.apply(
        Task.ref("none"), lambda task: {"result": 1.0, "metadata": {"flag": True}, "status": "created"}
    )
    assert again.version == 4


class Basket(Entity):
    prices: tuple[int, ...] = ()

    @cached_property
    def total(self) -> int:
        return sum(self.prices)


def test_apply_takes_an_entity_whose_cached_property_was_asked(engine, client):
    engine.register(Basket)
    basket = client.create(Basket(prices=(1,)))

    def dearer(found: Basket) -> Basket:
        changed = found.model_copy(update={"prices": (*found.prices, 5)})
        assert changed.total == 6
        return changed

    assert client.apply(basket, dearer).prices == (1, 5)
    for name in ("price", "ref"):  # nor is a method a field
        with pytest.raises(InvalidMutation, match=f"no field '{name}'"):
            client.apply(Basket.ref(basket.id), lambda found, name=name: found.model_copy(update={name: 7}))


@pytest.mark.usefixtures("shared_engine")
def test_apply_says_what_it_cannot_do(client):
    with pytest.raises(NotFound):
        client.apply(Task.ref("nobody"), lambda task: None)
    task = client.create(Task(title="x", id="cannot"))
    with pytest.raises(InvalidMutation, match="is not Task 'cannot'"):
        client.apply(task, lambda task: Task(title="y", id="u"))
    with pytest.raises(TypeError, match="the changed fields"):
        client.apply(task, lambda task: 5)
    with pytest.raises(InvalidMutation, match="never changes"):
        client.apply(task, lambda task: task.model_copy(update={"created_by": "me"}))
    with pytest.raises(ZeroDivisionError):
        client.apply(task, lambda task: 1 / 0)


@pytest.mark.usefixtures("shared_engine")
def test_apply_gives_up_when_its_time_is_over(engine, client):
    client.create(Task(title="x", id="gives up", max_retries=0))
    with connect(engine.state) as other:

        def overtaken(task: Task) -> dict[str, int]:
            other.update(Task.ref("gives up"), max_retries=task.max_retries + 1)
            return {"max_retries": 1_000}

        with pytest.raises(VersionConflict) as conflict:
            client.apply(Task.ref("gives up"), overtaken, timeout_s=0.2)
    assert conflict.value.current.max_retries >= 1


@pytest.mark.usefixtures("shared_engine")
def test_apply_to_an_entity_that_is_deleted_meanwhile(engine, client):
    client.create(Task(title="x", id="deleted"))

    def deleted(task: Task) -> dict[str, str]:
        client.delete(task)
        return {"title": "y"}

    with pytest.raises(NotFound):
        client.apply(Task.ref("deleted"), deleted)


@pytest.mark.usefixtures("shared_engine")
def test_apply_does_not_take_for_deleted_what_a_client_that_was_closed_cannot_read(engine, at_step):
    with connect(engine.state) as other:
        other.put(Task(title="x", id="closed"))
        steps, reached, told = 0, [""], set()

        def overtaken(task: Task) -> dict[str, str]:
            if task.title != f"{steps}":  # once
                other.update(Task.ref("closed"), title=f"{steps}")
            return {"description": f"{steps}"}

        while reached:
            steps += 1
            with connect(engine.state) as client, at_step(steps, client.close, answers) as reached:
                try:
                    assert client.apply(Task.ref("closed"), overtaken).title == f"{steps}"
                except (EngineUnavailable, OutcomeUnknown) as error:
                    told.add(type(error))
    assert EngineUnavailable in told
    assert steps > 10


# --- bad input is refused where it is given ---------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_engine")
def test_what_cannot_be_stored_is_refused_by_its_field_whatever_asks(client):
    task = client.create(Task(title="x", id="not stored"))
    before = client.reader.revision
    for field, ask in [
        ("description", lambda: client.create(Task(title="x", description="\ud800"))),
        ("max_retries", lambda: client.update(task, max_retries=2**64)),
        ("metadata", lambda: client.update(task, metadata={"a": [{"b": "\ud800"}]})),
        ("assigned_to", lambda: client.transition(task, "assigned", assigned_to="\ud800")),
        ("max_retries", lambda: client.alter(task, max_retries=Increment(2**64))),
        ("project", lambda: client.update(task, title="y", where={"project": "\ud800"})),
        ("project", lambda: client.claim(Task, where={"project": "\ud800"})),
    ]:
        with pytest.raises(InvalidMutation, match=f"Task.{field} holds") as refusal:
            ask()
        assert set(refusal.value.fields) == {field}
    *_, last = client.submit_many([Update(task, {"description": "\ud800"}), Update(task, {"description": "fine"})])
    assert last.applied
    assert client.reader.revision == before + 1


@pytest.mark.usefixtures("shared_engine")
def test_what_is_no_field_is_refused_at_the_call_too(client):
    task = client.create(Task(title="x", id="no field"))
    before = client.reader.revision
    for wrong, match in [
        (lambda: client.update(task, title="y", reason=5), "reason"),
        (lambda: client.update(task, title="y", reason="\ud800"), "reason"),
        (lambda: client.update(task, title="y", expect="1"), "expect"),
        (lambda: client.update(task, title="y", expect=-1), "expect"),
        (lambda: client.update(task, title="y", expect=True), "expect"),
        (lambda: client.update(Task.ref("i" * 256), title="y"), "255 bytes"),
        (lambda: client.update(task, title="y", request_id=""), "request id"),
        (lambda: client.update(task, title="y", request_id="00000000000000aa-1"), "request id"),
    ]:
        with pytest.raises(InvalidMutation, match=match):
            wrong()
    with pytest.raises(RequestTooLarge, match="reason"):
        client.update(task, title="y", reason="r" * 5_000)
    with pytest.raises(RequestTooLarge, match="mutations"):
        client.submit(*[Update(task, {"title": "y"})] * 1_001)
    with pytest.raises(InvalidMutation, match="one mutation"):
        client.submit()
    assert client.reader.revision == before


@pytest.mark.usefixtures("shared_engine")
def test_a_refusal_in_a_pipeline_takes_its_place(client):
    replies = list(
        client.submit_many(
            [Create(Task(title="x", id="pipeline")), Update(Task.ref("pipeline"), {}, reason="r" * 5_000)], window=8
        )
    )
    assert [isinstance(reply.error, Refused) for reply in replies] == [False, True]


@pytest.mark.usefixtures("shared_engine")
def test_a_closed_client_says_so_at_once(engine):
    client = connect(engine.state)
    client.close()
    with pytest.raises(EngineUnavailable, match="closed") as closed:
        client.create(Task(title="x"))
    assert closed.value.final


# --- takeovers --------------------------------------------------------------------------------------------------------


def test_a_takeover_in_the_turn_of_the_older_lanes_requests_confuses_nobody(state, start_engine, client_of_a_raw_lane):
    """Requests and the hello behind them are taken in one turn, because the engine stood still meanwhile."""
    engine = start_engine(state)
    for round_ in range(5):
        older = connect(state, client_id="both")
        older.create(Task(title="x", id=f"before{round_}"))
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(OutcomeUnknown) as unknown:
            older.create(Task(title="older", id=f"older{round_}"), timeout_s=0.01)
        newer = client_of_a_raw_lane(
            state,
            client_id="both",
            instance=f"newer{round_}",
            between=lambda: os.kill(engine.pid, signal.SIGCONT),
        )
        newer.write(newer.frame([Create(Task(title="newer", id=f"newer{round_}"))]))
        reply = newer.reply()
        assert reply.status == Status.APPLIED
        assert reply.detail[0][2:] == ["Task", f"newer{round_}"], "the older client's reply"
        with connect(state) as judge:
            assert judge.get(Task, f"newer{round_}") is not None, "told applied and not there"
            told = judge.outcome(unknown.value.request_id)
            assert isinstance(told, Applied | NotApplied), "definite either way"
            assert isinstance(told, Applied) == (judge.get(Task, f"older{round_}") is not None)
        older.close()


def test_what_was_applied_is_never_told_fenced(state, start_engine):
    """A taken-over client knows nothing of what it had sent, and must not say that nothing was changed."""
    start_engine(state)
    for round_ in range(10):
        older = connect(state, client_id="both")
        told = []

        def send(older=older, told=told, round_=round_) -> None:
            try:
                mutations = (Create(Task(title="x", id=f"r{round_}-{number}")) for number in range(5_000))
                told.extend(type(reply.error) for reply in older.submit_many(mutations))
            except Fenced:
                pass  # of what was not sent

        sender = threading.Thread(target=send)
        sender.start()
        with connect(state, client_id="both") as newer:
            sender.join(60)
            assert set(told) <= {type(None), OutcomeUnknown, Fenced}
            for number, error in enumerate(told):
                stored = newer.get(Task, f"r{round_}-{number}") is not None
                assert stored or error is not type(None)
                assert not (stored and error is Fenced)
        older.close()


def test_an_unread_request_of_an_earlier_client_is_not_mistaken_for_a_later_ones(state, start_engine):
    engine = start_engine(state)
    older = connect(state, client_id="both")
    older.create(Task(title="x", id="t"))
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(OutcomeUnknown) as unknown:
        older.create(Task(title="x", id="older"), timeout_s=0.01)
    os.kill(engine.pid, signal.SIGKILL)
    older.close()
    with connect(state, client_id="both") as newer:
        newer.create(Task(title="x", id="newer"))
        assert newer.outcome(unknown.value.request_id) == NotApplied()
        assert newer.get(Task, "older") is None


@pytest.mark.usefixtures("shared_engine")
def test_put_of_what_must_not_be_there(client):
    client.put(Task(title="x", id="put"), expect=0)
    with pytest.raises(VersionConflict):
        client.put(Task(title="y", id="put"), expect=0)
    assert client.put(Task(title="y", id="put")).version == 2
