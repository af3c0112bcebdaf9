"""Many journal entries at once, put back by their newest records alone: what was overtaken is not in memory then.

A start that has to replay most of a state would otherwise take a minute for millions of records. Keys get their slots
as they come, so that they are where they were; records, cells and index entries follow together, kind by kind.
"""

from __future__ import annotations

import struct

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.state import State
from solewriter.shared import record
from solewriter.shared.entry import Entry
from solewriter.shared.record import HEADER_BYTES, Flags

_NAMED = struct.Struct("<4xIH4xB")  # length, kind and length of the key of a body


class NewestRecords:
    """Collects entries; `install` puts back what they left."""

    def __init__(self, state: State, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._newest: dict[int, dict[int, bytes]] = {}  # by kind and slot
        self._new_keys: dict[int, dict[int, bytes]] = {}
        self._revision = 0
        self._number = 0

    def add(self, entry: Entry) -> None:
        """One more entry, in which no key took a used slot."""
        bodies, at, kinds = entry.bodies, 0, self._state.kinds
        while at < len(bodies):
            length, code, key_length = _NAMED.unpack_from(bodies, at)
            key = bodies[at + HEADER_BYTES : at + HEADER_BYTES + key_length]
            kind = kinds[code]
            slot = kind.slots.get(key.decode())
            if slot is None:
                slot = kind.places
                kind.take(key.decode(), slot)
                self._new_keys.setdefault(code, {})[slot] = key
            self._newest.setdefault(code, {})[slot] = bodies[at : at + length]
            at += length
        self._revision, self._number = entry.revision, entry.number

    def install(self) -> None:
        """Everything that was collected. Raises MemoryFull."""
        if not self._newest:
            return
        for code, newest in self._newest.items():
            self._install_kind(self._state.kinds[code], newest, self._new_keys.get(code, {}))
        self._newest, self._new_keys = {}, {}
        self._state.revision = self._revision
        self._publisher.note_recovered(self._revision)
        self._publisher.reclaimer.begin_behind(self._revision)

    def _install_kind(self, kind: KindState, newest: dict[int, bytes], new_keys: dict[int, bytes]) -> None:
        publisher, code = self._publisher, kind.code
        publisher.make_room(code, kind.places, new_keys)
        heap, table, reclaimer = publisher.heap, publisher.table(code), publisher.reclaimer
        alive = 0
        for slot, body in newest.items():
            previous = 0
            if slot not in new_keys:
                previous, buffer, start = publisher.newest(code, slot)
                alive -= not record.deleted_at(buffer, start)
            heap.reserve(len(body))
            address = heap.append(body, slot, 0)
            deleted = body[record.FLAGS_OFFSET] & Flags.DELETE
            alive += not deleted
            reclaimer.installed(address, previous)
            table.install(slot, address, self._state.cells_of(kind, body), not deleted)
        kind.alive += alive
