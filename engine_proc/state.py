"""The engine's state: what every key's newest record says. Changed by a turn's merge and by recovery, by nothing else.

Key -> slot is kept for every entity; its content is read back from the heap when it is needed. A turn decides against
a `Turn` overlay and a request against a `Draft` over that, so a refused request or a failed commit drops an overlay
and has touched nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from solewriter.engine_proc.publisher import Columnar, Installed, Publisher
from solewriter.engine_proc.reclaim import Dropped
from solewriter.engine_proc.sessions import NEVER, Told
from solewriter.shared import record
from solewriter.shared.columns import NO_FLOAT, NO_INT, Cell, Cells, from_us
from solewriter.shared.config import KINDS_MAX, SCHEMAS_MAX
from solewriter.shared.entry import Private, SessionChange
from solewriter.shared.errors import InvalidMutation, SchemaMismatch, SolewriterError
from solewriter.shared.memory.table import TableWriter
from solewriter.shared.registry import Kind, Registry, Schema
from solewriter.shared.request_ids import own_id

NOTHING: dict[str, Cell] = {"B": 0, "Q": 0, "q": NO_INT, "d": NO_FLOAT}  # the cell of None, by struct letter


NO_SLOT = -1


class Stored(msgspec.Struct, frozen=True, gc=False):
    """The newest state of one key, in the form of the kind's current schema."""

    slot: int  # NO_SLOT: it was deleted so long ago that there is no record of it any more
    version: int
    address: int
    alive: bool  # False for a tombstone, which has neither payload nor block
    payload: bytes
    block: bytes


class KindState:
    """One kind: its model, if it is registered here, the schema that new records get, and the slots of its keys."""

    __slots__ = ("_forgotten", "alive", "base", "code", "free", "kind", "name", "places", "schema", "slots")

    def __init__(self, code: int, name: str, schema: Schema, kind: Kind | None) -> None:
        self.code = code
        self.name = name
        self.schema = schema
        self.kind = kind
        self.slots: dict[str, int] = {}
        self.places = 0  # slots handed out so far, free ones included
        self.free: list[int] = []  # slots whose keys were forgotten
        self.alive = 0
        self.base = 0  # no key that has no record is at a lower version
        self._forgotten: dict[str, int] = {}  # the last versions of keys that were deleted, and have no record any more

    def take(self, key: str, slot: int) -> None:
        """A key is in a slot from now on: a free one, or the next one of all."""
        self.slots[key] = slot
        if slot == self.places:
            self.places += 1
        elif self.free[-1] == slot:
            self.free.pop()
        else:
            self.free.remove(slot)
        self._forgotten.pop(key, None)

    def free_slot(self, taken: int) -> int:
        """The slot for the next key, where so many were given away already."""
        return self.free[-1 - taken] if taken < len(self.free) else self.places + taken - len(self.free)

    def forget(self, key: str, version: int, keys_max: int) -> None:
        """A key's tombstone is gone: its slot is free, and its last version is remembered for a while, then for all."""
        self.free.append(self.slots.pop(key))
        if len(self._forgotten) >= keys_max:
            self.base = max(self.base, *self._forgotten.values())
            self._forgotten.clear()
        self._forgotten[key] = version

    def last_version(self, key: str) -> int:
        """Of a key that has no record: a version that it never went beyond."""
        return self._forgotten.get(key, self.base)


Key = tuple[int, str]  # kind code, id


class Adoption(NamedTuple):
    """Kinds that are about to be known: what is journaled of them, and the tables whose columns are others."""

    kinds: Sequence[Kind]
    private: Private
    tables: dict[int, TableWriter]  # in place of those that are there
    made: list[Columnar]  # of the kinds that are new

    @property
    def brings_nothing(self) -> bool:
        """Whether readers and the journal know all of it."""
        return not (self.private.kinds or self.private.schemas or self.tables)


class Turn:
    """What a turn changes, until its commit."""

    def __init__(self, state: State, tail: int, now_us: int) -> None:
        self.named = state.named
        self._find = state.find
        self.revision = state.revision
        self.tail = tail  # of the heap, before the turn
        self.now_us = now_us
        self.now = from_us(now_us)
        self.changed: dict[Key, Stored] = {}
        self.new_keys: dict[int, list[tuple[bytes, int]]] = {}  # with their slots, in the order of taking
        self.used_slots: dict[int, int] = {}  # of them, by the position of the record, those that others had before
        self.alive: dict[int, int] = {}  # kind -> change of its count
        self.bodies: list[bytes] = []
        self.installed: list[Installed] = []
        self.outcomes: dict[tuple[int, int], Told] = {}  # by session and sequence
        self.by_request_id: dict[str, Told] = {}
        self.sessions: dict[int, SessionChange] = {}
        self.forgotten_sessions: list[int] = []
        self.fenced_ids: list[str] = []
        self.fenced: set[tuple[int, int]] = set()  # session and sequence of those that are clients' own numbers
        self.bytes = 0

    def last_of(self, session: int) -> int:
        """The highest sequence number of a session that this turn consumed; -1 if none."""
        return max((sequence for number, sequence in self.outcomes if number == session), default=-1)

    def note(self, session: int, sequence: int, told: Told) -> None:
        """A decided outcome."""
        self.outcomes[session, sequence] = told
        if told.request_id is not None:
            self.by_request_id[told.request_id] = told

    def fence(self, request_id: str) -> None:
        """Nothing under this id will be applied any more, in this turn or later."""
        self.fenced_ids.append(request_id)
        own = own_id(request_id)
        if own is None:
            self.by_request_id[request_id] = NEVER
        else:
            self.fenced.add(own)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to journal."""
        return not (self.outcomes or self.sessions or self.fenced_ids or self.forgotten_sessions)

    def find(self, kind: KindState, key: str) -> Stored | None:
        """What is stored under a key, after the earlier requests of this turn."""
        return self.changed.get((kind.code, key)) or self._find(kind, key)

    def take_slot(self, kind: KindState, key: bytes) -> int:
        """The next free slot of a kind, for a key that has none."""
        keys = self.new_keys.setdefault(kind.code, [])
        slot = kind.free_slot(len(keys))
        keys.append((key, slot))
        if slot < kind.places:
            self.used_slots[len(self.bodies)] = slot
        return slot

    def slots(self, kind: KindState) -> int:
        """Slots of a kind after this turn."""
        return kind.places + max(0, len(self.new_keys.get(kind.code, ())) - len(kind.free))

    def private(self) -> Private:
        return Private(
            outcomes=[
                (number, sequence, told.status, told.revision, told.detail, told.request_id, told.digest)
                for (number, sequence), told in self.outcomes.items()
            ],
            sessions=list(self.sessions.values()),
            forgotten_sessions=self.forgotten_sessions,
            fenced_ids=self.fenced_ids,
            slots=self.used_slots,
        )


class State:
    """Keys and counters."""

    def __init__(self, registry: Registry, publisher: Publisher, forgotten_keys_max: int) -> None:
        self.registry = registry
        self.kinds: list[KindState] = []
        self.schemas: list[Schema] = []
        self.revision = 0
        self._publisher = publisher
        self._forgotten_max = forgotten_keys_max
        self._by_name: dict[str, KindState] = {}
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
            if known.kind is None and schema.columns != self._publisher.columns(known.code):
                self._follow(known, schema)

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

    def prepared(self, kinds: Sequence[Kind]) -> Adoption:
        """What it takes to know these kinds from now on; then `adopt` or `forgo` it. Raises SchemaMismatch, MemoryFull,
        and then nothing has changed.
        """
        kinds = list({kind.name: kind for kind in kinds}.values())  # of two classes of one kind the last
        adoption = Adoption(kinds, self.new_kinds(kinds), {}, [])
        self.check_fit(kinds)
        try:
            self._make_tables(adoption)
            for kind in kinds:
                known = self._by_name.get(kind.name)
                if known is not None and kind.columns != self._publisher.columns(known.code):
                    table = self._publisher.other_table(known.code, kind.columns, known.places)
                    adoption.tables[known.code] = table
                    self._refill(table, known, kind)
            if not adoption.brings_nothing:
                self._prepare_catalog(adoption)
        except SolewriterError:
            self.forgo(adoption)
            raise
        return adoption

    def _make_tables(self, adoption: Adoption) -> None:
        """Those of the kinds that are new. Raises MemoryFull."""
        by_name = {kind.name: kind for kind in adoption.kinds}
        for code, name in enumerate(adoption.private.kinds, len(self.kinds)):
            adoption.made.append(self._publisher.new_table(code, by_name[name].columns))

    def _prepare_catalog(self, adoption: Adoption) -> None:
        names = [*(kind.name for kind in self.kinds), *adoption.private.kinds]
        tables = [adoption.tables.get(kind.code) or self._publisher.table(kind.code) for kind in self.kinds]
        tables += [table for table, _ in adoption.made]
        self._publisher.prepare_catalog(names, [*self.schemas, *adoption.private.schemas], tables)

    def check_fit(self, kinds: Iterable[Kind]) -> None:
        """Raises SchemaMismatch if something stored does not fit the new class of its kind. Takes 5 us for each entity
        of a kind whose class changed.
        """
        for kind in kinds:
            known = self._by_name.get(kind.name)
            if known is None or known.schema.digest() == kind.schema.digest():
                continue
            for slot in known.slots.values():
                _, buffer, start = self._publisher.newest(known.code, slot)
                found = record.checked_content(buffer, start)
                if not found.deleted:
                    self._check_fits(kind, found)

    def _check_fits(self, kind: Kind, found: record.Content) -> None:
        try:
            _cut_anew(kind, self.schemas[found.schema], found)
        except (SchemaMismatch, InvalidMutation) as error:
            raise SchemaMismatch(
                f"{error}. It was stored at revision {found.revision}: give new fields defaults, and renamed ones "
                "their old name as an alias",
                kind=kind.name,
            ) from error

    def forgo(self, adoption: Adoption) -> None:
        for code, table in adoption.tables.items():
            self._publisher.remove_table(code, table)
        for code, made in enumerate(adoption.made, len(self.kinds)):
            self._publisher.remove_new_table(code, made)
        self._publisher.drop_catalog()

    def adopt(self, adoption: Adoption) -> None:
        """After the commit: requests about these kinds are decided by these classes."""
        for kind in adoption.kinds:
            self.registry.install(kind)
            if (known := self._by_name.get(kind.name)) is not None:
                known.kind = kind
        for code, table in adoption.tables.items():
            self._publisher.replace_table(code, table)
        if not adoption.brings_nothing:
            self.add_kinds(adoption.private.kinds, adoption.private.schemas, adoption.made)
            self._publisher.use_catalog()

    def _refill(self, table: TableWriter, known: KindState, kind: Kind) -> None:
        """All slots of a kind with the columns of another class of it. Raises InvalidMutation."""
        for slot in known.slots.values():
            address, buffer, start = self._publisher.newest(known.code, slot)
            content = record.checked_content(buffer, start)
            cells: Cells = ()
            if not content.deleted:
                cells = _cut_anew(kind, self.schemas[content.schema], content)
            table.install(slot, address, cells, not content.deleted)

    def _follow(self, known: KindState, schema: Schema) -> None:
        """A kind without a class here has the columns of its newest schema. Raises MemoryFull."""
        table = self._publisher.other_table(known.code, schema.columns, known.places)
        for slot in known.slots.values():
            address, buffer, start = self._publisher.newest(known.code, slot)
            found = record.unpack(buffer, start)
            cells: Cells = ()
            if not found.deleted:
                written = self.schemas[found.schema]
                made = written.cells(schema.columns, found.cells, partial(_plain, written, found))
                cells = tuple(enumerate(made))
            table.install(slot, address, cells, not found.deleted)
        self._publisher.replace_table(known.code, table)

    # --- reading -----------------------------------------------------------------------------------------------------

    def find(self, kind: KindState, key: str) -> Stored | None:
        """What is stored under a key, tombstones included; None if it never was. Read from the heap's own bytes:
        keeping decoded models instead was slower, because 10,000 of them do not fit the processor's caches.
        """
        slot = kind.slots.get(key)
        if slot is None:
            version = kind.last_version(key)
            return Stored(NO_SLOT, version, 0, False, b"", b"") if version else None
        address, buffer, start = self._publisher.newest(kind.code, slot)
        schema, version, deleted, block, payload = record.held(buffer, start)
        if schema != kind.schema.code and not deleted and kind.kind is not None:
            fields = kind.kind.fields_of(self.schemas[schema], payload)
            payload = kind.kind.payload(
                kind.kind.stored(kind.kind.validated({**fields, "id": key, "version": version}))
            )
            time_us = record.time_at(buffer, start)
            block, _ = kind.kind.cut(fields, key, version, time_us)
        return Stored(slot, version, address, not deleted, payload, block)

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

    def forget(self, dropped: Iterable[Dropped]) -> None:
        """Keys of tombstones that memory did not keep."""
        for one in dropped:
            self.kinds[one.kind].forget(one.key.decode(errors="surrogatepass"), one.version, self._forgotten_max)

    def install(self, body: bytes, used_slot: int | None) -> Installed:
        """A journaled record, put back where it was, without decoding its payload where its columns are still the
        same. `used_slot` is that of a new key, where another key had it before: forgotten when this was written, so it
        is forgotten now. So every key has the same place again.
        """
        found = record.unpack(body)
        kind = self.kinds[found.kind]
        if used_slot is not None:
            self._forget_for(kind, found.key, used_slot)
        slot = kind.slots.get(found.key)
        new_key = None
        previous, was_alive = 0, False
        if slot is None:
            slot = kind.places if used_slot is None else used_slot
            kind.take(found.key, slot)
            new_key = found.key.encode(errors="surrogatepass")
        else:
            previous, buffer, start = self._publisher.newest(found.kind, slot)
            was_alive = not record.deleted_at(buffer, start)
        kind.alive += (not found.deleted) - was_alive
        self.revision = found.revision
        self._publisher.heap.reserve(len(body))
        address = self._publisher.heap.append(body, slot, previous)
        return Installed(found.kind, slot, address, self._cells(kind, found), new_key, not found.deleted)

    def _forget_for(self, kind: KindState, key: str, slot: int) -> None:
        """The key itself, which had another life, and the key that had the slot."""
        places = {slot, kind.slots.get(key, slot)}
        assert slot < kind.places, "a used slot is one that somebody had"
        self.forget([self._publisher.drop(kind.code, place) for place in places if place not in kind.free])

    def _cells(self, kind: KindState, found: record.Record) -> Cells:
        if found.deleted:
            return ()
        schema, columns = self.schemas[found.schema], self._publisher.columns(kind.code)
        if schema.columns != columns and kind.kind is not None:
            try:
                return _cut_anew(kind.kind, schema, found)
            except SolewriterError:
                pass  # overtaken, perhaps; if not, `check_fit` finds it
        return tuple(enumerate(schema.cells(columns, found.cells, partial(_plain, schema, found))))


def _plain(schema: Schema, found: record.Record | record.Content) -> dict[str, Any]:
    return schema.values(found.key, found.version, found.time_us, found.payload)


def _cut_anew(kind: Kind, schema: Schema, found: record.Record | record.Content) -> Cells:
    """The cells of a record that was written under other columns. Raises SchemaMismatch, InvalidMutation."""
    entity = kind.decoded(schema, found.key, found.version, found.time_us, found.payload)
    return kind.cut(kind.stored(entity), found.key, found.version, found.time_us)[1]
