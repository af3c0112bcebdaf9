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
from typing import NamedTuple

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.sessions import Sessions, told_of
from solewriter.engine_proc.state import State
from solewriter.shared.config import CHUNK_SLOTS, INSTALLED_AT_ONCE
from solewriter.shared.entry import Entry, Outcome
from solewriter.shared.memory.heap import padded
from solewriter.shared.record import HEADER_BYTES, Flags

_NAMED = struct.Struct("<4xIH4xB")  # length, kind and length of the key of a body
_CUT = struct.Struct("<4xI2xHxBBB40xHH")
"""Of a body its length, schema and flags, and the lengths of what is between its header and its cells: its key, request
id, actor and reason"""
_AT = 0xFFFFFFFF  # of a place: see `_Newest`


class _Newest:
    """Of one kind: where its newest bodies are, by slot. A place is the number of an entry << 32 | an offset in it.
    Slots from `first` on are new, and nothing in memory knows of their keys yet.
    """

    __slots__ = ("first", "kind", "places")

    def __init__(self, kind: KindState) -> None:
        self.kind = kind
        self.first = kind.places
        self.places: dict[int, int] = {}


class _Piece(NamedTuple):
    """Records of ascending slots of one chunk, and what is told of each, or of each that is no tombstone."""

    slots: Sequence[int]
    bodies: list[bytes]
    alive: list[bool]
    blocks: list[bytes]  # of the latter: their cells


class NewestRecords:
    """Collects entries; `install` puts back what they left."""

    def __init__(self, state: State, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._of_kinds: dict[int, _Newest] = {}
        self._bodies: list[bytes] = []  # of all entries that were collected
        self._revision = 0

    def add(self, entry: Entry) -> None:
        """One more entry, in which no key took a used slot. Here all is asked once for each record of a journal: that
        makes the difference between one second and four, of a state of a million.
        """
        bodies, at, end, unpack = entry.bodies, 0, len(entry.bodies), _NAMED.unpack_from
        base, current = len(self._bodies) << 32, -1
        while at < end:
            length, code, key_length = unpack(bodies, at)
            if code != current:
                current, newest = code, self._of(code)
                kind, places, take = newest.kind, newest.places, newest.kind.slots.setdefault
                following = kind.places
            start = at + HEADER_BYTES
            slot = take(bodies[start : start + key_length].decode(), following)
            if slot == following:
                following = kind.places = slot + 1
            places[slot] = base | at
            at += length
        self._bodies.append(bodies)
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
        for newest in self._of_kinds.values():
            self._install_kind(newest)
        self._of_kinds, self._bodies = {}, []
        self._state.revision = self._revision
        self._publisher.note_recovered(self._revision)
        self._publisher.reclaimer.begin_behind(self._revision)

    def _install_kind(self, newest: _Newest) -> None:
        kind, publisher = newest.kind, self._publisher
        slots = sorted(newest.places)
        known = bisect_left(slots, newest.first)
        kind.alive -= publisher.overtake_all(kind.code, slots[:known])
        publisher.table(kind.code).reserve(kind.places)
        cut = self._cutter(newest)
        for some in _beside_each_other(slots):
            self._install_piece(kind, cut(some))
        publisher.add_keys(kind.code, newest.first, kind.took_next(newest.first))

    def _install_piece(self, kind: KindState, piece: _Piece) -> None:
        publisher, table = self._publisher, self._publisher.table(kind.code)
        table.point_all(piece.slots, publisher.heap.append_all(piece.bodies, piece.slots), piece.alive)
        table.fill_all(list(compress(piece.slots, piece.alive)), piece.blocks)
        size, size_alive = (
            sum([padded(len(body)) for body in some]) for some in (piece.bodies, compress(piece.bodies, piece.alive))
        )
        publisher.reclaimer.add(size_alive, size - size_alive)
        kind.alive += len(piece.blocks)

    def _cutter(self, newest: _Newest) -> Callable[[Sequence[int]], _Piece]:
        """The function from slots of a kind to their piece."""
        state, kind, held, places, unpack = self._state, newest.kind, self._bodies, newest.places, _CUT.unpack_from
        cells = struct.Struct("<" + "".join([column.code for column in self._publisher.columns(kind.code)]))
        same = {schema.code for schema in state.schemas if schema.kind == kind.code and state.layout(kind, schema.code)}
        size = cells.size

        def cut(slots: Sequence[int]) -> _Piece:
            found, alive, blocks = list[bytes](), list[bool](), list[bytes]()
            for slot in slots:
                place = places[slot]
                bodies, at = held[place >> 32], place & _AT
                length, schema, flags, key, request_id, actor, reason = unpack(bodies, at)
                found.append(bodies[at : at + length])
                lives = not flags & Flags.DELETE
                alive.append(lives)
                if lives and schema in same:
                    start = at + HEADER_BYTES + key + actor + reason + request_id
                    blocks.append(bodies[start : start + size])
                elif lives:
                    blocks.append(cells.pack(*[cell for _, cell in state.cells_of(kind, found[-1])]))
            return _Piece(slots, found, alive, blocks)

        return cut


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
                if not wanted[-1]:
                    self._sessions.answered(owner.session, owner.sequence)
            if any(wanted):
                kept.append(list(compress(entry.private.outcomes, reversed(wanted))))
        for outcomes in reversed(kept):
            for outcome in outcomes:
                self._sessions.remember(outcome[0], outcome[1], told_of(outcome))
        self._entries.clear()
