"""When an engine that died is started again: ever more slowly, and not for ever. Whoever asks says what time it is."""

from __future__ import annotations

from collections import deque

from solewriter.shared.config import DOUBLINGS_MAX, Limits


class Backoff:
    """How long a supervisor waits before the next start. Times are seconds on any one clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._begun_s: deque[float] = deque()  # recent starts

    @property
    def starts(self) -> int:
        """How many there were of late."""
        return len(self._begun_s)

    def next_s(self, now_s: float) -> float | None:
        """How long the next start waits, which counts as one of the recent ones; None where these are too many."""
        limits, begun_s = self._limits, self._begun_s
        while begun_s and now_s - begun_s[0] > limits.restart_window_s:
            begun_s.popleft()
        if len(begun_s) >= limits.restarts_max:
            return None
        doublings = min(max(0, len(begun_s) - 1), DOUBLINGS_MAX)
        begun_s.append(now_s)
        return min(limits.restart_backoff_s * 2.0**doublings, limits.restart_backoff_max_s)
