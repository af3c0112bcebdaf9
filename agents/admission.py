"""How much room there is: for a request of somebody who does not want to wait, and for one who sends many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from solewriter.agents.deadline import due_s
from solewriter.agents.pace import Pace
from solewriter.agents.session import AgentSession, waits
from solewriter.shared.config import FRAME_BATCH
from solewriter.shared.errors import Busy, EngineUnavailable, InvalidMutation, safe_repr
from solewriter.shared.wireform import Asked


def replies_needed(session: AgentSession, requests: Sequence[Asked]) -> int:
    """How many replies until these requests may be sent: 0 if they may now. Claims that wait leave room for others."""
    missing = session.replies_until_room(len(requests))
    if session.waiting and not is_pressing(requests):
        missing = max(missing, claims_too_many(session, len(requests)))
    return missing


def claims_too_many(session: AgentSession, more: int) -> int:
    """How many of so many more claims that wait would be in the room of one frame of somebody who sends many."""
    _, kept_free = pipeline(session.window, session.window)
    return max(0, session.waiting + more - max(1, session.window - kept_free))


def check_room(
    session: AgentSession,
    pace: Pace,
    requests: Sequence[Asked],
    busy_above_s: float,
    now_s: float,
    in_line: int = 0,
) -> None:
    """Raises Busy unless these requests can be written at once, behind so many that stand in line, and will be answered
    within that time and before their own deadline, as the engine answers just now.
    """
    soon_s = min(busy_above_s, due_s(requests) - now_s)
    missing = in_line + replies_needed(session, requests)
    missing = max(missing, pace.too_many(session.awaited + len(requests), soon_s))
    if missing or (session.unsent is not None and session.in_flight):
        raise _busy(pace.retry_after_s(max(1, missing), now_s))


def is_pressing(requests: Sequence[Asked]) -> bool:
    """Whether one of them is something else than a claim that waits."""
    return any(len(request) == 2 or not waits(request) for request in requests)


def make_room(session: AgentSession, pace: Pace, line: Iterable[Sequence[Asked]], now_s: float) -> bool:
    """Call back claims for the first in this line that do not wait, see `AgentSession.make_room`. Whether something has
    to be written for that.
    """
    if session.awaited:
        return False
    for requests in line:
        if is_pressing(requests):
            pace.begin(now_s)
            session.make_room(len(requests))
            break
    return session.awaited > 0


def no_room(session: AgentSession) -> EngineUnavailable:
    """The error for a caller that waited for room in vain."""
    why = "the engine answered too few of them in time"
    if session.waiting:
        why = f"{session.waiting} of them are claims that wait: let fewer wait at once, or connect() for them once more"
    return EngineUnavailable(f"nothing was sent: the window of requests in flight is full, and {why}")


def pipeline(wanted: int, window: int) -> tuple[int, int]:
    """Requests in flight, and requests in one frame, for somebody who sends many. Raises InvalidMutation for what is no
    number of 1 or more.
    """
    try:
        if wanted >= 1:  # nor nan
            window = int(min(wanted, window))
            return window, max(1, min(FRAME_BATCH, window // 4))
    except (TypeError, ValueError):
        pass  # told below
    problem = f"a number of requests in flight, not {safe_repr(wanted)}"
    raise InvalidMutation(f"window is {problem}", fields={"window": problem})


def sends_more(session: AgentSession, on_their_way: int, batch: int) -> bool:
    """Whether somebody who sends many, and whose window has room, sends another frame before the next reply. Where
    claims that wait have all of their room, that frame might have to wait for such a reply.
    """
    return not (on_their_way and session.waiting and claims_too_many(session, batch))


def _busy(retry_after_s: float) -> Busy:
    """The error for a caller that does not wait for room."""
    return Busy(
        "there is no room for another request in flight, or no reply to it in time: nothing was sent; "
        f"try again in {retry_after_s:.3f} s",
        retry_after_s=retry_after_s,
    )
