"""What a scan may ask: `where={"status": TaskStatus.ASSIGNED, "priority": ["high", "low"], "version": Range(ge=3)}`.

What the words mean says `shared/where.py`. Only declared columns can be asked, because only they lie beside the slots
as numbers.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from solewriter.shared.errors import InvalidQuery, safe_repr
from solewriter.shared.kinds.columns import NO_INT, Cell, Column
from solewriter.shared.where import Range, Where, conditions_of, single


class Condition(NamedTuple):
    """One column's demand, in cells: one of `cells`, or between bounds (both inclusive) where there are none."""

    place: int  # of the column
    cells: tuple[Cell, ...] | None
    low: Cell | None
    high: Cell | None

    def holds(self, cell: Cell) -> bool:
        if self.cells is not None:
            return cell in self.cells or (cell != cell and any(one != one for one in self.cells))
        return (self.low is None or cell >= self.low) and (self.high is None or cell <= self.high)


def conditions(kind: str, columns: Sequence[Column], where: Where | None) -> list[Condition]:
    """The demands, one for each name. Raises InvalidQuery for no column, and for what no value of it can be; TypeError
    for what is no mapping.
    """
    return [_condition(kind, columns, name, wanted) for name, wanted in conditions_of(where or {})]


def place_of(kind: str, columns: Sequence[Column], name: str) -> int:
    """The position of a column. Raises InvalidQuery, naming the columns."""
    for place, column in enumerate(columns):
        if column.name == name:
            return place
    raise InvalidQuery(
        f"{kind}.{name} is no declared column of the engine's class, so it cannot be asked for; columns: "
        f"{', '.join(column.name for column in columns) or 'none'}",
        kind=kind,
    )


def _condition(kind: str, columns: Sequence[Column], name: str, wanted: Any) -> Condition:
    place = place_of(kind, columns, name)
    column = columns[place]
    if isinstance(wanted, Range):
        return _range(kind, place, column, wanted)
    several = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
    cells = tuple([cell_of(kind, column, value) for value in several])
    return Condition(place, cells, None, None)


def _range(kind: str, place: int, column: Column, wanted: Range) -> Condition:
    if column.type in ("str", "bool"):
        raise InvalidQuery(f"{kind}.{column.name} is a {column.type} column: it has no order to ask for", kind=kind)
    low = [cell_of(kind, column, wanted.ge)] if wanted.ge is not None else []
    high = [cell_of(kind, column, wanted.le)] if wanted.le is not None else []
    if wanted.gt is not None:
        low.append(_next(cell_of(kind, column, wanted.gt), up=True))
    if wanted.lt is not None:
        high.append(_next(cell_of(kind, column, wanted.lt), up=False))
    low.append({"d": -math.inf, "q": NO_INT + 1}.get(column.code, 1))  # above the cell of None, or unlike it
    if wanted.gt == math.inf or wanted.lt == -math.inf:  # behind which nothing is, nor a next cell
        return Condition(place, (), None, None)
    return Condition(place, None, max(low, default=None), min(high, default=None))


def _next(cell: Cell, *, up: bool) -> Cell:
    if isinstance(cell, float):
        return math.nextafter(cell, math.inf if up else -math.inf)
    return cell + 1 if up else cell - 1


def cell_of(kind: str, column: Column, value: Any) -> Cell:
    """The cell of a value that is asked for. Raises InvalidQuery for one that the column never holds."""
    wanted = single(value)
    suits = wanted is None or _SUITS[column.type](wanted)
    try:
        if suits:
            return column.cell()(float(wanted) if column.type == "float" and wanted is not None else wanted)
    except (ValueError, OverflowError, TypeError):  # UnicodeEncodeError is a ValueError; a dict has no hash
        pass
    told = f"one of {', '.join(map(repr, column.values))}" if column.type == "enum" else _TOLD[column.type]
    raise InvalidQuery(f"{kind}.{column.name} is {told}, never {safe_repr(value)}", kind=kind)


def _is_number(value: float) -> bool:
    """Neither NaN nor beyond what a float can be."""
    try:
        return float(value) == float(value)
    except OverflowError:
        return False


_TOLD = {"bool": "a bool", "int": "an int", "float": "a float", "time": "a time with a time zone", "str": "a str"}
_SUITS: dict[str, Callable[[Any], bool]] = {
    "enum": lambda value: True,
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and _is_number(value),
    "time": lambda value: isinstance(value, datetime.datetime) and value.utcoffset() is not None,
    "str": lambda value: isinstance(value, str),
}
