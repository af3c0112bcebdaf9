"""What the engine knows of one kind of tasks besides their records: who depends on whom, and what is ready.

All of it follows from the records, so it is made at first need and kept up from one written request to the next. Where
a commit fails, it is thrown away: it may hold what never happened.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

from solewriter.engine_proc.coordination.graph import NOBODY, Graph
from solewriter.engine_proc.coordination.ready import Candidate, Ready
from solewriter.shared.config import DENIALS_MAX, STALE_MAX
from solewriter.shared.kinds.columns import to_us
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.rules import has_rules
from solewriter.shared.models import DependencyPolicy
from solewriter.shared.readiness import CLAIMABLE, LAST, RANK, Dependency, has_attempts_left, is_met, state_of
from solewriter.shared.where import in_column, single

Fields = Mapping[str, Any]
_OWN = frozenset({"version", "updated_at"})  # columns that change with everything: nobody claims by them


class Board:
    """One kind, whose entities are noted one after the other. `look` reads the stored fields of a key, None if there is
    no such entity.
    """

    def __init__(self, kind: Kind, defaults: Fields, look: Callable[[str], Fields | None]) -> None:
        self.graph = Graph()
        self.columns = tuple(column.name for column in kind.columns if column.name not in _OWN)
        self.attended = frozenset(self.columns) | ATTENDED
        self._defaults = defaults
        self.ready = Ready({name: in_column(defaults.get(name)) for name in self.columns})
        self._priority = single(defaults.get("priority"))
        self._look = look
        self._denials_last = not (kind.recasts or has_rules(kind.model))  # code of a user's may say otherwise later
        self._candidates: dict[str, Candidate] = {}
        self.denied: set[str] = set()  # candidates whose own rules kept somebody from them: any field may be why
        self.unfit: set[str] = set()  # of these, those that nobody can have until they are changed
        self._states: dict[str, Dependency] = {}  # of those that somebody depends on
        self._later: list[tuple[int, int, Candidate]] = []  # a heap of those whose time is to come
        self._came_us = 0  # no time that came is later
        self._count = count()

    def note(self, key: str, slot: int, fields: Fields | None) -> None:
        """What a key's entity is from now on; None: it is gone."""
        graph = self.graph
        if fields is None:
            graph.put(key, (), None)
        else:
            graph.put(key, fields.get("dependencies", ()), fields.get("parent_task_id"))
        if key in graph.dependants:
            self._note_state(key, self._state(fields))
        else:
            self._states.pop(key, None)
        if key in self.denied:
            self.denied.discard(key)
            self.unfit.discard(key)
        old = self._candidates.pop(key, None)
        if old is not None:
            old.live = False
            self.ready.remove(old)
        if fields is not None and single(fields.get("status", "created")) in CLAIMABLE:
            self._add(key, slot, fields)

    def pass_over(self, key: str) -> None:
        """Its class did not come to an end with it, or what a claim made of it cannot be stored: try no other one."""
        self.denied.add(key)
        self.unfit.add(key)

    def pass_over_for(self, key: str, assignee: str) -> None:
        """What a claim made of it for this one is too large: others have shorter names."""
        candidate = self._candidates.get(key)
        if candidate is None or len(candidate.denied_to) >= DENIALS_MAX - 1:  # one of them would be forgotten
            self.pass_over(key)
        else:
            self.denied.add(key)
            candidate.denied_to = (*candidate.denied_to, assignee)

    def deny(self, candidate: Candidate, assignee: str) -> None:
        """Its own rules keep it from this one."""
        self.denied.add(candidate.key)
        if self._denials_last:
            candidate.denied_to = (*candidate.denied_to[1 - DENIALS_MAX :], assignee)

    def _field(self, fields: Fields) -> Callable[[str], Any]:
        defaults = self._defaults
        return lambda name: single(fields[name] if name in fields else defaults.get(name))

    def _state(self, fields: Fields | None) -> Dependency:
        return Dependency.UNKNOWN if fields is None else state_of(self._field(fields))

    def state(self, key: str) -> Dependency:
        """How far somebody's dependency is."""
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self._state(self._look(key))
        return state

    def _note_state(self, key: str, state: Dependency) -> None:
        """Tell those that wait for it."""
        before = self._states.get(key)
        self._states[key] = state
        if before is None or before == state:
            return
        for name in self.graph.dependants[key]:
            candidate = self._candidates.get(name)
            if candidate is not None:
                change = is_met(before, candidate.policy) - is_met(state, candidate.policy)
                candidate.unmet += change
                self._settle(candidate)

    def _add(self, key: str, slot: int, fields: Fields) -> None:
        if "status" in fields and not has_attempts_left(self._field(fields)):
            return
        priority = RANK.get(single(fields.get("priority", self._priority)), LAST)
        order = priority, _us(fields.get("created_at")), slot
        values = {name: in_column(fields[name]) for name in self.columns if name in fields}
        policy = single(fields.get("on_dependency_failure", DependencyPolicy.BLOCK))
        candidate = Candidate(key, order, values, policy, _us(fields.get("not_before")))
        for one in self.graph.dependencies.get(key, ()):
            candidate.unmet += not is_met(self.state(one), policy)
        self._candidates[key] = candidate
        self._settle(candidate)

    def _settle(self, candidate: Candidate) -> None:
        """Ready, or not."""
        if candidate.unmet:
            if candidate.ready:
                self.ready.remove(candidate)
        elif not candidate.ready:
            if candidate.not_before_us:
                self._put_off(candidate)
            else:
                self.ready.add(candidate)

    def _put_off(self, candidate: Candidate) -> None:
        """Until its time. What has changed since stays until then, but must not add up."""
        if candidate.is_put_off:  # what it depends on was done, was not, and is again
            return
        candidate.is_put_off = True
        heappush(self._later, (candidate.not_before_us, next(self._count), candidate))
        if len(self._later) > 2 * len(self._candidates) + STALE_MAX:
            self._later = [entry for entry in self._later if entry[2].live]
            heapify(self._later)

    def advance(self, now_us: int) -> None:
        """What was to come until now is there."""
        if now_us < self._came_us:
            self._go_back(now_us)
        later = self._later
        while later and later[0][0] <= now_us:
            time_us, _, candidate = heappop(later)
            candidate.is_put_off = False
            if candidate.live and not candidate.unmet and not candidate.ready:
                self._came_us = max(self._came_us, time_us)
                self.ready.add(candidate)

    def _go_back(self, now_us: int) -> None:
        """The clock was set back: whose time is to come once more is not there."""
        self._came_us = now_us  # at most
        for candidate in self.ready.to_come(now_us):
            self.ready.remove(candidate)
            candidate.live = False  # what views have of it stays behind
            again = self._candidates[candidate.key] = candidate.anew()
            self._put_off(again)

    @property
    def next_us(self) -> int:
        """When the next one will be there, on the clock of `not_before`; 0: none."""
        later = self._later
        while later and not (later[0][2].live and not later[0][2].unmet):
            heappop(later)[2].is_put_off = False
        return later[0][0] if later else 0

    def dependants(self, key: str) -> Iterable[str]:
        return sorted(self.graph.dependants.get(key, NOBODY))

    def stays(self, key: str) -> bool:
        """Whether it is known without a look that this one is not cancelled with what it depends on."""
        candidate = self._candidates.get(key)
        return candidate is not None and candidate.policy != DependencyPolicy.CANCEL


ATTENDED = frozenset(
    {"status", "priority", "dependencies", "parent_task_id", "attempts", "max_retries", "not_before", "project",
     "on_dependency_failure", "created_at"}
)  # fmt: skip
"""Fields that decide about a task's place here"""


def _us(moment: datetime.datetime | None) -> int:
    return 0 if moment is None else to_us(moment)
