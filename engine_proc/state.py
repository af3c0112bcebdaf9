"""The engine's state: what every key's newest record says. Changed by a turn's merge and by recovery, by nothing else.

Key -> slot is kept for every entity; its content is read back from the heap when it is needed. A turn decides against
a `Turn` overlay and a request against a `Draft` over that, so a refused request or a failed commit drops an overlay
and has touched nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from solewriter.engine_proc.coordination import Coordination
from solewriter.engine_proc.coordination.leases import ended
from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.migration import Migration, took_too_long
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.engine_proc.publisher import Columnar, Installed, Publisher
from solewriter.engine_proc.reclaim import Dropped
from solewriter.engine_proc.turn import NO_SLOT, Stored, Turn
from solewriter.shared import record
from solewriter.shared.checkpoint import Checkpoint, TableImage
from solewriter.shared.columns import Cells, Column, format_of
from solewriter.shared.config import KINDS_MAX, SCHEMAS_MAX, Limits
from solewriter.shared.entry import Private
from solewriter.shared.errors import SchemaMismatch, SolewriterError
from solewriter.shared.kind import Kind
from solewriter.shared.memory.heap import padded
from solewriter.shared.memory.table import TableWriter
from solewriter.shared.registry import Registry
from solewriter.shared.schema import Schema


class State:
    """All kinds with their keys, versions and counters, and what deciding needs to read of the records behind them."""

    def __init__(self, registry: Registry, publisher: Publisher, limits: Limits, time_budget: TimeBudget) -> None:
        self.registry = registry
        self.time_budget = time_budget
        self.kinds: list[KindState] = []
        self.schemas: list[Schema] = []
        self.revision = 0
        self._publisher = publisher
        self._forgotten_max = limits.forgotten_keys_max
        self.migration = Migration(self.schemas, time_budget)
        self.coordination = Coordination(limits, time_budget)
        self._by_name: dict[str, KindState] = {}
        self._layouts: dict[tuple[int, int], tuple[Sequence[Column], struct.Struct | None]] = {}  # see `layout`
        self.named = self._by_name.get  # the kind of a name, or None

    # --- kinds -------------------------------------------------------------------------------------------------------

    def add_kinds(self, names: list[str], schemas: list[Schema], made: Sequence[Columnar] = ()) -> None:
        """Install kinds and schemas that a journal entry brings, in tables that are made already, or now. Raises
        MemoryFull.
        """
        self.schemas += schemas
        for position, name in enumerate(names):
            code = len(self.kinds)
            schema = next(schema for schema in schemas if schema.kind == code)
            kind = self.registry.get(name)
            known = self._by_name[name] = KindState(code, name, schema, kind)
            self.kinds.append(known)
            columns = kind.columns if kind is not None else schema.columns
            self._publisher.add_table(columns, made[position] if made else None)
        for schema in schemas:
            known = self.kinds[schema.kind]
            known.schema = schema
            columns = self._publisher.columns(known.code)
            if known.kind is None and (schema.columns != columns or self.of_other_columns(known.code, columns)):
                # Without a class, its newest schema says what is a column, and what older records have there.
                self._rebuild(known, schema.columns, known.slots.values())

    def restore(self, checkpoint: Checkpoint) -> None:
        """Kinds and keys as a checkpoint has them, whose records may still be on their way into memory."""
        directory = checkpoint.directory
        self.schemas += directory.schemas
        self.revision = directory.revision
        newest = {schema.kind: schema for schema in directory.schemas}
        for code, (name, image) in enumerate(zip(directory.kinds, directory.tables, strict=True)):
            known = self._by_name[name] = KindState(code, name, newest[code], self.registry.get(name))
            self.kinds.append(known)
            known.restore(checkpoint.keys(code), image.alive)

    def refit(self, tables: Sequence[TableImage]) -> None:
        """Now that they are in memory: cells that the checkpoint could not say, and tables for the columns that classes
        have by now. Keys that came behind the checkpoint are not in memory yet. Raises MemoryFull.
        """
        for known, image in zip(self.kinds, tables, strict=True):
            columns = known.kind.columns if known.kind is not None else known.schema.columns
            slots: Sequence[int] = image.anew
            if columns != image.columns or self._is_cut_by_another(known):
                slots = [slot for slot in known.slots.values() if slot < image.places]
            if columns != image.columns:
                self._rebuild(known, columns, slots)
            else:
                self._fill(self._publisher.table(known.code), known, slots)

    def _is_cut_by_another(self, known: KindState) -> bool:
        """Whether a checkpoint has cells that are not those of the class here: another one made them of what was stored
        with other columns.
        """
        kind = known.kind
        if kind is None or kind.schema.digest() == known.schema.digest():
            return False
        return bool(self.of_other_columns(known.code, kind.columns))

    def of_other_columns(self, code: int, columns: Sequence[Column]) -> set[int]:
        """The schemas of a kind that have other columns than these: its class makes the cells of their records."""
        return {schema.code for schema in self.schemas if schema.kind == code and schema.columns != columns}

    def restore_forgotten(self, keys: Sequence[tuple[int, dict[str, int]]]) -> None:
        """By kind, what no record says of keys: the base, and last versions. Kinds that came later have none."""
        for kind, (base, versions) in zip(self.kinds, keys, strict=False):
            kind.restore_forgotten(base, versions)

    def new_kinds(self, kinds: Iterable[Kind]) -> Private:
        """The names and schemas of these that no entry has brought yet, as an entry would. Raises SchemaMismatch for
        too many.
        """
        names: list[str] = []
        schemas: list[Schema] = []
        for kind in kinds:
            known = self._by_name.get(kind.name)
            if known is not None and known.schema.digest() == kind.schema.digest():
                continue
            code = known.code if known is not None else len(self.kinds) + len(names)
            if known is None:
                names.append(kind.name)
            schemas.append(msgspec.structs.replace(kind.schema, code=len(self.schemas) + len(schemas), kind=code))
        if len(self.schemas) + len(schemas) > SCHEMAS_MAX:
            raise SchemaMismatch(f"a state knows at most {SCHEMAS_MAX:,} shapes of its classes", kind=schemas[0].name)
        if len(self.kinds) + len(names) > KINDS_MAX:
            raise SchemaMismatch(f"{', '.join(names)}: a state has at most {KINDS_MAX} kinds", kind=", ".join(names))
        return Private(kinds=names, schemas=schemas)

    def _rebuild(self, known: KindState, columns: Sequence[Column], slots: Iterable[int]) -> None:
        """Give a kind a table with these columns, and in it the slots that have records. Raises MemoryFull."""
        table = self._publisher.other_table(known.code, columns, known.places)
        self._fill(table, known, slots)
        self._publisher.replace_table(known.code, table)

    def _fill(self, table: TableWriter, known: KindState, slots: Iterable[int]) -> None:
        """Install what these slots say, its cells made of the records."""
        for slot in slots:
            address, buffer, start = self._publisher.newest(known.code, slot)
            found = record.unpack(buffer, start)
            table.install(slot, address, self._cells(known, found, table.columns), not found.deleted)

    # --- reading -----------------------------------------------------------------------------------------------------

    def find(self, kind: KindState, key: str, anew: bool = True) -> Stored | None:
        """What is stored under a key, tombstones included; None if it never was. What was stored under an older schema
        its class makes anew, with the user's code; None without `anew`. Read from the heap's own bytes:
        keeping decoded models instead was slower, because 10,000 of them do not fit the processor's caches.
        """
        slot = kind.slots.get(key)
        if slot is None:
            version = kind.last_version(key)
            return Stored(NO_SLOT, version, 0, 0, False, b"", b"") if version else None
        address, buffer, start = self._publisher.newest(kind.code, slot)
        length, schema, version, deleted, block, payload = record.held(buffer, start)
        if schema != kind.schema.code and not deleted and kind.kind is not None:
            if not anew:
                return None
            payload, block = self.migration.content(kind.kind, record.content(buffer, start))
        return Stored(slot, version, address, padded(length), not deleted, payload, block)

    def seen(self, kind: KindState, key: str) -> Stored | None:
        """What is stored under a key, for the engine itself, which no model may end or hold up: what its class cannot
        make anew is returned as it was stored. Once that took too long, so is all that is of other schemas.
        """
        stored, slot = self.find(kind, key, anew=False), kind.slots.get(key)
        if stored is not None or slot is None or kind.kind is None:
            return stored
        address, buffer, start = self._publisher.newest(kind.code, slot)
        found = record.unpack(buffer, start)
        payload = self.migration.payload(kind.kind, found)
        length = padded(record.length_at(buffer, start))
        return Stored(slot, found.version, address, length, True, payload, b"")

    def record_at(self, address: int) -> record.Record:
        """The record at an address, published or not."""
        self._publisher.heap.flush()  # one of this turn is not copied there yet
        return record.unpack(*self._publisher.at(address))

    def counts(self) -> list[tuple[int, int]]:
        """(slots, entities alive) of each kind, as the root lists them."""
        return [(kind.places, kind.alive) for kind in self.kinds]

    # --- writing -----------------------------------------------------------------------------------------------------

    def merge(self, turn: Turn) -> None:
        """After the commit: the turn is the state."""
        for code, keys in turn.new_keys.items():
            known = self.kinds[code]
            for key, slot in keys:
                known.take(key.decode(errors="surrogatepass"), slot)
        for code, change in turn.alive.items():
            self.kinds[code].alive += change
        self.revision = turn.revision
        for place, lease in turn.leases.items():
            self.coordination.leases.take(lease or ended(place))
        self.coordination.cascades |= turn.cascades

    def forget(self, dropped: Iterable[Dropped]) -> None:
        """Keys of tombstones that memory did not keep."""
        for one in dropped:
            self.kinds[one.kind].forget(one.key.decode(errors="surrogatepass"), one.version, self._forgotten_max)

    def install(self, body: bytes, used_slot: int | None) -> Installed:
        """A journaled record, put back where it was, without decoding its payload where its columns are still the
        same. `used_slot` is that of a new key, where another key had it before: forgotten when this was written, so it
        is forgotten now. So every key has the same place again.
        """
        code, schema, flags, key_length, revision = record.INSTALLED.unpack_from(body)
        kind, new_key = self.kinds[code], None
        encoded = body[record.HEADER_BYTES : record.HEADER_BYTES + key_length]
        key = encoded.decode()
        if used_slot is not None:
            self._forget_for(kind, key, used_slot)
        slot = kind.slots.get(key)
        previous, overtaken, was_alive = 0, 0, False
        if slot is None:
            slot = kind.places if used_slot is None else used_slot
            kind.take(key, slot)
            new_key = encoded
        else:
            previous, buffer, start = self._publisher.newest(code, slot)
            overtaken, was_alive = padded(record.length_at(buffer, start)), not record.deleted_at(buffer, start)
        alive, length = not flags & record.Flags.DELETE, len(body)
        kind.alive += alive - was_alive
        self.revision = revision
        address = self._publisher.heap.append(body, slot, previous)
        cells = self._cells_of(kind, schema, body) if alive else ()
        return Installed(code, slot, address, cells, new_key, alive, padded(length), overtaken, was_alive)

    def _cells_of(self, kind: KindState, schema: int, body: bytes) -> Cells:
        """The cells of a body that is no tombstone, in its kind's table."""
        layout = self.layout(kind, schema)
        if layout is None:
            return self.cells_of(kind, body)
        return tuple(enumerate(layout.unpack(record.held(body, 0)[4])))

    def layout(self, kind: KindState, schema: int) -> struct.Struct | None:
        """How the cells lie in the block of a body that was written under a schema, where it has the columns of its
        kind's table; else None, and they have to be made of its payload.
        """
        columns = self._publisher.columns(kind.code)
        known, layout = self._layouts.get((kind.code, schema), (None, None))
        if known is not columns:
            same = self.schemas[schema].columns == columns
            layout = struct.Struct(format_of(columns)) if same else None
            self._layouts[kind.code, schema] = columns, layout
        return layout

    def _forget_for(self, kind: KindState, key: str, slot: int) -> None:
        """Forget the key, which had another life, and the key that had the slot."""
        places = {slot, kind.slots.get(key, slot)}
        assert slot < kind.places, "a used slot is one that somebody had"
        self.forget([self._publisher.drop(kind.code, place) for place in places if place not in kind.free])

    def cells_of(self, kind: KindState, body: bytes) -> Cells:
        """The cells of a journaled body in its kind's table."""
        return self._cells(kind, record.unpack(body), self._publisher.columns(kind.code))

    def _cells(self, kind: KindState, found: record.Record, columns: Sequence[Column]) -> Cells:
        """The cells of a record in a table with these columns."""
        if found.deleted:
            return ()
        schema = self.schemas[found.schema]
        if schema.columns != tuple(columns) and kind.kind is not None:
            try:
                return self.migration.cells(kind.kind, found)
            except SolewriterError as error:
                if took_too_long(error):
                    raise  # the next one may, too
                # overtaken, perhaps; if not, `check_fit` finds it
        return tuple(
            enumerate(schema.cells(columns, found.cells, partial(_plain, schema, found), kind.schema.defaults))
        )


def _plain(schema: Schema, found: record.Record | record.Content) -> dict[str, Any]:
    return schema.values(found.key, found.version, found.time_us, found.payload)
