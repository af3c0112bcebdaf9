"""Many journal entries at once, put back by their newest records alone: what was overtaken is not in memory then.

A start that has to replay most of a state would otherwise take a minute for millions of records. It may assume what
no turn may: nobody reads this memory yet, a failure is the end of the start, and no key takes a slot that another one
had. So keys get their slots as they come, where they were; the newest records follow together, kind by kind in the
order of their slots: copied to the heap by the hundred, their cells stored column by column where their slots stand
side by side. Of outcomes, too, only those are looked at that a session still remembers.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import compress

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.sessions import Sessions, told_of
from solewriter.engine_proc.state import State
from solewriter.shared.config import CHUNK_SLOTS, INSTALLED_AT_ONCE
from solewriter.shared.entry import Entry, Outcome
from solewriter.shared.memory.heap import padded
from solewriter.shared.record import FLAGS_OFFSET, HEADER_BYTES, Flags

_NAMED = struct.Struct("<4xIH4xB")  # length, kind and length of the key of a body
_CUT = struct.Struct("<10xHxxBB40xHH")  # its schema, and the lengths of what is between its header and its cells


class _Newest:
    """Of one kind, by slot: bodies, and keys that have no other record in memory."""

    __slots__ = ("bodies", "keys", "kind")

    def __init__(self, kind: KindState) -> None:
        self.kind = kind
        self.bodies: dict[int, bytes] = {}
        self.keys: dict[int, bytes] = {}


class NewestRecords:
    """Collects entries; `install` puts back what they left."""

    def __init__(self, state: State, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._of_kinds: dict[int, _Newest] = {}
        self._revision = 0

    def add(self, entry: Entry) -> None:
        """One more entry, in which no key took a used slot."""
        bodies, at, end, unpack = entry.bodies, 0, len(entry.bodies), _NAMED.unpack_from
        current = -1
        while at < end:
            length, code, key_length = unpack(bodies, at)
            if code != current:  # seldom: locals for what is asked once for each record
                current, of_kind = code, self._of(code)
                find, newest, keys, take = of_kind.kind.slots.get, of_kind.bodies, of_kind.keys, of_kind.kind.take_next
            start = at + HEADER_BYTES
            key = bodies[start : start + key_length]
            name = key.decode()
            slot = find(name)
            if slot is None:
                slot = take(name)
                keys[slot] = key
            behind = at + length
            newest[slot] = bodies[at:behind]
            at = behind
        self._revision = entry.revision

    def _of(self, code: int) -> _Newest:
        found = self._of_kinds.get(code)
        if found is None:
            found = self._of_kinds[code] = _Newest(self._state.kinds[code])
        return found

    def install(self) -> None:
        """Everything that was collected. Raises MemoryFull."""
        if not self._of_kinds:
            return
        for of_kind in self._of_kinds.values():
            self._install_kind(of_kind)
        self._of_kinds = {}
        self._state.revision = self._revision
        self._publisher.note_recovered(self._revision)
        self._publisher.reclaimer.begin_behind(self._revision)

    def _install_kind(self, newest: _Newest) -> None:
        kind, publisher = newest.kind, self._publisher
        publisher.add_keys(kind.code, kind.places, newest.keys)
        known = [slot for slot in newest.bodies if slot not in newest.keys]
        kind.alive -= publisher.overtake_all(kind.code, sorted(known))
        block_of = self._block_of(kind)
        for slots in _beside_each_other(sorted(newest.bodies)):
            bodies = [newest.bodies.pop(slot) for slot in slots]  # which are not held twice for long
            kind.alive += self._install_some(kind.code, slots, bodies, block_of)

    def _install_some(
        self, code: int, slots: Sequence[int], bodies: Sequence[bytes], block_of: Callable[[bytes], bytes]
    ) -> int:
        """Records of a kind in ascending slots of one chunk; how many of them are no tombstones."""
        publisher, table = self._publisher, self._publisher.table(code)
        alive = [not body[FLAGS_OFFSET] & Flags.DELETE for body in bodies]
        table.point_all(slots, publisher.heap.append_all(bodies, slots), alive)
        lives = list(compress(bodies, alive))
        table.fill_all(list(compress(slots, alive)), [block_of(body) for body in lives])
        size, size_alive = (sum([padded(len(body)) for body in some]) for some in (bodies, lives))
        publisher.reclaimer.add(size_alive, size - size_alive)
        return len(lives)

    def _block_of(self, kind: KindState) -> Callable[[bytes], bytes]:
        """The function from a body to the cells of its kind's table, as one block."""
        state, unpack = self._state, _CUT.unpack_from
        cells = struct.Struct("<" + "".join([column.code for column in self._publisher.columns(kind.code)]))
        same = {schema.code for schema in state.schemas if schema.kind == kind.code and state.layout(kind, schema.code)}

        def block_of(body: bytes) -> bytes:
            schema, key, request_id, actor, reason = unpack(body)
            if schema in same:
                start = HEADER_BYTES + key + actor + reason + request_id
                return body[start : start + cells.size]
            return cells.pack(*[cell for _, cell in state.cells_of(kind, body)])

        return block_of


def _beside_each_other(slots: Sequence[int]) -> Iterator[Sequence[int]]:
    """Ascending slots in pieces of one chunk each, and of no more than are installed at once."""
    start = 0
    while start < len(slots):
        behind_chunk = (slots[start] // CHUNK_SLOTS + 1) * CHUNK_SLOTS
        end = bisect_left(slots, behind_chunk, start, min(start + INSTALLED_AT_ONCE, len(slots)))
        yield slots[start:end]
        start = end


class NewestOutcomes:
    """Collects entries; `install` puts back those outcomes in them that are remembered."""

    def __init__(self, sessions: Sessions, window: int) -> None:
        self._sessions = sessions
        self._window = window
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """One more entry, which says nothing of sessions but outcomes."""
        self._entries.append(entry._replace(bodies=b""))

    def install(self) -> None:
        """Those of the last window of each session; and all under users' own ids, which are remembered by another rule.
        In their order, as if each had been told to `sessions` by itself.
        """
        told: dict[int, int] = {}  # by session, how many of its newest ones
        kept: list[list[Outcome]] = []
        for entry in reversed(self._entries):
            wanted = []
            for owner in reversed(entry.owners):
                count = told[owner.session] = told.get(owner.session, 0) + 1
                wanted.append(count <= self._window or owner.request_id is not None)
            if any(wanted):
                kept.append(list(compress(entry.private.outcomes, reversed(wanted))))
        for outcomes in reversed(kept):
            for outcome in outcomes:
                self._sessions.remember(outcome[0], outcome[1], told_of(outcome))
        self._entries.clear()
