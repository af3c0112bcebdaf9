"""Whose request is next: sessions share the writer's time, however much each of them sends.

Start-time fair queueing over measured time. What a session has waiting is one queue, in its own order. The queue that
is due first is served for a slice; the time that this took, and the time that reading its frames took, make it due so
much later. Who comes back from silence is due now: before everybody who has been served meanwhile, and without credit
for the time that nobody wanted. So two sessions that both have something waiting get the same time, but for a slice and
the last request in it on either side, and a quiet one waits for a slice, not for the queue of a flood; in a crowd a
slice is longer. While nobody has to wait for others, this is the order of arrival.

Here is no clock and no I/O: whoever serves says what it took. Each operation costs the same however much is waiting,
but for the logarithm of the number of sessions that wait, once in a slice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, KeysView
from heapq import heappop, heappush, heapreplace
from typing import Any

from solewriter.shared.config import CROWD_SESSIONS, CROWD_SLICES


class SessionQueue:
    """What one session has waiting: a lane's requests, and hellos of the same session."""

    __slots__ = ("backlogged", "due_s", "held", "items", "owed_s", "session")

    def __init__(self, session: int) -> None:
        self.session = session
        self.items: deque[Any] = deque()
        self.due_s = 0.0  # on the clock of `FairQueueing`, which counts the time that was shared
        self.owed_s = 0.0  # what reading its frames took since it was served last
        self.backlogged = False  # the last slice was not enough for all that it had waiting
        self.held = False  # its first item cannot be served yet, whoever's turn it is


class FairQueueing:
    """The queues that hold something, and which of them is next. Truthy while one can be served."""

    def __init__(self) -> None:
        self._queues: dict[int, SessionQueue] = {}  # by session
        self._order: list[tuple[float, int, SessionQueue]] = []  # a heap: when it is due, when it came, whose it is
        self._came = 0
        self._now_s = 0.0  # when the queue was due that was served last
        self._latest_s = 0.0  # when the last one of all is due
        self.holding = False  # some queue is held

    def __bool__(self) -> bool:
        return bool(self._order)

    @property
    def sessions(self) -> KeysView[int]:
        """Whose they are, those that are held included."""
        return self._queues.keys()

    def add(self, queue: SessionQueue, items: Iterable[Any]) -> None:
        """Behind what its session has waiting, here or in another queue of it: of the lane that it had before."""
        queue = self._queues.setdefault(queue.session, queue)
        if not queue.items:
            queue.due_s = max(queue.due_s, self._now_s)
            self._push(queue)
        queue.items.extend(items)

    def _push(self, queue: SessionQueue) -> None:
        self._came += 1
        heappush(self._order, (queue.due_s, self._came, queue))

    @property
    def slices(self) -> int:
        """For how many slices `next` is served at once: more where so many wait that everybody waits for long."""
        return CROWD_SLICES if len(self._order) >= CROWD_SESSIONS else 1

    @property
    def next(self) -> SessionQueue:
        """The queue that is due first. It holds something."""
        return self._order[0][2]

    def served(self, took_s: float) -> bool:
        """`next` was served for so long. Whether that was all it wanted, at the first slice: somebody who asks for less
        than its share.
        """
        queue = self._order[0][2]
        self._now_s = queue.due_s
        queue.due_s += took_s + queue.owed_s
        queue.owed_s = 0.0
        self._latest_s = max(self._latest_s, queue.due_s)
        if queue.held:
            heappop(self._order)
            self.holding = True
            return False
        if queue.items:
            queue.backlogged = True
            self._came += 1
            heapreplace(self._order, (queue.due_s, self._came, queue))
            return False
        heappop(self._order)
        del self._queues[queue.session]
        quiet, queue.backlogged = not queue.backlogged, False
        return quiet

    def let_go(self) -> None:
        """Those that are held can be served."""
        self.holding = False
        for queue in self._queues.values():
            if queue.held:
                queue.held = False
                queue.due_s = max(queue.due_s, self._now_s)
                self._push(queue)

    def rest(self) -> None:
        """Nobody waits: what was shared unevenly before is forgotten."""
        self._now_s = self._latest_s

    def clear(self) -> list[Any]:
        """Everything that waits, session by session; nothing does any more."""
        left = [item for queue in self._queues.values() for item in queue.items]
        for queue in self._queues.values():
            queue.items.clear()
            queue.held = False
        self._queues.clear()
        self._order.clear()
        self.holding = False
        return left
