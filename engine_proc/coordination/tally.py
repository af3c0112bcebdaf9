"""How many entities of a kind have which values in some columns: what a guard on emptiness asks.

Made at the first question about these columns, by a look at every entity, and kept up from then on. Each answer costs
one look-up, or, where an order is asked for, one look at each combination of values that occurs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from solewriter.shared.where import Demand, combinations, in_column

Fields = Mapping[str, Any]
Values = tuple[Any, ...]


class Tally:
    """Counts the entities of one kind by their values in these columns; `defaults` are those of fields not stored."""

    def __init__(self, names: tuple[str, ...], defaults: Fields) -> None:
        self._defaults = [(name, in_column(defaults.get(name))) for name in names]
        self._counts: dict[Values, int] = {}
        self._held: dict[str, Values] = {}

    def note(self, key: str, fields: Fields | None) -> None:
        """What an entity is from now on; None: it is gone."""
        before = self._held.pop(key, None)
        if before is not None:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
        if fields is not None:
            values = tuple([in_column(fields.get(name, default)) for name, default in self._defaults])
            self._held[key] = values
            self._counts[values] = self._counts.get(values, 0) + 1

    def count(self, demands: Sequence[Demand]) -> int:
        """How many meet these demands, which are in the order of the names."""
        wanted = combinations(demands, len(self._counts))
        if wanted is not None:
            return sum(self._counts.get(values, 0) for values in wanted)
        return sum(
            count
            for values, count in self._counts.items()
            if all(demand.holds(value) for demand, value in zip(demands, values, strict=True))
        )
