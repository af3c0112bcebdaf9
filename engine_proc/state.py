"""The engine's state: what every key's newest record says. Changed by a turn's merge and by recovery, by nothing else.

Key -> slot is kept for every entity; its content is read back from the heap when it is needed. A turn decides against
a `Turn` overlay and a request against a `Draft` over that, so a refused request or a failed commit drops an overlay
and has touched nothing.
What older classes wrote is read by its `migration`; its `tables` have columns as the classes of now declare them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from solewriter.engine_proc.coordination import Coordination
from solewriter.engine_proc.coordination.leases import ended_lease
from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.migration import Migration
from solewriter.engine_proc.overtime import TimeBudget
from solewriter.engine_proc.publisher import Columnar, Installed, Publisher
from solewriter.engine_proc.reclaim import Dropped
from solewriter.engine_proc.tables import Tables
from solewriter.engine_proc.turn import NO_SLOT, Stored, Turn
from solewriter.shared import record
from solewriter.shared.config import KINDS_MAX, SCHEMAS_MAX, Limits
from solewriter.shared.errors import SchemaMismatch
from solewriter.shared.journal.checkpoint import Checkpoint
from solewriter.shared.journal.entry import Private
from solewriter.shared.kinds.kind import Kind
from solewriter.shared.kinds.schema import Schema
from solewriter.shared.memory.heap import padded
from solewriter.shared.registry import Registry


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
        self.tables = Tables(publisher, self.schemas, self.migration)
        self.coordination = Coordination(limits, time_budget)
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
            self.tables.add(known, made[position] if made else None)
        for schema in schemas:
            known = self.kinds[schema.kind]
            known.schema = schema
            self.tables.follow_schema(known)

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

    # --- reading -----------------------------------------------------------------------------------------------------

    def find(self, kind: KindState, key: str, anew: bool = True) -> Stored | None:
        """What is stored under a key, tombstones included; None if it never was. What was stored under an older schema
        its class makes anew, with the user's code; None without `anew`. Read from the heap's own bytes: keeping decoded
        models instead was slower, because 10,000 of them do not fit the processor's caches.
        """
        slot = kind.slots.get(key)
        if slot is None:
            version = kind.last_version(key)
            return Stored(NO_SLOT, version, 0, 0, False, b"", b"") if version else None
        address, buffer, start = self._publisher.newest(kind.code, slot)
        length, schema, version, deleted, block, payload = record.stored_at(buffer, start)
        if schema != kind.schema.code and not deleted and kind.kind is not None:
            if not anew:
                return None
            payload, block = self.migration.content(kind.kind, record.content_at(buffer, start))
        return Stored(slot, version, address, padded(length), not deleted, payload, block)

    def find_safely(self, kind: KindState, key: str) -> Stored | None:
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
            self.coordination.leases.take(lease or ended_lease(place))
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
        cells = self.tables.cells(kind, schema, body) if alive else ()
        return Installed(code, slot, address, cells, new_key, alive, padded(length), overtaken, was_alive)

    def _forget_for(self, kind: KindState, key: str, slot: int) -> None:
        """Forget the key, which had another life, and the key that had the slot."""
        places = {slot, kind.slots.get(key, slot)}
        assert slot < kind.places, "a used slot is one that somebody had"
        self.forget([self._publisher.drop(kind.code, place) for place in places if place not in kind.free])
