"""How a client waits for its lane: where replies come within a moment, it looks for that long before it sleeps.

A processor that went idle takes longer to wake than the engine takes to answer. But whoever looks without sleeping has
the processor, and others may want it: they go first, and where they do, it sleeps at once for a while.
"""

from __future__ import annotations

import os
import resource
import select
import time

from solewriter.shared.config import CROWDED_LEAST_S, CROWDED_MOST_S, POLL_MS_MAX, YIELDED_S, Limits


class Spinning:
    """Waits for one client's lane, in whichever of its threads reads for all."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waited_s = 1.0  # for the last reply
        self.crowded_until = 0.0  # others want this processor
        self._rest_s = CROWDED_LEAST_S  # when somebody else wants it next

    def wait(self, poll: select.poll, timeout_s: float) -> None:
        """Wait until the lane is ready, or it is time to look around: whether another thread closed the client, say.
        Where the last reply came within a moment, sleep only behind such a moment.
        """
        begun = time.monotonic()
        if not (self._waited_s < self._limits.spin_s and begun > self.crowded_until and self._spin(poll, begun)):
            poll.poll(min(timeout_s * 1000, self._limits.wait_backstop_s * 1000, POLL_MS_MAX))
        self._waited_s = time.monotonic() - begun

    def _spin(self, poll: select.poll, begun: float) -> bool:
        """Whether the lane was ready within a moment. Whoever else wants this processor goes first. Where somebody did,
        and it was not the engine with our reply, the looking only takes his time.
        """
        now, end, yielded, switches = begun, begun + self._limits.spin_s, False, _switches()
        while now < end:
            if poll.poll(0):
                self._rest_s = max(CROWDED_LEAST_S, self._rest_s / 2)
                return True
            if yielded:
                self.crowded_until = now + self._rest_s
                self._rest_s = min(2 * self._rest_s, CROWDED_MOST_S)
                return False
            before = time.monotonic()
            os.sched_yield()
            now = time.monotonic()
            yielded = now - before > YIELDED_S and _switches() > switches  # or only the host was elsewhere
        return False


def _switches() -> int:
    """How often somebody else ran on this thread's processor although it wanted to go on."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
