"""How fast replies come, and so when there may be room for more: for callers who do not want to wait for it.

Only the time counts in which something was in flight that is answered as soon as can be: no claims that wait. What was
long ago counts less than what was just now. Once it was steady for a while, it says how much the engine can do, and so
how much is too much.
"""

from __future__ import annotations

from solewriter.shared.config import IN_FLIGHT_LEAST, PACE_KEPT, RETRY_LEAST_S, RETRY_MOST_S, STEADY_LOOKS


class Pace:
    """The rate of one session's replies, newer ones counted more. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._since_s = 0.0  # when the last replies came, or something was sent after nothing was in flight
        self._replies = 0.0
        self._taken_s = 0.0
        self._looks = 0  # since nothing was in flight

    def begin(self, now_s: float) -> None:
        """Note that from this time on something is in flight, after nothing was."""
        self._since_s = now_s
        self._looks = 0

    def note(self, replies: int, now_s: float) -> None:
        """Note that so many replies came at once, at this time."""
        self._replies = PACE_KEPT * self._replies + replies
        self._taken_s = PACE_KEPT * self._taken_s + now_s - self._since_s
        self._since_s = now_s
        self._looks += 1

    def too_many(self, in_flight: int, seconds: float) -> int:
        """How many of those in flight will not be answered within these seconds; 0 while they are few, or the rate is
        not known yet.
        """
        if self._looks < STEADY_LOOKS or not (self._replies and self._taken_s):
            return 0
        answered = max(IN_FLIGHT_LEAST, seconds * self._replies / self._taken_s)
        return 0 if answered >= in_flight else in_flight - int(answered)

    def retry_after_s(self, replies: int, now_s: float) -> float:
        """How long until so many more replies will have come, at their rate so far; where none came for longer than
        that, as long as the silence has lasted.
        """
        expected_s = replies * self._taken_s / self._replies if self._replies else 0.0
        return min(RETRY_MOST_S, max(RETRY_LEAST_S, expected_s, now_s - self._since_s))
