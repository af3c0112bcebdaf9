"""What snapshots answer about many entities at once: scan, ids, count, count_by, columns. numpy comes with this."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from datetime import UTC
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solewriter.agents.reading.conditions import cell_of, conditions, place_of
from solewriter.agents.reading.past import Held, Past
from solewriter.agents.reading.scan import Rows, Scanner, Values, order_of
from solewriter.agents.snapshot import Plain
from solewriter.shared.entity import Entity
from solewriter.shared.errors import InvalidMutation, InvalidQuery, SchemaMismatch, SnapshotExpired, safe_repr
from solewriter.shared.kinds.columns import NO_INT, Cell, Column, text_hash
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.where import Where, in_column

Rank = Callable[[Any], float]
Field = Callable[[str, Any], Any]  # a column's name and plain value -> the model's own value, an enum member say
LivedOn = Callable[[str, int, int], bool]  # a key and two of its versions -> whether the journal says: of one life


class Query:
    """Questions about one kind in one pinned revision."""

    def __init__(self, pin: Held, kind: int, known: Kind | None, field: Field, lived_on: LivedOn) -> None:
        self._pin = pin
        self._kind = kind
        self._name = pin.catalog.kinds[kind]
        self._scanner = Scanner(pin, kind, known)
        self._columns = self._scanner.columns
        self._field = field
        self._lived_on = lived_on

    # --- which entities ----------------------------------------------------------------------------------------------

    def addresses(
        self, where: Where | None, order_by: str | None, limit: int | None, after: Entity | Plain | str | None
    ) -> list[int]:
        """The records of the matching entities, in order. Raises InvalidQuery."""
        self._check_limit(limit)
        demands = conditions(self._name, self._columns, where)
        place, descending = self._order(order_by)
        rows = self._scanner.rows(demands, () if place is None else (place,))
        key, rank = (None, None) if place is None else self._key(place, rows)
        if after is not None:
            behind = self._behind(after, rows, key, rank, order_by, descending)
            rows, key = rows.take(behind), None if key is None else key[behind]
        chosen = rows.slots[order_of(rows, key, descending, limit)]
        return [self._pin.at(self._kind, slot) for slot in chosen.tolist()]

    def _check_limit(self, limit: int | None) -> None:
        try:
            if limit is None or index(limit) >= 0:
                return
        except TypeError:
            pass  # told below
        raise InvalidQuery(f"limit is a number of entities, not {safe_repr(limit)}", kind=self._name)

    def ids(self, addresses: list[int]) -> list[str]:
        """The keys of records."""
        return [self._pin.key_at(address) for address in addresses]

    def _order(self, order_by: str | None) -> tuple[int | None, bool]:
        if order_by is None:
            return None, False
        if not isinstance(order_by, str):
            problem = f"order_by is one column, with - before it for the other direction, not {safe_repr(order_by)}"
            raise InvalidQuery(problem, kind=self._name)
        return place_of(self._name, self._columns, order_by.removeprefix("-")), order_by.startswith("-")

    def _key(self, place: int, rows: Rows) -> tuple[Values, Rank]:
        """What rows are sorted by, and the rank of any value among that: cells as they are, texts by their places."""
        column, cells = self._columns[place], rows.cells[place]
        if column.type != "str":
            return cells, lambda value: cell_of(self._name, column, value)
        distinct, places = np.unique(self._texts(place, rows.slots, cells), return_inverse=True)
        texts = distinct.tolist()

        def rank(text: str | None) -> float:
            found = bisect_left(texts, text or "")
            return found if texts[found : found + 1] == [text or ""] else found - 0.5

        return places, rank

    def _behind(
        self,
        after: Entity | Plain | str,
        rows: Rows,
        key: Values | None,
        rank: Rank | None,
        order_by: str | None,
        descending: bool,
    ) -> NDArray[np.bool_]:
        """The rows that come after an entity's place in the order, whether it still has that place or not."""
        slot = self._slot_of(after)
        later: NDArray[np.bool_] = rows.slots > slot
        if key is None or rank is None or order_by is None:
            return later
        place = place_of(self._name, self._columns, order_by.removeprefix("-"))
        at = int(np.searchsorted(rows.slots, slot))
        if at < len(rows.slots) and rows.slots[at] == slot and self._is_unchanged(after, slot):
            mine = key[at]
        else:
            mine = self._rank_of(after, place, slot, rank)
        if mine != mine:  # NaN: of all values the last, whatever the direction
            return np.asarray(np.isnan(key) & later)
        beyond = (key < mine) if descending else (key > mine)
        if key.dtype.kind == "f":
            beyond |= np.isnan(key)
        return np.asarray(beyond | ((key == mine) & later))

    def _rank_of(self, after: Entity | Plain | str, place: int, slot: int, rank: Rank) -> float:
        """Of what an entity has in a column, as it is given, or as it is now."""
        column = self._columns[place]
        if not isinstance(after, str):
            values = after.__dict__ if isinstance(after, Entity) else after
            value = column.value_in(values, self._pin.catalog.defaults(self._kind))
            return rank(in_column(value if isinstance(after, Entity) else column.made_of(value)))
        address = self._pin.at(self._kind, slot)
        cells = self._scanner.cells_of(self._pin.whole(address))
        if cells is None:
            raise InvalidQuery(
                f"after={after!r}: that {self._name} was deleted, so nothing says where it was in the order of "
                f"{column.name}: give what the page before ended with, not its id",
                kind=self._name,
            )
        return rank(self._text(column, address, cells[place])) if column.type == "str" else cells[place]

    def _is_unchanged(self, after: Entity | Plain | str, slot: int) -> bool:
        """Whether an entity is given as it is now: then it is in its row, whatever class it was stored by."""
        if isinstance(after, str):
            return True
        return self._pin.content(self._pin.at(self._kind, slot)).version == _version_of(after)

    def _slot_of(self, after: Entity | Plain | str) -> int:
        id = after if isinstance(after, str) else after.id if isinstance(after, Entity) else self._id_in(after)
        address = self._pin.find(self._kind, id)
        if not address or not self._is_same(after, address):
            raise InvalidQuery(
                f"after={id!r}: there is no such {self._name} at revision {self._pin.root.revision}, or it was deleted "
                "so long ago that its place is forgotten: begin again",
                kind=self._name,
            )
        return self._pin.slot_at(address)

    def _id_in(self, after: Any) -> str:
        id, version = (after.get("id"), after.get("version")) if isinstance(after, Mapping) else (None, None)
        if isinstance(id, str) and isinstance(version, int):
            return id
        raise InvalidQuery(f"after is an entity or its id, not {safe_repr(after)}", kind=self._name)

    def _is_same(self, after: Entity | Plain | str, address: int) -> bool:
        """Whether this record's key has the place that it had then: whether it was not forgotten since, and made again.

        Memory says so where the records between are all there. Where a start left them out, or they were given back,
        the last one that is there may still say what was before it; else the journal is asked. What nobody knows is
        not the same: what was left out would be left out without a word.
        """
        if isinstance(after, str):
            return True
        version = _version_of(after)
        id, newest, oldest = self._pin.key_at(address), self._pin.content(address).version, address
        if isinstance(self._pin, Past):
            return version >= self._pin.begun(self._kind, id)
        try:
            while address and self._pin.content(address).version > version:
                oldest, address = address, self._pin.previous(address)
            if address:
                return True
        except (FileNotFoundError, SnapshotExpired):
            address = -1
        first = self._pin.whole(oldest)
        if not address and first.revision >= self._pin.root.oldest:  # not cut by a start: there it begins
            return False
        if first.version == version + 1 and first.old_cells:
            return True
        root = self._pin.view.root
        if root.durability == "memory" and not root.forgotten:
            return True
        return self._lived_on(id, version, newest)

    # --- how many ----------------------------------------------------------------------------------------------------

    def count(self, where: Where | None) -> int:
        """How many match. Text is compared by its 64-bit hash."""
        return len(self._scanner.rows(conditions(self._name, self._columns, where)).slots)

    def count_by(self, name: str, where: Where | None) -> dict[Any, int]:
        """How many of the matching ones have each value of a column, in the order of the values, None first, or last of
        floats. Raises SchemaMismatch for a value that the class does not know.
        """
        place = place_of(self._name, self._columns, name)
        rows = self._scanner.rows(conditions(self._name, self._columns, where), (place,))
        column = self._columns[place]
        if column.type == "str":
            given = rows.cells[place] != 0
            texts = self._texts(place, rows.slots[given], rows.cells[place][given])
            known, counts = np.unique(texts, return_counts=True)
            told = known.tolist()
            if missing := len(given) - len(texts):
                told, counts = [None, *told], np.insert(counts, 0, missing)
        else:
            cells, counts = np.unique(rows.cells[place], return_counts=True)
            told = self._values(column, cells).tolist()
        return {self._own(column, value): int(count) for value, count in zip(told, counts, strict=True)}

    def _own(self, column: Column, value: Any) -> Any:
        """A column's value as the model has it."""
        match column.type:
            case "enum" if value is not None:
                try:
                    return self._field(column.name, value)
                except InvalidMutation as error:
                    problem = f"{self._name} is stored under another shape of its class: {error}"
                    raise SchemaMismatch(problem, kind=self._name) from None
            case "time" if value is not None:
                return value.replace(tzinfo=UTC)
            case "float":
                return in_column(value)
        return value

    # --- whole columns -----------------------------------------------------------------------------------------------

    def columns(self, where: Where | None) -> dict[str, Values]:
        """All columns of the matching entities."""
        rows = self._scanner.rows(conditions(self._name, self._columns, where), range(len(self._columns)))
        arrays = {}
        for place, column in enumerate(self._columns):
            cells = rows.cells[place]
            if column.type == "str":
                texts = self._texts(place, rows.slots, cells)
                texts[cells == 0] = None
                arrays[column.name] = texts
            else:
                arrays[column.name] = self._values(column, cells)
        return arrays

    def _values(self, column: Column, cells: Values) -> Values:
        """What the cells of a column mean."""
        match column.type:
            case "enum":
                return _lookup((None, *column.values))[cells]
            case "bool":
                return cells == 2 if cells.all() else _lookup((None, False, True))[cells]
            case "time":
                times = cells.astype("datetime64[us]")
                times[cells == NO_INT] = np.datetime64("NaT", "us")
                return times
            case "int" if (cells == NO_INT).any():
                return np.ma.masked_equal(cells, NO_INT)
        return cells

    def _texts(self, place: int, slots: NDArray[np.int64], hashes: Values) -> Values:
        """The texts behind hashes, by one record for each different one; "" for None."""
        distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        column = self._columns[place]
        texts = [
            self._text(column, self._pin.at(self._kind, int(slots[row])), hashed)
            for hashed, row in zip(distinct.tolist(), first.tolist(), strict=True)
        ]
        return _lookup(tuple(texts))[inverse]

    def _text(self, column: Column, address: int, cell: Cell) -> str:
        """The text of a record that has this cell: as it is stored, or as its class reads it; "" for None."""
        if not cell:
            return ""
        found = self._pin.whole(address)
        schema = self._pin.catalog.schemas[found.schema]
        values = schema.values(found.key, found.version, found.time_us, found.payload)
        stored = column.value_in(values, self._pin.catalog.defaults(self._kind))
        if column.cell_or_none(stored) != cell and (read := self._scanner.cells_of.read(found)) is not None:
            stored = read.__dict__[column.name]
        if isinstance(stored, str) and text_hash(stored) == cell:  # a default, say, of which nobody makes another text
            return stored
        return column.made_of(stored) or ""


def _version_of(after: Entity | Plain) -> int:
    version: int = after.version if isinstance(after, Entity) else after["version"]
    return version


def _lookup(values: tuple[Any, ...]) -> Values:
    table = np.empty(len(values), object)
    table[:] = values
    return table
