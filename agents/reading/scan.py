"""A scan: one vectorised pass over a kind's columns, made exact at the snapshot's revision.

The columns are live: while a pass runs, the writer goes on. So a pass takes all that it needs first, and looks at the
records behind the snapshot's own tail after that: what they belong to may have changed before or during the pass, and
is looked up singly, once for all passes of the snapshot. Everything else was the same all the time. A snapshot whose
tables are gone, because its engine was followed by another before they were mapped, looks up everything singly.

Rows come in the order of the slots: that of the keys' creation, but for slots that are used again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from solewriter.agents.reading.conditions import Condition
from solewriter.agents.reading.past import Held
from solewriter.shared import record
from solewriter.shared.config import CHUNK_SLOTS
from solewriter.shared.entity import Entity
from solewriter.shared.errors import InvalidMutation, SchemaMismatch
from solewriter.shared.kinds.columns import Cell, Column
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.memory.catalog import Catalog

Slots = NDArray[np.int64]
Values = NDArray[Any]

DTYPES = {"B": np.uint8, "q": np.int64, "d": np.float64, "Q": np.uint64}


class Rows(NamedTuple):
    """The slots that matched, and the cells of the columns that were asked for, row by row."""

    slots: Slots
    cells: dict[int, Values]  # by the column's position

    def take(self, which: Any) -> Rows:
        """Some of them."""
        return Rows(self.slots[which], {place: values[which] for place, values in self.cells.items()})


class Aside(NamedTuple):
    """What was looked up singly in a pinned revision: which slots, and the rows, all columns, of those that had an
    entity.
    """

    looked: Collection[int]
    rows: Rows


class Scanner:
    """Scans of one kind in one pinned revision."""

    def __init__(self, pin: Held, kind: int, known: Kind | None) -> None:
        self.pin = pin
        self.kind = kind
        self.columns: tuple[Column, ...] = pin.catalog.tables[kind].columns
        self.cells_of = CellsOfRecords(pin.catalog, kind, known)

    def rows(self, demands: Sequence[Condition], wanted: Iterable[int] = ()) -> Rows:
        """All rows that meet the demands, with these columns' cells. Raises SnapshotExpired."""
        places = sorted(set(wanted))
        try:
            live = self._pass(demands, places)
            changed = np.fromiter(self.pin.changed_slots(self.kind), np.int64)
            self.pin.table(self.kind)  # once more behind the pass: nothing that it had was forgotten meanwhile
            changed = changed[changed < self.pin.slots(self.kind)]
        except FileNotFoundError:
            return self._look_up_singly(range(self.pin.slots(self.kind)), demands, places)
        if not len(changed):
            return live
        same = live.take(~np.isin(live.slots, changed))
        return _merge(same, self._look_up_singly(changed.tolist(), demands, places), places)

    def _pass(self, demands: Sequence[Condition], places: Sequence[int]) -> Rows:
        """The rows that match by the columns as they are now, whatever revision that is."""
        table = self.pin.table(self.kind)
        slots: list[Slots] = []
        cells: dict[int, list[Values]] = {place: [] for place in places}
        left = self.pin.slots(self.kind)
        for number in range(-(-left // CHUNK_SLOTS)):
            count = min(CHUNK_SLOTS, left - number * CHUNK_SLOTS)
            arrays = table.chunk(number)
            matches = np.asarray(arrays[-1])[:count] == 1
            for demand in demands:
                matches &= _meets(demand, np.asarray(arrays[demand.place])[:count])
            found = np.flatnonzero(matches)
            slots.append(found + number * CHUNK_SLOTS)
            for place in places:
                cells[place].append(np.asarray(arrays[place])[:count][found])
        return Rows(
            _concatenate(slots, np.int64),
            {place: _concatenate(parts, self._dtype(place)) for place, parts in cells.items()},
        )

    def _look_up_singly(self, slots: Sequence[int], demands: Sequence[Condition], places: Sequence[int]) -> Rows:
        """By the records themselves, at the pinned revision."""
        looked, rows = self._aside(slots)
        matches = np.ones(len(rows.slots), np.bool_)
        if len(looked) > len(slots):
            matches &= np.isin(rows.slots, slots)
        for demand in demands:
            matches &= _meets(demand, rows.cells[demand.place])
        found = np.flatnonzero(matches)
        found = found[np.argsort(rows.slots[found])]
        return Rows(rows.slots[found], {place: rows.cells[place][found] for place in places})

    def _aside(self, slots: Sequence[int]) -> Aside:
        """At least these slots. What was looked up before, for whatever question, is not again."""
        asked, places = (self.kind, self.cells_of.known), range(len(self.columns))
        before: Aside | None = self.pin.aside.get(asked)
        missing = slots if before is None else [slot for slot in slots if slot not in before.looked]
        if before is not None and not missing:
            return before
        pieces = range(0, max(1, len(missing)), CHUNK_SLOTS)  # else many rows would be there twice for a moment
        rows = _together([self._looked_up(missing[at : at + CHUNK_SLOTS]) for at in pieces], places)
        if before is None:
            aside = Aside(missing if isinstance(missing, range) else frozenset(missing), rows)
        else:
            aside = Aside({*before.looked, *missing}, _together([before.rows, rows], places))
        self.pin.aside[asked] = aside  # of two threads at once, one does it again later
        return aside

    def _looked_up(self, slots: Iterable[int]) -> Rows:
        """The rows of those that have an entity, all columns."""
        found: list[int] = []
        kept: list[Sequence[Cell]] = []
        for slot in slots:
            address = self.pin.at(self.kind, slot)
            cells = self.cells_of(self.pin.whole(address)) if address else None
            if cells is not None:
                found.append(slot)
                kept.append(cells)
        cells_at = {
            place: np.array([cells[place] for cells in kept], self._dtype(place)) for place in range(len(self.columns))
        }
        return Rows(np.array(found, np.int64), cells_at)

    def _dtype(self, place: int) -> Any:
        return DTYPES[self.columns[place].code]


class CellsOfRecords:
    """The cells of records, in the order of the table's columns, whatever columns there were when they were written.

    Those of other columns are made as the engine made them for its table: by the class, where that is known here.
    """

    def __init__(self, catalog: Catalog, kind: int, known: Kind | None) -> None:
        self._schemas = catalog.schemas
        self._columns = catalog.tables[kind].columns
        self._defaults = catalog.defaults(kind)
        self.known = known
        self._class = known
        self._is_checked = False  # whether the class is the engine's
        self._newest = catalog.newest_schema(kind)

    def __call__(self, found: record.Record) -> Sequence[Cell] | None:
        """None of a tombstone."""
        if found.deleted:
            return None
        schema = self._schemas[found.schema]
        if schema.columns != self._columns and (made := self._by_class(found)) is not None:
            return made
        return schema.cells(
            self._columns,
            found.cells,
            lambda: schema.values(found.key, found.version, found.time_us, found.payload),
            self._defaults,
        )

    def read(self, found: record.Record) -> Entity | None:
        """As its class reads it; None where that is not known here as the engine knows it, and of what it cannot."""
        known = self._class
        if known is not None and not self._is_checked:
            self._is_checked = True
            if self._newest is None or self._newest.digest() != known.schema.digest():
                known = self._class = None
        if known is None:
            return None
        schema = self._schemas[found.schema]
        try:
            return known.decode_entity(schema, found.key, found.version, found.time_us, found.payload)
        except SchemaMismatch:
            return None

    def _by_class(self, found: record.Record) -> list[Cell] | None:
        """None for what is not read so."""
        entity, known = self.read(found), self._class
        if entity is None or known is None:
            return None
        try:
            _, cells = known.layout.cut(known.stored_fields(entity), found.key, found.version, found.time_us)
        except InvalidMutation:
            return None
        return [cell for _, cell in cells]


def _meets(demand: Condition, cells: Values) -> NDArray[np.bool_]:
    if demand.cells is None:
        meets = np.ones(len(cells), np.bool_)
        if demand.low is not None:
            meets &= cells >= demand.low
        if demand.high is not None:
            meets &= cells <= demand.high
        return meets
    if len(demand.cells) == 1:
        (wanted,) = demand.cells
        return np.asarray(np.isnan(cells) if wanted != wanted else cells == cells.dtype.type(wanted))
    cells = cells.copy()  # live ones are stored to meanwhile, and isin takes what it looked at before for an index
    return np.asarray(np.isin(cells, np.array(demand.cells, cells.dtype)) | _absent_mask(demand, cells))


def _absent_mask(demand: Condition, cells: Values) -> Any:
    """NaN stands for None in a float column, and equals nothing."""
    return np.isnan(cells) if any(cell != cell for cell in demand.cells or ()) else False


def _concatenate(parts: list[Any], dtype: Any) -> Any:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _together(parts: Sequence[Rows], places: Iterable[int]) -> Rows:
    """Sets of rows, one behind the other."""
    return Rows(
        np.concatenate([part.slots for part in parts]),
        {place: np.concatenate([part.cells[place] for part in parts]) for place in places},
    )


def _merge(one: Rows, other: Rows, places: Sequence[int]) -> Rows:
    """Two sets of rows, in the order of their slots."""
    both = _together([one, other], places)
    return both.take(np.argsort(both.slots, kind="stable"))


def order_of(rows: Rows, key: Values | None, descending: bool, limit: int | None) -> Any:
    """Which rows come first: positions, in order of their keys, and of their slots where those are equal."""
    if key is None:
        return slice(None, limit)
    keys = key if not descending else (-key if key.dtype.kind == "f" else ~key.astype(np.int64))
    if limit is not None and 0 < limit < len(keys) // 4:
        bound = np.partition(keys, limit - 1)[limit - 1]
        near = np.flatnonzero((keys <= bound) | (bound != bound))  # NaN, last of all, is no bound
        return near[np.lexsort((rows.slots[near], keys[near]))[:limit]]
    return np.lexsort((rows.slots, keys))[:limit]
