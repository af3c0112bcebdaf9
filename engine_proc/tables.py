"""Which columns each kind's table has, and which cells every record has in them, whatever schema it was written under.

A record carries the cells of its own schema's columns. Where the table has others by now, its class makes them, as it
would make the entity; without a class they are taken from what is stored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.migration import Migration, took_too_long
from solewriter.engine_proc.publisher import Columnar, Publisher
from solewriter.shared import record
from solewriter.shared.errors import SolewriterError
from solewriter.shared.journal.checkpoint import TableImage
from solewriter.shared.kinds.columns import Cells, Column, format_of
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.memory.table import TableWriter


class Tables:
    """Keeps a publisher's tables as the kinds need them. `schemas` are those of all records, by their codes."""

    def __init__(self, publisher: Publisher, schemas: Sequence[Schema], migration: Migration) -> None:
        self._publisher = publisher
        self._schemas = schemas
        self._migration = migration
        self._layouts: dict[tuple[int, int], tuple[Sequence[Column], struct.Struct | None]] = {}  # see `_layout`

    def add(self, kind: KindState, made: Columnar | None = None) -> None:
        """The table of the next kind, where need be made now. Raises MemoryFull."""
        self._publisher.add_table(kind.columns, made)

    def follow_schema(self, kind: KindState) -> None:
        """A kind has a newer schema. Without a class, that says what is a column, and what older records have there.
        Raises MemoryFull.
        """
        if kind.kind is None and self.of_other_columns(kind.code, self._publisher.columns(kind.code)):
            self._rebuild(kind, kind.columns, kind.slots.values())

    def refit(self, kinds: Sequence[KindState], images: Sequence[TableImage]) -> None:
        """Now that what a checkpoint has of these kinds is in memory: cells that it could not say, and tables for the
        columns that classes have by now. Keys that came behind it are not in memory yet. Raises MemoryFull.
        """
        for kind, image in zip(kinds, images, strict=True):
            slots: Sequence[int] = image.anew
            if kind.columns != image.columns or self._is_cut_by_another(kind):
                slots = [slot for slot in kind.slots.values() if slot < image.places]
            if kind.columns != image.columns:
                self._rebuild(kind, kind.columns, slots)
            else:
                self._fill(self._publisher.table(kind.code), kind, slots)

    def _is_cut_by_another(self, kind: KindState) -> bool:
        """Whether a checkpoint has cells that are not those of the class here: another one made them of what was stored
        with other columns.
        """
        if kind.kind is None or kind.kind.schema.digest() == kind.schema.digest():
            return False
        return bool(self.of_other_columns(kind.code, kind.columns))

    def of_other_columns(self, code: int, columns: Sequence[Column]) -> set[int]:
        """The schemas of a kind that have other columns than these: the cells of their records have to be made."""
        return {schema.code for schema in self._schemas if schema.kind == code and schema.columns != columns}

    def _rebuild(self, kind: KindState, columns: Sequence[Column], slots: Iterable[int]) -> None:
        """Give a kind a table with these columns, and in it the slots that have records. Raises MemoryFull."""
        table = self._publisher.other_table(kind.code, columns, kind.places)
        self._fill(table, kind, slots)
        self._publisher.replace_table(kind.code, table)

    def _fill(self, table: TableWriter, kind: KindState, slots: Iterable[int]) -> None:
        """Install what these slots say, its cells made of the records."""
        for slot in slots:
            address, buffer, start = self._publisher.newest(kind.code, slot)
            found = record.unpack(buffer, start)
            table.install(slot, address, self._cut(kind, found, table.columns), not found.deleted)

    def cells(self, kind: KindState, schema: int, body: bytes) -> Cells:
        """The cells in its kind's table of a body that is no tombstone, and was written under a schema."""
        layout = self._layout(kind, schema)
        if layout is None:
            return self._cut(kind, record.unpack(body), self._publisher.columns(kind.code))
        return tuple(enumerate(layout.unpack(record.stored_at(body, 0)[4])))

    def _layout(self, kind: KindState, schema: int) -> struct.Struct | None:
        """How the cells lie in the block of a body that was written under a schema, where it has the columns of its
        kind's table; else None.
        """
        columns = self._publisher.columns(kind.code)
        known, layout = self._layouts.get((kind.code, schema), (None, None))
        if known is not columns:
            same = self._schemas[schema].columns == columns
            layout = struct.Struct(format_of(columns)) if same else None
            self._layouts[kind.code, schema] = columns, layout
        return layout

    def _cut(self, kind: KindState, found: record.Record, columns: Sequence[Column]) -> Cells:
        """The cells of a record in a table with these columns."""
        if found.deleted:
            return ()
        schema = self._schemas[found.schema]
        if schema.columns != tuple(columns) and kind.kind is not None:
            try:
                return self._migration.cells(kind.kind, found)
            except SolewriterError as error:
                if took_too_long(error):
                    raise  # the next one may, too
                # overtaken, perhaps; if not, `check_fit` finds it
        values = partial(_plain, schema, found)
        return tuple(enumerate(schema.cells(columns, found.cells, values, kind.schema.defaults)))


def _plain(schema: Schema, found: record.Record) -> dict[str, Any]:
    return schema.values(found.key, found.version, found.time_us, found.payload)
