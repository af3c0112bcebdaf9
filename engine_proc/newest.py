"""Many journal entries at once, put back by their newest records alone: what was overtaken is not in memory then.

A start that has to replay most of a state would otherwise take a minute for millions of records. Keys get their slots
as they come, so that they are where they were; records, cells and index entries follow together, kind by kind. Of
outcomes, too, only those are looked at that a session still remembers.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.sessions import Sessions, told_of
from solewriter.engine_proc.state import State
from solewriter.shared import record
from solewriter.shared.columns import Cell
from solewriter.shared.entry import Entry, Outcome
from solewriter.shared.memory.heap import padded
from solewriter.shared.record import HEADER_BYTES, Flags

_NAMED = struct.Struct("<4xIH4xB")  # length, kind and length of the key of a body
_CUT = struct.Struct("<10xHxBBB40xHH")  # its schema, flags, and the lengths of what is between its header and its cells


class NewestRecords:
    """Collects entries; `install` puts back what they left."""

    def __init__(self, state: State, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._newest: dict[int, dict[int, bytes]] = {}  # by kind and slot
        self._new_keys: dict[int, dict[int, bytes]] = {}
        self._revision = 0

    def add(self, entry: Entry) -> None:
        """One more entry, in which no key took a used slot."""
        bodies, at, kinds, unpack = entry.bodies, 0, self._state.kinds, _NAMED.unpack_from
        while at < len(bodies):
            length, code, key_length = unpack(bodies, at)
            key = bodies[at + HEADER_BYTES : at + HEADER_BYTES + key_length]
            kind = kinds[code]
            slot = kind.slots.get(key.decode())
            if slot is None:
                slot = kind.places
                kind.take(key.decode(), slot)
                self._new_keys.setdefault(code, {})[slot] = key
            self._newest.setdefault(code, {})[slot] = bodies[at : at + length]
            at += length
        self._revision = entry.revision

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
        heap, table, cells_of = publisher.heap, publisher.table(code), self._cells_of(kind)
        sizes, alive = [0, 0], 0
        for slot, body in newest.items():
            if slot not in new_keys:
                alive -= publisher.overtake(code, slot)
            deleted = body[record.FLAGS_OFFSET] & Flags.DELETE
            heap.reserve(len(body))
            table.install_all(slot, heap.append(body, slot, 0), () if deleted else cells_of(body), not deleted)
            sizes[deleted] += padded(len(body))
            alive += not deleted
        publisher.reclaimer.add(*sizes)
        kind.alive += alive

    def _cells_of(self, kind: KindState) -> Callable[[bytes], Sequence[Cell]]:
        """The function from a body to its cells in its kind's table."""
        state, columns = self._state, self._publisher.columns(kind.code)
        unpack = struct.Struct("<" + "".join([column.code for column in columns])).unpack_from
        same = {schema.code for schema in state.schemas if schema.kind == kind.code and schema.columns == columns}

        def cells_of(body: bytes) -> Sequence[Cell]:
            schema, _, key, request_id, actor, reason = _CUT.unpack_from(body)
            if schema in same:
                return unpack(body, HEADER_BYTES + key + actor + reason + request_id)
            return [cell for _, cell in state.cells_of(kind, body)]

        return cells_of


class NewestOutcomes:
    """Collects outcomes; `install` puts back those that sessions remember."""

    def __init__(self, sessions: Sessions, window: int) -> None:
        self._sessions = sessions
        self._window = window
        self._by_session: dict[int, deque[Outcome]] = {}

    def add(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            known = self._by_session.get(outcome[0])
            if known is None:
                known = self._by_session[outcome[0]] = deque(maxlen=self._window)
            known.append(outcome)
            if outcome[5] is not None:  # the user's own ids are remembered by another rule
                self.install()

    def install(self) -> None:
        for outcomes in self._by_session.values():
            for outcome in outcomes:
                self._sessions.remember(outcome[0], outcome[1], told_of(outcome))
        self._by_session.clear()
