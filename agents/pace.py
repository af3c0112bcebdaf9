"""How fast replies come, and so when there may be room for more: for callers who do not want to wait for it.

Only the time counts in which something was in flight. What was long ago counts less than what was just now.
"""

from __future__ import annotations

from solewriter.shared.config import RETRY_LEAST_S, RETRY_MOST_S

KEPT = 0.9  # of what was seen before, at each look that brought replies: the last ten or twenty make the pace


class Pace:
    """Of one session. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._since_s = 0.0  # when the last replies came, or something was sent after nothing was in flight
        self._replies = 0.0
        self._taken_s = 0.0

    def begin(self, now_s: float) -> None:
        """Something is in flight, after nothing was."""
        self._since_s = now_s

    def note(self, replies: int, now_s: float) -> None:
        """So many came at once."""
        self._replies = KEPT * self._replies + replies
        self._taken_s = KEPT * self._taken_s + now_s - self._since_s
        self._since_s = now_s

    def retry_after_s(self, replies: int, now_s: float) -> float:
        """Until so many more will have come, if they come as they did; and when none have come for longer than that,
        as long as nothing came so far.
        """
        expected_s = replies * self._taken_s / self._replies if self._replies else 0.0
        return min(RETRY_MOST_S, max(RETRY_LEAST_S, expected_s, now_s - self._since_s))
