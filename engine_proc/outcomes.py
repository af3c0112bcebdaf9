"""How a request ended: asked by anybody, or by a new request under an id that another one had."""

from __future__ import annotations

from typing import Any

import msgspec

from solewriter.engine_proc.parking import Parking
from solewriter.engine_proc.session import FORGOTTEN, NEVER, Session
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.turn import Turn
from solewriter.shared import failpoint, wireform
from solewriter.shared.errors import InvalidMutation, Refusal, Refused, RequestMismatch, Unavailable, to_wire
from solewriter.shared.journal.entry import Outcome
from solewriter.shared.kinds.validation import NO_SUCH_FIELD
from solewriter.shared.request_ids import own_id
from solewriter.shared.wire import Status

Answer = tuple[int, int, int, Any]  # sequence, status, revision, detail

STOPPED: Refusal = "EngineUnavailable", "the engine stopped before it took this request: it was not applied", {}
NOT_LOOKED: Refusal = "EngineUnavailable", "the engine stopped before it took this question: ask again", {}


def refused_outcome(
    turn: Turn, session: int, sequence: int, error: Refused, request_id: str | None = None, digest: bytes | None = None
) -> Outcome:
    """Of a request that was decided, and changed nothing."""
    failpoint.reach("decide.refused")
    told = to_wire(_of_another_class(error))
    return Outcome(session, sequence, Status.REFUSED, turn.revision, told, request_id, digest)


def _of_another_class(error: Refused) -> Refused:
    """The same; of a field that there is none of, that its client has another class: by its own it looked already."""
    if isinstance(error, InvalidMutation) and NO_SUCH_FIELD in error.fields.values():
        why = "in the engine, which has another class of it than this client: use one everywhere"
        return InvalidMutation(f"{error.message} {why}", fields=error.fields)
    return error


def unavailable_outcome(turn: Turn, session: int, sequence: int, error: Unavailable) -> Outcome:
    """Of one that could not be decided just now: it is answered, and not noted."""
    return Outcome(session, sequence, Status.UNAVAILABLE, turn.revision, not_now(error))


def not_now(error: Unavailable) -> Refusal:
    """Its name and what it says, in the place of a refusal's."""
    return type(error).__name__, str(error), {}


def note_again(turn: Turn, session: int, sequence: int, known: Outcome) -> Outcome:
    """Note for a new request the outcome of another one, of the same user-given id say."""
    outcome = msgspec.structs.replace(known, session=session, sequence=sequence)
    turn.note(outcome)
    return outcome


def known_id(turn: Turn, sessions: Sessions, request_id: str, digest: bytes) -> Outcome | None:
    """How a request with this user-given id ended. Raises RequestMismatch for another content."""
    outcome = turn.by_request_id.get(request_id) or sessions.by_request_id.get(request_id)
    if outcome is not None and outcome.digest is not None and outcome.digest != digest:
        raise RequestMismatch(f"request id {request_id!r} was used before for another request")
    return outcome


def answer_query(turn: Turn, sessions: Sessions, parking: Parking, sequence: int, request_id: str) -> Answer:
    """The answer to the question how a request ended. One that never arrived is fenced, so that NotApplied stays true.
    Whatever its asker sent before the question was decided before it: a lane is read in order, and a session's older
    lanes are not.
    """
    own = own_id(request_id)
    if own is None:
        outcome = turn.by_request_id.get(request_id) or sessions.outcome_of_id(request_id)
    else:
        pending = sum(number == own[0] for number, _ in turn.fenced)
        outcome = turn.outcome_of(*own) or (None if own in turn.fenced else sessions.outcome_of(*own, pending))
    if outcome is None and own is not None and parking.gives_up(turn, own):
        note_again(turn, own[0], own[1], NEVER)
    elif outcome is None:
        turn.fence(request_id)
        if own is None:
            for waiting in parking.lines.named(request_id):
                parking.gives_up(turn, waiting)
                note_again(turn, *waiting, NEVER)
    never = outcome is None or (outcome.status == Status.REFUSED and list(outcome.detail[:2]) == list(NEVER.detail[:2]))
    answer = None if outcome is None or never else (outcome.status, outcome.revision, outcome.detail)
    return sequence, Status.ANSWER, turn.revision, answer


def answer_untaken(sessions: Sessions, session: Session, sequence: int, request: Any, revision: int) -> Answer:
    """The answer to what no turn takes any more. What was sent again has its first answer: it may have been applied."""
    is_plain = request.__class__ is tuple
    if is_plain and len(request) == 2:
        return sequence, Status.UNAVAILABLE, revision, NOT_LOOKED
    outcome: Outcome | None = None
    if session.is_done_with(sequence):
        outcome = session.outcomes.get(sequence) or FORGOTTEN
    elif is_plain and request[2] is not None:
        outcome = sessions.by_request_id.get(request[2])
        if outcome is not None and outcome.digest is not None and outcome.digest != wireform.digest(request):
            outcome = None  # of another request
    if outcome is None:
        return sequence, Status.UNAVAILABLE, revision, STOPPED
    return sequence, outcome.status, outcome.revision, outcome.detail
