"""How fast replies come, and so when there may be room for more: for callers who do not want to wait for it.

Only the time counts in which something was in flight. What was long ago counts less than what was just now.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from solewriter.agents.deadline import due_s
from solewriter.agents.session import AgentSession, busy
from solewriter.shared.config import IN_FLIGHT_LEAST, RETRY_LEAST_S, RETRY_MOST_S
from solewriter.shared.wireform import OutcomeQuery, PlainRequest

KEPT = 0.9  # of what was seen before, at each look that brought replies: the last ten or twenty make the pace
STEADY_LOOKS = 20  # without a pause in between, until the pace says how much the engine can do, not how much was asked


class Pace:
    """Of one session. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._since_s = 0.0  # when the last replies came, or something was sent after nothing was in flight
        self._replies = 0.0
        self._taken_s = 0.0
        self._looks = 0  # since nothing was in flight

    def begin(self, now_s: float) -> None:
        """Something is in flight, after nothing was."""
        self._since_s = now_s
        self._looks = 0

    def note(self, replies: int, now_s: float) -> None:
        """So many came at once."""
        self._replies = KEPT * self._replies + replies
        self._taken_s = KEPT * self._taken_s + now_s - self._since_s
        self._since_s = now_s
        self._looks += 1

    def too_many(self, in_flight: int, seconds: float) -> int:
        """How many of those in flight are more than will be answered within these seconds. None, while they are few, or
        nobody knows yet.
        """
        if self._looks < STEADY_LOOKS or not self._taken_s:
            return 0
        answered = int(max(0.0, seconds) * self._replies / self._taken_s)
        return max(0, in_flight - max(IN_FLIGHT_LEAST, answered))

    def retry_after_s(self, replies: int, now_s: float) -> float:
        """Until so many more will have come, if they come as they did; and when none have come for longer than that,
        as long as nothing came so far.
        """
        expected_s = replies * self._taken_s / self._replies if self._replies else 0.0
        return min(RETRY_MOST_S, max(RETRY_LEAST_S, expected_s, now_s - self._since_s))


def check_room(
    session: AgentSession,
    pace: Pace,
    requests: Sequence[PlainRequest | OutcomeQuery],
    busy_above_s: float,
    in_line: int = 0,
) -> None:
    """Raises Busy unless these requests can be written at once, behind so many that stand in line, and will be answered
    within that time and before their own deadline.
    """
    now_s, count = time.monotonic(), len(requests)
    soon_s = min(busy_above_s, due_s(requests) - now_s)
    missing = in_line + session.replies_until_room(count)
    missing = max(missing, pace.too_many(session.in_flight + count, soon_s))
    if missing or (session.unsent is not None and session.in_flight):
        raise busy(pace.retry_after_s(max(1, missing), now_s))
