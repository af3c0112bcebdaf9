"""An agent's numbers and frames, without any engine."""

from __future__ import annotations

import pytest

from solewriter.agents.session import AgentSession, outcome_unknown
from solewriter.shared.config import DEFAULT_LIMITS
from solewriter.shared.errors import EngineUnavailable
from solewriter.shared.handshake import Welcome

REQUEST = ([], [], None, None)


def welcome(first: int) -> Welcome:
    return Welcome(ok=True, first=first, window=256, frame_bytes_max=DEFAULT_LIMITS.frame_bytes_max)


@pytest.fixture
def session():
    return AgentSession(DEFAULT_LIMITS, "x", "crawler")


def test_what_was_not_sent_goes_on_under_the_numbers_that_a_welcome_gives(session):
    (one,), (two,) = session.send([REQUEST]), session.send([REQUEST])
    session.welcomed(welcome(558))
    assert (one.sequence, two.sequence) == (558 << 8, 559 << 8)
    assert session.in_flight == 2
    assert one.request_id.endswith(f"-{558 << 8}")


def test_a_request_whose_id_was_told_is_never_sent_under_another_one(session):
    """Who asks for its outcome by that id is told NotApplied, and that has to stay true."""
    (before,), (named, beside), (behind,) = (
        session.send([REQUEST]),
        session.send([REQUEST] * 2),
        session.send([REQUEST]),
    )
    held = outcome_unknown(named).request_id
    session.welcomed(welcome(558))
    assert named.request_id == held
    assert isinstance(named.error, EngineUnavailable)
    assert isinstance(beside.error, EngineUnavailable), "it was in the same frame"
    assert [pending.sequence >> 8 for pending in (before, behind)] == [558, 559]
    assert session.in_flight == 2


def test_it_is_sent_where_its_number_stays(session):
    (named,) = session.send([REQUEST])
    held = outcome_unknown(named).request_id
    session.welcomed(welcome(0))
    assert (named.request_id, named.done, session.in_flight) == (held, False, 1)
