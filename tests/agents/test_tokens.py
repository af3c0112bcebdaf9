"""What a client holds, whatever number its claim came to have."""

from __future__ import annotations

from typing import Any

import pytest

from solewriter.agents import tokens as module
from solewriter.agents.pending import Pending
from solewriter.agents.tokens import Tokens
from solewriter.shared.errors import EngineUnavailable, Fenced
from solewriter.shared.models import Task
from solewriter.shared.mutations import Applied, Op, Reply, Result
from solewriter.shared.request_ids import default_id

SESSION = 7
CLAIM: Any = ([(Op.CLAIM.value, "Task", "*", None, {"count": 1, "where": {}}, "", None)], [], None, None)
COMPLETE: Any = ([(Op.COMPLETE.value, "Task", "t", None, {}, "", None)], [], None, None)
RELEASE: Any = ([(Op.RELEASE.value, "Task", "t", None, None, "", None)], [], None, None)
UPDATE: Any = ([(Op.UPDATE.value, "Task", "t", None, {"title": "x"}, "", None)], [], None, None)


def reply(pending: Pending, version: int, address: int = 64) -> Reply:
    return Reply((SESSION, pending.sequence), 9, (Result("Task", "t", version, address),), None, lambda result: None)


def ask(tokens: Tokens, sequence: int, request: Any) -> Pending:
    """As a client sends it: with what is held of it."""
    pending, shown = Pending(SESSION, sequence, None), (request[0], [*request[1]], *request[2:])
    tokens.show([shown])
    tokens.note_sent([pending], [shown])
    return pending


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


def test_a_claim_that_got_another_number_before_it_was_sent_is_held_all_the_same(tokens: Tokens) -> None:
    pending = Pending(SESSION, 5, None)
    tokens.note_sent([pending], [CLAIM])
    pending.sequence = 512  # another client had the session meanwhile
    tokens.note_reply(pending, reply(pending, 3))
    assert tokens.holds("Task", "t") == 3
    handing_in = ask(tokens, 513, COMPLETE)
    tokens.note_reply(handing_in, reply(handing_in, 4))
    assert tokens.holds("Task", "t") is None


def test_so_it_is_where_its_answer_was_asked_for(tokens: Tokens) -> None:
    pending, other = Pending(SESSION, 5, None), Pending(SESSION, 6, None)
    tokens.note_sent([pending], [CLAIM])
    tokens.note_sent([other], [CLAIM])
    pending.sequence = 512
    assert pending.request_id == default_id(SESSION, 512)
    tokens.note_outcome(Applied(reply(Pending(SESSION, 7, None), 1)))  # nobody's here
    assert tokens.holds("Task", "t") is None
    tokens.note_outcome(Applied(reply(pending, 3)))
    assert tokens.holds("Task", "t") == 3


def fenced(pending: Pending, **details: Any) -> Reply:
    error = Fenced("an old one", kind="Task", id="t", **details)
    return Reply((SESSION, pending.sequence), 9, (), error, lambda result: None)


def test_what_is_told_late_of_an_old_claim_takes_no_newer_one_away(tokens: Tokens) -> None:
    """Threads share a client: one that waits reads what another one is told, too, and may go on before it."""
    first = ask(tokens, 1, CLAIM)
    tokens.note_reply(first, reply(first, 2))
    giving_back = ask(tokens, 2, RELEASE)
    late, unshown = ask(tokens, 3, UPDATE), Pending(SESSION, 4, None)
    waiting = ask(tokens, 5, CLAIM)
    tokens.note_reply(waiting, reply(waiting, 4))
    tokens.note_reply(giving_back, reply(giving_back, 3))
    assert tokens.holds("Task", "t") == 4
    tokens.note_reply(late, fenced(late, token=2))
    tokens.note_reply(unshown, fenced(unshown))
    assert tokens.holds("Task", "t") == 4
    displaced = ask(tokens, 6, UPDATE)
    tokens.note_reply(displaced, fenced(displaced, token=4))
    assert tokens.holds("Task", "t") is None


def test_who_is_told_very_late_of_an_old_claim_takes_no_newer_one_away(tokens: Tokens) -> None:
    first, second = ask(tokens, 1, CLAIM), ask(tokens, 2, CLAIM)
    tokens.note_reply(second, reply(second, 4))  # another agent had given it back meanwhile
    tokens.note_reply(first, reply(first, 2))
    assert tokens.holds("Task", "t") == 4


def test_a_claim_of_a_state_that_began_anew_is_held_whatever_its_version(tokens: Tokens) -> None:
    """Of durability `memory`, say: versions begin at 1 again, and a client goes on."""
    before, after = ask(tokens, 1, CLAIM), ask(tokens, 2, CLAIM)
    before.epoch, after.epoch = 1, 2
    tokens.note_reply(before, reply(before, 57))
    tokens.note_reply(after, reply(after, 2))
    assert tokens.holds("Task", "t") == 2
    tokens.hold(Task(id="t", title="x", claim=1))
    assert tokens.holds("Task", "t") == 1


def test_what_a_client_remembers_of_its_claims_is_bounded(monkeypatch):
    """Those that it never handed in, and that ended otherwise: the oldest are forgotten."""
    monkeypatch.setattr(module, "HELD_MAX", 3)
    tokens = Tokens()
    for number in range(5):
        tokens.hold(Task(id=f"t{number}", title="x", claim=number + 1))
    tokens.hold(Task(id="t2", title="x", claim=9))  # once more
    tokens.hold(Task(id="t5", title="x", claim=6))
    assert [tokens.holds("Task", f"t{number}") for number in range(6)] == [None, None, 9, None, 5, 6]


def test_of_answers_that_nobody_takes_the_oldest_are_forgotten_and_what_is_on_its_way_is_not(monkeypatch):
    """Claims that were cancelled, or not waited for any longer, mostly."""
    monkeypatch.setattr(module, "ASKED_MAX", 3)
    tokens, pendings = Tokens(), [Pending(SESSION, number, None) for number in range(7)]
    waiting, *others = pendings
    for pending in pendings:
        tokens.note_sent([pending], [CLAIM])
        if pending is not waiting:
            pending.end(None, EngineUnavailable("nobody takes this"))
    assert [tokens.unread(pending.request_id) for pending in others] == [None, None, None, None, *others[-2:]]
    tokens.note_reply(waiting, reply(waiting, 3))
    assert tokens.holds("Task", "t") == 3


def test_what_a_signal_handler_gives_back_meanwhile_keeps_nobody_waiting(tokens, at_step):
    """It comes at any step of the same thread's own call."""
    steps, reached = 0, [""]
    while reached:
        steps += 1
        mine, his = ask(tokens, 0, CLAIM), ask(tokens, 1, CLAIM)
        with at_step(steps, lambda his=his: tokens.note_reply(his, reply(his, 9)), module) as reached:
            tokens.note_reply(mine, reply(mine, 8))
        assert tokens.holds("Task", "t") in ((8, 9) if reached else (8,))
        tokens.note_reply(his, reply(his, 9))
        tokens.hold_under("Task", "t", 0)
    assert steps > 5
