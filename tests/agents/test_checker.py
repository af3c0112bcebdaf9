"""The history checker, judged by lies: told of a recorded run that is true, each must be found by its name.

The run is a small one of a real engine. A lie changes what an agent says, what the journal holds, or what a reader saw;
some of them only the model can see, because all others agree.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from solewriter import (
    Add,
    Alter,
    Append,
    Cancel,
    Claim,
    Client,
    Complete,
    Create,
    Delete,
    Engine,
    Fail,
    Increment,
    Max,
    Project,
    Put,
    PutIn,
    Reader,
    Redrive,
    Release,
    Remove,
    Renew,
    Require,
    RequireAbsent,
    RequireFields,
    RequireNone,
    Task,
    TaskStatus,
    Transition,
    Unchanged,
    Update,
    connect,
    open_reader,
)
from solewriter.agents.testing import Evidence, Gathered, History, Look, check, gather, read_history
from solewriter.agents.testing.history import Change, Decided
from solewriter.agents.testing.lines import Attempt, lines
from solewriter.agents.testing.steps import Condition, Key
from solewriter.shared.errors import JournalCorrupt
from solewriter.shared.journal import entry

Told = tuple[str, str, int, int, str]  # of a watch


class Recorded(NamedTuple):
    """A run that is over: all that the checker looks at."""

    gathered: Gathered
    history: History
    final: Look

    def violations(self, acks_min: int = 20) -> set[tuple[int, str]]:
        found = check(self.gathered, self.history, self.final, acks_min=acks_min).violations
        return {(violation.condition, violation.name) for violation in found}

    def attempt(self, wanted: Callable[[Attempt], bool]) -> int:
        """Place of the first such attempt."""
        return next(place for place, attempt in enumerate(self.gathered.attempts) if wanted(attempt))

    def place(self, attempt: Attempt) -> int:
        """Where in the history it is."""
        assert attempt.answer is not None
        return next(n for n, decided in enumerate(self.history) if decided.request_id == attempt.answer.request_id)

    def saying(self, place: int, **fields: Any) -> Recorded:
        """An agent claims something else of its answer."""
        attempts = [*self.gathered.attempts]
        attempts[place] = Attempt(attempts[place].call, msgspec.structs.replace(attempts[place].answer, **fields))
        return self._replace(gathered=self.gathered._replace(attempts=attempts))

    def asking(self, place: int, **fields: Any) -> Recorded:
        """An agent claims to have asked for something else."""
        attempts = [*self.gathered.attempts]
        attempts[place] = attempts[place]._replace(call=msgspec.structs.replace(attempts[place].call, **fields))
        return self._replace(gathered=self.gathered._replace(attempts=attempts))

    def without(self, place: int, *, answer_only: bool = False) -> Recorded:
        """An agent says nothing, or nothing of an answer."""
        attempts = [*self.gathered.attempts]
        attempts[place : place + 1] = [attempts[place]._replace(answer=None)] if answer_only else []
        return self._replace(gathered=self.gathered._replace(attempts=attempts))

    def seeing(self, change: Callable[[list[Look]], list[Look]]) -> Recorded:
        """A reader claims to have seen something else."""
        looks = {who: change([*taken]) for who, taken in self.gathered.looks.items()}
        return self._replace(gathered=self.gathered._replace(looks=looks))

    def watching(self, change: Callable[[list[Told]], list[Told]]) -> Recorded:
        """A watcher claims to have been brought something else in its second look."""
        watches = {who: [*taken] for who, taken in self.gathered.watches.items()}
        for taken in watches.values():
            taken[1] = msgspec.structs.replace(taken[1], changes=tuple(change([*taken[1].changes])))
        return self._replace(gathered=self.gathered._replace(watches=watches))

    def recovering(self, change: Callable[[History], History]) -> Recorded:
        """The journal holds something else."""
        return self._replace(history=change([*self.history]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small run with a bit of everything, and one kill of the engine, left its evidence and its journal."""
    folder = tmp_path_factory.mktemp("recorded")
    with (
        Engine(folder / "state", durability="process") as engine,
        Evidence(folder / "one.log") as one,
        Evidence(folder / "two.log") as two,
        connect(engine.state, name="one") as client,
        open_reader(engine.state) as reader,
    ):
        _a_bit_of_everything(client, one, two, reader)
        brought = [*reader.watch(since=0, timeout_s=0.0)]
        two.followed(brought[:12], 0)
        two.followed(brought[12:])
        of_tasks = [*reader.watch(Task, since=0, timeout_s=0.0)]
        two.followed(of_tasks[:12], 0, kind=Task)
        two.followed(of_tasks[12:], kind=Task)
        two.fault("SIGKILL of the engine")
        os.kill(engine.pid, signal.SIGKILL)
        with connect(engine.state, name="two") as other:
            two.submit(other, Create(Task(title="again", id="a")), request_id="own")
            two.submit(other, Create(Task(title="other", id="a")), request_id="own")
        one.submit(client, Update(Task.ref("a"), {"title": "the last operation"}))
        two.look(client.reader)
        two.followed([*client.reader.watch(since=reader.revision - 1, timeout_s=0.0)], reader.revision - 1)
    return folder


def recovered(folder: Path, state: Path) -> Recorded:
    looks = [line for line in lines(folder / "two.log") if isinstance(line, Look)]
    return Recorded(gather([folder / "one.log", folder / "two.log"]), read_history(state), looks[-1])


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recorded:
    return recovered(folder, folder / "state")


def _a_bit_of_everything(client: Client, one: Evidence, two: Evidence, reader: Reader) -> None:
    one.submit(client, Create(Project(name="p", id="p")))
    one.submit(client, Create(Task(title="again", id="a")), request_id="own")
    for reply in one.submit_many(client, [Update(Task.ref("a"), {"title": f"a{number}"}) for number in range(20)]):
        assert reply.applied
    held = reader.snapshot()
    two.look(held)
    one.submit(
        client, Create(Task(title="b", id="b")), Create(Task(title="c", id="c")), guards=[Require(held[Task, "a"])]
    )
    two.look(reader)
    task = client.get(Task, "b")
    one.submit(client, Update(task, {"title": "b"}))  # changes nothing
    one.submit(client, Update(task, {"title": "b2"}))
    one.submit(client, Update(task, {"title": "b3"}))  # VersionConflict
    one.submit(client, Update(task, {"title": "b3"}), guards=[RequireAbsent(Task, "a")])  # GuardFailed
    one.submit(client, Update(Task.ref("nobody"), {"title": "x"}))  # NotFound
    one.submit(client, Create(Task(title="c", id="c")))  # AlreadyExists
    one.submit(client, Transition(Task.ref("c"), TaskStatus.COMPLETED))  # InvalidTransition
    one.submit(client, Transition(Task.ref("c"), TaskStatus.ASSIGNED))  # InvalidMutation: nobody is assigned
    one.submit(client, Update(Task.ref("c"), {"title": "c2"}), guards=[Require(held[Task, "a"].model_copy())])
    one.submit(client, Transition(Task.ref("c"), TaskStatus.ASSIGNED, {"assigned_to": "me"}), Cancel(Task.ref("b")))
    two.look(reader)
    one.submit(client, Put(Task(title="d", id="d")))
    one.submit(client, Delete(Task.ref("d")))
    one.submit(client, Create(Task(title="d2", id="d")), Delete(Task.ref("c")))
    one.look(client.reader, [Key("Task", "c"), Key("Task", "d")])
    two.look(reader)
    two.look(held)
    _some_work(client, one)
    _some_changes_without_versions(client, one)


def _some_work(client: Client, one: Evidence) -> None:
    """Claims that end in every way; one is overtaken."""
    for id in "wxyz":
        one.submit(client, Create(Task(title=id, id=id, project="work", max_retries=1, retry_delay_s=0.2)))
    one.submit(client, Claim(Task, {"project": "work"}, count=3), request_id="claim w, x, y")
    one.submit(client, Renew(Task.ref("w"), 60.0))
    one.submit(client, Complete(Task.ref("w"), {"result": 1}))
    one.submit(client, Fail(Task.ref("x"), {"description": "no"}))
    one.submit(client, Release(Task.ref("y")))
    one.submit(client, Claim(Task, {"project": "work", "priority": ["medium", "low"]}, lease_s=60.0))
    with connect(client.folder.path, name="meddler") as meddler:
        one.submit(meddler, Update(Task.ref("y"), {"title": "no token"}))  # Fenced
        one.submit(meddler, Cancel(Task.ref("y")))
    one.submit(client, Complete(Task.ref("y")))  # Fenced: the token is an old one
    one.submit(client, Claim(Task, {"project": "work"}))
    one.submit(client, Fail(Task.ref("z"), final=True))
    one.submit(client, Redrive(Task.ref("z")))
    one.submit(client, Claim(Task, {"project": "nobody's"}))  # nothing is ready
    one.submit(client, Create(Task(title="b", id="below", parent_task_id="z", dependencies=("x", "z"))))
    one.submit(client, Update(Task.ref("z"), {"dependencies": ("below",)}))  # a circle
    one.submit(client, Create(Task(title="c", id="new", parent_task_id="below")), Cancel(Task.ref("z"), tree=True))


def _some_changes_without_versions(client: Client, one: Evidence) -> None:
    old = client.get(Task, "a")
    one.submit(client, Alter(old, {"max_retries": Increment(2), "reviewers": Add("r"), "metadata": PutIn({"k": 1})}))
    one.submit(client, Alter(old, {"max_retries": Max(1), "reviewers": Append("s", most=1), "metadata": Remove("k")}))
    one.submit(client, Update(old, {"source": "here"}, expect=None), guards=[Unchanged(old, ("source",))])
    one.submit(client, Update(old, {"source": "there"}, expect=None), guards=[Unchanged(old, ("source",))])  # conflict
    one.submit(client, Update(Task.ref("a"), {"title": "q"}), guards=[RequireFields(old, {"source": ["here", "x"]})])
    one.submit(client, Update(Task.ref("a"), {"title": "r"}), guards=[RequireFields(old, {"source": "x"})])  # refused
    one.submit(client, Update(Task.ref("a"), {"title": "s"}), guards=[RequireNone(Task, {"priority": "critical"})])
    one.submit(client, Update(Task.ref("a"), {"title": "t"}), guards=[RequireNone(Task, {"project": "work"})])


def test_a_run_that_is_true_has_no_violations(recorded):
    assert recorded.violations() == set()
    names = {answer.error for _, answer in recorded.gathered.attempts if answer and answer.error}
    assert names == {
        "VersionConflict", "NotFound", "AlreadyExists", "InvalidTransition", "InvalidMutation", "GuardFailed",
        "RequestMismatch", "Fenced claim",
    }  # fmt: skip
    verdict = check(recorded.gathered, recorded.history, recorded.final, acks_min=20)
    assert (verdict.claimed, verdict.fenced) == (5, 2)


Lie = Callable[[Recorded], Recorded]
LIES: list[tuple[int, str, Lie]] = []


def lie(condition: int, name: str) -> Callable[[Lie], Lie]:
    """Says by which name the checker must find it."""

    def told(how: Lie) -> Lie:
        LIES.append((condition, name, how))
        return how

    return told


def of_update(run: Recorded, number: int = 7) -> int:
    """Place of one of the pipelined updates among the attempts."""
    return run.attempt(lambda attempt: attempt.call.steps[0].fields.get("title") == f"a{number}")


def of_error(run: Recorded, error: str) -> int:
    return run.attempt(lambda attempt: attempt.answer is not None and attempt.answer.error == error)


def changed(run: Recorded, place: int, **fields: Any) -> Recorded:
    """The journal holds another outcome or other records of this request."""
    return run.recovering(lambda history: [*history[:place], history[place]._replace(**fields), *history[place + 1 :]])


def applied_again(decided: Decided, run: Recorded) -> Decided:
    """As a resend leaves it behind that was not recognised."""
    revision = run.history[-1].revision + 1
    versions = {change.key: change.version for old in run.history for change in old.changes}
    changes = [
        change._replace(revision=revision, version=versions[change.key] + 1) for change in decided.changes
    ]  # fmt: skip
    told = tuple(change.version for change in changes)
    return decided._replace(
        sequence=decided.sequence + 10_000, revision=revision, versions=told, changes=tuple(changes)
    )


@lie(1, "lost")
def an_ack_whose_request_is_not_in_the_history(run: Recorded) -> Recorded:
    place = run.place(run.gathered.attempts[of_update(run)])
    return run.recovering(lambda history: history[:place] + history[place + 1 :])


@lie(1, "lost")
def a_tail_that_is_lost(run: Recorded) -> Recorded:
    return run.recovering(lambda history: history[:-1])


@lie(3, "state differs")
def an_ack_whose_record_is_missing(run: Recorded) -> Recorded:
    return changed(run, run.place(run.gathered.attempts[of_update(run)]), changes=())


@lie(1, "applied twice")
def a_request_applied_twice(run: Recorded) -> Recorded:
    decided = run.history[run.place(run.gathered.attempts[of_update(run)])]
    return run.recovering(lambda history: [*history, applied_again(decided, run)])


@lie(1, "applied twice")
def an_unanswered_request_applied_twice(run: Recorded) -> Recorded:
    place = of_update(run)
    return a_request_applied_twice(run).without(place, answer_only=True)


@lie(1, "applied twice")
def a_resend_applied_again(run: Recorded) -> Recorded:
    decided = next(decided for decided in run.history if decided.own_id)
    return run.recovering(lambda history: [*history, applied_again(decided, run)])


@lie(1, "refused but applied")
def a_refused_request_that_is_present(run: Recorded) -> Recorded:
    attempt = run.gathered.attempts[of_error(run, "VersionConflict")]
    updated = run.history[run.place(run.gathered.attempts[of_update(run)])]
    change = updated.changes[0]._replace(key=Key("Task", "b"), reason=f"[{attempt.call.name}]")
    return changed(run, run.place(attempt), changes=(change,))


@lie(1, "refused but applied")
def a_request_that_was_never_to_be_applied_any_more(run: Recorded) -> Recorded:
    """One sender is told so, the other one that it was applied."""
    places = [n for n, (call, _) in enumerate(run.gathered.attempts) if call.name == "own"]
    return run.saying(places[1], outcome="refused", request_id="", error="NotApplied", revision=None, versions=())


@lie(1, "refusal not journaled")
def a_refusal_that_was_forgotten(run: Recorded) -> Recorded:
    place = run.place(run.gathered.attempts[of_error(run, "NotFound")])
    return run.recovering(lambda history: history[:place] + history[place + 1 :])


@lie(1, "told otherwise")
def an_ack_of_another_revision(run: Recorded) -> Recorded:
    return run.saying(of_update(run), revision=3)


@lie(1, "told otherwise")
def an_ack_of_another_version(run: Recorded) -> Recorded:
    return run.saying(of_update(run), versions=(99,))


@lie(1, "told otherwise")
def a_refusal_by_another_name(run: Recorded) -> Recorded:
    return run.saying(of_error(run, "VersionConflict"), error="NotFound")


@lie(1, "told otherwise")
def a_refusal_that_names_other_ways(run: Recorded) -> Recorded:
    return run.saying(of_error(run, "InvalidTransition"), allowed=("completed",))


@lie(1, "told otherwise")
def an_ack_under_anothers_id(run: Recorded) -> Recorded:
    other = run.gathered.attempts[of_update(run, 3)].answer
    return run.saying(of_update(run), request_id=other.request_id)


@lie(1, "an older entity in a refusal")
def a_conflict_that_carries_what_was_before(run: Recorded) -> Recorded:
    return run.saying(of_error(run, "VersionConflict"), current=1)


@lie(1, "told two things")
def a_resend_that_is_told_something_else(run: Recorded) -> Recorded:
    first, again = [n for n, decided in enumerate(run.history) if decided.own_id == "own"]
    assert run.history[first].told == run.history[again].told
    return changed(run, again, versions=(2,))


@lie(1, "no outcome journaled")
def records_without_an_outcome(run: Recorded) -> Recorded:
    return changed(run, run.place(run.gathered.attempts[of_update(run)]), outcome="")


@lie(2, "order inverted")
def an_answer_that_came_before_a_later_ones_call(run: Recorded) -> Recorded:
    """The request behind it is called, and answered, before the pipelined updates begin."""
    early = min(
        attempt.call.at for attempt in run.gathered.attempts if attempt.call.steps[0].fields.get("title") == "a0"
    )
    place = run.attempt(lambda attempt: attempt.call.steps[0].fields.get("title") == "b2")
    return run.asking(place, at=early - 2).saying(place, at=early - 1)


@lie(2, "order inverted")
def a_change_at_the_revision_that_was_there_before(run: Recorded) -> Recorded:
    place = run.attempt(lambda attempt: attempt.call.steps[0].fields.get("title") == "b2")
    return run.saying(place, revision=run.gathered.attempts[place].answer.revision - 1)


@lie(2, "order inverted")
def requests_of_one_session_that_were_exchanged(run: Recorded) -> Recorded:
    """Both were under way, and all agree on when each was decided: only one of the two was sent before the other."""
    places = [of_update(run, number) for number in (7, 8)]
    where = [run.place(run.gathered.attempts[place]) for place in places]
    decided = [run.history[place] for place in where]
    run = run._replace(gathered=run.gathered._replace(watches={}))  # they would have to be lied about, too
    for place, mine, other, there in zip(places, decided, decided[::-1], where[::-1], strict=True):
        run = run.saying(place, revision=other.revision, versions=other.versions)
        ((change,), (instead,)) = mine.changes, other.changes
        stamps = {name: instead.content[name] for name in ("version", "updated_at")}
        moved = instead._replace(content={**change.content, **stamps}, reason=change.reason)
        run = changed(
            run, there, **{**mine._asdict(), **other._asdict(), "sequence": mine.sequence, "changes": (moved,)}
        )
    return run


@lie(3, "state differs")
def a_record_of_another_content(run: Recorded) -> Recorded:
    place = run.place(run.gathered.attempts[of_update(run)])
    change = run.history[place].changes[0]
    return changed(run, place, changes=(change._replace(content={**change.content, "title": "other"}),))


@lie(3, "reply differs")
def a_conflict_that_was_overlooked(run: Recorded) -> Recorded:
    """All agree, but what was asked is not what must be done."""
    place = of_update(run)
    step = msgspec.structs.replace(run.gathered.attempts[place].call.steps[0], expect=1)
    return run.asking(place, steps=(step,))


@lie(3, "reply differs")
def a_wrong_refusal_of_which_all_are_sure(run: Recorded) -> Recorded:
    place = of_error(run, "AlreadyExists")
    found = run.place(run.gathered.attempts[place])
    return changed(run.saying(place, error="NotFound"), found, error="NotFound")


@lie(3, "reply differs")
def a_guard_that_was_overlooked(run: Recorded) -> Recorded:
    return run.asking(of_update(run), conditions=(Condition("Task", "nobody", 3),))


@lie(3, "nobody asked")
def a_change_that_nobody_asked_for(run: Recorded) -> Recorded:
    return run.without(of_update(run))


@lie(3, "final state differs")
def a_final_state_with_another_content(run: Recorded) -> Recorded:
    tasks = run.final.entities["Task"]
    return run._replace(
        final=msgspec.structs.replace(run.final, entities={"Task": {**tasks, "a": (tasks["a"][0], "")}})
    )


@lie(3, "final state differs")
def a_final_state_without_an_entity(run: Recorded) -> Recorded:
    tasks = {id: seen for id, seen in run.final.entities["Task"].items() if id != "d"}
    return run._replace(final=msgspec.structs.replace(run.final, entities={"Task": tasks}))


@lie(3, "final state differs")
def a_final_state_with_one_too_many(run: Recorded) -> Recorded:
    tasks = {**run.final.entities["Task"], "ghost": (1, "")}
    return run._replace(final=msgspec.structs.replace(run.final, entities={"Task": tasks}))


@lie(3, "final state differs")
def a_final_state_of_an_earlier_revision(run: Recorded) -> Recorded:
    return run._replace(final=msgspec.structs.replace(run.final, revision=run.final.revision - 1))


@lie(4, "version gap")
def a_version_that_was_skipped(run: Recorded) -> Recorded:
    return _of_one_change(run, lambda change: change._replace(version=change.version + 1))


@lie(4, "version repeated")
def a_version_that_was_given_twice(run: Recorded) -> Recorded:
    return _of_one_change(run, lambda change: change._replace(version=change.version - 1))


@lie(4, "version repeated")
def a_version_that_two_agents_were_told(run: Recorded) -> Recorded:
    other = run.gathered.attempts[of_update(run, 6)].answer
    return run.saying(of_update(run), versions=other.versions)


@lie(4, "version gap")
def a_version_that_nobody_was_told(run: Recorded) -> Recorded:
    return run.without(of_update(run))


@lie(4, "revision gap")
def a_revision_that_was_skipped(run: Recorded) -> Recorded:
    return _of_one_change(run, lambda change: change._replace(revision=change.revision + 1))


def _of_one_change(run: Recorded, how: Callable[[Change], Change]) -> Recorded:
    place = run.place(run.gathered.attempts[of_update(run)])
    return changed(run, place, changes=(how(run.history[place].changes[0]),))


@lie(5, "snapshot differs")
def a_snapshot_with_another_content(run: Recorded) -> Recorded:
    return run.seeing(
        lambda looks: [_with(look, "a", (look.entities["Task"]["a"][0], "")) if look.whole else look for look in looks]
    )


@lie(5, "snapshot differs")
def a_snapshot_with_a_version_of_its_future(run: Recorded) -> Recorded:
    return run.seeing(lambda looks: [msgspec.structs.replace(look, revision=look.revision - 1) for look in looks])


@lie(5, "snapshot differs")
def a_snapshot_in_which_a_deleted_entity_lives(run: Recorded) -> Recorded:
    return run.seeing(lambda looks: [look if look.whole else _with(look, "c", (2, "")) for look in looks])


@lie(5, "snapshot differs")
def a_snapshot_that_lacks_an_entity(run: Recorded) -> Recorded:
    return run.seeing(
        lambda looks: [msgspec.structs.replace(look, entities={"Task": {}}) if look.whole else look for look in looks]
    )


@lie(5, "snapshot differs")
def a_snapshot_of_a_revision_that_never_was(run: Recorded) -> Recorded:
    return run.seeing(lambda looks: [*looks, msgspec.structs.replace(looks[-1], revision=1_000)])


def _with(look: Look, id: str, seen: tuple[int, str]) -> Look:
    return msgspec.structs.replace(look, entities={"Task": {**look.entities["Task"], id: seen}})


@lie(5, "revision went back")
def a_reader_whose_revisions_go_back(run: Recorded) -> Recorded:
    return run.seeing(lambda looks: looks[::-1])


@lie(5, "an acked revision was not seen")
def a_reader_who_looked_later_and_saw_less(run: Recorded) -> Recorded:
    late = max(attempt.answer.at for attempt in run.gathered.attempts if attempt.answer)
    return run.seeing(
        lambda looks: [
            look if look.held else msgspec.structs.replace(look, at=late + number)
            for number, look in enumerate(looks, 1)
        ]
    )


@lie(5, "watch differs")
def a_watch_that_left_a_change_out(run: Recorded) -> Recorded:
    return run.watching(lambda told: told[1:])


@lie(5, "watch differs")
def a_watch_that_brought_a_change_twice(run: Recorded) -> Recorded:
    return run.watching(lambda told: [told[0], *told])


@lie(5, "watch differs")
def a_watch_that_brought_changes_in_another_order(run: Recorded) -> Recorded:
    return run.watching(lambda told: told[::-1])


@lie(5, "watch differs")
def a_watch_that_brought_another_content(run: Recorded) -> Recorded:
    return run.watching(lambda told: [*told[:-1], (*told[-1][:4], "another")])


@lie(5, "watch differs")
def a_watch_that_brought_what_never_was(run: Recorded) -> Recorded:
    last = run.history[-1].revision
    lines = [msgspec.structs.replace(line, since=last) for line in run.gathered.watches["two.log"][-1:]]
    return run._replace(gathered=run.gathered._replace(watches={"two.log": lines}))


@lie(5, "watch differs")
def a_watch_of_one_kind_that_left_a_change_out(run: Recorded) -> Recorded:
    taken = run.gathered.watches["two.log"]
    lines = [
        msgspec.structs.replace(line, changes=line.changes[1:]) if line.kind and line.since is None else line
        for line in taken
    ]
    return run._replace(gathered=run.gathered._replace(watches={"two.log": lines}))


def of_op(run: Recorded, op: str, number: int = 0) -> int:
    """Place of such a request that was applied, among the attempts."""
    return [
        place
        for place, (call, answer) in enumerate(run.gathered.attempts)
        if call.steps[0].op == op and answer and answer.outcome == "applied"
    ][number]


def with_content(run: Recorded, place: int, **fields: Any) -> Recorded:
    """The journal holds another content of what this request changed first."""
    found = run.place(run.gathered.attempts[place])
    first, *others = run.history[found].changes
    return changed(run, found, changes=(first._replace(content={**first.content, **fields}), *others))


@lie(1, "told otherwise")
def a_claim_of_more_than_was_told(run: Recorded) -> Recorded:
    place = of_op(run, "claim")
    return run.saying(place, versions=run.gathered.attempts[place].answer.versions[:2])


@lie(3, "reply differs")
def a_claim_of_the_younger_one(run: Recorded) -> Recorded:
    found = run.place(run.gathered.attempts[of_op(run, "claim")])
    return changed(run, found, changes=run.history[found].changes[::-1])


@lie(3, "reply differs")
def a_claim_that_left_something(run: Recorded) -> Recorded:
    place = of_op(run, "claim")
    (step,) = run.gathered.attempts[place].call.steps
    return run.asking(place, steps=(msgspec.structs.replace(step, fields={**step.fields, "count": 4}),))


@lie(3, "reply differs")
def a_claim_of_what_was_not_asked_for(run: Recorded) -> Recorded:
    place = of_op(run, "claim")
    (step,) = run.gathered.attempts[place].call.steps
    return run.asking(
        place, steps=(msgspec.structs.replace(step, fields={**step.fields, "where": {"project": ["p"]}}),)
    )


@lie(3, "reply differs")
def a_claim_of_what_must_rest(run: Recorded) -> Recorded:
    return with_content(run, of_op(run, "fail"), not_before="2100-01-01T00:00:00Z")


@lie(3, "state differs")
def an_operation_that_did_something_else(run: Recorded) -> Recorded:
    return with_content(run, of_op(run, "alter"), max_retries=1)


@lie(3, "reply differs")
def a_condition_that_was_overlooked(run: Recorded) -> Recorded:
    return run.asking(of_update(run), conditions=(Condition("Task", "a", None, {"title": ["another"]}),))


@lie(3, "reply differs")
def a_task_of_which_there_was_to_be_none(run: Recorded) -> Recorded:
    return run.asking(of_update(run), conditions=(Condition("Task", "*", None, {"title": ["a6"]}),))


@lie(3, "reply differs")
def a_token_that_was_overlooked(run: Recorded) -> Recorded:
    return run.asking(of_op(run, "complete"), tokens=((Key("Task", "w"), 1),))


@lie(7, "handed in under an old claim")
def a_task_that_was_completed_under_an_old_claim(run: Recorded) -> Recorded:
    return run.asking(of_op(run, "complete"), tokens=((Key("Task", "w"), 1),))


@lie(7, "handed in under no claim")
def a_task_that_was_completed_under_no_claim(run: Recorded) -> Recorded:
    return run.asking(of_op(run, "complete"), tokens=())


@lie(7, "two hold it")
def a_task_that_was_claimed_while_somebody_held_it(run: Recorded) -> Recorded:
    taken = run.place(run.gathered.attempts[of_op(run, "claim", 1)])
    given_back = run.place(run.gathered.attempts[of_op(run, "release")])
    return run.recovering(lambda history: [*history[:given_back], *history[given_back + 1 : taken + 1]])


@lie(7, "claimed though it was not free")
def a_task_that_was_claimed_when_it_was_done(run: Recorded) -> Recorded:
    return with_content(run, of_op(run, "release"), status="completed")


@lie(7, "claimed without an attempt left")
def a_task_that_was_claimed_too_often(run: Recorded) -> Recorded:
    return with_content(run, of_op(run, "release"), attempts=9)


@lie(7, "a token that is no claim's version")
def a_claim_with_a_token_of_its_own(run: Recorded) -> Recorded:
    return with_content(run, of_op(run, "claim"), claim=77)


@lie(7, "still claimed")
def a_claim_that_never_ended(run: Recorded) -> Recorded:
    place = run.place(run.gathered.attempts[of_op(run, "claim", 1)])
    return run.recovering(lambda history: history[: place + 1])


@lie(6, "no fault")
def a_run_without_faults(run: Recorded) -> Recorded:
    return run._replace(gathered=run.gathered._replace(faults=[]))


@lie(6, "the last operation failed")
def a_run_whose_last_request_was_not_answered(run: Recorded) -> Recorded:
    last = max(range(len(run.gathered.attempts)), key=lambda place: run.gathered.attempts[place].call.at)
    return run.without(last, answer_only=True)


@pytest.mark.parametrize(("condition", "name", "how"), LIES, ids=[how.__name__ for _, _, how in LIES])
def test_a_lie_is_found(recorded, condition, name, how):
    assert (condition, name) in how(recorded).violations()


def test_too_few_acks_make_no_run(recorded):
    assert recorded.violations(acks_min=1_000) == {(6, "too few acks")}


def test_an_answer_that_nobody_read_is_no_violation(recorded):
    """Unknown is unknown: the request may be in the history, or not."""
    place = of_update(recorded)
    assert recorded.without(place, answer_only=True).violations() == set()
    of_history = recorded.place(recorded.gathered.attempts[place])
    assert recorded.history[of_history].changes


def test_who_never_sent_its_request_does_not_stand_for_another_one_under_that_id(start_engine, state, tmp_path):
    """A user's own id, first of a process that died before it sent anything, then of one with another content."""
    engine = start_engine(state)
    with connect(engine.state) as client, Evidence(tmp_path / "one.log") as one, Evidence(tmp_path / "two.log") as two:
        one.fault("SIGKILL of one")
        one.asking([Create(Task(title="a", id="a"))], request_id="own")
        two.submit(client, Create(Task(title="b", id="b")), request_id="own")
        final = two.look(client.reader)
    engine.stop()
    verdict = check(gather([one.path, two.path]), read_history(state), final, acks_min=1)
    assert verdict.violations == []


def test_a_journal_that_lost_its_end_is_found(recorded, folder, tmp_path):
    """The file itself is cut where its last entry with a record begins: for an engine that is a torn tail."""
    journal = copied(folder, tmp_path)
    data = journal.read_bytes()
    last = max(place for place, found in entries_in(data) if found.bodies)
    journal.write_bytes(data[:last] + bytes(len(data) - last))
    assert {(1, "lost"), (3, "final state differs")} <= recovered(folder, tmp_path).violations()


def test_a_journal_with_a_hole_is_no_history(folder, tmp_path):
    journal = copied(folder, tmp_path)
    data = bytearray(journal.read_bytes())
    data[[place for place, _ in entries_in(bytes(data))][5] + 60] ^= 1
    journal.write_bytes(data)
    with pytest.raises(JournalCorrupt, match="damaged"):
        read_history(tmp_path)


def test_a_journal_that_begins_later_is_no_history(folder, tmp_path):
    journal = copied(folder, tmp_path)
    first = entry.read_file_header(journal, journal.read_bytes())
    header = entry.file_header(first.state_id, 2, 0)
    journal.write_bytes(header + journal.read_bytes()[len(header) :])
    with pytest.raises(JournalCorrupt, match="does not follow"):
        read_history(tmp_path)


def test_a_history_is_read_from_an_archive_and_what_is_left_of_the_journal(start_engine, state, tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    engine = start_engine(state)
    with connect(state) as client:
        client.create(Task(title="x", id="t"))
        long = "y" * 20_000
        for reply in client.submit_many(Update(Task.ref("t"), {"description": f"{n}{long}"}) for n in range(150)):
            assert reply.applied
    engine.stop()
    whole = read_history(state)
    first, second, *_ = sorted(state.glob("journal-*.log"))
    shutil.copy(second, archive)
    (archive / second.name).write_bytes(b"an older one")  # what the state folder has counts
    shutil.move(first, archive)
    with pytest.raises(JournalCorrupt, match="does not follow"):
        read_history(state)
    assert read_history(state, archives=[archive]) == whole
    assert len(whole) == 151


def copied(folder: Path, to: Path) -> Path:
    """The journal of the recorded run, all that there is of its history."""
    (journal,) = (folder / "state").glob("journal-*.log")
    return Path(shutil.copy(journal, to))


def entries_in(data: bytes) -> list[tuple[int, entry.Entry]]:
    """Each entry of a journal file, and where it begins."""
    found, at = [], entry.FILE_HEADER_BYTES
    while (unpacked := entry.unpack(data, at)) is not None:
        found.append((at, unpacked[0]))
        at = unpacked[2]
    return found
