"""Claims that wait until something is ready: first come, first served among those that ask for the same.

Who waits is journaled with the session, so that a claim that is sent again after a restart is decided, and none that
was answered is. That it waits here, in memory, is not: whoever has no lane any more does not wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from solewriter.shared.config import STALE_MAX
from solewriter.shared.wireform import PlainRequest

if TYPE_CHECKING:
    from solewriter.engine_proc.bridge import LaneEnd
    from solewriter.engine_proc.sessions import Session
    from solewriter.shared.where import Demand

Asked = tuple[int, int]  # session, sequence


class Wish(NamedTuple):
    """What a claim waits for."""

    kind: int
    said: bytes  # its conditions: those who say the same stand in one line
    demands: Sequence[Demand]
    until_us: int


class Parked(NamedTuple):
    """A claim that waits."""

    lane: LaneEnd
    session: Session
    sequence: int
    request: PlainRequest
    wish: Wish


class Line:
    """Those who wait for the same, in their order."""

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.waiting: OrderedDict[Asked, Parked] = OrderedDict()
        self.looked = -1  # at how often something had become ready


class Lines:
    """All who wait. Truthy while there is one."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, bytes], Line] = {}
        self._parked: dict[Asked, Parked] = {}
        self._ends: list[tuple[int, Asked]] = []

    def __bool__(self) -> bool:
        return bool(self._parked)

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, parked: Parked, came: int) -> None:
        """Behind those who wait for the same; one that waited already keeps its place. There was nothing for them when
        so much had become ready.
        """
        asked = parked.session.number, parked.sequence
        line = self._lines.setdefault(parked.wish[:2], Line(parked.wish))
        line.looked = came
        again = asked in self._parked  # for it there was nothing either, when something became ready
        line.waiting[asked] = self._parked[asked] = parked
        if not again:
            self._end(asked, parked)

    def _end(self, asked: Asked, parked: Parked) -> None:
        """Remember when it ends. Most are answered long before: what is left of those must not add up."""
        heappush(self._ends, (parked.wish.until_us, asked))
        if len(self._ends) > 2 * len(self._parked) + STALE_MAX:
            self._ends = [(one.wish.until_us, key) for key, one in self._parked.items()]
            heapify(self._ends)

    def leave(self, asked: Asked) -> Parked | None:
        """It was answered, or nobody is there to be answered."""
        parked = self._parked.pop(asked, None)
        if parked is not None:
            line = self._lines[parked.wish[:2]]
            del line.waiting[asked]
            if not line.waiting:
                del self._lines[parked.wish[:2]]
        return parked

    def drop(self, session: int) -> None:
        """A session has no lane any more: it sends again what was not answered when it comes back."""
        for asked in [asked for asked in self._parked if asked[0] == session]:
            self.leave(asked)

    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def overdue(self, now_us: int, most: int) -> list[Parked]:
        """So many of those who do not want to wait any longer. They stay until they leave."""
        found: dict[Asked, Parked] = {}
        ends = self._ends
        while ends and ends[0][0] <= now_us and len(found) < most:
            _, asked = heappop(ends)
            if asked in self._parked:
                found[asked] = self._parked[asked]
        for asked, parked in found.items():
            heappush(ends, (parked.wish.until_us, asked))
        return [*found.values()]

    @property
    def next_us(self) -> int:
        """Until when the next one wants to wait; 0: nobody does."""
        ends = self._ends
        while ends and ends[0][1] not in self._parked:
            heappop(ends)
        return ends[0][0] if ends else 0

    def clear(self) -> list[Parked]:
        """Everybody, at the end of the engine."""
        left: list[Any] = list(self._parked.values())
        self._lines, self._parked, self._ends = {}, {}, []
        return left
