"""Which projects' tasks are not ready: those of a project that is paused or archived, or that has spent its budget.

What a project has spent is the sum of its tasks' `cost`, of all kinds, kept in whole parts of a millionth so that it is
exact however often it changes and however little each of them costs. It is compared in millionths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from solewriter.shared.models import BudgetPolicy, ProjectStatus
from solewriter.shared.where import single

PARTS = 1_000_000  # of a millionth
WHOLE = 1_000_000 * PARTS
Place = tuple[int, str]  # kind code, id
Fields = Mapping[str, Any]


class Projects:
    """Those that are there as entities. `resume` is told of each whose tasks may be ready again."""

    def __init__(self, resume: Callable[[str], None]) -> None:
        self._resume = resume
        self._stopped: set[str] = set()
        self._budgets: dict[str, int] = {}  # of those that refuse beyond it
        self._spent: dict[str, int] = {}
        self._costs: dict[Place, tuple[str, int]] = {}  # of the tasks that cost something

    def keeps(self, project: str) -> bool:
        """Whether this project's tasks are not ready."""
        if project in self._stopped:
            return True
        budget = self._budgets.get(project)
        return budget is not None and millionths(self._spent.get(project, 0)) >= budget

    def note(self, project: str, fields: Fields | None) -> None:
        """What a project is from now on; None: it is gone."""
        fields = fields or {}
        stopped = fields.get("status", ProjectStatus.ACTIVE) != ProjectStatus.ACTIVE
        (self._stopped.add if stopped else self._stopped.discard)(project)
        limit = fields.get("budget_limit")
        if limit is None or fields.get("on_budget", BudgetPolicy.REFUSE) != BudgetPolicy.REFUSE:
            self._budgets.pop(project, None)
        else:
            self._budgets[project] = millionths(parts_of(limit))
        self._look(project)

    def _look(self, project: str) -> None:
        """It may keep its tasks no longer. While it does, all that came up stay aside: there may be very many."""
        if not self.keeps(project):
            self._resume(project)

    def note_cost(self, place: Place, fields: Fields | None) -> None:
        """What a task costs from now on, and for whom."""
        cost = parts_of(fields.get("cost", 0)) if fields is not None else 0
        project = str(single(fields.get("project", ""))) if fields is not None else ""
        before, had = self._costs.pop(place, ("", 0))
        if had:
            self._spent[before] -= had
            if not self._spent[before]:
                del self._spent[before]
        if cost:
            self._costs[place] = project, cost
            self._spent[project] = self._spent.get(project, 0) + cost
        if had:
            self._look(before)


def parts_of(amount: float) -> int:
    """Of any finite amount: one that has more of them than a float can say is whole, and counted as that."""
    try:
        return round(amount * WHOLE)
    except OverflowError:
        return int(amount) * WHOLE


def millionths(parts: int) -> int:
    return (parts + PARTS // 2) // PARTS
