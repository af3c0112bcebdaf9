"""How much room there is: for a request of somebody who does not want to wait, and for one who sends many."""

from __future__ import annotations

from collections.abc import Sequence

from solewriter.agents.deadline import due_s
from solewriter.agents.pace import Pace
from solewriter.agents.session import AgentSession
from solewriter.shared.config import FRAME_BATCH
from solewriter.shared.errors import Busy
from solewriter.shared.wireform import OutcomeQuery, PlainRequest


def check_room(
    session: AgentSession,
    pace: Pace,
    requests: Sequence[PlainRequest | OutcomeQuery],
    busy_above_s: float,
    now_s: float,
    in_line: int = 0,
) -> None:
    """Raises Busy unless these requests can be written at once, behind so many that stand in line, and will be answered
    within that time and before their own deadline, as the engine answers just now.
    """
    soon_s = min(busy_above_s, due_s(requests) - now_s)
    missing = in_line + session.replies_until_room(len(requests))
    missing = max(missing, pace.too_many(session.awaited + len(requests), soon_s))
    if missing or (session.unsent is not None and session.in_flight):
        raise _busy(pace.retry_after_s(max(1, missing), now_s))


def pipeline(wanted: int, window: int) -> tuple[int, int]:
    """Requests in flight, and requests in one frame, for somebody who sends many."""
    window = max(1, min(wanted, window))
    return window, max(1, min(FRAME_BATCH, window // 4))


def _busy(retry_after_s: float) -> Busy:
    """For a caller that does not wait for room."""
    return Busy(
        "there is no room for another request in flight, or no reply to it in time: nothing was sent; "
        f"try again in {retry_after_s:.3f} s",
        retry_after_s=retry_after_s,
    )
