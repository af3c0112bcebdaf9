"""How a request ended: asked by anybody, or by a new request under an id that another one had."""

from __future__ import annotations

from typing import Any

import msgspec

from solewriter.engine_proc.parking import Parking
from solewriter.engine_proc.session import FORGOTTEN, NEVER, Session
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.turn import Turn
from solewriter.shared import failpoint, wireform
from solewriter.shared.entry import Outcome
from solewriter.shared.errors import Refusal, Refused, RequestMismatch, Unavailable, to_wire
from solewriter.shared.request_ids import own_id
from solewriter.shared.wire import Status

Answer = tuple[int, int, int, Any]  # sequence, status, revision, detail

STOPPED: Refusal = "EngineUnavailable", "the engine stopped before it took this request: it was not applied", {}
NOT_LOOKED: Refusal = "EngineUnavailable", "the engine stopped before it took this question: ask again", {}


def refused(
    turn: Turn, session: int, sequence: int, error: Refused, request_id: str | None = None, digest: bytes | None = None
) -> Outcome:
    """Of a request that was decided, and changed nothing."""
    failpoint.reach("decide.refused")
    return Outcome(session, sequence, Status.REFUSED, turn.revision, to_wire(error), request_id, digest)


def unavailable(turn: Turn, session: int, sequence: int, error: Unavailable) -> Outcome:
    """Of one that could not be decided just now: to be told, and not to be noted."""
    return Outcome(session, sequence, Status.UNAVAILABLE, turn.revision, not_now(error))


def not_now(error: Unavailable) -> Refusal:
    """Its name and what it says: what is told where a refusal tells its own."""
    return type(error).__name__, str(error), {}


def told_again(turn: Turn, session: int, sequence: int, known: Outcome) -> Outcome:
    """Note for a new request what was told another one, of the same user-given id say."""
    outcome = msgspec.structs.replace(known, session=session, sequence=sequence)
    turn.note(outcome)
    return outcome


def known_id(turn: Turn, sessions: Sessions, request_id: str, digest: bytes) -> Outcome | None:
    """What a request with this user-given id was told. Raises RequestMismatch for another content."""
    told = turn.by_request_id.get(request_id) or sessions.by_request_id.get(request_id)
    if told is not None and told.digest is not None and told.digest != digest:
        raise RequestMismatch(f"request id {request_id!r} was used before for another request")
    return told


def answered(turn: Turn, sessions: Sessions, parking: Parking, sequence: int, request_id: str) -> Answer:
    """The answer to the question how a request ended. One that never arrived is fenced, so that NotApplied stays true.
    Whatever its asker sent before the question was decided before it: a lane is read in order, and a session's older
    lanes are not.
    """
    own = own_id(request_id)
    if own is None:
        told = turn.by_request_id.get(request_id) or sessions.outcome_of_id(request_id)
    else:
        pending = sum(number == own[0] for number, _ in turn.fenced)
        told = turn.outcome_of(*own) or (None if own in turn.fenced else sessions.outcome_of(*own, pending))
    if told is None and own is not None and parking.gives_up(turn, own):
        told_again(turn, own[0], own[1], NEVER)
    elif told is None:
        turn.fence(request_id)
        if own is None:
            for waiting in parking.lines.named(request_id):
                parking.gives_up(turn, waiting)
                told_again(turn, *waiting, NEVER)
    never = told is None or (told.status == Status.REFUSED and list(told.detail[:2]) == list(NEVER.detail[:2]))
    answer = None if told is None or never else (told.status, told.revision, told.detail)
    return sequence, Status.ANSWER, turn.revision, answer


def left(sessions: Sessions, session: Session, sequence: int, request: Any, revision: int) -> Answer:
    """The answer to what no turn takes any more. What was sent again is told as before: it may have been applied."""
    is_plain = request.__class__ is tuple
    if is_plain and len(request) == 2:
        return sequence, Status.UNAVAILABLE, revision, NOT_LOOKED
    told: Outcome | None = None
    if session.is_done_with(sequence):
        told = session.outcomes.get(sequence) or FORGOTTEN
    elif is_plain and request[2] is not None:
        told = sessions.by_request_id.get(request[2])
        if told is not None and told.digest is not None and told.digest != wireform.digest(request):
            told = None  # of another request
    if told is None:
        return sequence, Status.UNAVAILABLE, revision, STOPPED
    return sequence, told.status, told.revision, told.detail
