"""The order in which ready tasks of a kind are taken: priority, then age; for whatever columns claimers ask for.

One view for each set of columns that somebody asked for; in a view, one heap for each combination of their values that
occurs. What is no longer ready stays in the heaps until it comes up. So a claim costs the logarithm of what is ready
for each task that it takes, and once the number of heaps that match it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, islice
from typing import Any

from solewriter.engine_proc.coordination.kept import Kept, Names
from solewriter.shared.config import RECENT_MAX, STALE_MAX, VIEW_PIECE
from solewriter.shared.errors import InvalidMutation
from solewriter.shared.where import Demand, combinations


class Candidate:
    """A task that nobody has and that may be tried: ready as soon as nothing keeps it."""

    __slots__ = (
        "aside", "denied_to", "is_put_off", "key", "live", "not_before_us", "order", "policy", "project", "ready",
        "unmet", "values",
    )  # fmt: skip

    def __init__(
        self, key: str, order: tuple[int, int, int], values: dict[str, Any], policy: str, not_before_us: int
    ) -> None:
        self.key = key
        self.order = order  # its priority's rank, when it was created, its slot
        self.values = values  # of the columns that claimers may ask for, where they are not the default
        self.policy = policy
        self.not_before_us = not_before_us
        self.project = values.get("project", "")
        self.unmet = 0  # dependencies that keep it
        self.live = True  # False: it was taken, or has changed since
        self.ready = False
        self.is_put_off = False  # it waits for its time
        self.aside = False  # it came up while its project kept it back
        self.denied_to: tuple[str, ...] = ()  # the last ones, for as long as it is as it is

    def anew(self) -> Candidate:
        """The same one, as long as it is not ready."""
        again = Candidate(self.key, self.order, self.values, self.policy, self.not_before_us)
        again.denied_to = self.denied_to
        return again


_boards = count()  # so that what is made anew is never taken for what was looked at before

Entry = tuple[tuple[int, int, int], int, Candidate]
Heap = list[Entry]
Values = tuple[Any, ...]  # of a view's columns


class _View:
    """Ready candidates by the values of some columns."""

    def __init__(self, names: Names, defaults: Mapping[str, Any]) -> None:
        self._defaults = [(name, defaults[name]) for name in names]
        self.heaps: dict[Values, Heap] = {}
        self.size = 0  # of all heaps

    def push(self, candidate: Candidate, count: int) -> None:
        heappush(self.heaps.setdefault(self.key(candidate), []), (candidate.order, count, candidate))
        self.size += 1

    def put_back(self, entry: Entry) -> None:
        heappush(self.heaps.setdefault(self.key(entry[2]), []), entry)

    def key(self, candidate: Candidate) -> Values:
        values = candidate.values
        return tuple([values.get(name, default) for name, default in self._defaults])

    def matching(self, demands: Sequence[Demand]) -> Iterator[tuple[Values, Heap]]:
        """The heaps of those that meet the demands, which are in the order of this view's names."""
        wanted = combinations(demands, len(self.heaps))
        if wanted is not None:
            for key in wanted:
                if key in self.heaps:
                    yield key, self.heaps[key]
            return
        for key, heap in list(self.heaps.items()):
            if all(demand.holds(value) for demand, value in zip(demands, key, strict=True)):
                yield key, heap


class Among:
    """Some candidates, of whom many ask whether one may meet a demand: what these have in a column is gathered once."""

    def __init__(self, ready: Ready, candidates: Sequence[Candidate]) -> None:
        self._ready = ready
        self._candidates = candidates
        self._values: dict[str, set[Any]] = {}
        self._ranks: dict[str, list[Any] | None] = {}

    def may_meet(self, demand: Demand) -> bool:
        """Whether one of them may meet it: has one of the values that are asked for, or is in the range."""
        name = demand.name
        if name not in self._values:
            self._values[name] = {value for one in self._candidates for value in self._ready.values(one, (name,))}
        if demand.among is not None:
            return any(map(demand.holds, self._values[name]))
        if name not in self._ranks:
            self._ranks[name] = self._ready.ranks(self._values[name], demand)
        ranks = self._ranks[name]
        try:
            return ranks is None or demand.among_ranks(ranks)
        except TypeError:  # a claim says so when it is decided
            return True


class Ready:
    """What is ready of one kind, whose columns have these defaults."""

    def __init__(self, defaults: Mapping[str, Any]) -> None:
        self._defaults = defaults
        self._views = Kept[_View]()
        self._ready: dict[str, Candidate] = {}
        self._count = count()
        self._out: list[tuple[_View, Entry]] = []  # of a heap, for as long as one request is decided, which has them
        self._aside: dict[str, dict[str, Candidate]] = {}  # by project and key, those that are ready
        self.came = next(_boards) << 40  # grows when something becomes ready: then whoever waits looks again
        self._recent: deque[Candidate] = deque(maxlen=RECENT_MAX)
        self._plain: dict[str, bool] = {}  # columns whose order is told without a user's code

    def since(self, came: int) -> list[Candidate] | None:
        """What became ready since so much had; None: more than is remembered."""
        new, recent = self.came - came, self._recent
        return list(islice(recent, len(recent) - new, None)) if 0 <= new <= len(recent) else None

    def to_come(self, now_us: int) -> list[Candidate]:
        """Those that are ready, and by this time are not."""
        return [candidate for candidate in self._ready.values() if candidate.not_before_us > now_us]

    def values(self, candidate: Candidate, names: Sequence[str]) -> Values:
        """What a candidate has in these columns."""
        return tuple([candidate.values.get(name, self._defaults.get(name)) for name in names])

    def ranks(self, values: Iterable[Any], demand: Demand) -> list[Any] | None:
        """Those of a column's values, in their order; None where nobody knows that without a user's code, or at all."""
        name = demand.name
        if name not in self._plain:
            self._plain[name] = demand.is_plain
        if not self._plain[name]:
            return None
        try:
            return sorted([rank for rank in map(demand.rank, values) if rank is not None])
        except (InvalidMutation, TypeError):  # of an earlier class, or times with and without a zone
            return None

    def add(self, candidate: Candidate) -> None:
        candidate.ready = True
        self._ready[candidate.key] = candidate
        self._push(candidate)

    def _push(self, candidate: Candidate) -> None:
        self.came += 1
        self._recent.append(candidate)
        for names, view in [*self._views.by_names.items()]:
            view.push(candidate, next(self._count))
            if view.size > 2 * len(self._ready) + STALE_MAX:  # of what was taken by other views, or is asked no more
                self._views.drop(names)

    def remove(self, candidate: Candidate) -> None:
        candidate.ready = False
        self._ready.pop(candidate.key, None)
        if candidate.aside:
            candidate.aside = False
            kept = self._aside[candidate.project]
            del kept[candidate.key]
            if not kept:
                del self._aside[candidate.project]

    def resume(self, project: str) -> None:
        """What came up while this project kept it back is there again."""
        for candidate in self._aside.pop(project, {}).values():
            candidate.aside = False
            self._push(candidate)

    def has(self, names: Names) -> bool:
        """Whether nobody has to wait for a view by these columns, in their order."""
        return self._views.has(names)

    def begin(self, names: Names) -> Iterator[None]:
        """A view by these columns from now on; it is whole at the end of these steps."""
        view = _View(names, self._defaults)
        self._views.begin(names, view)
        return self._fill(view)

    def _fill(self, view: _View) -> Iterator[None]:
        for number, candidate in enumerate([*self._ready.values()], 1):
            if candidate.ready and candidate.live:
                view.push(candidate, next(self._count))
            if number % VIEW_PIECE == 0:
                yield

    def _view(self, names: Names) -> _View:
        if not self.has(names):
            for _ in self.begin(names):
                pass
        view = self._views.ask(names)
        if view is None:
            view = _View(names, self._defaults)
            for _ in self._fill(view):
                pass
        return view

    def best(
        self,
        demands: Sequence[Demand],
        kept: Callable[[str], bool],
        most: int,
        take: Callable[[Candidate], bool | None],
    ) -> int:
        """Offer candidates that meet the demands to `take`, in their order, until it took so many; how many it took.
        Nothing is changed by it: what was taken is told by whoever does it. But what `take` says None to, because its
        request has it already, is not offered to that again, see `put_back`.
        """
        demands = sorted(demands, key=lambda demand: demand.name)
        view = self._view(tuple([demand.name for demand in demands]))
        tops = [(heap[0], key, heap) for key, heap in view.matching(demands) if self._has_usable(view, key, heap, kept)]
        heapify(tops)
        seen: list[Entry] = []
        taken = 0
        try:
            while tops and taken < most:
                _, key, heap = tops[0]
                seen.append(heappop(heap))
                took = take(seen[-1][2])
                if took is None:
                    self._out.append((view, seen.pop()))
                else:
                    taken += took
                if self._has_usable(view, key, heap, kept):
                    heapreplace(tops, (heap[0], key, heap))
                else:
                    heappop(tops)
        finally:  # a model may raise anything, or take too long
            for entry in seen:
                view.put_back(entry)
        return taken

    def put_back(self) -> None:
        """Another request is decided, and nothing may have come of what the last one had."""
        while self._out:
            view, entry = self._out.pop()
            view.put_back(entry)

    def _has_usable(self, view: _View, key: Values, heap: Heap, kept: Callable[[str], bool]) -> bool:
        """Whether there is one in this heap of a view; then it is on top."""
        while heap and not self._usable(heap[0][2], kept):
            heappop(heap)
            view.size -= 1
        if not heap and view.heaps.get(key) is heap:
            del view.heaps[key]
        return bool(heap)

    def _usable(self, candidate: Candidate, kept: Callable[[str], bool]) -> bool:
        if not (candidate.ready and candidate.live) or candidate.aside:
            return False
        if kept(candidate.project):
            candidate.aside = True
            self._aside.setdefault(candidate.project, {})[candidate.key] = candidate
            return False
        return True
