"""What a client holds, whatever number its claim came to have."""

from __future__ import annotations

from typing import Any

import pytest

from solewriter.agents.session import Pending
from solewriter.agents.tokens import Tokens
from solewriter.shared.mutations import Applied, Op, Reply, Result
from solewriter.shared.request_ids import default_id

SESSION = 7
CLAIM: Any = ([(Op.CLAIM.value, "Task", "*", None, {"count": 1, "where": {}}, "", None)], [], None, None)
COMPLETE: Any = ([(Op.COMPLETE.value, "Task", "t", None, {}, "", None)], [], None, None)


def reply(pending: Pending, version: int) -> Reply:
    return Reply((SESSION, pending.sequence), 9, (Result("Task", "t", version, 0),), None, lambda result: None)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


def test_a_claim_that_got_another_number_before_it_was_sent_is_held_all_the_same(tokens: Tokens) -> None:
    pending = Pending(SESSION, 5, None)
    tokens.sent(pending, CLAIM)
    pending.sequence = 512  # another client had the session meanwhile
    tokens.told(pending, reply(pending, 3))
    assert tokens.holds("Task", "t") == 3
    handing_in = Pending(SESSION, 513, None)
    tokens.sent(handing_in, COMPLETE)
    tokens.told(handing_in, reply(handing_in, 4))
    assert tokens.holds("Task", "t") is None


def test_so_it_is_where_its_answer_was_asked_for(tokens: Tokens) -> None:
    pending, other = Pending(SESSION, 5, None), Pending(SESSION, 6, None)
    tokens.sent(pending, CLAIM)
    tokens.sent(other, CLAIM)
    pending.sequence = 512
    assert pending.request_id == default_id(SESSION, 512)
    tokens.resolved(Applied(reply(Pending(SESSION, 7, None), 1)))  # nobody's here
    assert tokens.holds("Task", "t") is None
    tokens.resolved(Applied(reply(pending, 3)))
    assert tokens.holds("Task", "t") == 3
