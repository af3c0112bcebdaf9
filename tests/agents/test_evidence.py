"""What a process writes down survives it, claims nothing more than what it knew, and says enough to be asked again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from solewriter import (
    Cancel,
    Create,
    Delete,
    Engine,
    Entity,
    Fenced,
    InvalidMutation,
    Project,
    Put,
    Task,
    TaskPriority,
    TaskStatus,
    Transition,
    Update,
    connect,
)
from solewriter.agents.testing import Evidence, gather
from solewriter.agents.testing.accounts import Accounts
from solewriter.agents.testing.lines import Answer, Attempt, Call, marked, name_in
from solewriter.agents.testing.steps import Step, kinds_of, mutation_of, plain, step_of
from solewriter.agents.testing.versions import versions_told

READ = Task(title="x", id="t", version=7, created_by="me", created_at=datetime(2030, 1, 2, 3, 4, 5, 6, UTC))
MUTATIONS = [
    Create(Task(title="x", id="t", metadata={"a": [1, {"b": None}]}, reviewers=("r",), priority=TaskPriority.HIGH)),
    Create(Project(name="p", id="p", budget_limit=0.25)),
    Put(READ),
    Put(READ, expect=None),
    Put(Task(title="x", id="t")),
    Update(READ, {"description": "y", "priority": TaskPriority.LOW, "deadline": READ.created_at}),
    Update(READ, {"metadata": {"a": (1, 2)}}, expect=3),
    Update(Task.ref("t"), {"result": {"a": [1.5, True]}}),
    Transition(READ, TaskStatus.ASSIGNED, {"assigned_to": "me"}),
    Transition(Task.ref("t"), "cancelled"),
    Cancel(READ),
    Cancel(Task.ref("t"), expect=2),
    Delete(READ),
    Delete(Task.ref("t"), expect=4),
]


@pytest.fixture
def evidence(tmp_path: Path):
    with Evidence(tmp_path / "agent.log") as evidence:
        yield evidence


def attempts_of(evidence: Evidence) -> list[Attempt]:
    return gather([evidence.path]).attempts


# --- what is written down --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_engine(tmp_path_factory, limits):
    with Engine(tmp_path_factory.mktemp("one") / "state", durability="process", limits=limits) as engine:
        yield engine


@pytest.mark.parametrize("number", range(len(MUTATIONS)), ids=[repr(mutation) for mutation in MUTATIONS])
def test_what_was_asked_can_be_asked_again(one_engine, number):
    """By another process, from the file alone, and for the engine it is the same request."""
    step = step_of(MUTATIONS[number])
    again = mutation_of(step, kinds_of(()))
    assert step_of(again) == step
    with connect(one_engine.state) as client:
        client.submit(Delete(Task.ref("t")))
        client.create(Task(title="x", id="t"))
        first = client.submit(MUTATIONS[number], request_id=f"own-{number}")
        second = client.submit(again, request_id=f"own-{number}")
    assert (first.revision, first.results, repr(first.error)) == (second.revision, second.results, repr(second.error))


def test_a_line_that_was_cut_off_claims_nothing(evidence):
    call, _ = evidence.asking([Cancel(Task.ref("t"))])
    evidence.applied(call, "id-1", 5, (2,))
    evidence.asking([Cancel(Task.ref("u"))])
    whole = evidence.path.read_bytes()
    for length in range(len(whole) + 1):
        evidence.path.write_bytes(whole[:length])
        lines = whole[:length].count(b"\n")
        found = attempts_of(evidence)
        assert len(found) == (0, 1, 1, 2)[lines]
        assert [bool(attempt.answer) for attempt in found] == [lines >= 2, False][: len(found)]


def test_a_file_belongs_to_one_process(evidence):
    with pytest.raises(FileExistsError):
        Evidence(evidence.path)


def test_files_of_one_name_are_not_taken_for_one_process(evidence, tmp_path):
    """Else each would be said to have been told what the other was."""
    (tmp_path / "other").mkdir()
    with Evidence(tmp_path / "other" / evidence.path.name) as other, pytest.raises(ValueError, match="of its own name"):
        gather([evidence.path, other.path])
    assert gather([evidence.path]).attempts == []


def test_a_name_with_brackets_travels_in_the_reason_too(tmp_path):
    with Evidence(tmp_path / "agent[1].log") as evidence:
        call, (mutation,) = evidence.asking([Cancel(Task.ref("t"))])
    assert name_in(mutation.reason) == call.name


def test_the_name_of_a_call_travels_in_the_reason(evidence):
    _, (mutation,) = evidence.asking([Cancel(Task.ref("t"), reason="because [of] it")])
    assert mutation.reason == "because [of] it [agent:1]"
    assert name_in(mutation.reason) == "agent:1"
    assert name_in(marked(Cancel(Task.ref("t")), "x:7").reason) == "x:7"
    assert name_in("because") == name_in("") == ""


def test_a_request_under_an_id_of_the_users_own_is_sent_as_it_is(evidence):
    mutation = Cancel(Task.ref("t"), reason="why")
    call, sent = evidence.asking([mutation], request_id="own")
    assert (sent, call.name, call.own) == ([mutation], "own", True)


def test_contents_are_compared_in_one_form():
    class Kept(Entity):
        at: datetime | None = None
        names: frozenset[str] = frozenset()

    east = timezone(timedelta(hours=2))
    one = Kept(id="k", at=datetime(2030, 1, 1, 2, tzinfo=east), names=frozenset("abc"))
    other = Kept(id="k", at=datetime(2030, 1, 1, tzinfo=UTC), names=frozenset("cba"))
    assert plain(one) == plain(other)
    assert plain(one)["names"] == ["a", "b", "c"]


def test_every_way_in_which_a_call_ends(evidence, engine):
    with connect(engine.state, client_id="mine") as client:
        evidence.submit(client, Create(Task(title="x", id="t")))
        evidence.submit(client, Update(Task.ref("u"), {"title": "y"}))
        with pytest.raises(InvalidMutation):
            evidence.submit(client, Update(Task.ref("t"), {"max_retries": -1}))
        replies = [*evidence.submit_many(client, [Cancel(Task.ref("t")), Update(Task.ref("t"), {"nonsense": 1})])]
        assert [reply.applied for reply in replies] == [True, False]
        evidence.resolve(client, "never-sent")
        with connect(engine.state, client_id="mine") as newer:
            newer.outcome("anything")  # answered, so the older lane is closed: nothing can be on its way there
            assert isinstance(evidence.submit(client, Delete(Task.ref("t"))).error, Fenced)
    answers = [attempt.answer for attempt in attempts_of(evidence)]
    assert [(answer.outcome, answer.error, bool(answer.request_id)) for answer in answers] == [
        ("applied", "", True),
        ("refused", "NotFound", True),
        ("refused", "InvalidMutation", False),
        ("applied", "", True),
        ("refused", "NotApplied", False),
        ("refused", "Fenced", False),
    ]


# --- what it adds up to ----------------------------------------------------------------------------------------------


def call(number: int, step: Step, at: int, name: str = "") -> Call:
    return Call(number, at, name or f"agent:{number}", bool(name), (step,))


def applied(number: int, at: int, revision: int, version: int) -> Answer:
    return Answer(number, at, "applied", f"id-{number}", revision, (version,))


def update(title: str) -> Step:
    return Step("update", "Task", "t", None, {"title": title})


def told(*attempts: tuple[Call, Answer | None]) -> list[str]:
    accounts = Accounts([Attempt(*attempt) for attempt in attempts], [])
    return [violation.name for violation in versions_told(accounts)]


def test_versions_are_judged_by_the_agents_word_alone():
    first = call(1, Step("create", "Task", "t", None, {"title": "a"}), 1), applied(1, 2, 1, 1)
    second = call(2, update("b"), 3), applied(2, 4, 2, 2)
    idle = call(3, update("b"), 5), applied(3, 6, 2, 2)
    twice = call(4, update("c"), 7), applied(4, 8, 3, 2)
    fourth = call(5, update("d"), 9), applied(5, 10, 4, 4)
    unknown = call(6, update("e"), 11), None
    assert told(first, second, idle) == []
    assert told(first, second, twice) == ["version repeated"]
    assert told(first, second, fourth) == ["version gap"]
    assert told(first, second, fourth, unknown) == [], "what nobody knows may have been the third"


def test_attempts_under_one_id_with_one_content_are_one_request():
    mine = call(1, update("a"), 5, "own"), None
    again = call(9, update("a"), 8, "own"), Answer(9, 9, "applied", "own", 1, (1,))
    other = call(2, update("b"), 7, "own"), Answer(2, 8, "refused", "own", 1, (), "RequestMismatch")
    accounts = Accounts([Attempt(*again), Attempt(*mine), Attempt(*other)], [])
    assert [(account.called, account.outcome, account.mismatched) for account in accounts] == [
        (5, "applied", False),
        (7, "refused", True),
    ]


def test_a_request_that_a_taken_over_session_refused_must_not_be_in_the_history():
    fenced = call(1, update("a"), 1), Answer(1, 2, "refused", error="Fenced")
    (account,) = Accounts([Attempt(*fenced)], [])
    assert account.outcome == "refused"
