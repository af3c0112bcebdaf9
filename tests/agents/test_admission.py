"""Who does not wait for room: when it is told Busy. The tests say what time it is and what the engine answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from solewriter import Busy
from solewriter.agents.admission import check_room, make_room
from solewriter.agents.pace import Pace
from solewriter.agents.session import AgentSession
from solewriter.shared import wire
from solewriter.shared.config import DEFAULT_LIMITS, IN_FLIGHT_LEAST, STEADY_LOOKS
from solewriter.shared.mutations import Op
from solewriter.shared.wire import Status

UPDATE: Any = ([(Op.UPDATE.value, "Task", "t", None, {"title": "x"}, "", None)], [], None, None)
CLAIM: Any = ([(Op.CLAIM.value, "Task", "*", None, {"count": 1, "where": {}, "until_us": 9}, "", None)], [], None, None)
AT_ONCE: Any = ([(Op.CLAIM.value, "Task", "*", None, {"count": 1, "where": {}}, "", None)], [], None, None)


def due(seconds: float) -> Any:
    return (*UPDATE[:3], int(seconds * 1e6))


class Agent:
    """A session, what it has on its way, and an engine that answers when a test says so."""

    def __init__(self) -> None:
        self.session = AgentSession(DEFAULT_LIMITS, "me", None)
        self.pace = Pace()
        self.now_s = 0.0
        self.open: list[Any] = []

    def asks(self, request: Any, count: int = 1) -> list[Any]:
        if not self.session.awaited:
            self.pace.begin(self.now_s)
        sent = [one for _ in range(count) for one in self.session.send([request])]
        while self.session.unsent is not None:
            self.session.write(len)
        return sent

    def hears(self, *pendings: Any, after_s: float) -> None:
        self.now_s += after_s
        before = self.session.awaited
        self.session.receive(wire.pack_replies([(one.sequence, Status.APPLIED, 1, []) for one in pendings]))
        if before:
            self.pace.note(before - self.session.awaited, self.now_s)

    def steady(self, per_s: float) -> None:
        """It has something in flight all the time, and so many are answered each second."""
        first = self.asks(UPDATE)
        for _ in range(2 * STEADY_LOOKS):
            following = self.asks(UPDATE)
            self.hears(*first, after_s=1 / per_s)
            first = following

    def busy(self, request: Any = UPDATE, above_s: float = 0.2) -> bool:
        try:
            check_room(self.session, self.pace, [request], above_s, self.now_s)
        except Busy:
            return True
        return False


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_it_is_what_would_be_answered_too_late(agent: Agent) -> None:
    agent.steady(per_s=1_000)
    agent.asks(UPDATE, 150)
    assert not agent.busy(above_s=0.2)
    agent.asks(UPDATE, 60)
    assert agent.busy(above_s=0.2)
    assert not agent.busy(above_s=math.inf)


def test_it_is_what_would_be_answered_after_its_own_deadline(agent: Agent) -> None:
    agent.steady(per_s=1_000)
    agent.asks(UPDATE, 120)
    assert agent.busy(due(agent.now_s + 0.1))
    assert not agent.busy(due(agent.now_s + 0.2))


def test_few_are_never_too_many(agent: Agent) -> None:
    agent.steady(per_s=1)
    agent.asks(UPDATE, IN_FLIGHT_LEAST - 2)
    assert not agent.busy()
    agent.asks(UPDATE)
    assert agent.busy()


def test_claims_that_wait_are_no_work_that_the_engine_has(agent: Agent) -> None:
    """Nor is the time in which nothing but they was in flight its pace."""
    claims = agent.asks(CLAIM, 100)
    for _ in range(2 * STEADY_LOOKS):
        (one,) = agent.asks(UPDATE)
        agent.hears(one, after_s=1.0)
    agent.asks(UPDATE, 30)
    assert not agent.busy()
    assert (agent.session.in_flight, agent.session.waiting, agent.session.awaited) == (130, 100, 30)
    agent.hears(*claims[:60], after_s=1.0)
    assert (agent.session.in_flight, agent.session.waiting, agent.session.awaited) == (70, 40, 30)
    agent.asks(AT_ONCE)
    assert agent.session.awaited == 31
    agent.session.fail(None)
    assert (agent.session.in_flight, agent.session.waiting) == (0, 0)


def test_a_full_window_is_told_to_who_has_no_pace_yet(agent: Agent) -> None:
    agent.asks(UPDATE, DEFAULT_LIMITS.window_max - 1)
    assert not agent.busy()
    agent.asks(CLAIM)
    assert agent.busy()


# --- room that claims leave -------------------------------------------------------------------------------------------


def test_claims_that_fill_the_window_are_called_back_for_what_does_not_wait(agent):
    """The newest ones, and no more of them than are needed; never for another claim, and for nobody twice."""
    agent.session.window = 4
    claims = agent.asks(CLAIM, 4)

    def makes_room(*line: Any) -> list[Any]:
        made = make_room(agent.session, agent.pace, line, agent.now_s)
        assert made == (agent.session.unsent is not None)
        while agent.session.unsent is not None:
            agent.session.write(len)
        return [claims.index(one) for one in claims if one.called_back]

    assert makes_room() == makes_room([CLAIM]) == []
    assert makes_room([CLAIM], [AT_ONCE, UPDATE]) == [2, 3]
    assert makes_room([UPDATE] * 4) == [2, 3], "what was asked for them is on its way"
    never = ("Fenced", "never will be", {})
    query = claims[3].sequence + (1 << 8)
    replies = [(one.sequence, Status.REFUSED, 1, never) for one in claims[2:]]
    agent.session.receive(
        wire.pack_replies([*replies, (query, Status.ANSWER, 1, None), (query + 1, Status.ANSWER, 1, None)])
    )
    assert [one.is_back for one in claims] == [False, False, True, True]
    assert agent.session.replies_until_room(2) == 0
    assert makes_room([UPDATE] * 2) == [2, 3], "there is room"


def test_no_claim_is_called_back_where_something_else_will_be_answered(agent):
    """That makes room as soon."""
    agent.session.window = 2
    (claim,), (update,) = agent.asks(CLAIM), agent.asks(UPDATE)
    assert not make_room(agent.session, agent.pace, [[UPDATE]], agent.now_s)
    assert not claim.called_back
    agent.hears(update, after_s=1)
    assert agent.session.replies_until_room(1) == 0


def test_a_claim_that_was_called_back_and_brought_something_is_not_sent_again(agent):
    agent.session.window = 1
    (claim,) = agent.asks(CLAIM)
    assert make_room(agent.session, agent.pace, [[UPDATE]], agent.now_s)
    agent.session.receive(wire.pack_replies([(claim.sequence, Status.APPLIED, 1, [])]))
    assert claim.called_back
    assert not claim.is_back
