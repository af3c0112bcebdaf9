"""Claims that wait until something is ready: first come, first served among those that ask for the same. Of many that
ask for different things only those are looked at for which something came: by the values that they ask for, and where
they ask for an order, by that of what came.

Who waits is journaled with the session, so that a claim that is sent again after a restart is decided, and none that
was answered is. That it waits here, in memory, is not: whoever has no lane any more does not wait.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from solewriter.engine_proc.coordination.ready import Among
from solewriter.shared.config import LINE_VALUES_MAX, STALE_MAX
from solewriter.shared.where import combinations
from solewriter.shared.wireform import PlainRequest

if TYPE_CHECKING:
    from solewriter.engine_proc.coordination.ready import Candidate, Ready
    from solewriter.engine_proc.session import Session
    from solewriter.shared.where import Demand

Asked = tuple[int, int]  # session, sequence
Names = tuple[str, ...]
Values = tuple[Any, ...]


class Wish(NamedTuple):
    """What a claim waits for."""

    kind: int
    said: bytes  # its conditions: those who say the same stand in one line
    demands: Sequence[Demand]
    until_us: int
    assignee: str = ""
    denied: bool = False  # something was ready, and its own rules did not let this assignee have it


class Parked:
    """A claim that waits."""

    def __init__(self, lane: Any, session: Session, sequence: int, request: PlainRequest, wish: Wish) -> None:
        self.lane = lane  # its LaneEnd, kept for whoever answers
        self.session = session
        self.sequence = sequence
        self.request = request
        self.wish = wish


class Line:
    """Claims that wait for the same, first come first served; and how far they have been looked at in vain."""

    wish: Wish
    listed: bool  # its places are known
    loose: list[Demand]  # those of its demands that its places do not tell

    def __init__(self, wish: Wish, number: int) -> None:
        self.renew(wish)
        self.number = number
        self.waiting: OrderedDict[Asked, Parked] = OrderedDict()
        self.looked = -1  # when so much had become ready, there was nothing for any of them
        self._denied_at = -1  # when so much had, nothing for these assignees
        self._denied: set[str] = set()
        self._paused = False  # a look of all of them goes on in another turn

    def renew(self, wish: Wish) -> None:
        """The same wish, as the class that is known now understands it."""
        self.wish = wish
        self.listed = bool(self.places()[1])
        self.loose = [demand for demand in wish.demands if demand.among is None or not self.listed]

    def is_of_now(self, wish: Wish) -> bool:
        """Whether this wish, which says the same, is of the same class: another one may make other values of it."""
        return not wish.demands or wish.demands[0].kind is self.wish.demands[0].kind

    def note(self, wish: Wish, came: int) -> None:
        """There was nothing for this one when so much had become ready."""
        if not wish.denied:
            self.looked = came
            return
        self._begin(came)
        self._denied.add(wish.assignee)

    def _begin(self, came: int) -> None:
        if came != self._denied_at and not self._paused:
            self._denied_at, self._denied = came, set()

    def is_denied(self, parked: Parked, came: int) -> bool:
        return (self._paused or came == self._denied_at) and parked.wish.assignee in self._denied

    def may_have(self, among: Among) -> bool:
        """Whether one of these, which are of one of its places if it has any, may meet each of the other demands."""
        return all(map(among.may_meet, self.loose))

    def pause(self, came: int) -> None:
        """The others have their look in another turn. Until then whoever had one has no other, whatever comes: where
        something always comes, those behind would never have theirs.
        """
        self._begin(came)
        self._paused = True

    def ends(self, came: int) -> bool:
        """All had their look. Whether it is over: what came since the pause, those before it have not seen."""
        again, self._paused = self._paused and came != self._denied_at, False
        return not again

    def places(self) -> tuple[Names, list[Values]]:
        """The columns that they ask for by value, and all values of which they ask for one; none where those are too
        many.
        """
        demands = sorted([one for one in self.wish.demands if one.among is not None], key=lambda demand: demand.name)
        return tuple([demand.name for demand in demands]), combinations(demands, LINE_VALUES_MAX) or []


class LinesOfKind:
    """The lines of one kind: which of them are due, because something became ready that may be for them."""

    def __init__(self, came: int) -> None:
        self.lines: dict[bytes, Line] = {}
        self.due: dict[bytes, Line] = {}  # that have to look, in that order
        self._looked = came  # how much had become ready at the last look: whom that concerns is due, or had its turn
        self._by_values: dict[Names, dict[Values, dict[bytes, Line]]] = {}
        self._others: dict[bytes, Line] = {}  # that ask for too many values to be listed

    def add(self, line: Line) -> None:
        said = line.wish.said
        self.lines[said] = line
        names, keys = line.places()
        if not line.listed:
            self._others[said] = line
        for key in keys:
            self._by_values.setdefault(names, {}).setdefault(key, {})[said] = line

    def remove(self, line: Line) -> None:
        said = line.wish.said
        del self.lines[said]
        self.due.pop(said, None)
        self._others.pop(said, None)
        names, keys = line.places()
        for key in keys:
            by_values = self._by_values[names]
            del by_values[key][said]
            if not by_values[key]:
                del by_values[key]
            if not by_values:
                del self._by_values[names]

    def renew(self, line: Line, wish: Wish) -> None:
        """Its wish is understood by another class; whether it is due stays."""
        due = line.wish.said in self.due
        self.remove(line)
        line.renew(wish)
        self.add(line)
        if due:
            self.due[wish.said] = line

    def put_last(self, line: Line) -> None:
        """Behind the others that are due, if it still is."""
        said = line.wish.said
        if said in self.due:
            self.due[said] = self.due.pop(said)

    def look(self, ready: Ready | None) -> None:
        """Those are due for whom something may have come since the last look. None: nobody knows what is ready."""
        if ready is None:  # whoever looks makes it known: until then, all are due
            self._looked = -1
            self.due.update(self.lines)
            return
        if ready.came == self._looked:
            return
        news = ready.since(self._looked)
        self._looked = ready.came
        if news is None:
            self.due.update(self.lines)
            return
        found = self._concerned(self._others, Among(ready, news))
        for names, by_values in self._by_values.items():
            came: dict[Values, list[Candidate]] = {}
            for candidate in news:
                came.setdefault(ready.values(candidate, names), []).append(candidate)
            for values in came.keys() & by_values.keys():
                found.update(self._concerned(by_values[values], Among(ready, came[values])))
        self.due.update(sorted(found.items(), key=lambda one: one[1].number))

    def _concerned(self, lines: Mapping[bytes, Line], among: Among) -> dict[bytes, Line]:
        """Those of these lines that may have one of what came. Who is due already is not asked: its wish may still be
        that of an earlier class.
        """
        return {said: line for said, line in lines.items() if said not in self.due and line.may_have(among)}


class Lines:
    """All claims that wait, by kind, by end and by user-given id. Truthy while there is one."""

    def __init__(self) -> None:
        self.by_kind: dict[int, LinesOfKind] = {}
        self._count = count()
        self._parked: dict[Asked, Parked] = {}
        self._ends: list[tuple[int, Asked]] = []
        self._named: dict[str, dict[Asked, None]] = {}  # by the user's own ids

    def __bool__(self) -> bool:
        return bool(self._parked)

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, parked: Parked, came: int) -> None:
        """Behind those who wait for the same; one that waited already keeps its place. There was nothing for them when
        so much had become ready.
        """
        asked, wish = (parked.session.number, parked.sequence), parked.wish
        of_kind = self.by_kind.get(wish.kind)
        if of_kind is None:
            of_kind = self.by_kind[wish.kind] = LinesOfKind(came)
        line = of_kind.lines.get(wish.said)
        if line is None:
            line = Line(wish, next(self._count))
            of_kind.add(line)
        elif not line.is_of_now(wish):
            of_kind.renew(line, wish)
        line.note(wish, came)
        again = asked in self._parked  # for it there was nothing either, when something became ready
        line.waiting[asked] = self._parked[asked] = parked
        if not again:
            self._end(asked, parked)
            if (request_id := parked.request[2]) is not None:
                self._named.setdefault(request_id, {})[asked] = None

    def named(self, request_id: str) -> list[Asked]:
        """Those that wait under a user's own id."""
        return [*self._named.get(request_id, ())]

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
            if (request_id := parked.request[2]) is not None:
                named = self._named[request_id]
                del named[asked]
                if not named:
                    del self._named[request_id]
            of_kind = self.by_kind[parked.wish.kind]
            line = of_kind.lines[parked.wish.said]
            del line.waiting[asked]
            if not line.waiting:
                of_kind.remove(line)
            if not of_kind.lines:
                del self.by_kind[parked.wish.kind]
        return parked

    def put_last(self, kind: int, line: Line) -> None:
        """A kind behind the others, and a line of it behind the kind's others that are due: if somebody still waits."""
        if kind in self.by_kind:
            of_kind = self.by_kind[kind] = self.by_kind.pop(kind)
            of_kind.put_last(line)

    def drop(self, session: int) -> None:
        """A session has no lane any more: it sends again what was not answered when it comes back."""
        for asked in [asked for asked in self._parked if asked[0] == session]:
            self.leave(asked)

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
        self.by_kind, self._parked, self._ends, self._named = {}, {}, [], {}
        return left
