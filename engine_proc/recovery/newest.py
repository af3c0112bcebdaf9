"""Many journal entries at once, put back by their newest records alone: what was overtaken is not in memory then.

A start that has to replay most of a state would otherwise take a minute for millions of records. It may assume what
no turn may: nobody reads this memory yet, and a failure is the end of the start. So keys get their slots as they come,
where they were; the newest records follow together, kind by kind in the order of their slots: copied to the heap by the
hundred, their cells stored column by column where their slots stand side by side. Of outcomes, too, only those are
looked at that a session still remembers.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, compress
from operator import not_
from typing import NamedTuple

from solewriter.engine_proc.kinds import KindState
from solewriter.engine_proc.publisher import Publisher
from solewriter.engine_proc.reclaim import Dropped
from solewriter.engine_proc.recovery import unread
from solewriter.engine_proc.session import recovered
from solewriter.engine_proc.sessions import Sessions
from solewriter.engine_proc.state import State
from solewriter.shared import record
from solewriter.shared.config import CHUNK_SLOTS, INSTALLED_AT_ONCE
from solewriter.shared.journal.entry import Entry, Outcome, PrivateChanges, Slots
from solewriter.shared.kinds.columns import format_of
from solewriter.shared.memory.heap import padded
from solewriter.shared.memory.index import key_hash
from solewriter.shared.record import HEADER_BYTES, KEYED, Flags

_AT = 0xFFFFFFFF  # of a place: see `_Newest`


class _Newest:
    """Of one kind: where its newest bodies are, by slot. A place is the number of an entry, from 1 on, << 32 | an
    offset in it; 0 where nothing came. Slots from `first` on are new, and those that were `taken` have other keys than
    before: nothing in memory knows of these keys yet.
    """

    __slots__ = ("first", "kind", "places", "taken")

    def __init__(self, kind: KindState) -> None:
        self.kind = kind
        self.first = kind.places
        self.places = array("Q", bytes(8 * kind.places))  # a dict of a million would take three times as long
        self.taken: set[int] = set()


class _Piece(NamedTuple):
    """Records of ascending slots of one chunk."""

    slots: Sequence[int]
    bodies: list[bytes]
    alive: list[bool]  # of each whether it is no tombstone
    blocks: list[bytes]  # of those: their cells
    new_keys: list[bytes]  # those that memory does not know
    new_slots: list[int]


class NewestRecords:
    """Collects entries; `install` puts back what they left."""

    def __init__(self, state: State, publisher: Publisher) -> None:
        self._state = state
        self._publisher = publisher
        self._of_kinds: dict[int, _Newest] = {}
        self._bodies = [b""]  # of all entries that were collected, from 1 on
        self._revision = 0

    def add(self, entry: Entry, said: PrivateChanges) -> None:
        """One more entry. Where keys took used slots, what a checkpoint brings must be in memory. What is asked here is
        asked once for each record of a journal: of a state of a million, that makes the difference between one second
        and four.
        """
        base = len(self._bodies) << 32
        self._bodies.append(entry.bodies)
        self._revision = entry.revision
        if said.known is None or not self._add_known(said.known, base, len(entry.bodies)):
            self._add_by_keys(entry.bodies, base, said.slots)

    def _add_known(self, known: Slots, base: int, size: int) -> bool:
        """The records of an entry, which says their slots. False if that cannot be."""
        slots, lengths = known.unpack(size)
        newest = self._of(known.kind)
        if not slots or max(slots) >= newest.kind.places:
            return False
        places = newest.places
        for slot, place in zip(slots, accumulate(lengths, initial=base), strict=False):  # there is one end more
            places[slot] = place
        return True

    def _add_by_keys(self, bodies: bytes, base: int, used_slots: Mapping[int, int]) -> None:
        """The records of an entry. `used_slots`: by a record's position, that of a new key which took the slot of
        another one.
        """
        at, end, position, current, unpack = 0, len(bodies), 0, -1, KEYED.unpack_from
        while at < end:
            length, code, key_length = unpack(bodies, at)
            if code != current:
                current, newest = code, self._of(code)
                kind, places, take = newest.kind, newest.places, newest.kind.slots.setdefault
                following = kind.places
            start = at + HEADER_BYTES
            key = bodies[start : start + key_length].decode()
            if used_slots:
                if position in used_slots:
                    self._take_used(newest, key, used_slots[position])
                position += 1
            slot = take(key, following)
            if slot == following:
                following = kind.places = slot + 1
                places.append(0)
                kind.unforget(key)
            places[slot] = base | at
            at += length

    def _take_used(self, newest: _Newest, key: str, slot: int) -> None:
        """A key takes a slot that another one had, which was forgotten when this was written, so it is forgotten now;
        and so is what it had itself in another life, where that was in another slot.
        """
        kind = newest.kind
        assert slot < kind.places, "a used slot is one that somebody had"
        for place in {slot, kind.slots.get(key, slot)}:
            if place not in kind.free:
                self._forget(newest, place)
        kind.take(key, slot)
        newest.taken.add(slot)

    def _forget(self, newest: _Newest, slot: int) -> None:
        """The key of a slot, which was deleted. Where memory has an older record of it, its tombstone comes there, too:
        who walks the records meets it behind that one.
        """
        kind, publisher, place = newest.kind, self._publisher, newest.places[slot]
        newest.places[slot] = 0
        bodies, at = self._bodies[place >> 32], place & _AT
        in_memory = slot < newest.first and publisher.table(kind.code).head(slot) != 0
        if place and in_memory:
            kind.alive -= unread.overtake_all(publisher, kind.code, [slot])
            self._install_piece(
                kind, _Piece([slot], [bodies[at : at + record.length_at(bodies, at)]], [False], [], [], [])
            )
        if in_memory:
            dropped = publisher.drop(kind.code, slot)
        else:
            version, revision = record.version_at(bodies, at), record.revision_at(bodies, at)
            dropped = Dropped(kind.code, slot, record.key_at(bodies, at), version, revision)
        self._state.forget([dropped])

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
        self._of_kinds, self._bodies = {}, [b""]
        self._state.revision = self._revision
        unread.note(self._publisher, self._revision)
        self._publisher.reclaimer.begin_behind(self._revision)

    def _install_kind(self, newest: _Newest) -> None:
        kind, publisher, keys, new_slots = newest.kind, self._publisher, list[bytes](), list[int]()
        slots, cut = list(compress(range(kind.places), newest.places)), self._cutter(newest)
        kind.alive -= unread.overtake_all(publisher, kind.code, slots[: bisect_left(slots, newest.first)])
        publisher.table(kind.code).reserve(kind.places)
        for some in _beside_each_other(slots):
            piece = cut(some)
            self._install_piece(kind, piece)
            keys += piece.new_keys
            new_slots += piece.new_slots
        publisher.index(kind.code).add_all(map(key_hash, keys), new_slots)

    def _install_piece(self, kind: KindState, piece: _Piece) -> None:
        publisher, table = self._publisher, self._publisher.table(kind.code)
        table.point_all(piece.slots, publisher.heap.append_all(piece.bodies, piece.slots), piece.alive)
        table.fill_all(list(compress(piece.slots, piece.alive)), piece.blocks)
        size = sum(map(padded, map(len, piece.bodies)))
        dead = sum([padded(len(body)) for body in compress(piece.bodies, map(not_, piece.alive))])
        publisher.usage.add(size - dead, dead)
        kind.alive += len(piece.blocks)

    def _cutter(self, newest: _Newest) -> Callable[[Sequence[int]], _Piece]:
        """The function from slots of a kind to their piece."""
        tables, kind, held, places, taken = self._state.tables, newest.kind, self._bodies, newest.places, newest.taken
        columns = self._publisher.columns(kind.code)
        cells, others = struct.Struct(format_of(columns)), tables.of_other_columns(kind.code, columns)
        size, unpack, first = cells.size, record.BEFORE_CELLS.unpack_from, newest.first

        def cut(slots: Sequence[int]) -> _Piece:
            piece = _, found, alive, blocks, keys, new_slots = _Piece(slots, [], [], [], [], [])
            news = bool(taken) or slots[-1] >= first
            for slot in slots:
                place = places[slot]
                bodies, at = held[place >> 32], place & _AT
                length, schema, flags, key, request_id, actor, reason = unpack(bodies, at)
                found.append(bodies[at : at + length])
                lives, start = not flags & Flags.DELETE, at + HEADER_BYTES
                alive.append(lives)
                if news and (slot >= first or slot in taken):
                    keys.append(bodies[start : start + key])
                    new_slots.append(slot)
                if lives and schema not in others:
                    start += key + actor + reason + request_id
                    blocks.append(bodies[start : start + size])
                elif lives:
                    blocks.append(cells.pack(*[cell for _, cell in tables.cells(kind, schema, found[-1])]))
            return piece

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
            self._sessions.remember(map(recovered, outcomes))
        self._entries.clear()
